"""Many streams, and streams that end before their answers do."""

import concurrent.futures
import socket
import subprocess
import time

import grpc

import harness
from harness import Answer, pb2, wait_until

PATHS = [pb2.DECODE_PATH_TWO_STAGE, pb2.DECODE_PATH_FULL,
         pb2.DECODE_PATH_PRUNED]
LONG = 15000  # tokens: seconds of work


class StreamsTest(harness.ServerCase):

    def start(self, **members):
        """A long answer that has begun."""
        members.setdefault("max_tokens", LONG)
        call = self.stub.Generate(self.request(**members))
        next(call)
        return call

    def count(self, outcome):
        return sum(value for series, value in self.server.metrics().items()
                   if series.startswith("overfill_requests_total{") and
                   f'outcome="{outcome}"' in series)

    def assert_ends(self, outcome, before):
        """Within a moment, the request is gone and its blocks are home."""
        self.assert_blocks_are_home(10)
        self.assertEqual(self.count(outcome), before + 1)
        self.assert_serves()

    def test_32_streams_of_all_paths_at_once(self):
        requests = [self.request(text=f"Stream number {i}, " * (1 + i % 7),
                                 max_tokens=20 + 5 * (i % 4),
                                 path=PATHS[i % 3]) for i in range(32)]
        alone = [self.generate(request) for request in requests[:3]]
        with concurrent.futures.ThreadPoolExecutor(32) as executor:
            answers = list(executor.map(self.generate, requests))
        for request, answer in zip(requests, answers):
            usage = answer.completion.usage
            self.assertEqual(len(answer.ids), request.limits.max_tokens)
            self.assertEqual(usage.completion_tokens, len(answer.ids))
        # The paths are what they are alone, up to what bf16 leaves open.
        self.assertEqual([a.ids[0] for a in answers[:3]],
                         [a.ids[0] for a in alone])
        self.assert_blocks_are_home()

    def test_cancel(self):
        before = self.count("cancelled")
        call = self.start()
        call.cancel()
        self.assert_ends("cancelled", before)

    def test_deadline(self):
        """The client ends the call too. Where that comes well before the
        server's deadline, on a machine that was slow to let the request in, it
        is a cancel like any other; most often it does not.
        """
        for _ in range(10):
            before = self.count("deadline_exceeded")
            cancelled = self.count("cancelled")
            begin = time.monotonic()
            answer = self.generate(self.request(max_tokens=LONG), timeout=0.4)
            self.assertEqual(answer.error.code(),
                             grpc.StatusCode.DEADLINE_EXCEEDED)
            self.assertLess(time.monotonic() - begin, 5)
            self.assertGreater(len(answer.ids), 0)
            self.assert_blocks_are_home(10)
            if self.count("cancelled") == cancelled:
                break
        self.assert_ends("deadline_exceeded", before)

    def test_client_process_killed(self):
        before = self.count("cancelled")
        process = subprocess.Popen(
            [harness.client_binary, f"--target={self.server.target}",
             f"--max_tokens={LONG}", "--json", "--ignore_eos", "Hello"],
            stdout=subprocess.PIPE)
        process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
        self.assertTrue(wait_until(lambda: self.server.live() == 0, 10))
        self.assertEqual(self.count("cancelled"), before + 1)
        self.assert_serves()

    def test_slow_reader_hinders_nobody(self):
        """A client that stops reading is ended; others go on meanwhile."""
        before = self.count("resource_exhausted")
        request = self.request(max_tokens=LONG)
        request.output.logprobs = 20
        slow = self.server.narrow_stub().Generate(request)
        next(slow)
        for _ in range(5):
            self.assert_serves()
        # It still has not read when its blocks are home.
        self.assert_blocks_are_home(2 * harness.CALL_SECONDS)
        self.assertEqual(self.count("resource_exhausted"), before + 1)
        answer = Answer(slow)
        self.assertEqual(answer.error.code(),
                         grpc.StatusCode.RESOURCE_EXHAUSTED)
        usage = harness.details(answer.error, pb2.Completion).usage
        self.assertLess(usage.completion_tokens, LONG)
        self.assertLess(len(answer.ids), usage.completion_tokens)

    def test_connections_that_speak_no_grpc(self):
        host, port = self.server.target.rsplit(":", 1)
        for data in [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5000,
                     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100]:
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(data)
                connection.settimeout(0.2)
                try:
                    connection.recv(100)
                except (socket.timeout, ConnectionError):
                    pass
        self.assert_serves()

    def test_storm(self):
        """Streams that end in every way, all at once."""
        rng = harness.checkpoints.seeded(f"{harness.SEED} storm")
        plans = [(rng.choice(["finish", "cancel", "deadline", "bad"]),
                  rng.choice(PATHS), rng.randrange(1, 400),
                  rng.random() * 0.2) for _ in range(150)]

        def run(plan):
            kind, path, num_tokens, delay = plan
            request = self.request(path=path, max_tokens=num_tokens)
            if kind == "bad":
                request.sampling.top_p = 0
            if kind == "deadline":
                return Answer(self.stub.Generate(request, timeout=delay))
            call = self.stub.Generate(request, timeout=harness.CALL_SECONDS)
            if kind == "cancel":
                time.sleep(delay)
                call.cancel()
            return Answer(call)

        with concurrent.futures.ThreadPoolExecutor(24) as executor:
            answers = list(executor.map(run, plans))
        allowed = {
            "finish": {None}, "bad": {grpc.StatusCode.INVALID_ARGUMENT},
            "cancel": {None, grpc.StatusCode.CANCELLED},
            "deadline": {None, grpc.StatusCode.DEADLINE_EXCEEDED}}
        for (kind, _, num_tokens, _), answer in zip(plans, answers):
            code = answer.error.code() if answer.error else None
            self.assertIn(code, allowed[kind], kind)
            if code is None:
                self.assertEqual(answer.completion.usage.completion_tokens,
                                 num_tokens)
        self.assert_serves()


