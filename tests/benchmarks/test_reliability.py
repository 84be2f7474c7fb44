"""The arithmetic of `./dev bench reliability`, and its load against a stand-in
server of known behaviour."""

import asyncio
import json
import pathlib
import random
import sys
import tempfile
import time
import unittest
from unittest import mock

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] /
                       "benchmarks"))

import reliability_itl  # noqa: E402
import reliability_load as load  # noqa: E402
import reliability_overload as overload  # noqa: E402
import report as reports  # noqa: E402
from reliability_load import Outcome, Plan  # noqa: E402


def outcome(times, code=grpc.StatusCode.OK, sent=0.0, ended=0.0, retry=False):
    return Outcome("request", sent=sent, ended=ended, code=code,
                   token_times=list(times), has_retry_info=retry)


class ArithmeticTest(unittest.TestCase):
    def test_gaps_lie_wholly_in_an_interval(self):
        # Two tokens came together at 3: no gap between them.
        outcomes = [outcome([1, 3, 3, 6, 10]), outcome([5, 5.5])]
        self.assertEqual(reliability_itl.gaps_within(outcomes, [(0, 20)]),
                         [2, 3, 4, 0.5])
        self.assertEqual(
            reliability_itl.gaps_within(outcomes, [(1, 3), (5, 6)]), [2, 0.5])
        self.assertEqual(reliability_itl.gaps_within(outcomes, [(2, 5)]), [])

    def test_throughput_is_of_the_window_and_of_what_did_not_fail(self):
        found = [(0.0, outcome([1, 2, 3])),
                 (0.0, outcome([2.5, 9], code=None)),
                 (0.0, outcome([2], code=grpc.StatusCode.RESOURCE_EXHAUSTED)),
                 (0.0, outcome([3.5], code=grpc.StatusCode.CANCELLED))]
        self.assertEqual(overload.throughput(found, 2, 4), 4 / 2)

    def test_percentile_is_a_value_that_occurred(self):
        self.assertEqual(load.percentile([3, 1, 2, 4], 0.5), 2)
        self.assertEqual(load.percentile([3, 1, 2, 4], 0.99), 4)
        self.assertEqual(load.percentile([7], 0.5), 7)


