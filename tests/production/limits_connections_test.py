"""What one connection may do, and for how long."""

import concurrent.futures
import time

import grpc

import http2
import servers
from http2 import Connection, frame
from servers import (CALL_SECONDS, LONG, Answer, pb2, request, wait_until)

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
INFO = pb2.GetModelInfoRequest()
MIN_PING_SECONDS = 10  # which the API promises to idle connections
FREE_PINGS = 3  # the first one, and two that gRPC overlooks


class PingTest(servers.Case):

    def setUp(self):
        self.server = self.serve()

    def connect(self):
        connection = Connection(self.server.address())
        self.addCleanup(connection.close)
        return connection

    def on_the_edge(self, seconds):
        """Whether an idle connection may ping after so many seconds, where the
        next ping that is too early ends it; and whether one at once may.
        """
        connection = self.connect()
        for _ in range(FREE_PINGS):
            self.assertTrue(connection.ping())
        time.sleep(seconds)
        return connection.ping(), connection.ping()

    def test_a_keepalive_is_no_abuse_and_a_faster_one_is(self):
        """As a gateway pings: with no call. Without the server's own settings
        it might do so every five minutes, or two hours.
        """
        with concurrent.futures.ThreadPoolExecutor() as executor:
            slow = executor.submit(self.on_the_edge, MIN_PING_SECONDS + 0.3)
            fast = executor.submit(self.on_the_edge, MIN_PING_SECONDS - 3)
            self.assertEqual(slow.result(), (True, False))
            self.assertEqual(fast.result(), (False, False))

    def test_a_flood_ends_its_connection_alone(self):
        others = self.server.new_stub().Generate(request(max_tokens=LONG))
        next(others)
        loop = self.loop(lambda: self.server.stub.GetModelInfo(
            INFO, timeout=CALL_SECONDS))
        for _ in range(20):
            connection = self.connect()
            connection.offer(frame(http2.PING, payload=b"overfill") * 1000)
            code, debug = connection.goaway()
            self.assertEqual(code, http2.ENHANCE_YOUR_CALM)
            self.assertIn(b"too_many_pings", debug)
            list(connection.frames(CALL_SECONDS))
            self.assertTrue(connection.is_closed)
        self.assertEqual(loop.stop().errors, [])
        self.assertGreater(loop.count, 10)
        for _ in range(5):
            next(others)
        others.cancel()
        self.assert_stops(self.server)


class StreamsTest(servers.Case):

    def test_the_third_call_of_two_waits_at_the_client(self):
        server = self.serve("--max_connection_streams=2")
        calls = [server.stub.Generate(request(max_tokens=LONG))
                 for _ in range(2)]
        for call in calls:
            next(call)
        third = server.stub.Generate(request(max_tokens=3))
        unary = server.stub.GetModelInfo.future(INFO)
        time.sleep(0.5)
        self.assertTrue(third.is_active())
        self.assertFalse(unary.done())
        self.assertEqual(server.value("overfill_open_streams"), 2)
        self.assertEqual(server.value("overfill_requests_rejected_total"), 0)
        # Another connection has its own two.
        other = server.new_stub()
        self.assertEqual(
            len(Answer(other.Generate(request(max_tokens=3))).ids), 3)
        for call in calls:
            self.assertTrue(call.is_active())
        calls[0].cancel()
        self.assertEqual(len(Answer(third).ids), 3)
        unary.result(CALL_SECONDS)
        calls[1].cancel()
        self.assert_stops(server)

    def test_a_client_that_opens_more_all_the_same(self):
        """It breaks the protocol, which ends its connection, and no other."""
        server = self.serve("--max_connection_streams=2")
        loop = self.loop(lambda: server.stub.GetModelInfo(
            INFO, timeout=CALL_SECONDS))
        with Connection(server.address()) as connection:
            body = http2.message(request(max_tokens=LONG))
            for stream in range(1, 20, 2):
                connection.offer(
                    frame(http2.HEADERS, http2.END_HEADERS, stream,
                          http2.call_headers()) +
                    frame(http2.DATA, http2.END_STREAM, stream, body))
            for kind, _, stream, _ in connection.frames(CALL_SECONDS):
                self.assertFalse(kind == http2.DATA and stream > 3)
            self.assertTrue(connection.is_closed)
        self.assertTrue(wait_until(
            lambda: server.value("overfill_open_streams") == 0))
        self.assertEqual(loop.stop().errors, [])
        self.assert_stops(server)