class DeadReadersTest(harness.ServerCase):
    """Clients that take their answers' first event and never read again."""

    NUM_READERS = 8
    LINGER_SECONDS = 60  # the server's, and time for a sanitizer

    def open_streams(self):
        return self.server.metrics()["overfill_open_streams"]

    def run_round(self):
        """The memory while the streams wait for their readers."""
        # More than a connection takes unread.
        request = self.request(max_tokens=3000)
        request.output.logprobs = 20
        stubs = [self.server.narrow_stub() for _ in range(self.NUM_READERS)]
        calls = [stub.Generate(request) for stub in stubs]
        for call in calls:
            next(call)
        # Their requests end, complete or by the bound of a slow reader; others
        # are served meanwhile, and while the streams stay for their readers.
        self.assertTrue(wait_until(
            lambda: self.assert_serves() or self.server.live() == 0,
            2 * harness.CALL_SECONDS))
        self.assertEqual(self.open_streams(), self.NUM_READERS)
        peak = self.server.memory_bytes()
        self.assertTrue(wait_until(
            lambda: self.assert_serves() or self.open_streams() == 0,
            self.LINGER_SECONDS))
        # Nobody has read or left until here.
        for call in calls:
            answer = Answer(call)
            self.assertEqual(answer.error.code(), grpc.StatusCode.CANCELLED)
        return peak

    def test_their_streams_and_memory_go(self):
        self.assert_serves()
        begin = self.server.memory_bytes()
        held = self.run_round() - begin
        self.assertGreater(held, self.NUM_READERS * 250_000)
        after_first = self.server.memory_bytes()
        self.run_round()
        # It would grow by what they hold, each time.
        self.assertLess(self.server.memory_bytes() - after_first, held / 2)


