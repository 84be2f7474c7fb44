"""Servers and clients of the reliability benchmark.

Latencies are as vLLM's and AIPerf's benchmarks define them: TTFT from the
sending of a request to its first token, ITL between two tokens of one stream.
"""

import asyncio
import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from typing import Any, Dict, Iterator, List, Optional, Sequence

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[1]
START_SECONDS = 300
STOP_SECONDS = 120
VOCAB = 128256
SMALL_VOCAB = 512

_work = tempfile.TemporaryDirectory()


def _stubs() -> Any:
    out = pathlib.Path(_work.name, "stubs")
    out.mkdir()
    plugin = shutil.which("grpc_python_plugin")
    proto = ROOT / "proto"
    subprocess.run(
        ["protoc", f"-I{proto}", f"--python_out={out}", f"--grpc_out={out}",
         f"--plugin=protoc-gen-grpc={plugin}", "overfill/v1/inference.proto",
         "overfill/rpc/status.proto", "overfill/rpc/error_details.proto"],
        check=True)
    sys.path.insert(0, str(out))
    return (importlib.import_module("overfill.v1.inference_pb2"),
            importlib.import_module("overfill.v1.inference_pb2_grpc"),
            importlib.import_module("overfill.rpc.status_pb2"),
            importlib.import_module("overfill.rpc.error_details_pb2"))


pb2, pb2_grpc, status_pb2, details_pb2 = _stubs()


# Random weights of the shapes that the figures are for, and of shapes that are
# quick under a sanitizer: (hidden, inner) of the full model and the decoder.
LARGE = {"widths": ((2048, 8192), (1126, 4505)), "num_hidden_layers": 16,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
         "vocab_size": VOCAB}
SMALL = {"widths": ((64, 160), (40, 96)), "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
         "vocab_size": SMALL_VOCAB}


def dummy_pair(projection: bool = False,
               shapes: Dict[str, Any] = LARGE) -> List[str]:
    """Flags that serve random weights."""
    directory = pathlib.Path(_work.name, "pair")
    for half, (hidden, inner) in zip(("full", "decode"), shapes["widths"]):
        path = directory / half
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_act": "silu", "hidden_size": hidden,
            "intermediate_size": inner,
            **{k: v for k, v in shapes.items() if k != "widths"},
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "tie_word_embeddings": True,
            "torch_dtype": "bfloat16"}), encoding="utf-8")
    flags = [f"--prefill_model={directory / 'full'}",
             f"--decode_model={directory / 'decode'}", "--load_format=dummy"]
    if projection:
        path = directory / "kv_map.json"
        path.write_text(json.dumps(
            {"kind": "projection",
             "layers": list(range(shapes["num_hidden_layers"])),
             "file": "maps.safetensors"}), encoding="utf-8")
        flags.append(f"--kv_map={path}")
    return flags


def demo_pair() -> List[str]:
    demo = ROOT / "models" / "demo"
    return [f"--prefill_model={demo / 'full'}",
            f"--decode_model={demo / 'decode'}"]


