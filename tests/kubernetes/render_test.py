"""The overlays under an old and a current kubectl, and against the schemas."""

import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import case
import checks
import kubectl
import manifests

# Fields that kubectl 1.20 (kustomize 2.0.3) knows and that the API
# kustomize.config.k8s.io/v1beta1 keeps. `bases` and `patchesJson6902` are
# deprecated, but the old one takes no folder under `resources` and has no
# `patches` with a target.
FIELDS = {"apiVersion", "kind", "resources", "bases", "images",
          "configMapGenerator", "generatorOptions", "patchesJson6902"}
DEPRECATED = re.compile(r"# Warning: '(bases|patchesJson6902)' is deprecated")
EXPECTED = {
    "cpu": ["ConfigMap", "Deployment", "HorizontalPodAutoscaler",
            "NetworkPolicy", "PodDisruptionBudget", "Service",
            "ServiceAccount"],
    "monitoring": ["PrometheusRule", "ServiceMonitor"],
}
EXPECTED["gpu"] = EXPECTED["cpu-model-image"] = EXPECTED["cpu"]


def without_hashes(text):
    """The two versions make other suffixes of the same content."""
    return re.sub(r"(overfill-flags)-[a-z0-9]{10}\b", r"\1", text)


def by_name(objects):
    return {(item["kind"], item["metadata"]["name"]): item
            for item in objects}


def readme_yaml():
    """The blocks of YAML in the README."""
    readme = (kubectl.KUBERNETES / "README.md").read_text()
    return re.findall(r"^```yaml\n(.*?)^```", readme, re.M | re.S)


class RenderTest(unittest.TestCase):

    def test_versions(self):
        old, current = map(kubectl.version, kubectl.programs(case.work))
        self.assertEqual(old, (1, 20))
        self.assertGreaterEqual(current, (1, 35))

    def test_both_render_the_same(self):
        self.assertEqual(set(kubectl.OVERLAYS), set(EXPECTED))
        for overlay in kubectl.OVERLAYS:
            folder = kubectl.KUBERNETES / "overlays" / overlay
            with self.subTest(overlay):
                (old, old_says), (current, current_says) = (
                    kubectl.kustomize(program, folder)
                    for program in kubectl.programs(case.work))
                old, current = (
                    by_name(kubectl.objects(without_hashes(text)))
                    for text in (old, current))
                self.assertEqual(old, current)
                self.assertEqual(sorted(kind for kind, _ in current),
                                 EXPECTED[overlay])
                self.assertEqual(old_says, "")
                for line in current_says.splitlines():
                    self.assertRegex(line, DEPRECATED)

    def test_fields(self):
        for path in kubectl.KUBERNETES.rglob("kustomization.yaml"):
            (content,) = kubectl.objects(path.read_text())
            self.assertLessEqual(set(content), FIELDS, path)

    def test_other_flags_are_a_rolling_update(self):
        deployment = manifests.named(case.rendered("cpu"), "Deployment")
        self.assertRegex(str(deployment), r"overfill-flags-[a-z0-9]{10}'")


    def test_an_overlay_of_ones_own(self):
        """The README's way to other flags."""
        (block,) = [text for text in readme_yaml()
                    if "kind: Kustomization" in text]
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / "kubernetes"
            shutil.copytree(kubectl.KUBERNETES, copy)
            own = copy / "overlays" / "own"
            own.mkdir()
            (own / "kustomization.yaml").write_text(block)
            flags = copy / "base" / "overfill.flags"
            (own / flags.name).write_text(
                flags.read_text() + "--max_decode_batch=7\n")
            for program in kubectl.programs(case.work):
                objects = kubectl.objects(kubectl.kustomize(program, own)[0])
                self.assertEqual(
                    manifests.flags(objects)["max_decode_batch"], "7")
                self.assertEqual(checks.faults(objects), [])


