"""What the server adds to the engine, and what prompts add to its gaps."""

import asyncio
import json
import pathlib
import random
import subprocess
import tempfile
from typing import Any, Callable, Dict, List

import reliability_load as load
from cpu_players import Models, Player, estimate, in_turns, playing, ratios
from reliability_itl import Phases
from report import Report

NUM_STREAMS = 16
PROMPT_TOKENS = 8
ANSWER_TOKENS = 200
GAP_PROMPT_TOKENS = 512
FLAGS = ["--kv_cache_bytes=2500000000", "--swap_bytes=0"]
TINY_FLAGS = ["--kv_cache_bytes=200000000", "--swap_bytes=0"]


def flags_of(models: Models) -> List[str]:
    return [f"--prefill_model={models.config('full')}",
            f"--decode_model={models.config('pruned')}",
            "--load_format=dummy", *(TINY_FLAGS if models.is_tiny else FLAGS)]


def run_load(bench: pathlib.Path, target: str, seed: int) -> Dict[str, Any]:
    """So many requests at once, by the load generator; its report of them."""
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "report.json"
        subprocess.run(
            [str(bench), "serve", f"--target={target}",
             f"--concurrency={NUM_STREAMS}", f"--num_requests={NUM_STREAMS}",
             f"--prompt=fixed:{PROMPT_TOKENS}",
             f"--output=fixed:{ANSWER_TOKENS}", "--temperature=0",
             f"--seed={seed}", f"--json={path}"],
            check=True, stdout=subprocess.DEVNULL)
        report: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def tpot_seconds(report: Dict[str, Any]) -> float:
    """The mean time per token of an answer."""
    (run,) = report["runs"]
    return float(run["tpot_seconds"]["mean"])


def throughput(binary: pathlib.Path, engine: Callable[[], Player],
               models: Models, pairs: int, seed: int, report: Report) -> None:
    """All streams' tokens/s against the engine's at that batch."""
    bench = binary.parents[1] / "benchmarks" / "overfill-bench"
    context = PROMPT_TOKENS + ANSWER_TOKENS // 2  # of a stream, on the average
    with load.serving(binary, flags_of(models)) as server:
        with playing(engine) as (ours,):
            def through_server() -> float:
                return tpot_seconds(run_load(bench, server.target, seed))

            def alone() -> float:
                return ours.seconds(op="decode", model="bf16",
                                    batch=NUM_STREAMS, context=context,
                                    steps=40)

            through_server()  # not counted
            served, steps = in_turns(through_server, alone, pairs)
    share = ratios(steps, served)
    report.add("server.tokens_per_second",
               NUM_STREAMS / estimate(served).median, "tokens/s")
    report.add("server.engine_tokens_per_second",
               NUM_STREAMS / estimate(steps).median, "tokens/s")
    report.add("server.throughput_share", share.median, "share")
    report.add("server.throughput_share_low", share.low, "share")
    report.add("server.throughput_share_high", share.high, "share")


def gaps(binary: pathlib.Path, models: Models, is_quick: bool, seed: int,
         report: Report) -> None:
    """Eight running streams while prompts of 512 tokens arrive."""
    rng = random.Random(seed)

    async def measure(server: load.Server) -> None:
        phases = Phases(GAP_PROMPT_TOKENS)
        async with load.channel_of(server) as channel:
            await phases.run(load.pb2_grpc.InferenceStub(channel),
                             2 if is_quick else 4,
                             (5, 5) if is_quick else (12, 20), rng)
        phases.report("server.itl_", report)

    with load.serving(binary, flags_of(models)) as server:
        asyncio.run(measure(server))
