"""Namespaces of the test's own: whatever it mounts or starts ends with it.

The test starts itself again as the first process of new mount and PID
namespaces. When that process ends, however it does, the kernel ends every
process under it and takes every mount away; when the outer one is killed, the
kernel kills the inner one too.
"""

import fcntl
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
WORK = os.path.join(ROOT, "build", "image")
# The one place outside of WORK that buildah insists on.
CACHE = "/var/lib/containers"
CGROUPS = "/sys/fs/cgroup"
_INSIDE = "OVERFILL_IMAGE_TEST_INSIDE"


def _mounts():
    """In the places that the test mounts at."""
    done = subprocess.run(["findmnt", "-rno", "TARGET"], check=True,
                          stdout=subprocess.PIPE, text=True)
    return {line for line in done.stdout.splitlines()
            if line.startswith((WORK, CACHE, CGROUPS))}


def _processes_below():
    """Processes that live in the test's folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for link in ["root", "exe", "cwd"]:
            try:
                path = os.readlink(f"/proc/{pid}/{link}")
            except OSError:
                continue
            if path.startswith(WORK):
                found.append(f"{pid} {link} {path}")
    return found


def _enter_outer():
    lock = open(os.path.join(WORK, "lock"), "w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends
    made_cache = not os.path.exists(CACHE)
    os.makedirs(CACHE, exist_ok=True)
    mounts = _mounts()
    code = subprocess.run(
        ["setpriv", "--pdeathsig", "KILL",
         "unshare", "--mount", "--pid", "--fork", "--kill-child",
         "--mount-proc", "--propagation", "private",
         sys.executable, "-B", *sys.argv],
        env=dict(os.environ, **{_INSIDE: "1"})).returncode
    if made_cache:
        os.rmdir(CACHE)  # empty: all went to what was mounted there
    left = sorted(_mounts() - mounts) + _processes_below()
    if left:
        print("left behind:", *left, sep="\n  ")
    sys.exit(code or bool(left))


def enter():
    """Returns inside of the namespaces; the outer process never returns."""
    if os.geteuid() != 0:
        sys.exit("this test needs root: it makes a Debian system and an image")
    state = os.path.join(WORK, "cache")
    os.makedirs(state, exist_ok=True)
    if _INSIDE not in os.environ:
        _enter_outer()
    subprocess.run(["mount", "--bind", state, CACHE], check=True)
    # The containers have no cgroups of their own; but crun looks, and does not
    # take a machine where some controllers are of version 1 and some of 2.
    subprocess.run(["mount", "-t", "tmpfs", "none", CGROUPS], check=True)
