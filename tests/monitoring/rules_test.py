"""The rules' form, their unit tests, and whether these leave a rule out."""

import pathlib
import re
import unittest

import promql
import rule_files
from rule_files import ROOT, RULES, UNIT_TESTS, load, promtool

# Not the server's own: Prometheus makes it, of each scrape.
FROM_PROMETHEUS = {"up"}


def kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def anchors(path: pathlib.Path) -> set:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"),
                          re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in headings}


def documented_metrics() -> dict:
    """Name: type, as docs/api.md has them."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    row = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram)", re.MULTILINE)
    return dict(row.findall(text))


def is_documented(metric: str, types: dict) -> bool:
    """`process_*` is a row for all of them."""
    if metric.startswith("process_"):
        return "| `process_*` |" in (ROOT / "docs" / "api.md").read_text(
            encoding="utf-8")
    return bool(promql.base_metric(metric, types))


class FormTest(unittest.TestCase):

    def test_promtool_accepts_the_files(self):
        self.assertEqual([path.name for path in RULES],
                         ["overfill.alerts.yaml", "overfill.recording.yaml"])
        code, output = promtool("check", "rules", *RULES)
        self.assertEqual(code, 0, output)

    def test_names_are_unique(self):
        alerts = [rule.name for rule in rule_files.alerts()]
        self.assertEqual(len(alerts), len(set(alerts)))
        records = [(rule.name, str(rule.content.get("labels")))
                   for rule in rule_files.records()]
        self.assertEqual(len(records), len(set(records)))

    def test_records_are_named_by_level_metric_and_operations(self):
        for rule in rule_files.records():
            self.assertRegex(rule.name, r"^instance(_\w+)?:overfill_\w+:\w+$")

    def test_alerts_say_what_they_mean_and_what_to_do(self):
        known = anchors(ROOT / "docs" / "operations.md")
        for rule in rule_files.alerts():
            with self.subTest(rule.name):
                self.assertTrue(rule.name.startswith("Overfill"))
                self.assertIn(rule.content["labels"]["severity"],
                              ("critical", "warning"))
                notes = rule.content["annotations"]
                self.assertLessEqual(len(notes["summary"]), 80)
                self.assertGreater(len(notes["description"]), 80)
                anchor = "alert-" + kebab(rule.name.removeprefix("Overfill"))
                self.assertEqual(notes["runbook_url"],
                                 f"docs/operations.md#{anchor}")
                self.assertIn(anchor, known, "no such heading")

    def test_metrics_are_documented_or_recorded(self):
        recorded = {rule.name for rule in rule_files.records()}
        types = documented_metrics()
        self.assertIn("overfill_requests_total", types)
        for rule in rule_files.rules():
            for metric in promql.names(rule.expr).metrics:
                with self.subTest(rule.name, metric=metric):
                    self.assertTrue(
                        metric in recorded | FROM_PROMETHEUS or
                        is_documented(metric, types))

    def test_what_is_recorded_is_of_use_or_general(self):
        """A record that an alert needs exists: a wrong name is no error in
        PromQL, and the alert would never fire."""
        names = {rule.name for rule in rule_files.records()}
        used = set()
        for rule in rule_files.alerts():
            used |= {metric for metric in promql.names(rule.expr).metrics
                     if ":" in metric}
        self.assertTrue(used)
        self.assertEqual(used - names, set())


class UnitTestsTest(unittest.TestCase):

    def test_all_pass(self):
        for path in UNIT_TESTS:
            with self.subTest(path.name):
                code, output = promtool("test", "rules", path)
                self.assertEqual(code, 0, output)

    def test_files_test_the_rules_that_ship(self):
        self.assertGreaterEqual(len(UNIT_TESTS), 10)
        for path in UNIT_TESTS:
            named = {(path.parent / name).resolve()
                     for name in load(path)["rule_files"]}
            self.assertEqual(named, set(RULES), path.name)

    def test_each_alert_fires_in_one_case_and_does_not_in_another(self):
        fires, silent = {}, {}
        for path in UNIT_TESTS:
            for test in load(path)["tests"]:
                for case in test.get("alert_rule_test", []):
                    name = case["alertname"]
                    where = fires if case["exp_alerts"] else silent
                    where.setdefault(name, []).append(path.name)
        for rule in rule_files.alerts():
            with self.subTest(rule.name):
                self.assertIn(rule.name, fires)
                # Not the idle server alone: there, nothing comes near.
                self.assertNotEqual(
                    set(silent.get(rule.name, [])) - {"idle.yaml"}, set())

    def test_the_idle_server_is_asked_about_each_alert(self):
        (path,) = [path for path in UNIT_TESTS if path.name == "idle.yaml"]
        (test,) = load(path)["tests"]
        cases = test["alert_rule_test"]
        self.assertTrue(all(case["exp_alerts"] == [] for case in cases))
        self.assertEqual({case["alertname"] for case in cases},
                         {rule.name for rule in rule_files.alerts()})

    def test_each_record_has_a_value_and_an_idle_server(self):
        """Of a server with traffic there is a value; of an idle one in the same
        test there is 0 or nothing, as the case says."""
        seen = {}
        for path in UNIT_TESTS:
            for test in load(path)["tests"]:
                idle = any('instance="idle"' in item["series"]
                           for item in test["input_series"])
                for case in test.get("promql_expr_test", []):
                    values = [sample for sample in case["exp_samples"]
                              if 'instance="busy"' in sample["labels"]]
                    if values and idle:
                        seen.setdefault(case["expr"], []).extend(values)
        for rule in rule_files.records():
            with self.subTest(rule.name):
                labels = rule.content.get("labels", {})
                of_rule = [sample for sample in seen.get(rule.name, [])
                           if all(f'{key}="{value}"' in sample["labels"]
                                  for key, value in labels.items())]
                self.assertTrue(of_rule)
                self.assertTrue(any(sample["value"] for sample in of_rule))


if __name__ == "__main__":
    unittest.main()
