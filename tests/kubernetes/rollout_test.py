"""A rolling replacement of three replicas under load drops no stream.

The servers run with the args and the ConfigMap of the rendered overlay cpu,
with TLS and tokens from Secrets that the README's own commands make. kubelet.py
plays the kubelets, cluster.py the Deployment and its endpoints,
stream_client.py the clients.
"""

import base64
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import case
import cluster
import dns_server
import kubectl
import kubelet
import manifests
import objects_test
from manifests import named, pod_spec

NAME = "overfill.overfill.svc.cluster.local"
MODELS = kubectl.ROOT / "models" / "demo"
ENDPOINT_SECONDS = 1.0  # until others know that a pod is ready or leaves
BEFORE_SECONDS, AFTER_SECONDS = 4, 3
CONCURRENCY = 32  # streams of each client
TOKENS = 960
LEAST_STREAMS = 500
LEAST_OPEN = 5  # before a replica is deleted
MORE_SECONDS = 60  # to reach the least number, at most


def make_secrets(folder):
    """Runs the README's commands, with a kubectl that only prints; returns
    {name of the Secret: {file: content}}.
    """
    readme = (kubectl.KUBERNETES / "README.md").read_text()
    (commands,) = re.findall(r"^```bash\n# Secrets\n(.*?)^```", readme,
                             re.M | re.S)
    program = folder / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nexec {kubectl.programs(case.work)[1]} \"$@\" "
        "--dry-run=client -o json\n")
    program.chmod(0o755)
    said = subprocess.run(
        ["bash", "-euc", commands], cwd=folder, check=True,
        capture_output=True, text=True,
        env={"PATH": f"{program.parent}:{os.environ['PATH']}",
             "HOME": str(folder)}).stdout
    secrets, decoder = {}, json.JSONDecoder()
    while said.strip():
        secret, end = decoder.raw_decode(said.lstrip())
        said = said.lstrip()[end:]
        secrets[secret["metadata"]["name"]] = {
            name: base64.b64decode(content).decode()
            for name, content in secret["data"].items()}
    return secrets


