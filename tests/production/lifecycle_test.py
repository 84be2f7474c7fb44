"""A server's end: who is told, who may finish, and how long it takes."""

import concurrent.futures
import signal
import time

import grpc

import servers
from servers import (CALL_SECONDS, LONG, NOT_SERVING, SERVING, Answer, harness,
                     health_grpc, health_pb2, pb2, request, tokens_of,
                     wait_until)
from slow_link import SlowLink

INFO = pb2.GetModelInfoRequest()
SERVICES = ("", "overfill.v1.Inference")
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
OWN_SECONDS = 5  # to flush, to end threads; on a machine that is busy


class HealthTest(servers.Case):

    def setUp(self):
        self.server = self.serve("--health_listen=127.0.0.1:0",
                                 "--drain_delay=1s")
        self.probe = self.server.new_channel(target=self.server.health_target)

    def test_on_both_ports_until_the_end(self):
        watches = []
        for channel in (self.server.channel, self.probe):
            for service in SERVICES:
                self.assertEqual(self.server.health(channel, service), SERVING)
                watches.append(health_grpc.HealthStub(channel).Watch(
                    health_pb2.HealthCheckRequest(service=service)))
                self.assertEqual(next(watches[-1]).status, SERVING)
            self.assert_refused(lambda: self.server.health(channel, "nobody"),
                                grpc.StatusCode.NOT_FOUND)
        self.server.process.send_signal(signal.SIGTERM)
        for watch in watches:
            self.assertEqual(next(watch).status, NOT_SERVING)
        for channel in (self.server.channel, self.probe):
            for service in SERVICES:
                self.assertEqual(self.server.health(channel, service),
                                 NOT_SERVING)
        for watch in watches:  # no change before the end
            self.assert_refused(lambda: next(watch), UNAVAILABLE)
        self.assertEqual(self.server.process.wait(OWN_SECONDS), 0)

    def test_its_port_answers_nothing_else(self):
        stub = servers.pb2_grpc.InferenceStub(self.probe)
        reflection = harness.reflection_grpc.ServerReflectionStub(self.probe)
        ask = harness.reflection_pb2.ServerReflectionRequest(list_services="")
        for call in [
                lambda: list(stub.Generate(request(), timeout=CALL_SECONDS)),
                lambda: stub.Tokenize(pb2.TokenizeRequest(text="a"),
                                      timeout=CALL_SECONDS),
                lambda: stub.Detokenize(pb2.DetokenizeRequest(ids=[1]),
                                        timeout=CALL_SECONDS),
                lambda: stub.GetModelInfo(INFO, timeout=CALL_SECONDS),
                lambda: stub.Cancel(pb2.CancelRequest(request_id="x"),
                                    timeout=CALL_SECONDS),
                lambda: list(reflection.ServerReflectionInfo(
                    iter([ask]), timeout=CALL_SECONDS))]:
            self.assert_refused(call, grpc.StatusCode.UNIMPLEMENTED)
        self.assertEqual(self.server.value("overfill_requests_total"), 0)
        self.assertEqual(self.server.value("overfill_requests_rejected_total"),
                         0)
        self.assert_stops(self.server)


