"""The example configurations of Prometheus.

Debian's Prometheus has no discovery of Kubernetes. So that file is checked with
its discovery replaced by a list of pods, which have the labels that Prometheus
documents for them: everything else in it is the real thing.
"""

import copy
import json
import pathlib
import tempfile
import unittest

import yaml

from rule_files import MONITORING, RULES, load, promtool

STATIC = MONITORING / "prometheus.yaml"
KUBERNETES = MONITORING / "prometheus.kubernetes.yaml"
POD = "__meta_kubernetes_pod_"


def pod(name: str, address: str, **changes: str) -> dict:
    """One target: a container port of a pod."""
    labels = {"__meta_kubernetes_namespace": "serving",
              f"{POD}name": name, f"{POD}phase": "Running",
              f"{POD}node_name": "node-1", f"{POD}container_name": "server",
              f"{POD}container_port_name": "metrics",
              f"{POD}container_port_number": "9464",
              f"{POD}container_port_protocol": "TCP",
              f"{POD}label_app_kubernetes_io_name": "overfill"}
    labels.update({POD + key: value for key, value in changes.items()})
    return {"targets": [address], "labels": labels}


PODS = [
    pod("overfill-0", "10.0.0.1:9464"),
    pod("overfill-0", "10.0.0.1:50051", container_port_name="grpc"),
    pod("overfill-1", "10.0.0.2:9464", phase="Pending"),
    pod("overfill-2", "10.0.0.3:9464", phase="Succeeded"),
    pod("overfill-3", "10.0.0.4:9464", phase="Failed"),
    pod("overfill-4", "10.0.0.5:9464",
        annotation_prometheus_io_scrape="false"),
    pod("overfill-5", "10.0.0.6:9464",
        annotation_prometheus_io_scrape="true"),
]
KEPT = {"overfill-0": "10.0.0.1:9464", "overfill-1": "10.0.0.2:9464",
        "overfill-5": "10.0.0.6:9464"}


class ConfigTest(unittest.TestCase):

    def test_static(self):
        code, output = promtool("check", "config", STATIC)
        self.assertEqual(code, 0, output)
        self.assertIn(f"{len(RULES)} rule files found", output)
        (job,) = load(STATIC)["scrape_configs"]
        self.assertRegex(job["job_name"], "^overfill")

    def test_kubernetes_discovers_pods_by_their_label(self):
        (job,) = load(KUBERNETES)["scrape_configs"]
        self.assertRegex(job["job_name"], "^overfill")
        self.assertEqual(job["kubernetes_sd_configs"], [{
            "role": "pod", "selectors": [{
                "role": "pod", "label": "app.kubernetes.io/name=overfill"}]}])

    def test_kubernetes_scrapes_the_right_ports_once(self):
        with tempfile.TemporaryDirectory() as directory:
            config, job = self.with_listed_pods(pathlib.Path(directory))
            code, output = promtool("check", "config", config)
            self.assertEqual(code, 0, output)
            code, output = promtool("check", "service-discovery",
                                    "--timeout=2s", config, job)
        self.assertEqual(code, 0, output)
        targets = json.loads(output[output.index("[\n"):])
        self.assertEqual(len(targets), len(PODS))
        kept = [target["labels"] for target in targets if target["labels"]]
        self.assertEqual({labels["instance"]: labels["__address__"]
                          for labels in kept}, KEPT)
        self.assertEqual(len(kept), len(KEPT))
        for labels in kept:
            self.assertEqual(labels["job"], "overfill")
            self.assertEqual(labels["namespace"], "serving")
            self.assertEqual(labels["node"], "node-1")
            self.assertEqual(labels["__metrics_path__"], "/metrics")

    def with_listed_pods(self, directory: pathlib.Path):
        """(path of the configuration, its job's name)"""
        content = copy.deepcopy(load(KUBERNETES))
        (job,) = content["scrape_configs"]
        del job["kubernetes_sd_configs"]
        pods = directory / "pods.json"
        pods.write_text(json.dumps(PODS), encoding="utf-8")
        job["file_sd_configs"] = [{"files": [str(pods)]}]
        content["rule_files"] = [str(MONITORING / name)
                                 for name in content["rule_files"]]
        path = directory / "prometheus.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path, job["job_name"]


if __name__ == "__main__":
    unittest.main()
