"""What the rendered objects say: security, arithmetic, references, flags.

checks.py holds the rules; each is seen here to find what it is for.
"""

import re
import subprocess
import unittest

import case
import checks
import kubectl
import manifests
from manifests import container, named, pod_spec

SERVERS = [overlay for overlay in kubectl.OVERLAYS if overlay != "monitoring"]
ADAPTER_RULES = (kubectl.KUBERNETES / "overlays" / "monitoring" /
                 "adapter_rules.yaml")


def security(objects):
    return container(objects)["securityContext"]


def set_flag(objects, name, value):
    """Changes a flag of the ConfigMap; None takes it away."""
    data = named(objects, "ConfigMap")["data"]
    lines = data["overfill.flags"].splitlines()
    kept = [line for line in lines if not line.startswith(f"--{name}=")]
    assert value is None or len(kept) == len(lines) - 1, name
    if value is not None:
        kept.append(f"--{name}={value}")
    data["overfill.flags"] = "\n".join(kept) + "\n"


def volume(objects, name):
    (found,) = [item for item in pod_spec(objects)["volumes"]
                if item["name"] == name]
    return found


# A change of the objects of cpu, and words of the fault that is to be found.
FAULTS = {
    "no root": (lambda o: pod_spec(o)["securityContext"].pop("runAsNonRoot"),
                "may run as root"),
    "root": (lambda o: pod_spec(o)["securityContext"].update(runAsUser=0),
             "may run as root"),
    "seccomp": (lambda o: pod_spec(o)["securityContext"].pop(
        "seccompProfile"), "no seccomp profile"),
    "token": (lambda o: pod_spec(o).pop("automountServiceAccountToken"),
              "token of the API"),
    "links": (lambda o: pod_spec(o).pop("enableServiceLinks"),
              "look like flags"),
    "host": (lambda o: pod_spec(o).update(hostNetwork=True), "hostNetwork"),
    "capability": (lambda o: security(o).update(
        capabilities={"drop": ["ALL"], "add": ["NET_RAW"]}),
        "securityContext is"),
    "writable": (lambda o: security(o).update(readOnlyRootFilesystem=False),
                 "securityContext is"),
    "secret mode": (lambda o: volume(o, "tls")["secret"].update(
        defaultMode=0o444), "readable by all"),
    "written mount": (lambda o: container(o)["volumeMounts"][0].pop(
        "readOnly"), "can be written"),
    "limits": (lambda o: container(o)["resources"].pop("limits"),
               "limits differ"),
    "grace": (lambda o: pod_spec(o).update(terminationGracePeriodSeconds=330),
              "a grace of 330 s"),
    "preStop": (lambda o: container(o)["lifecycle"].update(
        preStop={"exec": {"command": ["sleep", "5"]}}), "preStop needs"),
    "longer preStop": (lambda o: container(o)["lifecycle"].update(
        preStop={"sleep": {"seconds": 60}}), "a grace of"),
    "no delay": (lambda o: set_flag(o, "drain_delay", "0s"), "no time between"),
    "longer delay": (lambda o: set_flag(o, "drain_delay", "1m"),
                     "a grace of"),
    "longer drain": (lambda o: set_flag(o, "drain_timeout", "6m"),
                     "a grace of"),
    "short drain": (lambda o: set_flag(o, "drain_timeout", "5m"),
                    "cuts requests"),
    "long requests": (lambda o: set_flag(o, "max_request_duration", "1h"),
                      "cuts requests"),
    "default requests": (lambda o: set_flag(o, "max_request_duration", None),
                         "max_request_duration"),
    "connections": (lambda o: set_flag(o, "max_connection_age_grace", "5m"),
                    "connections end"),
    "rollout": (lambda o: named(o, "Deployment")["spec"]["strategy"][
        "rollingUpdate"].update(maxUnavailable=1), "take replicas away"),
    "fast rollout": (lambda o: named(o, "Deployment")["spec"].pop(
        "minReadySeconds"), "asks DNS again"),
    "slow start": (lambda o: container(o)["startupProbe"].update(
        failureThreshold=500), "a slow start"),
    "no probe": (lambda o: container(o).pop("readinessProbe"),
                 "readinessProbe"),
    "probe with TLS": (lambda o: container(o)["livenessProbe"]["grpc"].update(
        port=50051), "livenessProbe asks"),
    "impatient": (lambda o: container(o)["livenessProbe"].update(
        timeoutSeconds=1), "no patience"),
    "restart first": (lambda o: container(o)["livenessProbe"].update(
        failureThreshold=1), "before its clients"),
    "ports": (lambda o: container(o)["args"].append("--listen=0.0.0.0:1"),
              "port grpc"),
    "headless": (lambda o: named(o, "Service")["spec"].pop("clusterIP"),
                 "not headless"),
    "service port": (lambda o: named(o, "Service")["spec"]["ports"][0].update(
        port=443), "the Service has"),
    "selector": (lambda o: named(o, "Service")["spec"]["selector"].update(
        tier="x"), "Service does not select"),
    "budget": (lambda o: named(o, "PodDisruptionBudget")["spec"][
        "selector"]["matchLabels"].update(tier="x"),
        "PodDisruptionBudget does not select"),
    "spread": (lambda o: pod_spec(o)["topologySpreadConstraints"].pop(0),
               "not spread over nodes"),
    "config map": (lambda o: named(o, "ConfigMap")["metadata"].update(
        name="other"), "are used"),
    "replicas": (lambda o: named(o, "Deployment")["spec"].update(replicas=3),
                 "set replicas"),
    "target": (lambda o: named(o, "HorizontalPodAutoscaler")["spec"][
        "scaleTargetRef"].update(name="other"), "what scales"),
    "plaintext": (lambda o: container(o)["args"].append("--allow_plaintext"),
                  "plaintext is allowed"),
    "no TLS": (lambda o: set_flag(o, "tls_cert", None), "--tls_cert"),
    "no tokens": (lambda o: set_flag(o, "auth_tokens", None),
                  "--auth_tokens"),
    "a Secret": (lambda o: o.append({"kind": "Secret"}), "a Secret is part"),
    "open API": (lambda o: named(o, "NetworkPolicy")["spec"]["ingress"][
        0].pop("from"), "are open to"),
    "open metrics": (lambda o: named(o, "NetworkPolicy")["spec"]["ingress"][
        1].update({"from": [{"namespaceSelector": {}}]}), "are open to"),
    "open health": (lambda o: named(o, "NetworkPolicy")["spec"]["ingress"][
        1]["ports"].append({"port": "health"}), "are open to"),
    "egress": (lambda o: named(o, "NetworkPolicy")["spec"].update(
        egress=[{}]), "may go out"),
}


