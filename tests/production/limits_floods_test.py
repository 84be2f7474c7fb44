"""Connections that mean harm: the server lives, and others are served."""

import concurrent.futures
import os
import resource
import socket
import ssl
import struct
import time
import unittest

import authorities
import http2
import servers
from authorities import write
from http2 import Connection, frame
from servers import (CALL_SECONDS, Answer, bearer, harness, request,
                     tokens_text, wait_until)

HANDSHAKE_SECONDS = 10  # the server's patience with who says nothing
GENEROUS_SECONDS = 10  # for one call of others, on a machine that is busy
MIB = 1 << 20
BURST = 250  # streams
# Of the memory that a flood costs.
MOST_KEPT_BYTES = 150 * MIB


def reset(stream):
    return frame(http2.RST_STREAM, 0, stream, struct.pack(">I", http2.CANCEL))


class FloodCase(servers.Case):
    token = None

    def serve_and_watch(self, *flags, **how):
        """A server, and another client that calls it all the time."""
        self.server = self.serve(*flags, **how)
        self.others = self.loop(self.call_of_others, pause=0.005)
        self.assertTrue(wait_until(lambda: self.others.count > 3))
        self.begin_bytes = self.server.memory_bytes()
        self.begin_files = self.server.open_files()

    def call_of_others(self):
        answer = Answer(self.server.stub.Generate(
            request(max_tokens=3), timeout=CALL_SECONDS,
            metadata=bearer(self.token) if self.token else None))
        self.assertEqual(len(answer.ids), 3, answer.error)

    def assert_unharmed(self):
        """Others were served all along; what the flood held is free."""
        self.others.stop()
        self.assertEqual(self.others.errors[:1], [], len(self.others.errors))
        self.assertLess(self.others.slowest, GENEROUS_SECONDS)
        self.assert_recovers()
        self.assert_stops(self.server)

    def assert_recovers(self):
        self.assertIsNone(self.server.process.poll())
        self.assertTrue(wait_until(self.is_served, GENEROUS_SECONDS))
        self.assertTrue(wait_until(lambda: (
            self.server.live(), self.server.value("overfill_open_streams")
        ) == (0, 0), GENEROUS_SECONDS))
        self.assertTrue(wait_until(
            lambda: self.server.open_files() <= self.begin_files + 3,
            GENEROUS_SECONDS), self.server.open_files())
        held = wait_until(lambda: self.held_bytes() < MOST_KEPT_BYTES,
                          2 * GENEROUS_SECONDS)
        self.assertTrue(held, f"{self.held_bytes() / MIB} MiB more than before")

    def is_served(self):
        try:
            self.call_of_others()
        except AssertionError:
            return False
        return True

    def held_bytes(self):
        return self.server.memory_bytes() - self.begin_bytes


