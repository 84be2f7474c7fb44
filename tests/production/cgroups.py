"""Control groups of the tests' own, of both versions.

Version 1 has a tree for each controller, version 2 one for all. A group is made
below the one that the tests run in, so that what binds them binds it, too.
"""

import contextlib
import errno
import os
import time

CONTROLLERS = ("cpu", "memory")


class NotPossible(Exception):
    """No group can be made here, and the machine is not to blame for it."""


def _read(*path):
    with open(os.path.join(*path)) as file:
        return file.read()


def _write(text, *path):
    with open(os.path.join(*path), "w") as file:
        file.write(str(text))


def _mounts():
    """[(folder, kind, options)] of all trees."""
    found = []
    for line in _read("/proc/self/mounts").splitlines():
        _, folder, kind, options = line.split()[:4]
        if kind in ("cgroup", "cgroup2"):
            found.append((folder, kind, options.split(",")))
    return found


def _own_folder(mount, controller):
    """The group of this process in the tree; its root where that is of another
    name in here, as in a container.
    """
    for line in _read("/proc/self/cgroup").splitlines():
        number, names, path = line.split(":", 2)
        if (controller in names.split(",") if controller else number == "0"):
            folder = mount + path.rstrip("/")
            return folder if os.path.isdir(folder) else mount
    return mount


def _make_v1(name, mounts):
    folders = {}
    for controller in CONTROLLERS:
        mount = next(m for m in mounts if controller in m[2])
        folders[controller] = os.path.join(
            _own_folder(mount[0], controller), name)
    return folders


class _Version2Parent:
    """A group of version 2 that may have groups with controllers below it: one
    that holds processes, other than the machine's root, may not. So they move
    to a group of their own, until `close`.
    """

    def __init__(self, folder, name):
        self.folder = folder
        self._rest = os.path.join(folder, f"{name}-rest")
        self._enabled = []
        enabled = _read(folder, "cgroup.subtree_control").split()
        for controller in CONTROLLERS:
            if controller not in enabled:
                self._enable(controller)

    def _enable(self, controller):
        try:
            _write(f"+{controller}", self.folder, "cgroup.subtree_control")
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            os.makedirs(self._rest, exist_ok=True)
            self._move(self.folder, self._rest)
            _write(f"+{controller}", self.folder, "cgroup.subtree_control")
        self._enabled.append(controller)

    @staticmethod
    def _move(source, target):
        for process in _read(source, "cgroup.procs").split():
            with contextlib.suppress(OSError):  # it may have ended
                _write(process, target, "cgroup.procs")

    def close(self):
        for controller in self._enabled:
            _write(f"-{controller}", self.folder, "cgroup.subtree_control")
        if os.path.isdir(self._rest):
            self._move(self._rest, self.folder)
            os.rmdir(self._rest)


class Group:
    """A new group. `inner`: the process is to be in a group below it."""

    def __init__(self, inner=False):
        name = f"overfill-test-{os.getpid()}-{time.monotonic_ns()}"
        mounts = _mounts()
        unified = [m for m in mounts if m[1] == "cgroup2" and set(CONTROLLERS)
                   <= set(_read(m[0], "cgroup.controllers").split())]
        split = all(any(controller in m[2] for m in mounts)
                    for controller in CONTROLLERS)
        if os.geteuid() != 0:
            raise NotPossible("groups are root's to make")
        if not unified and not split:
            raise NotPossible("no cpu and memory controllers are mounted")
        if not any("rw" in m[2] for m in (unified or mounts)):
            raise NotPossible("the groups' mount is read-only")
        self._parent, self._is_v2 = None, bool(unified)
        if unified:
            self._parent = _Version2Parent(
                _own_folder(unified[0][0], None), name)
            folder = os.path.join(self._parent.folder, name)
            self._folders = dict.fromkeys(CONTROLLERS, folder)
        else:
            self._folders = _make_v1(name, mounts)
        self._leaves = {c: os.path.join(folder, "inner") if inner else folder
                        for c, folder in self._folders.items()}
        for leaf in self._leaves.values():
            os.makedirs(leaf, exist_ok=True)

    def set_cpus(self, cpus, period_us=100_000):
        quota = int(cpus * period_us)
        if self._is_v2:
            _write(f"{quota} {period_us}", self._folders["cpu"], "cpu.max")
            return
        _write(period_us, self._folders["cpu"], "cpu.cfs_period_us")
        _write(quota, self._folders["cpu"], "cpu.cfs_quota_us")

    def set_memory(self, num_bytes):
        _write(num_bytes, self._folders["memory"],
               "memory.max" if self._is_v2 else "memory.limit_in_bytes")

    def throttled_seconds(self):
        stat = dict(line.split() for line in _read(
            self._folders["cpu"], "cpu.stat").splitlines())
        return (int(stat["throttled_usec"]) / 1e6 if self._is_v2 else
                int(stat["throttled_time"]) / 1e9)

    def peak_bytes(self):
        return int(_read(self._folders["memory"], "memory.peak" if self._is_v2
                         else "memory.max_usage_in_bytes"))

    def kills(self):
        """How often the machine has ended a process for its memory."""
        text = _read(self._folders["memory"], "memory.events" if self._is_v2
                     else "memory.oom_control")
        return int(dict(line.split() for line in text.splitlines()).get(
            "oom_kill", 0))

    def wrapper(self):
        """Begins a command line: the program runs in the group."""
        enter = "".join(f'echo $$ >"{leaf}/cgroup.procs"; '
                        for leaf in sorted(set(self._leaves.values())))
        return ["/bin/sh", "-ec", f'{enter}exec "$@"', "sh"]

    def close(self):
        """When its processes have ended."""
        for folder in sorted(set(self._leaves.values()) |
                             set(self._folders.values()), reverse=True):
            end = time.monotonic() + 10
            while True:  # an ended process may need a moment to be gone
                try:
                    os.rmdir(folder)
                    break
                except OSError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.02)
        if self._parent is not None:
            self._parent.close()