class ObjectsTest(unittest.TestCase):

    def test_overlays(self):
        for overlay in SERVERS:
            with self.subTest(overlay):
                self.assertEqual(checks.faults(case.rendered(overlay)), [])

    def test_faults_are_found(self):
        for name, (plant, expected) in FAULTS.items():
            with self.subTest(name):
                objects = case.rendered("cpu")
                plant(objects)
                self.assertIn(expected, "\n".join(checks.faults(objects)))

    def test_labels(self):
        for overlay in kubectl.OVERLAYS:
            for item in case.rendered(overlay):
                self.assertEqual(
                    item["metadata"]["labels"].get("app.kubernetes.io/name"),
                    "overfill", item)

    def test_the_server_knows_the_flags(self):
        said = subprocess.run([case.server_binary, "--help"], check=True,
                              capture_output=True, text=True).stdout
        known = set(re.findall(r"^  --(\w+)", said, re.M))
        self.assertIn("flagfile", known)
        for overlay in SERVERS:
            given = set(manifests.flags(case.rendered(overlay)))
            self.assertEqual(given - known, set(), overlay)

    def test_variables_do_not_look_like_flags(self):
        for overlay in SERVERS:
            for variable in container(case.rendered(overlay))["env"]:
                self.assertFalse(variable["name"].startswith("OVERFILL_"))


class OverlaysTest(unittest.TestCase):

    def test_images_have_versions(self):
        with open(kubectl.ROOT / "CMakeLists.txt") as file:
            (version,) = re.findall(r"project\(overfill VERSION (\S+)",
                                    file.read())
        images = {overlay: container(case.rendered(overlay))["image"]
                  for overlay in SERVERS}
        self.assertEqual(images["cpu"], f"overfill-server:{version}-cpu")
        self.assertEqual(images["gpu"], f"overfill-server:{version}-cuda")

    def test_gpu(self):
        objects = case.rendered("gpu")
        self.assertEqual(manifests.flags(objects)["device"], "cuda")
        resources = container(objects)["resources"]
        for kind in ("requests", "limits"):
            self.assertEqual(resources[kind]["nvidia.com/gpu"], "1")
        self.assertIn("nvidia.com/gpu",
                      [item["key"] for item in pod_spec(objects)[
                          "tolerations"]])
        self.assertNotIn("device", manifests.flags(case.rendered("cpu")))

    def test_models(self):
        for overlay, source in [("cpu", "persistentVolumeClaim"),
                                ("gpu", "persistentVolumeClaim"),
                                ("cpu-model-image", "image")]:
            objects = case.rendered(overlay)
            self.assertEqual(set(volume(objects, "models")),
                             {"name", source}, overlay)
            folders = [mount["mountPath"] for mount in
                       container(objects)["volumeMounts"]
                       if mount["name"] == "models"]
            for flag in ("prefill_model", "decode_model"):
                path = manifests.flags(objects)[flag]
                self.assertEqual([path.rpartition("/")[0]], folders)


class MonitoringTest(unittest.TestCase):

    def test_service_monitor_finds_the_service(self):
        monitor = named(case.rendered("monitoring"), "ServiceMonitor")["spec"]
        service = named(case.rendered("cpu"), "Service")
        self.assertTrue(manifests.matches(monitor["selector"]["matchLabels"],
                                          service["metadata"]["labels"]))
        (endpoint,) = monitor["endpoints"]
        self.assertIn(endpoint["port"],
                      [port["name"] for port in service["spec"]["ports"]])
        # The rules ask for job=~"overfill.*".
        self.assertEqual(service["metadata"]["labels"][monitor["jobLabel"]],
                         "overfill")

    def test_adapter_makes_what_the_autoscaler_asks_for(self):
        scaler = named(case.rendered("cpu"), "HorizontalPodAutoscaler")["spec"]
        asked = [metric["pods"]["metric"]["name"]
                 for metric in scaler["metrics"]]
        (content,) = kubectl.objects(ADAPTER_RULES.read_text())
        made = [rule["name"]["as"] for rule in content["rules"]["custom"]]
        self.assertEqual(asked, made)
        for metric in scaler["metrics"]:
            self.assertEqual(metric["pods"]["target"]["type"], "AverageValue")


if __name__ == "__main__":
    case.main()