class SlowHandshakeTest(FloodCase):
    NUM_EACH = 250

    def setUp(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 8 * self.NUM_EACH
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE,
                            (soft, hard))
        self.authority = authorities.Authority(harness.work_dir(self.id()))
        identity = self.authority.server()
        self.serve_and_watch(f"--tls_cert={identity.certificate}",
                             f"--tls_key={identity.key}",
                             "--health_listen=127.0.0.1:0",
                             authority=self.authority)

    def connect(self, target):
        host, port = target.rsplit(":", 1)
        sockets = [socket.create_connection((host, int(port)))
                   for _ in range(self.NUM_EACH)]
        for each in sockets:
            self.addCleanup(each.close)
        return sockets

    def hello(self):
        """The first message of TLS."""
        context = ssl.create_default_context()
        out = ssl.MemoryBIO()
        end = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="x")
        with self.assertRaises(ssl.SSLWantReadError):
            end.do_handshake()
        return out.read()

    def drip(self, sockets, data, seconds):
        """A byte of `data` now and then, to who has not closed."""
        end = time.monotonic() + seconds
        for i in range(len(data)):
            if time.monotonic() > end or not sockets:
                return
            sockets = [each for each in sockets if self.send(each, data[i:i+1])]
            time.sleep(0.2)

    @staticmethod
    def send(end, data):
        try:
            end.send(data)
        except OSError:
            return False
        return True

    @staticmethod
    def closed_by(end, at):
        """Whether the server closes before that time, whatever it says."""
        try:
            while True:
                end.settimeout(max(at - time.monotonic(), 0.001))
                if not end.recv(4096):
                    return True
        except socket.timeout:
            return False
        except OSError:
            return True

    def test_who_says_nothing_and_who_drips(self):
        begin = time.monotonic()
        new = self.loop(self.call_on_a_new_connection, pause=0.05)
        silent = self.connect(self.server.target)
        dripping = self.connect(self.server.target)
        probes = self.connect(self.server.health_target)
        self.assertTrue(wait_until(
            lambda: self.server.open_files() >
            self.begin_files + 3 * self.NUM_EACH - 20))
        self.drip(dripping, self.hello(), HANDSHAKE_SECONDS + 3)
        at = time.monotonic() + 5
        for end in silent + dripping + probes:
            self.assertTrue(self.closed_by(end, at))
        # They were not closed for another reason.
        self.assertGreater(time.monotonic() - begin, HANDSHAKE_SECONDS - 1)
        self.assertEqual(new.stop().errors, [])
        self.assertGreater(new.count, 5)
        self.assertLess(new.slowest, GENEROUS_SECONDS)
        self.assert_unharmed()

    def call_on_a_new_connection(self):
        with self.server.open_channel() as channel:
            self.assertEqual(self.server.health(channel), servers.SERVING)


class RapidResetTest(FloodCase):
    """Streams that are taken back as soon as they are opened: the server may
    have to work for them, and the client does not.
    """

    def flood(self, num_streams, body=b"", extra=()):
        """Opens and resets so many, as fast as it goes. With a body, the
        server has seen each request before it is taken back.
        """
        headers = http2.call_headers(extra=extra)
        with Connection(self.server.address(), seconds=CALL_SECONDS) as flood:
            for begin in range(1, 2 * num_streams, 2 * BURST):
                streams = range(begin, begin + 2 * BURST, 2)
                opened = [frame(http2.HEADERS, http2.END_HEADERS, stream,
                                headers) for stream in streams]
                if body:
                    self.assertTrue(flood.offer(b"".join(
                        head + frame(http2.DATA, http2.END_STREAM, stream, body)
                        for head, stream in zip(opened, streams))))
                    self.assertTrue(flood.settings(CALL_SECONDS))
                    opened = [b""] * BURST
                self.assertTrue(flood.offer(b"".join(
                    head + reset(stream)
                    for head, stream in zip(opened, streams))))
            self.assertTrue(flood.settings(CALL_SECONDS))

    def test_headers_alone(self):
        self.serve_and_watch()
        for _ in range(3):
            self.flood(10_000)
        self.assert_unharmed()

    def test_several_connections(self):
        self.serve_and_watch()
        with concurrent.futures.ThreadPoolExecutor(4) as executor:
            for done in [executor.submit(self.flood, 5000) for _ in range(4)]:
                done.result()
        self.assert_unharmed()

    def test_whole_requests(self):
        """These may fill the queue, so that others are refused for a while."""
        self.serve_and_watch()
        body = http2.message(request(max_tokens=100))
        for _ in range(3):
            self.flood(3000, body)
        self.others.stop()
        for error in self.others.errors:
            self.assertIn("RESOURCE_EXHAUSTED", str(error))
        self.others.errors.clear()
        self.assert_unharmed()

    def test_of_callers_that_others_are_kept_from(self):
        """Without a token, or at the tenant's limit, they fill nothing."""
        path = os.path.join(harness.work_dir(self.id()), "tokens.json")
        write(path, tokens_text({
            "others": (["right"], {}),
            "flooder": (["greedy"], {"max_requests_in_flight": 4})}))
        self.token = "right"
        self.serve_and_watch(f"--auth_tokens={path}")
        body = http2.message(request(max_tokens=100))
        for token in ("wrong", "greedy"):
            self.flood(5000, extra=bearer(token))
            self.flood(5000, body, extra=bearer(token))
        self.assertGreater(
            self.server.value("overfill_unauthenticated_calls_total"), 1000)
        self.assertGreater(
            self.server.value("overfill_requests_rejected_total",
                              reason="tenant_in_flight"), 1000)
        self.assert_unharmed()