class SchemaTest(unittest.TestCase):

    def assert_valid(self, objects):
        for item, faults in zip(objects, case.schema_faults(objects)):
            self.assertEqual(faults, [], item)

    def test_overlays(self):
        for overlay in kubectl.OVERLAYS:
            with self.subTest(overlay):
                self.assert_valid(case.rendered(overlay))

    def test_objects_of_the_readme(self):
        objects = [item for block in readme_yaml()
                   for item in kubectl.objects(block)]
        kinds = [item["kind"] for item in objects]
        self.assertIn("PersistentVolumeClaim", kinds)
        self.assert_valid([item for item in objects
                           if item["kind"] != "Kustomization"])

    # Each fault, and words of what is said of it.
    FAULTS = [
        ("cpu", "Deployment", "/spec/replicas: type",
         lambda item: item["spec"].update(replicas="three")),
        ("cpu", "Deployment", "livenesProbe: unknown field",
         lambda item: item["spec"]["template"]["spec"]["containers"][0].update(
             livenesProbe={"grpc": {"port": 1}})),
        ("cpu", "Deployment", "/sleep/secs: unknown field",
         lambda item: item["spec"]["template"]["spec"]["containers"][0][
             "lifecycle"].update(preStop={"sleep": {"seconds": 1, "secs": 1}})),
        ("cpu", "Deployment", "grpc/port: type",
         lambda item: item["spec"]["template"]["spec"]["containers"][0][
             "livenessProbe"]["grpc"].update(port="health")),
        ("cpu", "Deployment", "\"missingProperty\":\"selector\"",
         lambda item: item["spec"].pop("selector")),
        ("cpu", "Deployment", "extra: unknown field",
         lambda item: item.update(extra=1)),
        ("cpu-model-image", "Deployment", "image/tag: unknown field",
         lambda item: item["spec"]["template"]["spec"]["volumes"][0][
             "image"].update(tag="demo")),
        ("cpu", "Service", "\"missingProperty\":\"port\"",
         lambda item: item["spec"]["ports"][0].pop("port")),
        ("cpu", "ConfigMap", "overfill.flags: type",
         lambda item: item.update(data={"overfill.flags": 7})),
        ("cpu", "PodDisruptionBudget", "maxUnavailabel: unknown field",
         lambda item: item["spec"].update(maxUnavailabel=1)),
        ("cpu", "NetworkPolicy", "ingress/0/form: unknown field",
         lambda item: item["spec"]["ingress"][0].update(form=[])),
        ("cpu", "NetworkPolicy", "no schema",
         lambda item: item.update(kind="NetworkPolice")),
        ("cpu", "HorizontalPodAutoscaler", "no schema",
         lambda item: item.update(apiVersion="autoscaling/v3")),
        ("cpu", "HorizontalPodAutoscaler", "\"maxReplicas\"",
         lambda item: item["spec"].pop("maxReplicas")),
        ("cpu", "ServiceAccount", "automountServiceAccountToken: type",
         lambda item: item.update(automountServiceAccountToken="no")),
        ("monitoring", "ServiceMonitor", "endpoints/0/intervall: unknown",
         lambda item: item["spec"]["endpoints"][0].update(intervall="15s")),
        ("monitoring", "PrometheusRule", "rules/0/expression: unknown field",
         lambda item: item["spec"]["groups"][0]["rules"][0].update(
             expression="up")),
        ("monitoring", "PrometheusRule", "labels/severity: type",
         lambda item: item["spec"]["groups"][0]["rules"][0].update(
             labels={"severity": 1})),
    ]

    def test_faults_are_found(self):
        objects = []
        for overlay, kind, _, plant in self.FAULTS:
            item = manifests.named(case.rendered(overlay), kind)
            plant(item)
            objects.append(item)
        found = case.schema_faults(objects)
        for (_, kind, expected, _), faults in zip(self.FAULTS, found):
            with self.subTest(f"{kind} {expected}"):
                self.assertIn(expected, "\n".join(faults))


class PrometheusRuleTest(unittest.TestCase):

    def test_holds_exactly_the_rules(self):
        subprocess.run(
            [kubectl.KUBERNETES / "make_prometheus_rule.py", "--check"],
            check=True)
        rules = kubectl.ROOT / "deploy" / "monitoring" / "rules"
        expected = [group for path in sorted(rules.glob("*.yaml"))
                    for item in kubectl.objects(path.read_text())
                    for group in item["groups"]]
        rule = manifests.named(case.rendered("monitoring"), "PrometheusRule")
        self.assertEqual(rule["spec"]["groups"], expected)
        self.assertTrue(expected)


if __name__ == "__main__":
    case.main()
