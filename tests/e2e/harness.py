"""What the end-to-end tests share: stubs, a random pair, the server's process.

The stubs are generated from the protos when a test begins. The pairs are the
random, odd-sized ones of tests/golden; OVERFILL_GOLDEN_SEED brings them back.
"""

import argparse
import functools
import importlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

import grpc

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "golden"))

import checkpoints  # noqa: E402

SEED = int(os.environ.get("OVERFILL_GOLDEN_SEED") or secrets.randbits(31))
START_SECONDS = 120
STOP_SECONDS = 60
CALL_SECONDS = 120
MAX_POSITIONS = 16384

_work = tempfile.TemporaryDirectory()
server_binary = None  # set by main
client_binary = None


def _generate_stubs():
    out = os.path.join(_work.name, "stubs")
    os.makedirs(out)
    proto = os.path.join(ROOT, "proto")
    own = os.path.join(ROOT, "tests", "e2e", "proto")
    plugin = shutil.which("grpc_python_plugin")
    subprocess.run(
        ["protoc", f"-I{proto}", f"-I{own}", f"--python_out={out}",
         f"--grpc_out={out}", f"--plugin=protoc-gen-grpc={plugin}",
         "overfill/v1/inference.proto", "overfill/rpc/status.proto",
         "overfill/rpc/error_details.proto", "health.proto",
         "reflection.proto"], check=True)
    sys.path.insert(0, out)


_generate_stubs()
pb2 = importlib.import_module("overfill.v1.inference_pb2")
pb2_grpc = importlib.import_module("overfill.v1.inference_pb2_grpc")
status_pb2 = importlib.import_module("overfill.rpc.status_pb2")
details_pb2 = importlib.import_module("overfill.rpc.error_details_pb2")
health_pb2 = importlib.import_module("health_pb2")
health_grpc = importlib.import_module("health_pb2_grpc")
reflection_pb2 = importlib.import_module("reflection_pb2")
reflection_grpc = importlib.import_module("reflection_pb2_grpc")


def work_dir(name):
    path = os.path.join(_work.name, name)
    os.makedirs(path, exist_ok=True)
    return path


def set_config(directory, **members):
    """Changes members of the checkpoint's config.json."""
    path = os.path.join(directory, "config.json")
    with open(path) as file:
        config = json.load(file)
    config.update(members)
    with open(path, "w") as file:
        json.dump(config, file)


@functools.lru_cache(maxsize=None)
def make_pair(name="pair"):
    """A small random pair with a long context; the flags that serve it."""
    rng = checkpoints.seeded(f"{SEED} {name}")
    shape = checkpoints.Shape(
        "LlamaForCausalLM", layers=3, hidden=checkpoints.odd(rng, 71, 100),
        intermediate=checkpoints.odd(rng, 131, 200), heads=4, kv_heads=2,
        head_dim=64, stored="bfloat16")
    directory = work_dir(name)
    for half, sizes in [
            ("full", {}),
            ("decode", {"hidden": checkpoints.odd(rng, 41, 60),
                        "intermediate": checkpoints.odd(rng, 71, 100)})]:
        path = os.path.join(directory, half)
        checkpoints.write_checkpoint(path, shape.changed(**sizes),
                                     rng.getrandbits(31))
        set_config(path, max_position_embeddings=MAX_POSITIONS)
    return [f"--prefill_model={os.path.join(directory, 'full')}",
            f"--decode_model={os.path.join(directory, 'decode')}"]


