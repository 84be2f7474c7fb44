"""Running streams' gaps between tokens, with and without prompts that arrive.

Eight answers run; phases without and with 2,000-token prompts take turns. A gap
lies between two messages: tokens that came together have none between them.
"""

import asyncio
import pathlib
import random
import time
from typing import Any, List, Sequence, Tuple

import reliability_load as load
from reliability_load import Outcome, Plan
from report import Report

# Without swap space answers reserve all that they may need: 188 MiB each of
# the running ones, 64 MiB for a prompt.
FLAGS = ["--kv_cache_bytes=2500000000", "--swap_bytes=0"]
# The whole prompt in one step, and no gap that would make it less.
UNCHUNKED = ["--prefill_chunk_tokens=2048", "--itl_target=1h"]
NUM_RUNNING = 8
RUNNING_PROMPT = 32
RUNNING_TOKENS = 6000
PROMPT_TOKENS = 2000
START_SECONDS = 120

Interval = Tuple[float, float]


def gaps_within(outcomes: Sequence[Outcome],
                intervals: Sequence[Interval]) -> List[float]:
    """The gaps that lie wholly in one of the intervals."""
    return [b - a for outcome in outcomes
            for a, b in zip(outcome.token_times, outcome.token_times[1:])
            if b > a and any(low <= a and b <= high
                             for low, high in intervals)]


class Phases:
    """What came of the phases of one server."""

    def __init__(self, prompt_tokens: int = PROMPT_TOKENS) -> None:
        self.prompt_tokens = prompt_tokens
        self.outcomes: List[Outcome] = []
        self.quiet: List[Interval] = []
        self.busy: List[List[Interval]] = []  # of each phase
        self.ttfts: List[float] = []

    async def run(self, stub: Any, cycles: int, seconds: Tuple[float, float],
                  rng: random.Random) -> None:
        """`seconds` of a phase without prompts, and of one with them."""
        self.outcomes = [Outcome("running") for _ in range(NUM_RUNNING)]
        running = [asyncio.create_task(load.send(
            stub, Plan(load.random_prompt(rng, RUNNING_PROMPT), RUNNING_TOKENS,
                       seed=i), outcome=outcome))
            for i, outcome in enumerate(self.outcomes)]
        try:
            await self._wait_for_all()
            for _ in range(cycles):
                begin = time.monotonic()
                await asyncio.sleep(seconds[0])
                self.quiet.append((begin, time.monotonic()))
                await self._read_prompts(stub, seconds[1], rng)
            ended = [o.code or "OK" for o, task in zip(self.outcomes, running)
                     if task.done()]
            if ended:
                raise RuntimeError(f"running answers ended: {ended}")
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _wait_for_all(self) -> None:
        end = time.monotonic() + START_SECONDS
        while any(o.num_tokens < 10 for o in self.outcomes):
            if time.monotonic() > end:
                raise RuntimeError(
                    "the answers did not begin, but have "
                    f"{[o.num_tokens for o in self.outcomes]} tokens")
            await asyncio.sleep(0.1)

    async def _read_prompts(self, stub: Any, seconds: float,
                            rng: random.Random) -> None:
        begin = time.monotonic()
        self.busy.append([])
        while time.monotonic() - begin < seconds:
            arrived = await load.send(
                stub, Plan(load.random_prompt(rng, self.prompt_tokens), 1))
            if not arrived.token_times:
                raise RuntimeError(f"a prompt ended {arrived.code}: "
                                   f"{arrived.message}")
            self.busy[-1].append((arrived.sent, arrived.ended))
            self.ttfts.append(arrived.ttft)

    def report(self, name: str, report: Report) -> None:
        without = gaps_within(self.outcomes, self.quiet)
        beside = gaps_within(self.outcomes, sum(self.busy, []))
        if not without or not beside:
            raise RuntimeError("no token came in a phase")
        p99 = [load.percentile(gaps, 0.99) for gaps in (without, beside)]
        report.add(f"{name}p99_ratio", p99[1] / p99[0], "ratio")
        # Of each pair of phases for itself.
        pairs = [load.percentile(gaps_within(self.outcomes, busy), 0.99) /
                 load.percentile(gaps_within(self.outcomes, [quiet]), 0.99)
                 for quiet, busy in zip(self.quiet, self.busy)]
        report.add(f"{name}p99_ratio_least", min(pairs), "ratio")
        report.add(f"{name}p99_ratio_most", max(pairs), "ratio")
        for which, gaps in (("without", without), ("beside", beside)):
            for share in (50, 99):
                report.add(f"{name}p{share}_{which}_prompts",
                           load.percentile(gaps, share / 100), "s")
            report.add(f"{name}max_{which}_prompts", max(gaps), "s")
            report.add(f"{name}gaps_{which}_prompts", len(gaps), "gaps")
        report.add(f"{name}prompt_ttft_p50",
                   load.percentile(self.ttfts, 0.5), "s")
        report.add(f"{name}prompts", len(self.ttfts), "prompts")


def itl(binary: pathlib.Path, quick: bool, seed: int, report: Report) -> None:
    rng = random.Random(seed)

    async def measure(server: load.Server, name: str) -> None:
        phases = Phases()
        cpu = load.CpuShare()
        async with load.channel_of(server) as channel:
            await phases.run(load.pb2_grpc.InferenceStub(channel),
                             2 if quick else 4, (6, 6) if quick else (12, 20),
                             rng)
        report.add(f"{name}client_cpu", cpu.share(), "share of all cores")
        phases.report(name, report)

    for name, more in (("itl.", []), ("itl.unchunked_", UNCHUNKED)):
        with load.serving(binary, load.dummy_pair() + FLAGS + more) as server:
            asyncio.run(measure(server, name))
