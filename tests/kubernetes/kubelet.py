"""Plays the kubelet for one pod: volumes, variables, probes, the end.

It does what a kubelet does and no more. Only paths differ: where a container
would have a volume mounted, args and the flag file name the folder on the host.
"""

import contextlib
import re
import signal
import subprocess
import threading
import time
import urllib.request

import grpc

import stubs


def write_volume(folder, files, mode):
    """As the kubelet writes ConfigMaps and Secrets: `..data` is a link to a
    folder with the files, and each file a link through it.
    """
    version = folder / "..2026_01_01_00_00_00.1"
    version.mkdir(parents=True)
    (folder / "..data").symlink_to(version.name)
    for name, content in files.items():
        path = version / name
        path.write_text(content)
        path.chmod(mode)
        (folder / name).symlink_to(f"..data/{name}")


class Probe:
    """A gRPC probe: what it is told, and what it makes of the answers."""

    def __init__(self, spec, address):
        self._target = f"{address}:{spec['grpc']['port']}"
        self._service = spec["grpc"].get("service", "")
        self._timeout = spec.get("timeoutSeconds", 1)
        self._thresholds = {True: spec.get("successThreshold", 1),
                            False: spec.get("failureThreshold", 3)}
        self._last, self._count = None, 0
        self.period = spec.get("periodSeconds", 10)
        self.result = None  # until a threshold is reached

    def ask(self):
        good = self._serving()
        self._count = self._count + 1 if good == self._last else 1
        self._last = good
        if self._count >= self._thresholds[good]:
            self.result = good
        return self.result

    def _serving(self):
        request = stubs.health_pb2.HealthCheckRequest(service=self._service)
        # A connection of its own each time, as the kubelet does.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._target, options) as channel:
            stub = stubs.health_grpc.HealthStub(channel)
            try:
                answer = stub.Check(request, timeout=self._timeout)
            except grpc.RpcError:
                return False
        return answer.status == stubs.health_pb2.HealthCheckResponse.SERVING


class Container:
    """The process of a pod's one container, with the pod's volumes."""

    def __init__(self, spec, address, volumes, folder, binary):
        """`volumes`, by name: a folder of the host, or {"files", "mode"}."""
        self.spec, self.address = spec, address
        fields = {"status.podIP": address}
        variables = {item["name"]: item["value"] if "value" in item else
                     fields[item["valueFrom"]["fieldRef"]["fieldPath"]]
                     for item in spec.get("env", [])}
        self._mount(volumes, folder)
        args = [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], arg)
                for arg in spec["args"]]
        with open(folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [binary, *map(self._on_host, args)], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env=variables)
        self._log = folder / "log"

    def _mount(self, volumes, folder):
        self._paths = {}  # on the host, by the path in the container
        for mount in self.spec["volumeMounts"]:
            source = volumes[mount["name"]]
            self._paths[mount["mountPath"]] = (
                folder / mount["name"] if isinstance(source, dict) else source)
        for mount in self.spec["volumeMounts"]:
            source = volumes[mount["name"]]
            if isinstance(source, dict):
                files = {name: self._on_host(content)
                         for name, content in source["files"].items()}
                write_volume(self._paths[mount["mountPath"]], files,
                             source["mode"])

    def _on_host(self, text):
        """With the host's paths where a flag names one of the container's."""
        for inside, outside in self._paths.items():
            text = re.sub(rf"={re.escape(inside)}(?=[/\s]|$)", f"={outside}",
                          text)
        return text

    def metrics(self):
        """Every series, by its name with labels."""
        port = next(item["containerPort"] for item in self.spec["ports"]
                    if item["name"] == "metrics")
        with urllib.request.urlopen(
                f"http://{self.address}:{port}/metrics", timeout=10) as page:
            text = page.read().decode()
        return {series: float(value) for series, value in (
            line.rsplit(" ", 1) for line in text.splitlines()
            if line and not line.startswith("#"))}

    def log(self):
        return self._log.read_text(encoding="utf-8")


class Pod:
    """A pod from its start to its end.

    `on_change(pod)` is called when it becomes ready, is so no more, or
    terminates. What should not happen is written to `faults`.
    """

    def __init__(self, name, address, spec, volumes, folder, binary, on_change):
        self.name, self.address = name, address
        self._grace = spec["terminationGracePeriodSeconds"]
        self._on_change = on_change
        self.terminating = False
        self.ready_since = None
        self.faults, self.record = [], {}
        self._gone = threading.Event()
        (container,) = spec["containers"]
        self.container = Container(container, address, volumes, folder, binary)
        self._threads = []
        self._run(self._probe)

    def _run(self, function):
        def guarded():
            try:
                function()
            except Exception as error:  # pylint: disable=broad-except
                self.faults.append(f"{function.__name__}: {error!r}")
        thread = threading.Thread(target=guarded)
        self._threads.append(thread)
        thread.start()

    def _probe(self):
        spec = self.container.spec
        startup = Probe(spec["startupProbe"], self.address)
        while not startup.ask():
            if startup.result is False:
                raise RuntimeError(f"no start: {self.container.log()}")
            if self._gone.wait(startup.period):
                return
        readiness, liveness = (Probe(spec[kind], self.address) for kind in
                               ("readinessProbe", "livenessProbe"))
        due = {readiness: time.monotonic(), liveness: time.monotonic()}
        while True:
            probe = min(due, key=due.get)
            if self._gone.wait(max(0, due[probe] - time.monotonic())):
                return
            due[probe] = time.monotonic() + probe.period
            if probe is readiness:
                self._set_ready(probe.ask())
            # A pod that terminates is not asked whether it is alive.
            elif not self.terminating and probe.ask() is False:
                raise RuntimeError("the liveness probe failed")

    def _set_ready(self, ready):
        if bool(ready) == (self.ready_since is not None):
            return
        self.ready_since = time.monotonic() if ready else None
        if not ready and not self.terminating:
            self.faults.append("not ready any more")
        self._on_change(self)

    def open_streams(self):
        return int(self.container.metrics()["overfill_open_streams"])

    # ---- The end.

    def terminate(self):
        """Returns at once; `join` waits for the end."""
        self.terminating = True
        self._on_change(self)
        self._run(self._terminate)

    def _terminate(self):
        kill_at = time.monotonic() + self._grace
        self.record["open_at_deletion"] = self.open_streams()
        hook = self.container.spec.get("lifecycle", {}).get("preStop")
        if hook:
            time.sleep(hook["sleep"]["seconds"])
        process = self.container.process
        self.record["open_at_signal"] = self.open_streams()
        self.record["signal"] = time.monotonic()
        process.send_signal(signal.SIGTERM)
        while process.poll() is None and time.monotonic() < kill_at:
            with contextlib.suppress(OSError):  # its port closes before it
                if self.open_streams() > 0:
                    self.record["last_open"] = time.monotonic()
            time.sleep(0.2)
        self.record["gone"] = time.monotonic()
        self._gone.set()
        if process.poll() is None:
            process.kill()
            self.faults.append("killed: the grace has passed")
        elif process.returncode != 0:
            self.faults.append(f"exit code {process.returncode}")

    def join(self):
        for thread in self._threads:
            thread.join()

    def kill(self):
        """At the end of a test, whatever has happened."""
        self._gone.set()
        self.container.process.kill()
        self.container.process.wait()
        self.join()