class Server:
    """overfill-server on free ports; ready when the constructor returns."""

    def __init__(self, flags, env=None):
        self.process = subprocess.Popen(
            [server_binary, "--listen=127.0.0.1:0",
             "--metrics_listen=127.0.0.1:0",
             "--kv_cache_bytes=100000000", *flags],
            stderr=subprocess.PIPE, text=True,
            env=dict(os.environ, **(env or {})))
        self.lines = []
        self._channels = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(START_SECONDS):
            self.process.kill()
        match = re.search(r"listening on (\S+:\d+), metrics on (\S+:\d+)",
                          "\n".join(self.lines))
        if match is None:
            raise RuntimeError("the server did not start: " +
                               "\n".join(self.lines))
        self.target, self.metrics_address = match.groups()
        self.channel = grpc.insecure_channel(
            self.target, [("grpc.use_local_subchannel_pool", 1)])
        self.stub = pb2_grpc.InferenceStub(self.channel)

    def narrow_stub(self):
        """A connection that takes no more than what is being read."""
        channel = grpc.insecure_channel(
            self.target, [("grpc.use_local_subchannel_pool", 1),
                          ("grpc.http2.bdp_probe", 0),
                          ("grpc.http2.lookahead_bytes", 65536)])
        self._channels.append(channel)
        return pb2_grpc.InferenceStub(channel)

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if " ready: " in line:
                self._ready.set()
        self._ready.set()

    def metrics(self):
        """Every series, by its name with labels."""
        with urllib.request.urlopen(
                f"http://{self.metrics_address}/metrics", timeout=30) as page:
            text = page.read().decode()
        return {series: float(value) for series, value in (
            line.rsplit(" ", 1) for line in text.splitlines()
            if line and not line.startswith("#"))}

    def blocks(self):
        """KV blocks by (store, state)."""
        found = {}
        for series, value in self.metrics().items():
            match = re.fullmatch(
                r'overfill_kv_blocks\{store="(\w+)",state="(\w+)"\}', series)
            if match:
                found[match.groups()] = value
        return found

    def totals(self):
        """KV blocks by store, in whatever state."""
        totals = {}
        for (store, _), count in self.blocks().items():
            totals[store] = totals.get(store, 0) + count
        return totals

    def live(self):
        return sum(value for series, value in self.metrics().items()
                   if series.startswith("overfill_requests{"))

    def memory_bytes(self):
        """Resident memory of the process."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return 1024 * int(re.search(r"VmRSS:\s*(\d+) kB", file.read())[1])

    def stop(self, sig=signal.SIGTERM):
        """The exit code."""
        for channel in [self.channel, *self._channels]:
            channel.close()
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        self._reader.join()
        self.process.stderr.close()
        return code


class Answer:
    """A stream read to its end. A failed call leaves its error here."""

    def __init__(self, call):
        self.text, self.ids, self.logprobs = "", [], []
        self.num_deltas, self.completions, self.error = 0, [], None
        self.texts, self.tokens = {}, {}  # by index
        try:
            for event in call:
                ended = [c.index for c in self.completions]
                if event.WhichOneof("event") == "completion":
                    assert event.completion.index not in ended, "two ends"
                    self.completions.append(event.completion)
                    continue
                delta = event.delta
                assert delta.index not in ended, "a delta after the completion"
                self.num_deltas += 1
                self.text += delta.text
                self.ids += delta.token_ids
                self.logprobs += delta.logprobs
                self.texts[delta.index] = (
                    self.texts.get(delta.index, "") + delta.text)
                self.tokens.setdefault(delta.index, []).extend(delta.token_ids)
        except grpc.RpcError as error:
            self.error = error

    @property
    def completion(self):
        if self.error is not None:
            raise self.error
        (completion,) = self.completions
        return completion


def details(error, message_type):
    """The detail of this type in a status, or None."""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for any_message in status_pb2.Status.FromString(value).details:
            message = message_type()
            if any_message.Unpack(message):
                return message
    return None


def bad_fields(error):
    found = details(error, details_pb2.BadRequest)
    return [] if found is None else [v.field for v in found.field_violations]


def wait_until(condition, seconds=30):
    """Polls; what it last saw."""
    end = time.monotonic() + seconds
    while True:
        seen = condition()
        if seen or time.monotonic() > end:
            return seen
        time.sleep(0.01)


class ServerCase(unittest.TestCase):
    """One server for all tests of a class; every block is home after each."""

    flags = []

    @classmethod
    def setUpClass(cls):
        cls.server = Server(make_pair() + cls.flags)
        cls.stub = cls.server.stub
        cls.total_blocks = cls.server.totals()

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        assert code == 0, f"exit code {code}: {cls.server.lines}"

    def tearDown(self):
        self.assert_blocks_are_home()

    def assert_blocks_are_home(self, seconds=30):
        """No live request, and no block but free and cached ones, after a
        moment: those of a step under way when its request ends are quarantined
        until then.
        """
        self.assertTrue(wait_until(lambda: self.server.live() == 0, seconds),
                        "requests are left")

        def away():
            return {key: count for key, count in self.server.blocks().items()
                    if count and key[1] not in ("free", "cached")}
        wait_until(lambda: not away(), seconds)
        self.assertEqual(away(), {})
        self.assertEqual(self.server.totals(), self.total_blocks)

    def request(self, text="Hello there, the end.", max_tokens=8, **members):
        """Greedy and deaf to EOS, so that its length is known."""
        if "tokens" not in members:
            members["text"] = text
        request = pb2.GenerateRequest(**members)
        request.sampling.temperature = 0
        request.limits.ignore_eos = True
        if max_tokens is not None:
            request.limits.max_tokens = max_tokens
        return request

    def generate(self, request=None, timeout=CALL_SECONDS, **members):
        if request is None:
            request = self.request(**members)
        return Answer(self.stub.Generate(request, timeout=timeout))

    def assert_serves(self):
        completion = self.generate(max_tokens=3).completion
        self.assertEqual(completion.usage.completion_tokens, 3)


def main():
    """Runs the calling module's tests; --server=BINARY --client=BINARY."""
    global server_binary, client_binary
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--server", required=True)
    parser.add_argument("--client", required=True)
    options, rest = parser.parse_known_args()
    server_binary = os.path.abspath(options.server)
    client_binary = os.path.abspath(options.client)
    print(f"OVERFILL_GOLDEN_SEED={SEED}", flush=True)
    unittest.main(argv=sys.argv[:1] + rest)
