"""A server on a pair, and questions put to it as users put them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROTO = "overfill/v1/inference.proto"
MAX_NEW_TOKENS = 48
NUM_STREAMS = 16
START_SECONDS = 60.0
CALL_SECONDS = 120.0


class Reply(NamedTuple):
    text: str
    num_tokens: int
    decode_seconds: float  # from the first token to the last


@contextlib.contextmanager
def generated_stubs() -> Iterator[Tuple[Any, Any]]:
    """The messages and the service of the public API, made from the proto."""
    plugin = shutil.which("grpc_python_plugin")
    if plugin is None:
        raise RuntimeError("grpc_python_plugin is not installed")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["protoc", f"-I{ROOT / 'proto'}", f"--python_out={folder}",
             f"--grpc_out={folder}", f"--plugin=protoc-gen-grpc={plugin}",
             PROTO], check=True)
        sys.path.insert(0, folder)
        try:
            yield (importlib.import_module("overfill.v1.inference_pb2"),
                   importlib.import_module("overfill.v1.inference_pb2_grpc"))
        finally:
            sys.path.remove(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(
    binary: pathlib.Path, full: pathlib.Path, decode: pathlib.Path,
    flags: Sequence[str] = (),
) -> Iterator[str]:
    """Runs overfill-server on two checkpoints; yields its address."""
    target = f"127.0.0.1:{free_port()}"
    command = [str(binary), f"--prefill_model={full}",
               f"--decode_model={decode}", "--device=cpu",
               f"--listen={target}",
               f"--metrics_listen=127.0.0.1:{free_port()}",
               "--log_requests=false", *flags]
    process = subprocess.Popen(command)
    try:
        with grpc.insecure_channel(target) as channel:
            _wait_until_ready(channel, process)
        yield target
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(
    channel: grpc.Channel, process: "subprocess.Popen[bytes]"
) -> None:
    ready = grpc.channel_ready_future(channel)
    deadline = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None:
            raise RuntimeError(
                f"the server ended with exit code {process.returncode}")
        with contextlib.suppress(grpc.FutureTimeoutError):
            ready.result(timeout=0.2)
            return
        if time.monotonic() > deadline:
            raise RuntimeError("the server did not become ready")


class Client:
    """Greedy answers of one server. A failed call raises: no item may go
    missing from the scores."""

    def __init__(self, target: str, stubs: Tuple[Any, Any]) -> None:
        self._pb2 = stubs[0]
        self._channel = grpc.insecure_channel(target)
        self._stub = stubs[1].InferenceStub(self._channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        self._channel.close()

    def ask(self, path: str, prompt: str,
            exact_tokens: Optional[int] = None) -> Reply:
        """With `exact_tokens`, so many, whatever ends the answer."""
        request = self._pb2.GenerateRequest(
            text=prompt,
            path=self._pb2.DecodePath.Value(f"DECODE_PATH_{path.upper()}"))
        request.sampling.temperature = 0.0
        request.limits.max_tokens = exact_tokens or MAX_NEW_TOKENS
        request.limits.ignore_eos = exact_tokens is not None
        text, completion = "", None
        for response in self._stub.Generate(request, timeout=CALL_SECONDS):
            if response.WhichOneof("event") == "delta":
                text += response.delta.text
            else:
                completion = response.completion
        if completion is None:
            raise RuntimeError("a stream ended without a completion")
        return Reply(text, completion.usage.completion_tokens,
                     completion.timings.decode)

    def ask_all(self, path: str, prompts: Sequence[str]) -> List[Reply]:
        """In the order of the prompts."""
        with concurrent.futures.ThreadPoolExecutor(NUM_STREAMS) as executor:
            return list(executor.map(
                lambda prompt: self.ask(path, prompt), prompts))

    def num_tokens(self, prompt: str) -> int:
        return len(self._stub.Tokenize(
            self._pb2.TokenizeRequest(text=prompt), timeout=CALL_SECONDS).ids)

    def kv_bytes_per_token(self) -> int:
        info = self._stub.GetModelInfo(
            self._pb2.GetModelInfoRequest(), timeout=CALL_SECONDS)
        return int(info.kv_bytes_per_token)