class AgeTest(servers.Case):

    def test_old_connections_are_left_without_a_failed_call(self):
        server = self.serve("--max_connection_age=1s",
                            "--max_connection_age_grace=10m",
                            "--log_format=json")
        num_tokens = servers.tokens_of(server, seconds=3)
        long = server.stub.Generate(request(max_tokens=num_tokens,
                                            request_id="long"))
        next(long)

        def call():  # on the same channel
            answer = Answer(server.stub.Generate(request(max_tokens=2),
                                                 timeout=CALL_SECONDS))
            self.assertEqual(len(answer.ids), 2, answer.error)
        loop = self.loop(call, pause=0.005)
        time.sleep(4)
        self.assertEqual(loop.stop().errors, [])
        self.assertGreater(loop.count, 50)
        answer = Answer(long)
        self.assertEqual(answer.completion.usage.completion_tokens, num_tokens)
        peers = {}
        for record in server.records():
            if record["message"] == "request":
                peers.setdefault(record["peer"], []).append(
                    record["request_id"])
        # Three that have aged, at most a tenth early or late.
        self.assertGreaterEqual(len(peers), 3)
        # The stream has stayed where it was.
        (home,) = [ids for ids in peers.values() if "long" in ids]
        self.assertIs(home, next(iter(peers.values())))
        self.assert_stops(server)

    def test_the_grace_ends(self):
        server = self.serve("--max_connection_age=1s",
                            "--max_connection_age_grace=500ms")
        begin = time.monotonic()
        answer = Answer(server.stub.Generate(request(max_tokens=LONG)))
        self.assertEqual(answer.error.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertGreater(time.monotonic() - begin, 1)
        self.assertGreater(len(answer.ids), 0)
        self.assert_stops(server)


class SizesTest(servers.Case):

    def setUp(self):
        self.server = self.serve("--max_request_bytes=100000")

    def test_metadata(self):
        self.server.stub.GetModelInfo(INFO, metadata=[("x", "y" * 7000)])
        for metadata in ([("x", "y" * 300_000)],
                         [(f"x-{i}", "y" * 100) for i in range(3000)]):
            codes = set()
            for _ in range(10):
                stub = self.server.new_stub()
                with self.assertRaises(grpc.RpcError) as caught:
                    stub.GetModelInfo(INFO, metadata=metadata,
                                      timeout=CALL_SECONDS)
                codes.add(caught.exception.code())
                # gRPC may give up such a connection; the next one serves.
                self.assertTrue(wait_until(lambda: self.gets_info(stub)))
            # A client that is still sending may see the end alone.
            self.assertIn(EXHAUSTED, codes)
            self.assertLessEqual(codes,
                                 {EXHAUSTED, grpc.StatusCode.UNAVAILABLE})
        self.assert_stops(self.server)

    def gets_info(self, stub):
        try:
            return stub.GetModelInfo(INFO, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            self.assertEqual(error.code(), grpc.StatusCode.UNAVAILABLE)
            return None

    def test_metadata_that_gateways_let_through_harms_nobody(self):
        """One connection of a gateway carries many clients' calls, and what
        one of them sends must not end the others'. gRPC ends the connection
        where metadata are larger than its limit, so that the limit must be
        above what gateways take themselves: 60 KiB is Envoy's.
        """
        for size in (9_000, 16_000, 60_000):
            stub = self.server.new_stub()
            call = stub.Generate(request(max_tokens=LONG))
            next(call)
            with self.subTest(size):
                try:
                    stub.GetModelInfo(INFO, metadata=[("x", "y" * size)],
                                      timeout=CALL_SECONDS)
                except grpc.RpcError as error:
                    self.assertEqual(error.code(), EXHAUSTED)
                for _ in range(100):
                    next(call)
            call.cancel()
        self.assert_stops(self.server)

    def test_messages(self):
        for size, is_good in [(99_000, True), (101_000, False),
                              (50_000_000, False)]:
            def call():
                return self.server.stub.Tokenize(
                    pb2.TokenizeRequest(text="a" * size), timeout=CALL_SECONDS)
            if is_good:
                self.assertTrue(call().ids)
            else:
                self.assert_refused(call, EXHAUSTED)
        answer = Answer(self.server.stub.Generate(request("a" * 101_000)))
        self.assertEqual(answer.error.code(), EXHAUSTED)
        # Compressed ones would be larger than they look.
        packed = self.server.new_stub(
            ("grpc.default_compression_algorithm", 2))
        self.assert_refused(lambda: packed.Tokenize(
            pb2.TokenizeRequest(text="a" * 90_000), timeout=CALL_SECONDS),
                            grpc.StatusCode.UNIMPLEMENTED)
        self.server.stub.GetModelInfo(INFO, timeout=CALL_SECONDS)
        self.assert_stops(self.server)


if __name__ == "__main__":
    servers.main()
