"""KV that is used again: a prompt that comes twice, and answers whose KV made
room for others and came back."""

import asyncio
import pathlib
import random
from typing import Any, Dict, List

import grpc

import reliability_load as load
from reliability_load import Outcome, Plan, Server
from report import Report

PREFIX_FLAGS = ["--kv_cache_bytes=500000000", "--swap_bytes=0",
                "--block_tokens=16"]
PROMPT_TOKENS = 2000

DEMO_VOCAB = 2048
# Logits must not depend on who else is there, else answers differ anyway.
PREEMPT_FLAGS = ["--swap_bytes=256000000", "--batch_invariant"]
ROOMY_BYTES = 256_000_000
TIGHT_BYTES = 3_000_000
PREEMPT_STREAMS = 24


async def _prefix(server: Server, prompts: int, rng: random.Random,
                  report: Report) -> None:
    cpu = load.CpuShare()
    computed, first, second = [], [], []
    async with load.channel_of(server) as channel:
        stub = load.pb2_grpc.InferenceStub(channel)
        for _ in range(prompts):
            plan = Plan(load.random_prompt(rng, PROMPT_TOKENS), 4)
            cold = ended_well(await load.send(stub, plan))
            warm = ended_well(await load.send(stub, plan))
            if cold.cached_tokens != 0:
                raise RuntimeError("a new prompt was cached already")
            computed.append(PROMPT_TOKENS - warm.cached_tokens)
            first.append(cold.ttft)
            second.append(warm.ttft)
    report.add("prefix.computed_tokens", max(computed), "tokens")
    report.add("prefix.ttft_first", load.percentile(first, 0.5), "s")
    report.add("prefix.ttft_second", load.percentile(second, 0.5), "s")
    report.add("prefix.ttft_ratio", load.percentile(
        [warm / cold for cold, warm in zip(first, second)], 0.5), "ratio")
    report.add("prefix.prompts", prompts, "prompts")
    report.add("prefix.client_cpu", cpu.share(), "share of all cores")


def ended_well(outcome: Outcome) -> Outcome:
    if outcome.code != grpc.StatusCode.OK:
        raise RuntimeError(f"a request ended {outcome.code}: "
                           f"{outcome.message}")
    return outcome


def prefix(binary: pathlib.Path, quick: bool, seed: int,
           report: Report) -> None:
    with load.serving(binary, load.dummy_pair() + PREFIX_FLAGS) as server:
        asyncio.run(_prefix(server, 1 if quick else 4, random.Random(seed),
                            report))


async def answers(server: Server,
                  plans: List[Plan]) -> List[Dict[int, List[int]]]:
    """The tokens of each, by answer; so many at a time."""
    room = asyncio.Semaphore(PREEMPT_STREAMS)

    async def one(stub: Any, plan: Plan) -> Dict[int, List[int]]:
        async with room:
            return ended_well(await load.send(stub, plan)).tokens

    async with load.channel_of(server) as channel:
        stub = load.pb2_grpc.InferenceStub(channel)
        return await asyncio.gather(*(one(stub, plan) for plan in plans))


def preempt(binary: pathlib.Path, quick: bool, seed: int,
            report: Report) -> None:
    rng = random.Random(seed)
    plans = [Plan(load.random_prompt(rng, rng.randint(20, 200), DEMO_VOCAB),
                  rng.randint(100, 400), path=rng.choice([1, 1, 2, 3]),
                  n=rng.choice([1, 1, 2]), seed=rng.getrandbits(32),
                  temperature=rng.choice([0.0, 1.0]))
             for _ in range(32 if quick else 128)]
    cpu = load.CpuShare()
    found, preemptions = [], []
    for kv_bytes in (ROOMY_BYTES, TIGHT_BYTES):
        with load.serving(binary, load.demo_pair() + PREEMPT_FLAGS +
                          [f"--kv_cache_bytes={kv_bytes}"]) as server:
            found.append(asyncio.run(answers(server, plans)))
            preemptions.append(server.total("overfill_preemptions_total"))
    if preemptions[0] != 0:
        raise RuntimeError("the server with room for all preempted, too")
    different = sum(a != b for a, b in zip(*found))
    report.add("preempt.preemptions", preemptions[1], "times")
    report.add("preempt.different_answers", different, "requests")
    report.add("preempt.requests", len(plans), "requests")
    report.add("preempt.client_cpu", cpu.share(), "share of all cores")
