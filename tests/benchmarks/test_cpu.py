"""The CPU benchmark: its statistics, its players, and itself in small."""

import dataclasses
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import cpu  # noqa: E402
import cpu_players as players  # noqa: E402


class EstimateTest(unittest.TestCase):
    def test_few_values_have_all_of_them_for_an_interval(self):
        self.assertEqual(players.estimate([3.0, 1.0, 2.0]),
                         players.Estimate(2.0, 1.0, 3.0))
        self.assertEqual(players.estimate([5.0]),
                         players.Estimate(5.0, 5.0, 5.0))

    def test_the_ranks_of_known_tables(self):
        # Ranks of the 95 % interval of a median: 2 and 9 of 10, 6 and 15 of 20.
        ten = players.estimate([float(i) for i in range(1, 11)])
        self.assertEqual((ten.low, ten.high), (2.0, 9.0))
        twenty = players.estimate([float(i) for i in range(1, 21)])
        self.assertEqual((twenty.low, twenty.high), (6.0, 15.0))

    def test_the_interval_holds_the_median_as_often_as_it_says(self):
        rng = random.Random(1)
        held = 0
        for _ in range(1000):
            values = [rng.lognormvariate(0, 1) for _ in range(12)]
            found = players.estimate(values)
            held += found.low <= 1 <= found.high  # the median is e^0
        self.assertGreaterEqual(held, 940)
        self.assertLess(held, 1000)

    def test_turns_begin_with_either(self):
        calls = []

        def call(which):
            calls.append(which)
            return float(len(calls))

        first, second = players.in_turns(lambda: call("a"), lambda: call("b"),
                                         3)
        self.assertEqual("".join(calls), "abbaab")
        self.assertEqual((first, second), ([1.0, 4.0, 5.0], [2.0, 3.0, 6.0]))
        self.assertEqual(players.ratios(second, first).median,
                         statistics.median([2 / 1, 3 / 4, 6 / 5]))


class ComparisonTest(unittest.TestCase):
    """The faster of llama.cpp's models counts, and above 1 ours is faster."""

    class Fixed:
        def __init__(self, seconds):
            self.by_model = seconds

        def seconds(self, **command):
            return self.by_model[command["model"]]

    class Rows(dict):
        def add(self, metric, value, unit):
            self[metric] = value

    def test_decode(self):
        rows = self.Rows()
        bench = mock.Mock(report=rows, pairs=7)
        bench.add_ratio = (
            lambda name, ratio: rows.add(name, ratio.median, "ratio"))
        theirs = self.Fixed({"padded": 0.3, "exact": 0.2})
        cpu.compare_decode(bench, self.Fixed({"bf16": 0.1}),
                           [(theirs, "padded"), (theirs, "exact")], "bf16", 4)
        self.assertAlmostEqual(rows["decode.batch4.bf16.ratio"], 2)
        self.assertAlmostEqual(rows["decode.batch4.bf16"], 40)
        self.assertAlmostEqual(rows["decode.batch4.bf16.llama_cpp_exact"], 20)

    def test_share_of_the_read_rate(self):
        models = players.Models(pathlib.Path("unused"))
        bench = mock.Mock(models=models)
        # 0.48 billion weights and 136 tokens of KV of 1,000 bytes.
        weights = models.decode_bytes("pruned", "bf16")
        self.assertEqual(weights, 2 * (
            16 * ((32 + 8 + 8 + 32) * 64 * 1126 + 3 * 1126 * 4505) +
            128256 * 1126))
        share = cpu.read_share(bench, {"kv_token_bytes": 1000}, "bf16", 0.5,
                               4 * (weights + 136000))
        self.assertAlmostEqual(share, 0.5)


