"""docs/api.md against what the programs say of themselves."""

import os
import re
import subprocess
import unittest

import harness
from harness import Server, pb2


def read(*path):
    with open(os.path.join(harness.ROOT, *path)) as file:
        return file.read()


def document():
    return read("docs", "api.md")


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", document(),
                     re.MULTILINE | re.DOTALL).group(1)


def documented_flags(program):
    """[(flag with value, meaning)] of the program's table."""
    rows = re.findall(r"^\| `(--[^`]*)` \| (.*) \|$", section(program),
                      re.MULTILINE)
    return [(flag.replace("\\|", "|"), meaning) for flag, meaning in rows]


def flags_of(binary):
    out = subprocess.run([binary, "--help"], check=True, capture_output=True,
                         text=True).stdout
    return re.findall(r"^  (--\S+)\n      (.*)$", out, re.MULTILINE)


class DocsTest(unittest.TestCase):

    def test_flags(self):
        self.assertEqual(documented_flags("overfill-server"),
                         flags_of(harness.server_binary))
        self.assertEqual(documented_flags("overfill-client"),
                         flags_of(harness.client_binary))

    def test_metrics(self):
        server = Server(harness.make_pair())
        request = pb2.GenerateRequest(text="Hello")
        request.sampling.top_p = 0  # counts as a rejection
        self.assertIsNotNone(harness.Answer(
            server.stub.Generate(request)).error)
        served = {re.sub(r"(_bucket|_sum|_count)?(\{.*)?$", "", series)
                  for series in server.metrics()
                  if series.startswith("overfill_")}
        self.assertEqual(server.stop(), 0)
        documented = set(re.findall(r"^\| `(overfill_\w+)`",
                                    section("Metrics"), re.MULTILINE))
        # There are none without TLS.
        served.add("overfill_certificate_expiry_timestamp_seconds")
        self.assertEqual(documented, served)

    def test_the_operations_guide_leaves_nothing_out(self):
        guide = read("docs", "operations.md")
        for flag, _ in flags_of(harness.server_binary):
            name = flag.split("=")[0]
            if name not in ("--help", "--version"):
                self.assertRegex(guide, rf"`{name}[`=]")
        for metric in re.findall(r"^\| `(overfill_\w+)`", section("Metrics"),
                                 re.MULTILINE):
            self.assertIn(f"`{metric}", guide)

    def test_every_alert_leads_to_its_page(self):
        guide = read("docs", "operations.md")
        headings = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
                    for title in re.findall(r"^#+ (.*)$", guide, re.MULTILINE)}
        rules = read("deploy", "monitoring", "rules", "overfill.alerts.yaml")
        pages = re.findall(r"runbook_url: docs/operations\.md#(\S+)", rules)
        self.assertGreater(len(pages), 10)
        self.assertEqual(len(pages), len(re.findall(r"- alert: ", rules)))
        self.assertEqual([page for page in pages if page not in headings], [])

    def test_every_field_is_named(self):
        """Of requests with its path, of responses by its name."""
        def leaves(descriptor, prefix=""):
            for field in descriptor.fields:
                inner = field.message_type
                if inner is None or inner.GetOptions().map_entry:
                    yield prefix + field.name
                else:
                    yield from leaves(inner, f"{prefix}{field.name}.")
        text = section("Generate")
        for path in leaves(pb2.GenerateRequest.DESCRIPTOR):
            self.assertRegex(text, rf"(?m)^\| `{re.escape(path)}` \|")
        for message in [pb2.Delta, pb2.Completion, pb2.Usage, pb2.Timings,
                        pb2.GetModelInfoResponse, pb2.ModelInfo,
                        pb2.ServingLimits, pb2.TokenizeRequest,
                        pb2.DetokenizeRequest, pb2.CancelRequest]:
            for field in message.DESCRIPTOR.fields:
                self.assertIn(f"`{field.name}`", document())


if __name__ == "__main__":
    harness.main()
