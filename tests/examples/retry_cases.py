"""Retries: by the client itself, and by gRPC with the service config."""

import socket
import time
import unittest

import grpc

import harness
import support
from front import Fail, Front
from support import run

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class RetryCases(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        # Holds one request, and one more in its queue.
        cls.server = support.endless_server(
            "--max_decode_batch=1", "--max_queued_requests=1")
        cls.addClassCleanup(support.end, cls.server)

    def run_at(self, front, *args):
        return run(f"--target={front.target}", "--max_tokens=4",
                   "--temperature=0", *args, "Hello")

    def assert_answers(self, done):
        self.assertEqual(done.code, 0, done.all)
        self.assertIn("done: LENGTH", done.err[-1])
        self.assertGreater(len(done.out), 1)

    def assert_waits(self, front, done, seconds):
        """It says so, and does what it says."""
        gaps, delays = front.gaps(), done.delays()
        self.assertEqual((len(gaps), len(delays)), (len(seconds),) * 2, gaps)
        for gap, delay, least in zip(gaps, delays, seconds):
            self.assertGreaterEqual(delay, least)
            self.assertLessEqual(delay, 1.2 * least + 0.01)
            # Some of it may pass while the refusal is on its way.
            self.assertGreaterEqual(gap, delay - 0.05, gaps)

    # ---- The client's own retries.

    def test_full_server_answers_after_retries(self):
        before = support.rejected(self.server)
        with support.Full(self.server) as full:
            begin = time.monotonic()
            process = support.start(
                f"--target={self.server.target}", "--max_tokens=4",
                "--retries=20", "Hello")
            harness.wait_until(
                lambda: support.rejected(self.server) >= before + 2)
            full.empty()
            done = support.Done(process, begin)
        self.assert_answers(done)
        self.assertGreaterEqual(len(done.delays()), 2, done.all)
        self.assertEqual(support.rejected(self.server) - before,
                         len(done.delays()))

    def test_full_server_gives_up_after_its_tries(self):
        before = support.rejected(self.server)
        with support.Full(self.server):
            done = run(f"--target={self.server.target}", "--retries=2",
                       "Hello")
        self.assertEqual((done.code, done.out), (1, ""), done.all)
        self.assertEqual(len(done.delays()), 2, done.all)
        self.assertRegex(done.err[-1], "^error: RESOURCE_EXHAUSTED: .+")
        self.assertEqual(support.rejected(self.server) - before, 3)

    def test_waits_as_long_as_retry_info_says(self):
        with Front(self.server, Fail(EXHAUSTED, retry_seconds=0.5),
                   Fail(EXHAUSTED, retry_seconds=0.9)) as front:
            done = self.run_at(front)
        self.assert_answers(done)
        self.assert_waits(front, done, [0.5, 0.9])

    def test_unavailable_backs_off_with_jitter(self):
        with Front(self.server, *[Fail(UNAVAILABLE)] * 3) as front:
            done = self.run_at(front)
        self.assert_answers(done)
        self.assert_waits(front, done, [0.2, 0.4, 0.8])
        self.assertNotEqual(done.delays(), [0.2, 0.4, 0.8])

    def test_server_that_starts_later(self):
        port = _free_port()
        begin = time.monotonic()
        process = support.start(f"--target=127.0.0.1:{port}",
                                "--max_tokens=4", "--retries=10", "Hello")
        first = process.stderr.readline().decode()
        while not first.startswith("retry "):
            self.assertTrue(first, "no retry")
            first = process.stderr.readline().decode()
        self.assertIn(": UNAVAILABLE: ", first)
        server = support.demo_server(f"--listen=127.0.0.1:{port}")
        try:
            self.assert_answers(support.Done(process, begin))
        finally:
            support.end(server)

    def test_no_server(self):
        done = run(f"--target=127.0.0.1:{_free_port()}", "--retries=1",
                   "Hello")
        self.assertEqual((done.code, len(done.delays())), (1, 1), done.all)
        self.assertRegex(done.err[-1], "^error: UNAVAILABLE: .+")

    def test_stays_within_its_time(self):
        with Front(self.server,
                   *[Fail(EXHAUSTED, retry_seconds=0.3)] * 100) as front:
            done = self.run_at(front, "--retries=100", "--timeout=2")
        self.assertEqual((done.code, done.out), (1, ""), done.all)
        self.assertIn("error: RESOURCE_EXHAUSTED", done.err[-1])
        self.assertGreaterEqual(len(front.seen), 2)
        # Each try has what the earlier ones have left.
        for gap, seen, later in zip(front.gaps(), front.seen, front.seen[1:]):
            self.assertLess(later.seconds_left, seen.seconds_left - gap + 0.2)

    def test_does_not_wait_beyond_its_time(self):
        with Front(self.server, Fail(EXHAUSTED, retry_seconds=30)) as front:
            done = self.run_at(front, "--timeout=20")
        self.assertEqual((done.code, len(front.seen)), (1, 1), done.all)
        self.assertLess(done.seconds, 15)

    def test_what_is_not_retried(self):
        for why, order in {
                "not RetryInfo": Fail(EXHAUSTED),
                "a fault": Fail(grpc.StatusCode.INTERNAL),
                "not a caller": Fail(grpc.StatusCode.UNAUTHENTICATED)}.items():
            with self.subTest(why), Front(self.server, order) as front:
                done = self.run_at(front)
                self.assertEqual((done.code, done.out), (1, ""), done.all)
                self.assertEqual(len(front.seen), 1)
                self.assertIn(f"error: {order.code.name}: as the test says",
                              done.err[-1])

    def test_an_answer_that_has_begun_is_not_retried(self):
        for flags in [], ["--grpc_retries"]:
            with Front(self.server, Fail(UNAVAILABLE, after=1)) as front:
                done = self.run_at(front, *flags)
            self.assertEqual((done.code, len(front.seen)), (1, 1), done.all)
            self.assertGreater(len(done.out), 1)
            self.assertEqual(done.err, ["error: UNAVAILABLE: as the test says"])

    # ---- gRPC's retries, by examples/service_config.json.

    def test_service_config_full_server(self):
        before = support.rejected(self.server)
        with support.Full(self.server) as full:
            begin = time.monotonic()
            process = support.start(
                f"--target={self.server.target}", "--max_tokens=4",
                "--grpc_retries", "Hello")
            harness.wait_until(
                lambda: support.rejected(self.server) >= before + 1)
            full.empty()
            done = support.Done(process, begin)
        self.assert_answers(done)
        self.assertEqual(len(done.err), 1, done.all)
        self.assertGreaterEqual(support.rejected(self.server), before + 1)

    def test_service_config_unavailable(self):
        with Front(self.server, Fail(UNAVAILABLE)) as front:
            done = self.run_at(front, "--grpc_retries")
        self.assert_answers(done)
        self.assertEqual([s.previous_attempts for s in front.seen], [0, 1])

    def test_service_config_gives_up(self):
        order = Fail(EXHAUSTED, retry_seconds=0.01, pushback_ms=50)
        with Front(self.server, *[order] * 10) as front:
            done = self.run_at(front, "--grpc_retries")
        self.assertEqual((done.code, len(front.seen)), (1, 5), done.all)
        self.assertIn("error: RESOURCE_EXHAUSTED", done.err[-1])

    def test_service_config_obeys_pushback(self):
        """Not the policy's own backoff, which is shorter."""
        with Front(self.server,
                   Fail(EXHAUSTED, pushback_ms=1000)) as front:
            done = self.run_at(front, "--grpc_retries")
        self.assert_answers(done)
        self.assertEqual(len(front.gaps()), 1)
        self.assertGreaterEqual(front.gaps()[0], 0.95)

    def test_without_retries_there_is_none(self):
        """Neither the client's nor, by the service config, gRPC's."""
        with Front(self.server, Fail(UNAVAILABLE)) as front:
            done = self.run_at(front, "--retries=0")
        self.assertEqual((done.code, len(front.seen)), (1, 1), done.all)


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