class FramesTest(FloodCase):
    """Frames without end that a library would never send."""

    def setUp(self):
        self.serve_and_watch()

    def flood(self, *frames, first=b"", repeat=200, must_end=False):
        """Sends what is asked, until the server has had enough of it."""
        burst = b"".join(frames)
        for _ in range(4):
            with Connection(self.server.address()) as connection:
                connection.offer(first)
                try:
                    for _ in range(repeat):
                        if not connection.offer(burst):
                            break
                except socket.timeout:
                    pass  # it is not read any more: good, too
                if must_end:
                    list(connection.frames(GENEROUS_SECONDS))
                    self.assertTrue(connection.is_closed)

    def open_headers(self, block=b""):
        """A header block that does not end."""
        return frame(http2.HEADERS, 0, 1, http2.call_headers() + block)

    def test_headers_without_end(self):
        large = http2.header("x-large", "y" * 3000) * 5
        self.flood(frame(http2.CONTINUATION, 0, 1, large),
                   first=self.open_headers(), repeat=1000)
        self.flood(frame(http2.CONTINUATION, 0, 1) * 1000,
                   first=self.open_headers())
        self.assert_unharmed()

    # gRPC looks at each frame alone, and keeps what is not complete: 1.51, of
    # Debian 12, has CVE-2023-33953. With a later one this succeeds.
    @unittest.expectedFailure
    def test_headers_beyond_the_limit_take_no_memory(self):
        large = http2.header("x-large", "y" * 3000) * 5
        burst = frame(http2.CONTINUATION, 0, 1, large) * 100
        with Connection(self.server.address()) as connection:
            connection.offer(self.open_headers())
            for _ in range(60):
                if not connection.offer(burst):
                    break
            time.sleep(0.5)
            self.assertLess(self.held_bytes() / MIB, 40)

    def test_headers_that_grow_when_unpacked(self):
        """One entry of HPACK's table of some kB, named with one byte each."""
        entry = b"\x40" + http2.header("x-large", "y" * 3800)[1:]
        self.flood(frame(http2.CONTINUATION, 0, 1, b"\xbe" * 16000),
                   first=self.open_headers(entry), must_end=True)
        self.assert_unharmed()

    def test_settings_and_pings_that_are_answered_and_not_read(self):
        self.flood(frame(http2.SETTINGS) * 1000)
        many = b"".join(struct.pack(">HI", 4, 65535 + i) for i in range(2700))
        self.flood(frame(http2.SETTINGS, 0, 0, many))
        self.flood(frame(http2.PING, payload=b"overfill") * 1000,
                   must_end=True)
        self.assert_unharmed()

    def test_small_frames(self):
        first = frame(http2.HEADERS, http2.END_HEADERS, 1, http2.call_headers())
        self.flood(frame(http2.DATA, 0, 1) * 1000, first=first)
        self.flood(frame(http2.WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 1000)
        self.flood(frame(2, 0, 1, b"\0\0\0\0\x10") * 1000)  # PRIORITY
        self.assert_unharmed()

    def test_nonsense(self):
        self.flood(b"\xff\xff\xff\0\0\0\0\0\1" + b"x" * 10_000)
        self.flood(frame(99, 0xff, 1, b"x" * 1000))
        self.flood(frame(http2.HEADERS, http2.END_HEADERS, 2, b"\xff" * 100))
        self.flood(frame(http2.DATA, 0, 77, b"x" * 1000))
        self.flood(os.urandom(10_000))
        self.assert_unharmed()


if __name__ == "__main__":
    servers.main()
