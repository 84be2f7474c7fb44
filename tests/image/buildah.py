"""buildah with a store of the test's own, and the time of each phase."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

from sandbox import WORK

_LINES_OF_A_FAILURE = 60
_phases = []


@contextlib.contextmanager
def phase(name):
    begin = time.monotonic()
    try:
        yield
    finally:
        _phases.append((time.monotonic() - begin, name))
        print(f"{_phases[-1][0]:7.1f} s  {name}", flush=True)


def print_phases():
    print("time of each phase")
    for seconds, name in _phases:
        print(f"{seconds:7.1f} s  {name}")
    print(f"{sum(seconds for seconds, _ in _phases):7.1f} s  in all",
          flush=True)


def logged(name, command, **options):
    """Runs with all output in a log; a failure shows the log's end."""
    path = os.path.join(WORK, f"{name}.log")
    with open(path, "w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, **options)
    with open(path, errors="replace") as log:
        text = log.read()
    if done.returncode != 0:
        tail = "\n".join(text.splitlines()[-_LINES_OF_A_FAILURE:])
        raise RuntimeError(f"{name} failed, {path} ends in:\n{tail}")
    return text


class Store:
    """Images and containers below WORK."""

    def __init__(self):
        self.root = os.path.join(WORK, "store")
        self._temporary = os.path.join(WORK, "tmp")
        self._run_root = os.path.join(WORK, "run")
        # Both are of one run alone.
        for path in [self._temporary, self._run_root]:
            shutil.rmtree(path, ignore_errors=True)
            os.makedirs(path)
        try:
            self.run("rm", "--all")
        except RuntimeError as error:  # a run that was killed may leave this
            print(f"a new store: {error}", file=sys.stderr)
            shutil.rmtree(self.root)

    def command(self, *arguments):
        # vfs needs nothing of the kernel, so it works in a container too.
        return ["buildah", "--storage-driver", "vfs", "--root", self.root,
                "--runroot", self._run_root, *arguments]

    def _environment(self):
        return dict(os.environ, TMPDIR=self._temporary)

    def run(self, *arguments):
        """Its standard output."""
        done = subprocess.run(self.command(*arguments), text=True,
                              capture_output=True, env=self._environment())
        if done.returncode != 0:
            raise RuntimeError(f"buildah {arguments}: {done.stderr}")
        return done.stdout.strip()

    def build(self, name, *arguments):
        """The log of `buildah build`, which is also written to NAME.log."""
        return logged(name, self.command(
            "build", "--isolation", "chroot", *arguments),
            env=self._environment())

    def inspect(self, image):
        return json.loads(self.run("inspect", "--type", "image", image))

    def images(self):
        """Names with tags, by id."""
        listed = json.loads(self.run("images", "--json") or "[]")
        return {image["id"]: image["names"] or [] for image in listed}

    def mount(self, image):
        """A folder with a container's root file system."""
        return self.run("mount", self.run("from", image))

    def close(self, keep):
        """Leaves no container, and of the images those of these names."""
        self.run("rm", "--all")
        for image, names in self.images().items():
            if not set(names) & set(keep):
                self.run("rmi", "--force", image)
        for path in [self._temporary, self._run_root]:
            shutil.rmtree(path)