class DrainTest(servers.Case):

    def one_answer(self, server):
        return Answer(server.stub.Generate(request(max_tokens=2),
                                           timeout=CALL_SECONDS))

    def test_delay_then_refusals_then_the_end(self):
        delay = 1
        server = self.serve(f"--drain_delay={delay}s", "--drain_timeout=60s")
        watch = health_grpc.HealthStub(server.channel).Watch(
            health_pb2.HealthCheckRequest())
        self.assertEqual(next(watch).status, SERVING)
        running = server.stub.Generate(request(
            max_tokens=tokens_of(server, seconds=delay + 3)))
        next(running)
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(next(watch).status, NOT_SERVING)
        self.assertLess(time.monotonic() - begin, delay / 2, "told too late")
        accepted = 0
        while (answer := self.one_answer(server)).error is None:
            accepted += 1
            time.sleep(0.01)
        passed = time.monotonic() - begin
        self.assertGreater(accepted, 5)
        self.assertGreaterEqual(passed, delay)
        self.assertLess(passed, delay + OWN_SECONDS)
        self.assertEqual(answer.error.code(), UNAVAILABLE)
        self.assertEqual(self.one_answer(server).error.code(), UNAVAILABLE)
        self.assertEqual(server.live(), 1, "its stream was cut, or too short")
        answer = Answer(running)
        self.assertIsNone(answer.error)
        ended = time.monotonic()
        self.assertEqual(server.process.wait(OWN_SECONDS), 0)
        self.assertLess(time.monotonic() - ended, OWN_SECONDS)

    def test_no_call_fails_but_as_unavailable(self):
        """Callers of every kind, up to the last moment."""
        server = self.serve("--drain_delay=500ms", "--drain_timeout=60s")

        def call():
            with server.open_channel() as channel:
                stub = servers.pb2_grpc.InferenceStub(channel)
                stub.Tokenize(pb2.TokenizeRequest(text="a" * 9000),
                              timeout=CALL_SECONDS)
                stub.GetModelInfo(INFO, timeout=CALL_SECONDS)
                list(stub.Generate(request(max_tokens=5),
                                   timeout=CALL_SECONDS))
        loops = [self.loop(call) for _ in range(4)]
        self.assertTrue(wait_until(lambda: min(l.count for l in loops) > 3))
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(30), 0)
        for loop in loops:
            codes = [error.code() for error in loop.stop().errors]
            # gRPC says so of a call that was half way in at the last moment.
            if grpc.StatusCode.CANCELLED in codes:
                codes.remove(grpc.StatusCode.CANCELLED)
            self.assertLessEqual(set(codes), {UNAVAILABLE})

    def test_the_timeout_ends_streams(self):
        timeout = 1.5
        server = self.serve(f"--drain_timeout={timeout}s")
        calls = [server.stub.Generate(request(max_tokens=LONG))
                 for _ in range(3)]
        for call in calls:
            next(call)
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for call in calls:
            answer = Answer(call)
            self.assertEqual(answer.error.code(), UNAVAILABLE)
            self.assertGreater(harness.details(
                answer.error, pb2.Completion).usage.completion_tokens, 0)
        # The last bytes have a tenth of the time.
        self.assertGreaterEqual(time.monotonic() - begin, 0.9 * timeout)
        self.assertEqual(server.process.wait(OWN_SECONDS), 0)
        self.assertLess(time.monotonic() - begin, timeout + OWN_SECONDS)

    def test_a_second_signal_ends_it_at_once(self):
        for delay in ("0s", "10m"):
            server = self.serve("--drain_timeout=20m", f"--drain_delay={delay}")
            call = server.stub.Generate(request(max_tokens=LONG))
            next(call)
            server.process.send_signal(signal.SIGTERM)
            self.assertTrue(wait_until(lambda: server.count_lines("draining")))
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(OWN_SECONDS),
                             128 + signal.SIGTERM)
            self.assertEqual(Answer(call).error.code(), UNAVAILABLE)


class UploadTest(servers.Case):
    """A request that is on its way in when the server is told to end."""

    NUM_BYTES = 2_000_000
    DELAY = 4

    def setUp(self):
        servers.make_pair()  # no two threads at once

    def upload(self, generate, seconds, streams_go_on):
        """What becomes of a call whose request needs so many seconds more: its
        status; None: it was answered.
        """
        server = self.serve("--drain_timeout=30s",
                            f"--drain_delay={self.DELAY}s")
        rest = 0.75
        link = SlowLink(server.address(), rest * self.NUM_BYTES / seconds)
        self.addCleanup(link.close)
        stub = server.new_stub(target=link.target)
        stub.GetModelInfo(INFO, timeout=CALL_SECONDS)
        stream = server.stub.Generate(request(max_tokens=LONG))
        next(stream)
        text = "a" * self.NUM_BYTES
        call = (stub.Generate(request(text), timeout=CALL_SECONDS) if generate
                else stub.Tokenize.future(pb2.TokenizeRequest(text=text),
                                          timeout=CALL_SECONDS))
        self.assertTrue(wait_until(
            lambda: link.passed > (1 - rest) * self.NUM_BYTES, CALL_SECONDS))
        server.process.send_signal(signal.SIGTERM)
        if not streams_go_on:
            stream.cancel()
        code = call.code()  # when it has one
        stream.cancel()
        self.assertEqual(server.process.wait(harness.STOP_SECONDS), 0)
        return None if code == grpc.StatusCode.OK else code

    def ends(self, cases):
        with concurrent.futures.ThreadPoolExecutor() as executor:
            ends = [executor.submit(self.upload, *case) for case in cases]
        for case, end in zip(cases, ends):
            yield case, end.result()

    def test_within_the_delay_it_is_answered(self):
        for case, end in self.ends([
                (generate, seconds, streams_go_on)
                for generate in (False, True)
                for seconds, streams_go_on in [(0.5, False), (1, True)]]):
            with self.subTest(case):
                # Of so long a prompt the answer is that it is too long.
                self.assertEqual(end, grpc.StatusCode.INVALID_ARGUMENT
                                 if case[0] else None)

    def test_one_that_outlasts_the_delay_holds_nothing_up(self):
        """gRPC says CANCELLED of what had not come in when its connection was
        told to go elsewhere.
        """
        for case, end in self.ends([(generate, 4 * self.DELAY, False)
                                    for generate in (False, True)]):
            with self.subTest(case):
                self.assertIn(end, (UNAVAILABLE, grpc.StatusCode.CANCELLED))


if __name__ == "__main__":
    servers.main()
