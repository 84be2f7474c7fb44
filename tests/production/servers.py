"""What the production tests share: a server that may want TLS and tokens."""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

import grpc

sys.path.insert(0, os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))

import harness  # noqa: E402
from authorities import read  # noqa: E402
from harness import Answer, make_pair, pb2, pb2_grpc  # noqa: E402
from harness import health_grpc, health_pb2, wait_until  # noqa: E402

LONG = 15000  # tokens: seconds of work
CALL_SECONDS = 60
OWN_POOL = ("grpc.use_local_subchannel_pool", 1)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def bearer(token):
    """The metadata that shows a token."""
    return [("authorization", f"Bearer {token}")]


def tokens_text(tenants):
    """A file of tokens for {name: (its tokens, its limits)}."""
    return json.dumps({"tenants": [
        dict(limits, name=name, token_sha256=[
            hashlib.sha256(token.encode()).hexdigest() for token in tokens])
        for name, (tokens, limits) in tenants.items()]}).encode()


def request(text="Hello there, the end.", max_tokens=8, **members):
    """Greedy and deaf to EOS, so that its length is known."""
    if "tokens" not in members:
        members["text"] = text
    result = pb2.GenerateRequest(**members)
    result.sampling.temperature = 0
    result.limits.ignore_eos = True
    result.limits.max_tokens = max_tokens
    return result


def tokens_of(server, seconds):
    """About how many tokens an answer has that takes so long, or longer where
    others are served beside it.
    """
    sample = 2000
    begin = time.monotonic()
    answer = Answer(server.stub.Generate(request(max_tokens=sample)))
    took = time.monotonic() - begin
    assert answer.error is None
    # Each token reads all those before it.
    return min(LONG, int(sample * (seconds / took) ** 0.5))


class Server(harness.Server):
    """overfill-server with any flags, started through `wrapper`.

    `authority`: the CA of its certificate, where it speaks TLS. `identity`: the
    client's own, for mTLS. `token`: what `self.stub` shows.
    """

    # Another one than the base's, which knows plaintext and logs of text only.
    # pylint: disable=super-init-not-called
    def __init__(self, *flags, authority=None, identity=None, wrapper=(),
                 pair=None):
        self._authority, self._identity = authority, identity
        self._channels = []
        self.process = subprocess.Popen(
            [*wrapper, harness.server_binary, "--listen=127.0.0.1:0",
             "--metrics_listen=127.0.0.1:0", "--kv_cache_bytes=100000000",
             *(pair or make_pair()), *flags], stderr=subprocess.PIPE)
        self.lines = []
        self.reading = threading.Event()  # of its log
        self.reading.set()
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(harness.START_SECONDS):
            self.process.kill()
        found = dict(re.findall(r"(listening|metrics|health) on (\S+:\d+)",
                                "\n".join(self.lines)))
        if "listening" not in found:
            self.process.wait()
            raise RuntimeError("the server did not start: " +
                               "\n".join(self.lines))
        self.target = found["listening"]
        self.metrics_address = found.get("metrics")
        self.health_target = found.get("health")
        self.channel = self.new_channel()
        self.stub = pb2_grpc.InferenceStub(self.channel)

    def _read(self):
        for line in self.process.stderr:
            self.reading.wait()
            self.lines.append(line[:-1].decode(errors="surrogateescape"))
            if b"ready: listening on" in line:
                self._ready.set()
        self._ready.set()

    def open_channel(self, *options, target=None, **ends):
        """A connection of its own, to be closed. `authority`, `identity`: other
        than the server's; None: without.
        """
        authority = ends.get("authority", self._authority)
        identity = ends.get("identity", self._identity)
        target = target or self.target
        options = [OWN_POOL, *options]
        if authority is None:
            return grpc.insecure_channel(target, options)
        key, chain = None, None
        if identity is not None:
            key, chain = read(identity.key), read(identity.certificate)
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(
            read(authority.certificate), key, chain), options)

    def new_channel(self, *options, **ends):
        """The same; the server's end closes it."""
        self._channels.append(self.open_channel(*options, **ends))
        return self._channels[-1]

    def new_stub(self, *options, **ends):
        return pb2_grpc.InferenceStub(self.new_channel(*options, **ends))

    def health(self, channel=None, service=""):
        stub = health_grpc.HealthStub(channel or self.channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=service),
                          timeout=CALL_SECONDS).status

    def value(self, name, **labels):
        """The sum of the metric's series that have these labels; 0 where none
        is there yet.
        """
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        return sum(
            value for series, value in self.metrics().items()
            if series.partition("{")[0] == name and
            wanted <= set(series.partition("{")[2].rstrip("}").split(",")))

    def address(self):
        host, port = self.target.rsplit(":", 1)
        return host, int(port)

    def count_lines(self, part, wanted=0):
        """Lines of the log with `part`; they may come a moment late."""
        def count():
            return sum(part in line for line in list(self.lines))
        wait_until(lambda: count() >= wanted, 10)
        return count()

    def records(self):
        """The lines of a log in JSON."""
        return [json.loads(line) for line in list(self.lines)]

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self, sig=signal.SIGTERM):
        """The exit code."""
        for channel in self._channels:
            channel.close()
        if self.process.poll() is None:
            self.process.send_signal(sig)
        # The metrics' HTTP server looks each two seconds whether it is to end,
        # and whenever someone connects.
        host, port = self.metrics_address.rsplit(":", 1)
        end = time.monotonic() + harness.STOP_SECONDS
        while self.process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                socket.create_connection((host, int(port)), 1).close()
            time.sleep(0.02)
        return super().stop(sig)

    def kill(self):
        """For the end of a test that may have stopped it."""
        for channel in self._channels:
            channel.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.reading.set()
        self._reader.join()
        self.process.stderr.close()


class Case(unittest.TestCase):

    def serve(self, *flags, **how):
        """A server that is gone when the test ends, in whatever way."""
        server = Server(*flags, **how)
        self.addCleanup(server.kill)
        return server

    def loop(self, step, pause=0.0):
        """A Loop that has stopped when the test ends."""
        loop = Loop(step, pause)
        self.addCleanup(loop.stop)
        return loop

    def assert_stops(self, server):
        """On SIGTERM, in time and without a fault; all that it held is free."""
        self.assertTrue(wait_until(lambda: server.live() == 0))
        self.assertEqual(server.stop(), 0, server.lines[-5:])

    def assert_refused(self, call, code, *parts):
        """The error; it says each of `parts`."""
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        error = caught.exception
        self.assertEqual(error.code(), code, error)
        for part in parts:
            self.assertIn(part, error.details())
        return error


class Loop:
    """Repeats `step` in a thread until stopped; keeps what each one raised."""

    MOST_ERRORS = 1000  # after so many it stops by itself

    def __init__(self, step, pause=0.0):
        self.count, self.errors, self.slowest = 0, [], 0.0
        self._step, self._pause = step, pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.is_set() and len(self.errors) < self.MOST_ERRORS:
            begin = time.monotonic()
            try:
                self._step()
            except Exception as error:  # pylint: disable=broad-except
                self.errors.append(error.with_traceback(None))
            self.count += 1
            self.slowest = max(self.slowest, time.monotonic() - begin)
            self._stop.wait(self._pause)

    def stop(self):
        self._stop.set()
        self._thread.join()
        return self


def main():
    harness.main()
