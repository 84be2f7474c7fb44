"""Scores the three paths through a running server, as users meet them.

    python3 -m training.eval_server --pair models/demo \\
        --server_binary build/release/server/overfill-server --json FILE

Starts the server on the pair (or uses the one at --target), asks every
held-out question greedily on each path, with the passage and without, and
writes one object {name, commit, machine, results}. Targets come from
docs/benchmarks/targets.json; whether they are met is computed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import grpc

from training import world
from training.judge.record import ROOT, commit, machine
from training.eval_items import DEFAULT_SEED, Item, make_items
from training.report import PATHS, quality_markdown

PROTO = "overfill/v1/inference.proto"
MAX_NEW_TOKENS = 48
NUM_STREAMS = 16
START_SECONDS = 60.0
CALL_SECONDS = 120.0


@contextlib.contextmanager
def generated_stubs() -> Iterator[Tuple[Any, Any]]:
    """The messages and the service of the public API, made from the proto."""
    with tempfile.TemporaryDirectory() as folder:
        plugin = subprocess.run(
            ["which", "grpc_python_plugin"], check=True, capture_output=True,
            text=True).stdout.strip()
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
def server(binary: pathlib.Path, pair: pathlib.Path,
           flags: Sequence[str] = ()) -> Iterator[str]:
    """Runs overfill-server on the pair; yields its address."""
    target = f"127.0.0.1:{free_port()}"
    command = [str(binary), f"--prefill_model={pair / 'full'}",
               f"--decode_model={pair / 'decode'}", "--device=cpu",
               f"--listen={target}",
               f"--metrics_listen=127.0.0.1:{free_port()}", *flags]
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


def ask(pb2: Any, stub: Any, path: str, prompt: str) -> str:
    """The greedy answer of one path. A failed call raises: no item may go
    missing from the scores."""
    request = pb2.GenerateRequest(
        text=prompt, path=pb2.DecodePath.Value(f"DECODE_PATH_{path.upper()}"))
    request.sampling.temperature = 0.0
    request.limits.max_tokens = MAX_NEW_TOKENS
    text, completed = "", False
    for response in stub.Generate(request, timeout=CALL_SECONDS):
        if response.WhichOneof("event") == "delta":
            text += response.delta.text
        else:
            completed = True
    if not completed:
        raise RuntimeError("a stream ended without a completion")
    return text


def exact_shares(
    items: Sequence[Item], answers: Sequence[str]
) -> Dict[str, float]:
    """Per family and for all lookups together: answers exactly right."""
    groups: Dict[str, List[bool]] = {}
    for item, answer in zip(items, answers):
        right = answer == item.answer
        groups.setdefault(item.family, []).append(right)
        if item.family in world.LOOKUP_FAMILIES:
            groups.setdefault("lookup", []).append(right)
    return {name: sum(marks) / len(marks) for name, marks in groups.items()}


def score(target: str, items: Sequence[Item]) -> Dict[str, float]:
    """metric -> share, for every path and family."""
    metrics: Dict[str, float] = {}
    with generated_stubs() as (pb2, pb2_grpc), \
            grpc.insecure_channel(target) as channel, \
            concurrent.futures.ThreadPoolExecutor(NUM_STREAMS) as executor:
        stub = pb2_grpc.InferenceStub(channel)
        for path in PATHS:
            for part, prompts in (
                    ("", [item.prompt for item in items]),
                    ("without_passage.", [item.bare_prompt for item in items])):
                answers = list(executor.map(
                    lambda prompt: ask(pb2, stub, path, prompt), prompts))
                for family, share in exact_shares(items, answers).items():
                    metrics[f"{path}.{family}.{part}exact"] = share
    return metrics


def judge(
    metrics: Dict[str, float], targets: Dict[str, Dict[str, Any]]
) -> List[Dict[str, Any]]:
    """Results in design order; a target without a value is not met."""
    results = []
    for metric in list(metrics) + [m for m in targets if m not in metrics]:
        value: Optional[float] = metrics.get(metric)
        result: Dict[str, Any] = {
            "metric": metric, "value": value, "unit": "share",
            "target": None, "met": None}
        if metric in targets:
            bound = targets[metric]["target"]
            at_least = targets[metric]["met_when"] == "at_least"
            result["target"] = bound
            result["met"] = value is not None and (
                value >= bound if at_least else value <= bound)
        results.append(result)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", type=pathlib.Path,
                        default=ROOT / "models" / "demo")
    parser.add_argument("--server_binary", type=pathlib.Path)
    parser.add_argument("--target", help="a server that runs already")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--per_family", type=int, default=200)
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--markdown", type=pathlib.Path)
    args = parser.parse_args()
    if (args.server_binary is None) == (args.target is None):
        parser.error("give one of --server_binary and --target")
    items = make_items(args.seed, args.per_family)
    with contextlib.ExitStack() as stack:
        target = args.target or stack.enter_context(
            server(args.server_binary, args.pair))
        metrics = score(target, items)
    targets_path = ROOT / "docs" / "benchmarks" / "targets.json"
    targets = json.loads(targets_path.read_text(encoding="utf-8"))["quality"]
    results = judge(metrics, targets)
    report = {"name": "quality", "commit": commit(), "machine": machine(),
              "seed": args.seed, "per_family": args.per_family,
              "results": results}
    args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(
            quality_markdown(report), encoding="utf-8")
    for result in results:
        print(f"{result['metric']}: {result['value']} "
              f"(target {result['target']}, met {result['met']})")


if __name__ == "__main__":
    main()