class ReportTest(unittest.TestCase):
    TARGETS = {"reliability": {
        "a.low": {"target": 2, "met_when": "at_most"},
        "a.high": {"target": 5, "met_when": "at_least"},
        "b.never": {"target": 1, "met_when": "at_least"}}}

    def report(self, path):
        (path / "docs" / "benchmarks").mkdir(parents=True, exist_ok=True)
        (path / "docs" / "benchmarks" / "targets.json").write_text(
            json.dumps(self.TARGETS))
        with mock.patch.object(reports, "ROOT", path):
            return reports.Report(
                "reliability", "# Reliability", path / "out.json")

    def written(self, path):
        results = json.loads((path / "out.json").read_text())["results"]
        return {row["metric"]: row for row in results}

    def test_met_is_computed_and_parts_are_joined(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            report = self.report(path)
            report.begin("a")
            report.add("a.low", 2, "s")
            report.add("a.high", 4.9, "s")
            report.write()
            rows = self.written(path)
            self.assertIs(rows["a.low"]["met"], True)
            self.assertEqual(report.missed(["a"], ()), ["a.high"])
            self.assertEqual(report.missed(["a"], ["a.high"]), [])
            self.assertEqual(report.missed(["b"], ()), ["b.never"])
            self.assertIs(rows["a.high"]["met"], False)
            self.assertIs(rows["b.never"]["met"], False)
            self.assertIsNone(rows["b.never"]["value"])
            report = self.report(path)
            report.begin("b")
            report.fail("b", "no server")
            report.write()
            rows = self.written(path)
            self.assertEqual(rows["a.low"]["value"], 2)
            self.assertIs(rows["b.never"]["met"], False)
            self.assertIn("`b.never` was not measured: no server",
                          (path / "out.md").read_text())

    def test_refusals(self):
        refused = grpc.StatusCode.RESOURCE_EXHAUSTED
        found = [(1.0, outcome([], refused, sent=1.2, ended=1.5, retry=True)),
                 (1.0, outcome([], refused, ended=2.0)),
                 (1.0, outcome([], grpc.StatusCode.INTERNAL, ended=1.5)),
                 (1.0, outcome([1.1])), (1.0, outcome([1.1], code=None)),
                 (1.0, outcome([1.1], refused)),
                 (1.0, outcome([], grpc.StatusCode.CANCELLED, ended=9.0))]
        with tempfile.TemporaryDirectory() as folder:
            report = self.report(pathlib.Path(folder))
            overload.report_refusals(found, report)
            rows = report.rows
            self.assertEqual(rows["overload.refusals"]["value"], 3)
            self.assertEqual(rows["overload.wrong_refusals"]["value"], 2)
            # From when it was due, not from when it was sent.
            self.assertEqual(rows["overload.refusal_p50"]["value"], 0.5)
            self.assertEqual(rows["overload.refusal_max"]["value"], 1.0)
            with self.assertRaises(RuntimeError):
                overload.report_refusals(found[3:5], report)


class StandIn(load.pb2_grpc.InferenceServicer):
    """A token each 20 ms, as many as asked for; none for priority 1."""

    async def Generate(self, request, context):
        if request.priority == 1:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        for token in range(request.limits.max_tokens):
            await asyncio.sleep(0.02)
            yield load.pb2.GenerateResponse(
                delta=load.pb2.Delta(token_ids=[token]))
        completion = load.pb2.Completion()
        completion.usage.cached_prompt_tokens = 3
        yield load.pb2.GenerateResponse(completion=completion)


class LoadTest(unittest.TestCase):
    def run_with_server(self, body):
        async def run():
            server = grpc.aio.server()
            load.pb2_grpc.add_InferenceServicer_to_server(StandIn(), server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            try:
                async with grpc.aio.insecure_channel(
                        f"127.0.0.1:{port}") as channel:
                    return await body(load.pb2_grpc.InferenceStub(channel))
            finally:
                await server.stop(None)
        return asyncio.run(run())

    def send(self, plan):
        return self.run_with_server(lambda stub: load.send(stub, plan))

    def test_an_answer_is_recorded(self):
        got = self.send(Plan([1, 2], 5))
        self.assertEqual(got.code, grpc.StatusCode.OK)
        self.assertEqual(got.tokens, {0: [0, 1, 2, 3, 4]})
        self.assertEqual(got.num_completions, 1)
        self.assertEqual(got.cached_tokens, 3)
        self.assertGreaterEqual(got.ttft, 0.02)

    def test_cancels_come_after_tokens_or_seconds(self):
        got = self.send(Plan([1], 1000, cancel_after_tokens=3))
        self.assertEqual(got.code, grpc.StatusCode.CANCELLED)
        self.assertGreaterEqual(got.num_tokens, 3)
        self.assertLess(got.num_tokens, 1000)
        got = self.send(Plan([1], 1000, cancel_after_seconds=0.2))
        self.assertEqual(got.code, grpc.StatusCode.CANCELLED)
        self.assertGreaterEqual(got.ended - got.sent, 0.19)
        self.assertLess(got.ended - got.sent, 10)

    def test_a_refusal_is_no_answer(self):
        got = self.send(Plan([1], 5, priority=1))
        self.assertEqual(got.code, grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertFalse(got.has_retry_info)
        self.assertEqual(got.num_tokens, 0)

    def test_an_open_loop_keeps_its_rate_and_its_end(self):
        plan = Plan([1], 10_000)
        with mock.patch.object(overload, "plan_of", lambda rng: plan):
            begin = time.monotonic()
            found = self.run_with_server(lambda stub: overload.open_loop(
                stub, 100, 1.0, random.Random(1)))
        self.assertLess(time.monotonic() - begin, 10)
        # 100 on the average, with a standard deviation of 10; none of these
        # long answers held the next one back.
        self.assertGreater(len(found), 50)
        self.assertLess(len(found), 150)
        self.assertTrue(all(o.code in (None, grpc.StatusCode.CANCELLED)
                            for _, o in found))

    def test_a_closed_loop_has_so_many_at_a_time(self):
        plan = Plan([1], 5)
        with mock.patch.object(overload, "plan_of", lambda rng: plan):
            found = self.run_with_server(lambda stub: overload.closed_loop(
                stub, 3, 1.0, random.Random(1)))
        whole = [o for _, o in found if o.code == grpc.StatusCode.OK]
        # Each takes a tenth of a second.
        self.assertGreaterEqual(len(whole), 3)
        self.assertLessEqual(len(found), 33)


if __name__ == "__main__":
    unittest.main()
