"""Plays what stands around the kubelets: endpoints and the rolling update."""

import math
import random
import socket
import threading
import time

import kubelet
import manifests
from manifests import named, pod_spec

POLL_SECONDS = 0.1
ROLLOUT_SECONDS = 150
FIRST_HOST, LAST_HOST = 11, 20


def free_network(ports):
    """The first three numbers of addresses whose ports nobody has."""
    for _ in range(100):
        network = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}"
        try:
            for host in range(FIRST_HOST, LAST_HOST + 1):
                for port in ports:
                    with socket.socket() as probe:
                        probe.bind((f"{network}.{host}", port))
        except OSError:
            continue
        return network
    raise RuntimeError(f"the ports {ports} are taken on all addresses")


class Endpoints:
    """The addresses of the ready pods, as late as others learn of them."""

    def __init__(self, delay):
        self._delay = delay
        self._lock = threading.Lock()
        self._ready, self._published = [], []
        self._version = 0  # of what is published: timers may overtake
        self._timers, self._watchers = [], []

    def update(self, address, ready):
        with self._lock:
            if ready == (address in self._ready):
                return
            self._ready = [item for item in self._ready if item != address]
            self._ready += [address] * ready
            timer = threading.Timer(
                self._delay, self._publish,
                [len(self._timers) + 1, list(self._ready)])
            self._timers.append(timer)
            timer.start()

    def _publish(self, version, addresses):
        with self._lock:
            if version < self._version:
                return
            self._version, self._published = version, addresses
            for watcher in self._watchers:
                watcher(addresses)

    def watch(self, watcher):
        with self._lock:
            self._watchers.append(watcher)
            watcher(self._published)

    def addresses(self):
        with self._lock:
            return list(self._published)

    def close(self):
        with self._lock:
            self._watchers.clear()
        for timer in self._timers:
            timer.cancel()
            timer.join()


class Cluster:
    """The pods of one Deployment, as the objects say."""

    def __init__(self, objects, volumes, folder, binary, endpoint_delay):
        """`volumes` are the sources that are no ConfigMap, by their name."""
        self._spec = pod_spec(objects)
        self._deployment = named(objects, "Deployment")["spec"]
        self.replicas = named(objects, "HorizontalPodAutoscaler")["spec"][
            "minReplicas"]
        self._volumes = dict(volumes)
        self._volumes.update(self._config_maps(objects))
        self._folder, self._binary = folder, binary
        self.endpoints = Endpoints(endpoint_delay)
        self._network = free_network(
            [port["containerPort"]
             for port in manifests.container(objects)["ports"]])
        self.pods = []

    def _config_maps(self, objects):
        data = {item["metadata"]["name"]: item["data"] for item in objects
                if item["kind"] == "ConfigMap"}
        return {volume["name"]: {
            "files": data[volume["configMap"]["name"]],
            "mode": volume["configMap"].get("defaultMode", 0o644)}
                for volume in self._spec["volumes"] if "configMap" in volume}

    def start_pod(self):
        number = len(self.pods)
        name = f"overfill-{number}"
        folder = self._folder / name
        folder.mkdir()
        self.pods.append(kubelet.Pod(
            name, f"{self._network}.{FIRST_HOST + number}", self._spec, self._volumes,
            folder, self._binary, self._on_change))

    def _on_change(self, pod):
        self.endpoints.update(
            pod.address, pod.ready_since is not None and not pod.terminating)

    def _available(self, pod):
        ready = pod.ready_since
        return (not pod.terminating and ready is not None and
                time.monotonic() - ready >= self._deployment.get(
                    "minReadySeconds", 0))

    def raise_faults(self):
        faults = [f"{pod.name}: {fault}" for pod in self.pods
                  for fault in pod.faults]
        if faults:
            raise RuntimeError("; ".join(faults))

    def roll_out(self, may_end=lambda pod: True):
        """New pods take the places of those that are there; the first time
        there are none. An old one that could end does when `may_end(pod)`.
        Returns when all old ones have ended.
        """
        wanted = self.replicas
        old = [pod for pod in self.pods if not pod.terminating]
        update = self._deployment["strategy"]["rollingUpdate"]
        surge = update["maxSurge"] if old else math.inf
        least = wanted - update["maxUnavailable"]
        give_up = time.monotonic() + ROLLOUT_SECONDS
        while True:
            live = [pod for pod in self.pods if not pod.terminating]
            new = [pod for pod in live if pod not in old]
            ready = [pod for pod in live if self._available(pod)]
            leaving = [pod for pod in live if pod in old]
            can_end = [pod for pod in leaving if may_end(pod)]
            if len(new) < wanted and len(live) < wanted + surge:
                self.start_pod()
            elif can_end and len(ready) > least:
                can_end[0].terminate()
            elif not leaving and len(ready) == wanted:
                break
            else:
                time.sleep(POLL_SECONDS)
            self.raise_faults()
            if time.monotonic() > give_up:
                raise RuntimeError("the rolling update does not end")
        for pod in old:
            pod.join()
        self.raise_faults()

    def wait_published(self):
        """Until others know of all the ready pods."""
        give_up = time.monotonic() + 30
        while len(self.endpoints.addresses()) < self.replicas:
            if time.monotonic() > give_up:
                raise RuntimeError("endpoints are missing")
            time.sleep(POLL_SECONDS)

    def close(self):
        for pod in self.pods:
            pod.kill()
        self.endpoints.close()
