"""The dashboard's form: places, units, legends, variables, names."""

import itertools
import re
import subprocess
import sys
import unittest

import dashboard_files
import promql
from rules_test import documented_metrics, is_documented

COLUMNS = 24
# Grafana's ids of units; it shows others as a suffix of the value.
UNITS = {"none", "s", "bytes", "Bps", "reqps", "ops", "percentunit",
         "suffix:tok/s"}
# Not of the server: Prometheus makes them, of each scrape and each alert.
FROM_PROMETHEUS = {"up", "scrape_duration_seconds", "ALERTS"}


class DashboardTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.dashboard = dashboard_files.load()
        cls.panels = dashboard_files.panels(cls.dashboard)
        cls.charts = dashboard_files.charts(cls.dashboard)
        cls.queries = dashboard_files.queries(cls.dashboard)

    def test_is_what_its_program_writes(self):
        done = subprocess.run(
            [sys.executable, "-B", dashboard_files.MAKE, "--check"],
            capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_head(self):
        self.assertEqual(self.dashboard["schemaVersion"], 42)
        self.assertIsNone(self.dashboard["id"])
        self.assertTrue(self.dashboard["uid"])
        ids = [panel["id"] for panel in self.panels]
        self.assertEqual(len(ids), len(set(ids)))
        titles = [panel["title"] for panel in self.panels]
        self.assertEqual(len(titles), len(set(titles)))

    def test_rows(self):
        self.assertEqual(
            [panel["title"] for panel in self.panels if panel["type"] == "row"],
            ["Overview", "Traffic and outcomes", "Latencies", "Tokens", "Pools",
             "KV memory", "Security", "Process"])
        self.assertEqual(self.panels[0]["type"], "row")

    def test_panels_do_not_overlap(self):
        for a, b in itertools.combinations(self.panels, 2):
            self.assertFalse(
                dashboard_files.overlap(a["gridPos"], b["gridPos"]),
                f"{a['title']} and {b['title']}")

    def test_panels_leave_no_gap(self):
        """They cover the whole rectangle, in the order of the file."""
        area = bottom = 0
        for panel in self.panels:
            grid = panel["gridPos"]
            self.assertGreaterEqual(grid["x"], 0, panel["title"])
            self.assertLessEqual(grid["x"] + grid["w"], COLUMNS, panel["title"])
            self.assertGreaterEqual(grid["w"], 3, panel["title"])
            area += grid["w"] * grid["h"]
            bottom = max(bottom, grid["y"] + grid["h"])
        self.assertEqual(area, COLUMNS * bottom)
        places = [(p["gridPos"]["y"], p["gridPos"]["x"]) for p in self.panels]
        self.assertEqual(places, sorted(places))

    def test_each_panel_says_what_it_is(self):
        for panel in self.charts:
            with self.subTest(panel["title"]):
                self.assertLessEqual(len(panel["title"]), 32)
                self.assertTrue(panel["description"])
                self.assertIn(panel["fieldConfig"]["defaults"]["unit"], UNITS)
                self.assertTrue(panel["targets"])

    def test_units_are_those_of_the_metrics(self):
        for panel in self.charts:
            for query in dashboard_files.panel_queries(panel):
                match = re.match(r"(?:histogram_quantile\(|max by \(\w+\) \()"
                                 r".*?overfill_\w*?_(seconds|bytes)",
                                 query.expr)
                if match:
                    self.assertEqual(
                        panel["fieldConfig"]["defaults"]["unit"][0],
                        match[1][0], query.where)

    def test_legends(self):
        for panel in self.charts:
            if panel["type"] == "table":
                continue
            legends = [query.legend for query in
                       dashboard_files.panel_queries(panel)]
            with self.subTest(panel["title"]):
                self.assertTrue(all(legends))
                self.assertEqual(len(legends), len(set(legends)))
            if panel["type"] == "timeseries":
                self.assertTrue(panel["options"]["legend"]["showLegend"])

    def test_variables(self):
        variables = {variable["name"]: variable for variable in
                     self.dashboard["templating"]["list"]}
        self.assertEqual(list(variables),
                         ["datasource", "job", "instance", "path"])
        self.assertEqual(variables["datasource"]["type"], "datasource")
        for name in ("job", "instance", "path"):
            self.assertTrue(variables[name]["multi"])
            self.assertEqual(variables[name]["datasource"]["uid"],
                             "${datasource}")

    def test_the_chosen_source_is_used_everywhere(self):
        for panel in self.charts:
            for part in [panel, *panel["targets"]]:
                self.assertEqual(part["datasource"],
                                 {"type": "prometheus", "uid": "${datasource}"},
                                 panel["title"])

    def test_queries_are_of_the_chosen_servers(self):
        for query in self.queries:
            if query.where in ("variable job", "annotation Alerts"):
                continue
            wanted = {("job", "=~", "$job"), ("instance", "=~", "$instance")}
            if query.where == "variable instance":
                wanted.discard(("instance", "=~", "$instance"))
            for selector in promql.names(query.expr).selectors:
                self.assertLessEqual(wanted, set(selector.matchers),
                                     query.where)

    def test_windows_follow_what_is_shown(self):
        for query in self.queries:
            for window in re.findall(r"\[([^\]]*)\]", query.expr):
                self.assertEqual(window, "$__rate_interval", query.where)

    def test_metrics_are_documented(self):
        types = documented_metrics()
        for query in self.queries:
            for metric in promql.names(query.expr).metrics - FROM_PROMETHEUS:
                with self.subTest(query.where, metric=metric):
                    self.assertTrue(is_documented(metric, types))


if __name__ == "__main__":
    unittest.main()
