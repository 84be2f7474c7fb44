import unittest

from training import report


def result(metric, value, target=None, met=None):
    return {"metric": metric, "value": value, "unit": "share",
            "target": target, "met": met}


class ReportTest(unittest.TestCase):
    RESULTS = [
        result("two_stage.lookup.exact", 0.975, 0.95, True),
        result("full.lookup.exact", 0.99),
        result("two_stage.lookup.without_passage.exact", None, 0.05, False)]

    def test_scores_land_in_their_cells(self):
        lines = report.score_table(self.RESULTS).splitlines()
        lookup = [line for line in lines if line.startswith("| lookup")]
        self.assertEqual(1, len(lookup))
        cells = [cell.strip() for cell in lookup[0].split("|")[1:-1]]
        self.assertEqual(
            ["lookup", "97.5 %", "99.0 %"] + ["not measured"] * 4, cells)

    def test_a_missing_value_is_not_met(self):
        lines = report.target_table(self.RESULTS).splitlines()
        self.assertEqual(4, len(lines))  # header, rule, two targets
        self.assertIn("| 95.0 % | 97.5 % | yes |", lines[2])
        self.assertIn("| 5.0 % | not measured | no |", lines[3])

    def test_stages_add_up(self):
        stages = [{"name": "a", "steps": 2, "tokens": 1000000, "seconds": 60},
                  {"name": "b", "steps": 3, "tokens": 500000, "seconds": 30}]
        last = report.stage_table(stages).splitlines()[-1]
        self.assertEqual("| in all | 5 | 1.5 million | 1.5 minutes |", last)


if __name__ == "__main__":
    unittest.main()
