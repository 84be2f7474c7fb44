"""The packages that package-lock.json pins, installed into the build folder."""

import pathlib
import shutil
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
FILES = ("package.json", "package-lock.json", ".npmrc")
ATTEMPTS = 3
TIMEOUT_SECONDS = 120


def install(work):
    """The folder that has node_modules; installs nothing that is there."""
    folder = pathlib.Path(work) / "npm"
    lock = (HERE / "package-lock.json").read_text()
    stamp = folder / "installed-lock.json"
    if stamp.exists() and stamp.read_text() == lock:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(HERE / name, folder / name)
    said = ""
    for attempt in range(ATTEMPTS):
        time.sleep(2 * attempt)
        try:
            done = subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=folder, timeout=TIMEOUT_SECONDS, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except subprocess.TimeoutExpired:
            said = f"npm ci: no end after {TIMEOUT_SECONDS} s"
            continue
        if done.returncode == 0:
            stamp.write_text(lock)
            return folder
        said = done.stdout
    raise RuntimeError(f"npm ci failed: {said}")