class OpenStreamsTest(harness.ServerCase):
    flags = ["--max_open_streams=3"]

    def test_more_are_refused(self):
        calls = [self.stub.Generate(self.request(max_tokens=LONG))
                 for _ in range(3)]
        for call in calls:
            next(call)
        error = self.generate().error
        self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        delay = harness.details(error, harness.details_pb2.RetryInfo)
        self.assertGreater(delay.retry_delay.ToNanoseconds(), 0)
        metrics = self.server.metrics()
        self.assertEqual(metrics["overfill_open_streams"], 3)
        self.assertEqual(
            metrics['overfill_requests_rejected_total{reason="open_streams"}'],
            1)
        for call in calls:
            call.cancel()
        self.assertTrue(wait_until(
            lambda: self.server.metrics()["overfill_open_streams"] == 0))
        self.assert_serves()


class LargePromptsTest(harness.ServerCase):

    def test_tokenizing_holds_up_no_stream(self):
        """Texts that take long to tokenize, one after the other."""
        text = "word and " * 400_000
        tokenizing = [self.stub.Tokenize.future(
            pb2.TokenizeRequest(text=text)) for _ in range(6)]
        num_served = 0
        while not tokenizing[-1].done():
            self.assert_serves()
            num_served += 1
        self.assertGreater(num_served, 6)
        for call in tokenizing:
            self.assertGreater(len(call.result().ids), 400_000)

    def test_large_prompt_of_a_client_that_left(self):
        request = self.request(text="word and " * 400_000)
        busy = [self.stub.Tokenize.future(pb2.TokenizeRequest(
            text="word and " * 400_000)) for _ in range(3)]
        call = self.stub.Generate(request)
        self.assertTrue(wait_until(
            lambda: self.server.metrics()["overfill_open_streams"] == 1))
        call.cancel()
        self.assertTrue(wait_until(
            lambda: self.server.metrics()["overfill_open_streams"] == 0))
        self.assertFalse(busy[-1].done())
        for tokenize in busy:
            tokenize.result()
        self.assert_serves()


class QueueTest(harness.ServerCase):
    """One place: who comes second waits."""

    flags = ["--max_decode_batch=1"]

    def setUp(self):
        self.first = self.stub.Generate(self.request(max_tokens=LONG))
        next(self.first)
        self.before = self.server.metrics()

    def tearDown(self):
        self.assertEqual(self.delta("overfill_step_rows_sum", "prompt"), 0)
        self.assertEqual(
            self.server.metrics()['overfill_requests{state="decoding"}'], 1)
        self.first.cancel()
        super().tearDown()

    def delta(self, name, label):
        return sum(value - self.before.get(series, 0)
                   for series, value in self.server.metrics().items()
                   if series.startswith(name + "{") and f'"{label}"' in series)

    def queued(self):
        return self.server.metrics()['overfill_requests{state="queued"}']

    def test_cancel_in_the_queue(self):
        second = self.stub.Generate(self.request())
        self.assertTrue(wait_until(lambda: self.queued() == 1))
        second.cancel()
        self.assertTrue(wait_until(lambda: self.queued() == 0))
        self.assertEqual(self.delta("overfill_requests_total", "cancelled"), 1)

    def test_deadline_in_the_queue(self):
        answer = self.generate(timeout=0.3)
        self.assertEqual(answer.error.code(),
                         grpc.StatusCode.DEADLINE_EXCEEDED)
        self.assertEqual(answer.ids, [])
        self.assertTrue(wait_until(lambda: self.queued() == 0))
        self.assertEqual(
            self.delta("overfill_requests_total", "deadline_exceeded"), 1)


class SmallStoreTest(harness.ServerCase):
    """More streams than the KV store can hold at once: they take turns."""

    flags = ["--kv_cache_bytes=700000", "--max_sequence_tokens=200"]

    def test_all_complete(self):
        self.assertLess(self.total_blocks["shared"], 40)
        with concurrent.futures.ThreadPoolExecutor(16) as executor:
            answers = list(executor.map(
                lambda i: self.generate(text=f"{i} " * 20, max_tokens=100,
                                        path=PATHS[i % 3]), range(16)))
        for answer in answers:
            self.assertEqual(len(answer.ids), 100, answer.error)


if __name__ == "__main__":
    harness.main()
