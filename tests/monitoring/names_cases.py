"""Whether every query of the dashboard, and every rule, names only what the
servers export, and finds something."""

import math
import re
import unittest
from typing import Any, Dict, List, Set

import dashboard_files
import promql
import rule_files
import scenario
from rule_files import ROOT
from scenario import FASTER, INTERVAL

# Made by Prometheus, of each scrape and each alert.
FROM_PROMETHEUS = {"up", "scrape_duration_seconds", "ALERTS"}
# Labels of every series, of a target or of an alert.
FROM_TARGETS = {"job", "instance", "alertname", "alertstate"}
# Queries that may find nothing in this scenario, and why.
EMPTY: Dict[str, str] = {}


def families(page: str) -> Dict[str, str]:
    """Name: type, as the page says."""
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))


def has_numbers(result: List[Dict[str, Any]]) -> bool:
    return any(not math.isnan(float(value)) for series in result
               for _, value in series["values"])


def documented_values(metric: str) -> Set[str]:
    """What docs/api.md quotes in the metric's row."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    match = re.search(rf"^\| `{metric}` \|(.*)$", text, re.MULTILINE)
    return set(re.findall(r"`([^`]*)`", match[1])) if match else set()


class NamesCase(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.world = scenario.current
        cls.prometheus = cls.world.prometheus
        cls.types = {}
        for page in cls.world.pages.values():
            cls.types.update(families(page))
        cls.records = {rule.name for rule in rule_files.records()}
        cls.labels = {}  # by metric
    def labels_of(self, metric):
        """{label: its values}, of all that Prometheus has seen."""
        if metric not in self.labels:
            found = self.labels[metric] = {}
            for series in self.prometheus.series(metric):
                for label, value in series.items():
                    found.setdefault(label, set()).add(value)
        return self.labels[metric]

    def check_names(self, expr):
        names = promql.names(expr)
        grouped = set()
        for selector in names.selectors:
            metric = selector.metric
            self.assertTrue(
                metric in FROM_PROMETHEUS | self.records or
                promql.base_metric(metric, self.types), metric)
            labels = self.labels_of(metric)
            grouped |= set(labels)
            for matcher in selector.matchers:
                self.check_matcher(metric, labels, *matcher)
        # `without` and `ignoring` may name what only one side has.
        self.assertEqual(names.grouping - grouped - {"le"}, set())

    def check_matcher(self, metric, labels, label, operator, value):
        self.assertIn(label, set(labels) | FROM_TARGETS, metric)
        known = labels.get(label, set()) | documented_values(
            promql.base_metric(metric, self.types))
        for part in promql.alternatives(operator, value):
            if label not in FROM_TARGETS:
                self.assertIn(part, known, f"{metric} {label}")
        if operator == "=~":
            self.assertTrue(any(re.fullmatch(value, one) for one in known),
                            f"{metric}: no {label} is like {value}")

    def find(self, expr):
        return self.prometheus.query_range(
            expr, self.world.begin, self.world.last, INTERVAL)

    def fill_in(self, expr, *instances):
        """As Grafana with these servers chosen; without any, all."""
        return dashboard_files.fill_in(expr, {
            "job": "overfill",
            "instance": "|".join(re.escape(instance).replace("\\", "\\\\")
                                 for instance in
                                 instances or self.world.instances.values()),
            "path": "full|pruned|two_stage",
            # Four scrapes at least in Grafana; here the rules' shortest.
            "__rate_interval": f"{round(300 / FASTER)}s"})

    def queries(self, *instances):
        for query in dashboard_files.queries(dashboard_files.load()):
            yield query, self.fill_in(query.expr, *instances)

    def test_the_dashboard_names_what_there_is(self):
        for query, expr in self.queries():
            with self.subTest(query.where):
                self.check_names(expr.replace("\\\\", "\\"))

    def test_the_rules_name_what_there_is(self):
        for rule in rule_files.rules():
            with self.subTest(rule.name):
                self.check_names(rule.expr)

    def test_the_dashboards_queries_find_something(self):
        empty = set()
        for query, expr in self.queries():
            with self.subTest(query.where):
                if not has_numbers(self.find(expr)):
                    empty.add(query.where)
        self.assertEqual(empty, set(EMPTY))

    def test_each_server_can_be_chosen_alone(self):
        """Nearly every query finds something for one alone, too."""
        for name, instance in self.world.instances.items():
            found = sum(has_numbers(self.find(expr))
                        for _, expr in self.queries(instance))
            self.assertGreater(found, 60, name)

    def test_legends_tell_lines_apart(self):
        for panel in dashboard_files.charts(dashboard_files.load()):
            if panel["type"] == "table":
                continue
            seen = []
            for query in dashboard_files.panel_queries(panel):
                for series in self.find(self.fill_in(query.expr)):
                    with self.subTest(query.where):
                        seen.append(dashboard_files.legend_of(
                            query.legend, series["metric"]))
            with self.subTest(panel["title"]):
                self.assertTrue(all(seen))
                self.assertEqual(len(seen), len(set(seen)))
                self.assertLessEqual(
                    len(seen), 12 if panel["type"] != "heatmap" else 40)
