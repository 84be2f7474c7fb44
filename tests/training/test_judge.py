"""The judge of quality, against a stand-in server of known answers."""

import re
import unittest
import xml.etree.ElementTree

import numpy as np

from training.demo import world
from training.judge import items, plot, report, score, served, statistics

from tests.training.stand_in import stand_in


def marks(**of_systems):
    count = len(next(iter(of_systems.values())))
    return statistics.Marks(["f"] * count, of_systems)


class StatisticsTest(unittest.TestCase):
    def test_values(self):
        means = {"full": 0.9, "two_stage": 0.8, "pruned": 0.5}
        self.assertAlmostEqual(statistics.gap_closed(means), 0.75)
        self.assertAlmostEqual(statistics.relative_gain(means), 0.6)
        self.assertEqual(statistics.gap_closed(
            {"full": 0.5, "two_stage": 0.8, "pruned": 0.5}), 0.0)

    def test_an_interval_covers_the_truth_as_often_as_it_says(self):
        rng = np.random.default_rng(3)
        draws, statistics.NUM_DRAWS = statistics.NUM_DRAWS, 400
        try:
            covered = 0
            for _ in range(200):
                given = marks(a=list(rng.random(150) < 0.3))
                estimate = given.estimate(statistics.mean_of("a"))
                covered += estimate.low <= 0.3 <= estimate.high
        finally:
            statistics.NUM_DRAWS = draws
        self.assertGreater(covered, 175)
        self.assertLess(covered, 200)

    def test_systems_are_paired(self):
        """What is right for both on the same items differs by nothing."""
        right = [index % 3 == 0 for index in range(90)]
        estimate = marks(a=right, b=right).estimate(
            statistics.difference("a", "b"))
        self.assertEqual(estimate, (0, 0, 0))

    def test_families_keep_their_number(self):
        given = statistics.Marks(["x"] * 10 + ["y"] * 10,
                                 {"a": [True] * 10 + [False] * 10})
        self.assertEqual(given.estimate(statistics.mean_of("a")),
                         (0.5, 0.5, 0.5))
        self.assertEqual(given.only("x").estimate(
            statistics.mean_of("a")).value, 1.0)

    def test_one_mark_per_item(self):
        with self.assertRaises(ValueError):
            statistics.Marks(["x"], {"a": [True, False]})


class ScoreTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.items = items.make_items(3, 4)
        right = {item.prompt: item.answer for item in cls.items}
        wrong_for = {"two_stage": {cls.items[0].prompt},
                     "pruned": {item.prompt for item in cls.items[::2]}}

        def answer_of(path, prompt):
            if prompt in wrong_for.get(path, ()):
                return right[prompt] + " "
            return right.get(prompt, "no idea")

        with served.generated_stubs() as stubs, \
                stand_in(stubs, answer_of) as client:
            cls.answers = {
                path: score.Answers(
                    client.ask_all(path, [i.prompt for i in cls.items]),
                    client.ask_all(path, [i.bare_prompt for i in cls.items]))
                for path in ("full", "two_stage", "pruned")}
        cls.answers["scratch"] = cls.answers["pruned"]
        cls.rows = {**score.exact_rows(cls.items, cls.answers),
                    **score.agreement_rows(cls.answers)}

    def test_scores_are_those_of_the_answers(self):
        count = len(self.items)
        self.assertEqual(self.rows["full.exact"], 1)
        self.assertAlmostEqual(self.rows["two_stage.exact"], 1 - 1 / count)
        self.assertAlmostEqual(self.rows["pruned.exact"], 0.5)
        first = self.items[0].family
        self.assertEqual(self.rows[f"two_stage.{first}.exact"], 0.75)
        self.assertEqual(self.rows["full.without_passage.exact"], 0)
        self.assertAlmostEqual(self.rows["gap_closed"], 1 - 2 / count)
        self.assertAlmostEqual(self.rows["two_stage_over_scratch"],
                               0.5 - 1 / count)
        self.assertLess(self.rows["gap_closed_low"], self.rows["gap_closed"])

    def test_agreement_counts_every_answer_once(self):
        counted = sum(value for name, value in self.rows.items()
                      if name.endswith(".answers"))
        self.assertEqual(counted, len(self.items))
        different = sum(
            self.rows[f"agreement.from_{length}_tokens.answers"]
            * (1 - self.rows[f"agreement.from_{length}_tokens"])
            for length in report.lengths(self.rows))
        self.assertAlmostEqual(different, 1)

    def test_a_stream_without_an_end_is_no_answer(self):
        with served.generated_stubs() as stubs, \
                stand_in(stubs, lambda *_: "cut off") as client:
            with self.assertRaisesRegex(RuntimeError, "without a completion"):
                client.ask("full", "x")

    def test_a_pair_without_judged_decoders_is_judged_alone(self):
        alone = {name: self.answers[name] for name in ("full", "two_stage")}
        rows = {**score.exact_rows(self.items, alone),
                **score.agreement_rows(alone),
                **score.ratio_rows(self.items,
                                   {0.3: {"two_stage": alone["two_stage"]}})}
        self.assertNotIn("gap_closed", rows)
        self.assertEqual(rows["two_stage.exact"],
                         self.rows["two_stage.exact"])
        self.assertIn("<polyline", report.chart(rows))
        speed = {name: {"tokens_per_second": [1.0], "bytes_per_token": 1.0}
                 for name in alone}
        text = report.markdown({
            "commit": "c", "machine": {"cpu": "x", "cores": 2},
            "per_family": 4, "seed": 3, "results": report.results_of(
                {**rows, **score.speed_rows(speed)},
                {"gap_closed": {"target": 0.6, "met_when": "at_least"}})})
        self.assertIn("| gap_closed | 60.0 % | not measured | no |", text)

    def test_the_document_has_every_figure(self):
        speed = {name: {"tokens_per_second": [90.0, 100.0, 110.0],
                        "bytes_per_token": 2.5e6} for name in self.answers}
        rows = {**self.rows, **score.speed_rows(speed), **score.ratio_rows(
            self.items, {0.3: self.answers, 0.5: self.answers}),
            "pruned.gain_of_twice_the_steps": 0.0123}
        text = report.markdown({
            "commit": "c", "machine": {"cpu": "x", "cores": 2},
            "per_family": 4, "seed": 3,
            "results": report.results_of(rows, {})})
        self.assertIn("100 [90, 110]", text)
        self.assertIn("2.50 MB", text)
        self.assertIn("83.2 %", text)
        self.assertIn("| pruned | 1.2 % |", text)
        for family in world.FAMILIES:
            self.assertIn(f"| {family} |", text)
        self.assertEqual(text.count("| 30.0 % |"), 1)
        self.assertNotIn("not measured", text)
        chart = xml.etree.ElementTree.fromstring(report.chart(rows))
        texts = [element.text for element in chart.iter()
                 if element.tag.endswith("text")]
        for name in ("full", "two_stage", "pruned", "scratch", "30", "50"):
            self.assertIn(name, texts)


class ReportTest(unittest.TestCase):
    def test_met_is_computed(self):
        targets = {"a": {"target": 0.95, "met_when": "at_least"},
                   "b": {"target": 0.05, "met_when": "at_most"},
                   "c": {"target": 0.5, "met_when": "at_least"}}
        results = {r["metric"]: r for r in report.results_of(
            {"a": 0.95, "b": 0.06, "free": 0.3}, targets)}
        self.assertIs(results["a"]["met"], True)
        self.assertIs(results["b"]["met"], False)
        self.assertIs(results["c"]["met"], False)
        self.assertIsNone(results["c"]["value"])
        self.assertIsNone(results["free"]["met"])
        self.assertIn("| c | 50.0 % | not measured | no |",
                      report.target_table(list(results.values())))

    def test_a_bar_is_as_high_as_its_value(self):
        chart = plot.bars("t", "", [plot.Bar("<a>", 0.25, 0.2, 0.3)])
        height = float(re.search(r'<rect .*height="([\d.]+)"', chart)[1])
        self.assertAlmostEqual(height, 0.25 * plot.INNER_HEIGHT, places=1)
        self.assertIn("&lt;a&gt;", chart)


if __name__ == "__main__":
    unittest.main()