class Load:
    """A process of stream_client.py."""

    def __init__(self, mode, folder, port, dns, endpoints):
        self.mode, self.streams = mode, []
        self._process = subprocess.Popen(
            [sys.executable, "-B", case.HERE / "stream_client.py",
             f"--mode={mode}", f"--name={NAME}", f"--port={port}",
             f"--dns={dns}", f"--ca={folder / 'tls.crt'}",
             f"--token_file={folder / 'token'}",
             f"--concurrency={CONCURRENCY}", f"--max_tokens={TOKENS}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        endpoints.watch(self._tell)

    def _read(self):
        for line in self._process.stdout:
            self.streams.append(json.loads(line))

    def _tell(self, addresses):
        self._process.stdin.write(json.dumps(addresses) + "\n")
        self._process.stdin.flush()

    def stop(self):
        """Lets the streams end. Nothing may be told any more."""
        self._process.stdin.write("stop\n")
        self._process.stdin.close()
        code = self._process.wait(timeout=120)
        self._reader.join()
        if code != 0:
            raise RuntimeError(f"the client ended with {code}")

    def kill(self):
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._process.stdin.close()
        self._process.stdout.close()


def good(stream):
    return (stream["code"] == "OK" and stream["completions"] == 1 and
            stream["tokens"] == stream["reported"] == stream["wanted"])


class RolloutTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.secrets = make_secrets(self.folder)
        self.loads = []

    def start(self, objects, replicas=None):
        """The first replicas, and the DNS server that knows them."""
        volumes = {volume["name"]: {
            "files": self.secrets[volume["secret"]["secretName"]],
            "mode": volume["secret"]["defaultMode"]}
                   for volume in pod_spec(objects)["volumes"]
                   if "secret" in volume}
        volumes["models"] = MODELS
        self.port = manifests.port_of(manifests.flags(objects)["listen"])
        self.cluster = cluster.Cluster(objects, volumes, self.folder,
                                       case.server_binary, ENDPOINT_SECONDS)
        self.addCleanup(self.cluster.close)
        self.cluster.replicas = replicas or self.cluster.replicas
        self.cluster.roll_out()
        self.cluster.wait_published()
        self.dns = dns_server.DnsServer(NAME, self.cluster.endpoints.addresses)
        self.addCleanup(self.dns.close)

    def start_load(self):
        for mode in ("dns", "endpoints"):
            load = Load(mode, self.folder, self.port, self.dns.address,
                        self.cluster.endpoints)
            self.addCleanup(load.kill)
            self.loads.append(load)
        time.sleep(BEFORE_SECONDS)

    def stop_load(self):
        self.cluster.endpoints.close()
        for load in self.loads:
            load.stop()
        return [stream for load in self.loads for stream in load.streams]

    def report(self):
        for load in self.loads:
            bad = [item for item in load.streams if not good(item)]
            lengths = sorted(item["end"] - item["begin"]
                             for item in load.streams)
            print(f"client {load.mode}: {len(load.streams)} streams, "
                  f"{len(bad)} failed or cut, median "
                  f"{lengths[len(lengths) // 2]:.1f} s, "
                  f"longest {lengths[-1]:.1f} s")
        for pod in self.cluster.pods:
            if "signal" in pod.record:
                record = pod.record
                last = record.get("last_open", record["signal"])
                print(f"{pod.name}: {record['open_at_deletion']} streams open "
                      f"when deleted, {record['open_at_signal']} at SIGTERM, "
                      f"the last until {last - record['signal']:.1f} s after "
                      f"it; gone after {record['gone'] - record['signal']:.1f} "
                      "s")

    def wait_for_streams(self):
        """Some are of the new replicas alone, and they are enough."""
        time.sleep(AFTER_SECONDS)
        give_up = time.monotonic() + MORE_SECONDS
        while (sum(len(load.streams) for load in self.loads) < LEAST_STREAMS
               and time.monotonic() < give_up):
            time.sleep(0.5)

    def check_logs(self, num_streams):
        """The servers' logs count the same streams, some for each replica."""
        total = 0
        for pod in self.cluster.pods:
            lines = [json.loads(line)
                     for line in pod.container.log().splitlines()]
            ended = [line["code"] for line in lines
                     if line["message"] == "request"]
            self.assertEqual(set(ended), {"OK"}, pod.name)
            total += len(ended)
        self.assertEqual(total, num_streams)

    def check_metrics(self):
        """The servers have the series that the adapter's rules ask for."""
        (content,) = kubectl.objects(objects_test.ADAPTER_RULES.read_text())
        series = self.cluster.pods[-1].container.metrics()
        for rule in content["rules"]["custom"]:
            name = rule["seriesQuery"].split("{")[0]
            label = re.search(r'(state="queued")|store!~', rule["seriesQuery"])
            self.assertTrue(
                [item for item in series if item.startswith(name + "{") and
                 (label[1] or 'store="') in item], name)

    def test_no_stream_is_dropped(self):
        self.start(case.rendered("cpu"))
        self.assertEqual(self.cluster.replicas, 3)
        self.start_load()
        begin = time.monotonic()
        # Only those that have work, so that each end is a hard one.
        self.cluster.roll_out(lambda pod: pod.open_streams() >= LEAST_OPEN)
        took = time.monotonic() - begin
        self.wait_for_streams()
        streams = self.stop_load()
        self.report()
        failed = [item for item in streams if not good(item)]
        print(f"rolling replacement of {self.cluster.replicas} replicas in "
              f"{took:.0f} s: {len(failed)} failed or cut of {len(streams)} "
              "streams", flush=True)
        self.assertEqual(failed[:5], [])
        self.assertGreaterEqual(len(streams), LEAST_STREAMS)
        for pod in self.cluster.pods[:3]:
            self.assertGreaterEqual(pod.record["open_at_deletion"], 1)
        self.assertEqual(len(self.cluster.pods), 6)
        self.check_logs(len(streams))
        self.check_metrics()
        self.cluster.raise_faults()

    def test_a_hasty_end_is_seen(self):
        """The same, with a server that ends at once: streams are refused while
        its address is still known, and cut when its drain is over.
        """
        objects = case.rendered("cpu")
        objects_test.set_flag(objects, "drain_delay", "0s")
        objects_test.set_flag(objects, "drain_timeout", "100ms")
        del manifests.container(objects)["lifecycle"]
        named(objects, "Deployment")["spec"]["minReadySeconds"] = 0
        self.start(objects, replicas=2)
        self.start_load()
        victim = max(self.cluster.pods, key=kubelet.Pod.open_streams)
        victim.terminate()
        victim.join()
        time.sleep(AFTER_SECONDS)
        streams = self.stop_load()
        self.report()
        refused = [item for item in streams if item["code"] != "OK" and
                   item["tokens"] == 0]
        cut = [item for item in streams if item["code"] != "OK" and
               item["tokens"] > 0]
        print(f"hasty end: {len(refused)} refused, {len(cut)} cut of "
              f"{len(streams)} streams", flush=True)
        self.assertTrue(refused)
        self.assertTrue(cut)

    def test_a_short_grace_is_seen(self):
        objects = case.rendered("cpu")
        pod_spec(objects)["terminationGracePeriodSeconds"] = 6
        named(objects, "Deployment")["spec"]["minReadySeconds"] = 0
        self.start(objects, replicas=1)
        self.cluster.pods[0].terminate()
        self.cluster.pods[0].join()
        self.assertEqual(self.cluster.pods[0].faults,
                         ["killed: the grace has passed"])


if __name__ == "__main__":
    case.main()
