"""A container of an image's root file system, run by crun as Kubernetes would.

That is: the image's own entry point, environment, user and stop signal; a
read-only root; no capability, no way to a new one; the system calls that
containers may use; namespaces of its own but for the network.
"""

import json
import os
import re
import subprocess
import threading
import time

from sandbox import WORK

_SECCOMP = "/usr/share/containers/seccomp.json"
_START_SECONDS = 120
_STOP_SECONDS = 60


def _applies(rule):
    """Whether a rule is for amd64 and for a process without capabilities."""
    includes, excludes = rule.get("includes", {}), rule.get("excludes", {})
    return (not includes.get("caps") and
            "amd64" in includes.get("arches", ["amd64"]) and
            "amd64" not in excludes.get("arches", []))


def seccomp():
    """The profile of podman and CRI-O in the form that runtimes take."""
    with open(_SECCOMP) as file:
        profile = json.load(file)
    rules = []
    for rule in filter(_applies, profile["syscalls"]):
        kept = {key: rule[key] for key in ["names", "action"]}
        if rule.get("args"):
            kept["args"] = rule["args"]
        if rule["action"] == "SCMP_ACT_ERRNO" and "errnoRet" in rule:
            kept["errnoRet"] = rule["errnoRet"]
        rules.append(kept)
    return {"defaultAction": profile["defaultAction"],
            "defaultErrnoRet": profile["defaultErrnoRet"],
            "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules}


def _mount(path, kind, source=None, options=()):
    return {"destination": path, "type": kind, "source": source or kind,
            "options": ["nosuid", "noexec", *options]}


def specification(image, rootfs, arguments, models, own_network):
    """OCI's config.json. `image` is the image's configuration."""
    user, group = map(int, image["User"].split(":"))
    namespaces = ["pid", "ipc", "uts", "mount"]
    if own_network:
        namespaces.append("network")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": user, "gid": group},
            "args": image["Entrypoint"] + arguments,
            "env": image.get("Env", []), "cwd": image.get("WorkingDir", "/"),
            "capabilities": {}, "noNewPrivileges": True},
        "root": {"path": rootfs, "readonly": True},
        "mounts": [
            _mount("/proc", "proc"),
            _mount("/dev", "tmpfs", options=["mode=755", "size=64k"]),
            _mount("/models", "bind", models, ["rbind", "ro", "nodev"])],
        "linux": {
            "namespaces": [{"type": name} for name in namespaces],
            "seccomp": seccomp(),
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq",
                              "/proc/sys", "/proc/sysrq-trigger"]},
    }


class Container:
    """Started by the constructor; `lines` is what it says on both streams."""

    def __init__(self, image, rootfs, arguments, models, own_network=False):
        self._id = f"overfill-{time.monotonic_ns()}"
        self._stop_signal = image["StopSignal"]
        self._bundle = os.path.join(WORK, "tmp", self._id)
        os.makedirs(self._bundle)
        with open(os.path.join(self._bundle, "config.json"), "w") as file:
            json.dump(specification(image, rootfs, arguments, models,
                                    own_network), file)
        pid_file = os.path.join(self._bundle, "pid")
        self._process = subprocess.Popen(
            self._crun("run", "--bundle", self._bundle, "--pid-file", pid_file,
                       self._id), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._pid_file = pid_file

    def _crun(self, *arguments):
        return ["crun", "--root", os.path.join(WORK, "tmp", "crun"),
                "--cgroup-manager=disabled", *arguments]

    def _read(self):
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            if "ready: " in line:
                self._ready.set()
        self._ready.set()

    def wait_ready(self):
        """The addresses of the ready line, in its order."""
        self._ready.wait(_START_SECONDS)
        text = "\n".join(self.lines)
        found = re.search(r"ready: (.*)", text)
        if found is None:
            self.kill()
            raise RuntimeError(f"the server did not start:\n{text}")
        return re.findall(r"[\w.]+:\d+", found[1])

    @property
    def pid(self):
        with open(self._pid_file) as file:
            return int(file.read())

    def wait(self):
        """The exit code."""
        try:
            return self._process.wait(_STOP_SECONDS)
        finally:
            self.kill()

    def stop(self):
        """The exit code after the image's stop signal."""
        subprocess.run(self._crun("kill", self._id, self._stop_signal),
                       check=True)
        return self.wait()

    def kill(self):
        if self._process.poll() is None:
            subprocess.run(self._crun("delete", "--force", self._id))
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
