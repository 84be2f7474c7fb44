"""Tenants: their limits, and that none reaches what is another's."""

import os
import subprocess
import time

import grpc

import servers
from authorities import write
from servers import (CALL_SECONDS, LONG, Answer, bearer, harness, pb2,
                     request, tokens_text, wait_until)

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
REJECTED = "overfill_requests_rejected_total"
TENANTS = {
    "few": (["few-token"], {"max_requests_in_flight": 2}),
    "slow": (["slow-token"], {"max_tokens_per_minute": 600}),
    "high": (["high-token"], {"max_priority": 3}),
    "free": (["free-token"], {}),
}


class TenantsCase(servers.Case):

    def setUp(self):
        path = os.path.join(harness.work_dir(self.id()), "tokens.json")
        write(path, tokens_text(TENANTS))
        self.server = self.serve(f"--auth_tokens={path}")
        self.stub = self.server.stub

    def start(self, tenant, stub=None, **members):
        """A long answer that has begun."""
        call = self.open(tenant, stub, max_tokens=LONG, **members)
        next(call)
        return call

    def open(self, tenant, stub=None, **members):
        return (stub or self.stub).Generate(
            request(**members), timeout=CALL_SECONDS,
            metadata=bearer(f"{tenant}-token"))

    def answer(self, tenant, **members):
        return Answer(self.open(tenant, **members))

    def cancel(self, tenant, request_id):
        return self.stub.Cancel(pb2.CancelRequest(request_id=request_id),
                                timeout=CALL_SECONDS,
                                metadata=bearer(f"{tenant}-token"))

    def assert_quota(self, answer, subject):
        """Refused by this limit; the seconds until it is worth a try."""
        self.assertIsNotNone(answer.error)
        self.assertEqual(answer.error.code(), EXHAUSTED)
        quota = harness.details(answer.error, harness.details_pb2.QuotaFailure)
        self.assertEqual([v.subject for v in quota.violations], [subject])
        retry = harness.details(answer.error, harness.details_pb2.RetryInfo)
        seconds = retry.retry_delay.ToNanoseconds() / 1e9
        self.assertGreater(seconds, 0)
        return seconds