class Server:
    """A server on free ports; ready when the constructor returns."""

    def __init__(self, binary: pathlib.Path, flags: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [str(binary), "--listen=127.0.0.1:0",
             "--metrics_listen=127.0.0.1:0", *flags],
            stderr=subprocess.PIPE, text=True)
        self.lines: List[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._ready.wait(START_SECONDS)
        match = re.search(r"listening on (\S+:\d+), metrics on (\S+:\d+)",
                          "\n".join(self.lines))
        if match is None:
            self.process.kill()
            raise RuntimeError("the server did not start: " +
                               "\n".join(self.lines[-5:]))
        self.target, self.metrics_address = match.groups()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            del self.lines[:-2000]
            if " ready: " in line:
                self._ready.set()
        self._ready.set()

    def metrics(self) -> Dict[str, float]:
        url = f"http://{self.metrics_address}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode("utf-8")
        values = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name] = float(value)
        return values

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels."""
        return sum(
            value for key, value in self.metrics().items()
            if key.split("{")[0] == name and all(
                f'{label}="{wanted}"' in key
                for label, wanted in labels.items()))

    def held_blocks(self) -> float:
        return (self.total("overfill_kv_blocks", state="owned") +
                self.total("overfill_kv_blocks", state="quarantined"))

    async def blocks_not_home(self, seconds: float = 60) -> float:
        """Blocks held when no request is live, after a wait for both."""
        end = time.monotonic() + seconds
        while True:
            away = self.held_blocks() + self.total("overfill_requests")
            if away == 0 or time.monotonic() > end:
                return away
            await asyncio.sleep(0.2)

    def rss_bytes(self) -> int:
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text(
            encoding="utf-8")
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(match.group(1)) * 1024 if match else 0

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(10)
        return self.process.returncode


@contextlib.contextmanager
def serving(binary: pathlib.Path, flags: Sequence[str]) -> Iterator[Server]:
    server = Server(binary, flags)
    try:
        yield server
    finally:
        server.stop()


@dataclasses.dataclass
class Plan:
    """One request, and how its client behaves."""
    prompt: List[int]
    max_tokens: int
    path: int = 0
    n: int = 1
    priority: int = 0
    seed: int = 1
    temperature: float = 1.0
    deadline_seconds: Optional[float] = None
    cancel_after_tokens: Optional[int] = None
    cancel_after_seconds: Optional[float] = None
    # Not None: no message is read, and the client leaves after so long.
    dead_seconds: Optional[float] = None


@dataclasses.dataclass
class Outcome:
    """What came of one request. Times are of time.monotonic."""
    kind: str
    sent: float = 0.0
    ended: float = 0.0
    code: Optional[grpc.StatusCode] = None
    token_times: List[float] = dataclasses.field(default_factory=list)
    tokens: Dict[int, List[int]] = dataclasses.field(default_factory=dict)
    num_tokens: int = 0
    num_completions: int = 0
    num_events_after_end: int = 0
    ended_answers: List[int] = dataclasses.field(default_factory=list)
    cached_tokens: int = 0
    has_retry_info: bool = False
    message: str = ""

    @property
    def ttft(self) -> float:
        return self.token_times[0] - self.sent


def random_prompt(rng: random.Random, count: int,
                  vocab: int = VOCAB) -> List[int]:
    return [rng.randrange(vocab) for _ in range(count)]


def _request(plan: Plan) -> Any:
    request = pb2.GenerateRequest(
        n=plan.n, path=plan.path, priority=plan.priority)
    request.tokens.ids.extend(plan.prompt)
    request.sampling.seed = plan.seed
    request.sampling.temperature = plan.temperature
    request.limits.max_tokens = plan.max_tokens
    request.limits.ignore_eos = True
    return request


def _has_retry_info(error: grpc.aio.AioRpcError) -> bool:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            details = status_pb2.Status.FromString(value)
            return any("RetryInfo" in any_.type_url
                       for any_ in details.details)
    return False


def _take(event: Any, outcome: Outcome, now: float) -> None:
    is_delta = event.HasField("delta")
    part = event.delta if is_delta else event.completion
    outcome.num_events_after_end += part.index in outcome.ended_answers
    if is_delta:
        outcome.token_times += [now] * len(part.token_ids)
        outcome.num_tokens += len(part.token_ids)
        outcome.tokens.setdefault(part.index, []).extend(part.token_ids)
    else:
        outcome.num_completions += 1
        outcome.ended_answers.append(part.index)
        outcome.cached_tokens = part.usage.cached_prompt_tokens


async def send(stub: Any, plan: Plan, kind: str = "request",
               outcome: Optional[Outcome] = None) -> Outcome:
    """One request from its sending to its terminal status.

    A caller that watches it under way gives the `outcome` to fill.
    """
    outcome = outcome or Outcome(kind)
    outcome.sent = time.monotonic()
    call = stub.Generate(_request(plan), timeout=plan.deadline_seconds)
    if plan.cancel_after_seconds is not None:
        asyncio.get_running_loop().call_later(plan.cancel_after_seconds,
                                              call.cancel)
    try:
        if plan.dead_seconds is not None:
            await asyncio.sleep(plan.dead_seconds)
            call.cancel()
        else:
            async for event in call:
                _take(event, outcome, time.monotonic())
                if (plan.cancel_after_tokens is not None and
                        outcome.num_tokens >= plan.cancel_after_tokens):
                    call.cancel()
        outcome.code = await call.code()
    except grpc.aio.AioRpcError as error:
        outcome.code = error.code()
        outcome.message = error.details() or ""
        outcome.has_retry_info = _has_retry_info(error)
    except asyncio.CancelledError:
        if not call.cancelled():
            call.cancel()
            raise
        # What this side cancelled ends so, whatever the server still sends.
        outcome.code = grpc.StatusCode.CANCELLED
    outcome.ended = time.monotonic()
    return outcome


class CpuShare:
    """Of all cores, what this process used since it was made."""

    def __init__(self) -> None:
        self._begin, self._before = time.monotonic(), self._used()

    @staticmethod
    def _used() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    def share(self) -> float:
        seconds = max(time.monotonic() - self._begin, 1e-9)
        return ((self._used() - self._before) / seconds /
                len(os.sched_getaffinity(0)))


def channel_of(server: Server) -> Any:
    return grpc.aio.insecure_channel(
        server.target, [("grpc.use_local_subchannel_pool", 1)])


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    rank = max(0, min(len(ordered) - 1, -(-len(ordered) * share // 1) - 1))
    return ordered[int(rank)]
