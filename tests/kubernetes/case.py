"""What the tests of manifests share: options, both kubectls, schema faults."""

import argparse
import copy
import functools
import json
import pathlib
import subprocess
import sys
import unittest

import kubectl
import npm_packages

HERE = pathlib.Path(__file__).resolve().parent
work = None  # set by main
server_binary = None


@functools.lru_cache(maxsize=None)
def _rendered(overlay):
    return kubectl.render(kubectl.programs(work)[1], overlay)


def rendered(overlay):
    """The overlay's objects; the caller may change them."""
    return copy.deepcopy(_rendered(overlay))


def schema_faults(objects):
    """For each object a list of what its schema does not allow."""
    modules = npm_packages.install(work)
    done = subprocess.run(
        ["node", HERE / "validate.mjs", f"--modules={modules}"],
        input=json.dumps(objects), capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    faults = json.loads(done.stdout)
    assert len(faults) == len(objects)
    return faults


def main():
    """Runs the calling module's tests; --work=FOLDER --server=BINARY."""
    global work, server_binary
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--work", required=True, type=pathlib.Path)
    parser.add_argument("--server", required=True, type=pathlib.Path)
    options, rest = parser.parse_known_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    server_binary = options.server.resolve()
    unittest.main(argv=sys.argv[:1] + rest)
