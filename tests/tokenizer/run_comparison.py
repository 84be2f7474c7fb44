#!/usr/bin/env python3
"""Runs compare.mjs with the packages that package-lock.json pins.

The packages come from the npm registry. Where node or the registry is missing
the comparison is skipped, loudly, with exit code 77; with CI or
OVERFILL_REQUIRE_NPM set in the environment that is a failure.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
SKIPPED = 77
NPM_ATTEMPTS = 3
NPM_TIMEOUT_SECONDS = 240


def skip(reason):
    required = os.environ.get('CI') or os.environ.get('OVERFILL_REQUIRE_NPM')
    word = 'FAILED' if required else 'SKIPPED'
    print('=' * 72)
    print(f'TOKENIZER COMPARISON {word}: {reason}')
    print('=' * 72)
    sys.exit(1 if required else SKIPPED)


def install_packages(folder):
    """Puts the pinned packages into folder/node_modules, unless they are."""
    lock = (HERE / 'package-lock.json').read_text()
    stamp = folder / 'installed-lock.json'
    if stamp.exists() and stamp.read_text() == lock:
        return
    if shutil.which('npm') is None:
        skip('npm is not installed')
    folder.mkdir(parents=True, exist_ok=True)
    for name in ('package.json', 'package-lock.json'):
        shutil.copy(HERE / name, folder / name)
    command = ['npm', 'ci', '--ignore-scripts', '--no-audit', '--no-fund']
    for attempt in range(1, NPM_ATTEMPTS + 1):
        try:
            result = subprocess.run(
                command, cwd=folder, timeout=NPM_TIMEOUT_SECONDS,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except subprocess.TimeoutExpired:
            print(f'npm ci: no end after {NPM_TIMEOUT_SECONDS} s')
            continue
        if result.returncode == 0:
            stamp.write_text(lock)
            return
        print(f'npm ci, attempt {attempt}:\n{result.stdout}')
        time.sleep(2 * attempt)
    skip('npm ci could not install the packages')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--make', required=True, help='make_tokenizers')
    parser.add_argument('--tokenize', required=True, help='overfill-tokenize')
    parser.add_argument('--work', required=True, help='folder to write to')
    parser.add_argument('--seed')
    parser.add_argument('--strings', default='2500')
    args = parser.parse_args()
    if shutil.which('node') is None:
        skip('node is not installed')
    work = pathlib.Path(args.work)
    install_packages(work / 'npm')
    command = ['node', str(HERE / 'compare.mjs'), f'--make={args.make}',
               f'--tokenize={args.tokenize}', f'--modules={work / "npm"}',
               f'--work={work / "tokenizers"}', f'--strings={args.strings}']
    if args.seed:
        command.append(f'--seed={args.seed}')
    sys.exit(subprocess.run(command).returncode)


if __name__ == '__main__':
    main()