class InFlightTest(TenantsCase):

    def assert_full(self):
        before = self.server.value(REJECTED, reason="tenant_in_flight")
        answer = self.answer("few", max_tokens=2)
        self.assert_quota(answer, "requests_in_flight")
        self.assertEqual(self.server.value(REJECTED, reason="tenant_in_flight"),
                         before + 1)

    def assert_one_is_free(self):
        """Within a moment, and no more than the one."""
        self.assertTrue(wait_until(
            lambda: self.answer("few", max_tokens=2).error is None, 10))
        call = self.start("few")
        self.assert_full()
        return call

    def test_freed_by_each_end(self):
        first, second = self.start("few", request_id="one"), self.start("few")
        self.assert_full()
        # Others do not feel it, nor does what is no request.
        self.assertIsNone(self.answer("free", max_tokens=2).error)
        self.stub.Tokenize(pb2.TokenizeRequest(text="a"),
                           metadata=bearer("few-token"))
        # The method Cancel.
        self.cancel("few", "one")
        self.assertEqual(Answer(first).error.code(), grpc.StatusCode.CANCELLED)
        first = self.assert_one_is_free()
        # A call that its client cancels.
        first.cancel()
        first = self.assert_one_is_free()
        # A deadline.
        first.cancel()
        self.assertTrue(wait_until(
            lambda: self.answer("few", max_tokens=2).error is None))
        late = self.stub.Generate(request(max_tokens=LONG), timeout=0.3,
                                  metadata=bearer("few-token"))
        self.assertEqual(Answer(late).error.code(),
                         grpc.StatusCode.DEADLINE_EXCEEDED)
        first = self.assert_one_is_free()
        # The end of an answer: at once, as who has seen it may come again.
        first.cancel()
        self.assertTrue(wait_until(
            lambda: self.answer("few", max_tokens=2).error is None))
        for _ in range(20):
            self.assertIsNone(self.answer("few", max_tokens=2).error)
        # A refusal of another kind holds no place.
        bad = request()
        bad.sampling.top_p = 0
        for _ in range(20):
            self.assert_refused(lambda: list(self.stub.Generate(
                bad, metadata=bearer("few-token"))),
                                grpc.StatusCode.INVALID_ARGUMENT)
        first = self.assert_one_is_free()
        for call in (first, second):
            self.assertTrue(call.is_active())
            call.cancel()
        self.assert_stops(self.server)

    def test_freed_when_a_client_is_gone(self):
        path = os.path.join(harness.work_dir(self.id()), "token")
        write(path, b"few-token\n")
        process = subprocess.Popen(
            [harness.client_binary, f"--target={self.server.target}",
             f"--token_file={path}", f"--max_tokens={LONG}", "--ignore_eos",
             "--json", "Hello"], stdout=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.assertTrue(process.stdout.readline())
        other = self.start("few")
        self.assert_full()
        process.kill()
        self.assert_one_is_free().cancel()
        other.cancel()
        self.assert_stops(self.server)


class RateTest(TenantsCase):

    def test_tokens_per_minute(self):
        """600: ten come in each second. The bucket is full at the start; what
        a request takes beyond it is owed.
        """
        begin = time.monotonic()
        first = self.answer("slow", max_tokens=605)
        charged = (first.completion.usage.prompt_tokens +
                   first.completion.usage.completion_tokens)
        refused = self.answer("slow", max_tokens=1)
        seconds = self.assert_quota(refused, "tokens_per_minute")
        at = time.monotonic()
        # The bucket fills from the beginning of the first request on.
        most = (charged - 600 + 1) / 10
        self.assertLessEqual(seconds, most)
        self.assertGreaterEqual(seconds, most - (at - begin) - 0.01)
        self.assertLess(at - begin, most, "too slow a machine")
        self.assertIsNone(self.answer("free", max_tokens=2).error)
        # Just before it is refused, with what is left; just after it is not.
        early = 0.25
        time.sleep(max(at + seconds - early - time.monotonic(), 0))
        again = self.assert_quota(self.answer("slow", max_tokens=1),
                                  "tokens_per_minute")
        self.assertLessEqual(again, early)
        time.sleep(again + 0.01)
        last = self.answer("slow", max_tokens=30)
        self.assertIsNone(last.error)
        self.assertEqual(self.server.value(REJECTED, reason="tenant_rate"), 2)
        # That one's prompt and answer were charged, too.
        owed = (last.completion.usage.prompt_tokens + 30) / 10
        seconds = self.assert_quota(self.answer("slow", max_tokens=1),
                                    "tokens_per_minute")
        self.assertAlmostEqual(seconds, owed, delta=1)
        self.assert_stops(self.server)


class PriorityTest(TenantsCase):

    def test_ceiling(self):
        self.assertIsNone(self.answer("high", priority=3).error)
        self.assertIsNone(self.answer("high", priority=-100).error)
        self.assertIsNone(self.answer("free", priority=0).error)
        for tenant, priority in [("high", 4), ("high", 100), ("free", 1)]:
            answer = self.answer(tenant, priority=priority)
            self.assertEqual(answer.error.code(),
                             grpc.StatusCode.PERMISSION_DENIED)
            self.assertIn("priority", answer.error.details())
        self.assertEqual(self.server.value(REJECTED, reason="permission"), 3)
        self.assertEqual(self.server.value("overfill_requests_total"), 3)
        self.assert_stops(self.server)


class IsolationTest(TenantsCase):

    def test_request_ids_are_the_tenants_own(self):
        mine = self.start("free", request_id="same")
        theirs = self.start("high", request_id="same")
        again = self.answer("free", request_id="same")
        self.assertEqual(again.error.code(), grpc.StatusCode.ALREADY_EXISTS)
        # Cancel ends the caller's alone.
        self.cancel("free", "same")
        self.assertEqual(Answer(mine).error.code(), grpc.StatusCode.CANCELLED)
        self.assertEqual(self.server.live(), 1)
        for _ in range(5):
            next(theirs)
        theirs.cancel()
        self.assert_stops(self.server)

    def test_cancel_of_anothers(self):
        call = self.start("free", request_id="private")
        words = [self.assert_refused(lambda: self.cancel(tenant, name),
                                     grpc.StatusCode.NOT_FOUND)
                 for tenant, name in [("high", "private"), ("high", "nothing"),
                                      ("high", ""), ("free", "nothing")]]
        self.assertEqual(len({error.details() for error in words}), 1)
        self.assertEqual(
            len({tuple(error.trailing_metadata()) for error in words}), 1)
        for _ in range(5):
            next(call)
        self.cancel("free", "private")
        answer = Answer(call)
        self.assertEqual(answer.error.code(), grpc.StatusCode.CANCELLED)
        usage = harness.details(answer.error, pb2.Completion).usage
        self.assertGreater(usage.completion_tokens, 0)
        # It has ended: there is no such id any more, and it is free.
        self.assert_refused(lambda: self.cancel("free", "private"),
                            grpc.StatusCode.NOT_FOUND)
        self.assertIsNone(self.answer("free", request_id="private").error)
        self.assert_stops(self.server)

    def test_prompts_of_another_are_not_in_the_cache(self):
        def cached(tenant):
            usage = self.answer(tenant, text="word and " * 60,
                                max_tokens=2).completion.usage
            self.assertGreater(usage.prompt_tokens, 64)
            return usage.cached_prompt_tokens
        self.assertEqual(cached("free"), 0)
        self.assertGreaterEqual(cached("free"), 64)
        before = self.server.value("overfill_prefix_cache_hit_tokens_total")
        self.assertEqual(cached("high"), 0)
        self.assertEqual(
            self.server.value("overfill_prefix_cache_hit_tokens_total"), before)
        self.assertGreaterEqual(cached("high"), 64)
        self.assertGreaterEqual(cached("free"), 64)
        self.assert_stops(self.server)


if __name__ == "__main__":
    servers.main()