class PlayerTest(unittest.TestCase):
    def player(self, body):
        return players.Player("toy", [sys.executable, "-u", "-c", body])

    def test_answers_and_errors(self):
        player = self.player(
            "import sys\nprint('{\"ready\": true}')\n"
            "for line in sys.stdin:\n"
            "    bad = 'bad' in line\n"
            "    print('{\"error\": \"no\"}' if bad else\n"
            "          '{\"seconds\": [3, 1, 2]}')\n")
        self.addCleanup(player.close)
        self.assertEqual(player.seconds(op="decode"), 2)
        with self.assertRaisesRegex(RuntimeError, "toy: no"):
            player.ask(op="bad")
        self.assertEqual(player.seconds(op="decode"), 2)

    def test_one_that_ends_is_told(self):
        with self.assertRaisesRegex(RuntimeError, "toy ended with 3"):
            self.player("import sys; sys.exit(3)")


class GgufTest(unittest.TestCase):
    SHAPE = players.gguf.Shape(hidden=64, intermediate=160, layers=2, heads=4,
                               kv_heads=2, head_dim=16, vocab=500, context=64)

    def test_files_are_as_large_as_their_tensors(self):
        matrices = 500 * 64 + 2 * ((4 + 2 * 2) * 16 * 64 + 4 * 16 * 64 +
                                   3 * 64 * 160)
        with tempfile.TemporaryDirectory() as scratch:
            sizes = {}
            for dtype in ("bf16", "q8_0"):
                path = pathlib.Path(scratch, dtype)
                players.gguf.write_model(path, self.SHAPE, dtype, seed=1)
                data = path.read_bytes()
                self.assertEqual(data[:4], b"GGUF")
                sizes[dtype] = len(data)
            self.assertEqual(sorted(p.name for p in
                                    pathlib.Path(scratch).iterdir()),
                             ["bf16", "q8_0"])
        self.assertGreater(sizes["bf16"], 2 * matrices)
        self.assertLess(sizes["bf16"], 2 * matrices + 8192)
        # Blocks of 32 with a scale of 16 bits.
        self.assertGreater(sizes["q8_0"], matrices * 34 // 32)
        self.assertLess(sizes["q8_0"], matrices * 34 // 32 + 8192)

    def test_a_shape_that_q8_0_cannot_hold(self):
        odd = dataclasses.replace(self.SHAPE, hidden=70)
        with tempfile.TemporaryDirectory() as scratch:
            with self.assertRaises(ValueError):
                players.gguf.write_model(pathlib.Path(scratch, "odd"), odd,
                                         "q8_0", seed=1)
            self.assertEqual(list(pathlib.Path(scratch).iterdir()), [])


class SmallRunTest(unittest.TestCase):
    """Every part on tiny models. Without llama.cpp, which is not built here."""

    def test_all_rows_come(self):
        build = os.environ["OVERFILL_BUILD"]
        with tempfile.TemporaryDirectory() as scratch:
            path = pathlib.Path(scratch, "cpu.json")
            subprocess.run(
                [sys.executable, "-B", str(ROOT / "benchmarks" / "cpu.py"),
                 "--tiny", "--quick", "--pairs=1", "--without_peer",
                 "--only", "machine", "decode", "prefill", "request", "memory",
                 "invariant", f"--build={build}", f"--json={path}"],
                check=True, stdout=subprocess.DEVNULL)
            written = json.loads(path.read_text(encoding="utf-8"))
            rows = {row["metric"]: row for row in written["results"]}
            text = path.with_suffix(".md").read_text(encoding="utf-8")
        for name in ("machine.read", "machine.product", "decode.batch32.bf16",
                     "decode.batch1.int8", "memory.batch1.int8.read_share",
                     "decode.batch8.int8_against_bf16", "prefill.2048",
                     "request.int8", "memory.batch1.avx2.read_share",
                     "invariant.batch8.bf16.cost"):
            self.assertGreater(rows[name]["value"], 0, name)
            self.assertIn(f"| {name} |", text)
        # What was not measured is not met, and the document says so.
        missing = rows["decode.batch1.bf16.ratio"]
        self.assertEqual((missing["value"], missing["met"]), (None, False))
        self.assertIn("`decode.batch1.bf16.ratio` was not measured", text)


if __name__ == "__main__":
    unittest.main()
