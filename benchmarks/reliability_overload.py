"""Too much of it: ten times the peak rate, and 300 requests that all go away.

Requests arrive at random, whatever became of those before; latencies count
from when a request was due, so that a client that is late hides nothing.
"""

import asyncio
import pathlib
import random
import statistics
import time
from typing import Any, List, Sequence, Tuple

import grpc

import reliability_load as load
from reliability_load import Outcome, Plan, Server
from report import Report

OVERLOAD_FLAGS = ["--kv_cache_bytes=300000000", "--swap_bytes=0",
                  "--max_decode_batch=16", "--max_queued_requests=32"]
# Short, so that many end in each measurement.
PROMPT_TOKENS = 48
ANSWER_TOKENS = 16
CLOSED_STREAMS = 24
# Of the rate that a closed loop completes; beyond the peak, so that it is one.
SWEEP = (0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
OVERLOAD = 10
RSS_SECONDS = 0.5

CANCEL_FLAGS = ["--kv_cache_bytes=500000000", "--swap_bytes=100000000",
                "--max_queued_requests=512"]
CANCEL_ROUNDS = 4
CANCEL_REQUESTS = 300
CANCEL_SECONDS = 4.0

Due = Tuple[float, Outcome]


def plan_of(rng: random.Random) -> Plan:
    return Plan(load.random_prompt(rng, PROMPT_TOKENS), ANSWER_TOKENS,
                seed=rng.getrandbits(32))


async def closed_loop(stub: Any, streams: int, seconds: float,
                      rng: random.Random) -> List[Due]:
    """So many at a time; what runs at the end is cancelled."""
    found: List[Due] = []
    end = time.monotonic() + seconds

    async def one_after_the_other() -> None:
        while time.monotonic() < end:
            outcome = Outcome("closed")
            found.append((time.monotonic(), outcome))
            await load.send(stub, plan_of(rng), outcome=outcome)

    tasks = [asyncio.create_task(one_after_the_other())
             for _ in range(streams)]
    await asyncio.wait(tasks, timeout=seconds)
    await cancel_all(tasks)
    return found


async def open_loop(stub: Any, rate: float, seconds: float,
                    rng: random.Random) -> List[Due]:
    """A Poisson process; what runs at the end is cancelled."""
    found: List[Due] = []
    tasks = []
    begin = due = time.monotonic()
    while True:
        due += rng.expovariate(rate)
        if due - begin >= seconds:
            break
        await asyncio.sleep(max(due - time.monotonic(), 0))
        outcome = Outcome("open")
        found.append((due, outcome))
        tasks.append(asyncio.create_task(
            load.send(stub, plan_of(rng), outcome=outcome)))
    await asyncio.sleep(max(begin + seconds - time.monotonic(), 0))
    await cancel_all(tasks)
    return found


async def cancel_all(tasks: Sequence["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, Exception):
            raise end


def throughput(found: Sequence[Due], begin: float, end: float) -> float:
    """Tokens per second in the window, of answers that did not fail."""
    tokens = sum(begin <= at < end for _, outcome in found
                 if outcome.code in (None, grpc.StatusCode.OK,
                                     grpc.StatusCode.CANCELLED)
                 for at in outcome.token_times)
    return tokens / (end - begin)


async def measured(loop: Any, seconds: float) -> Tuple[List[Due], float]:
    """Its outcomes, and its throughput after the first quarter."""
    begin = time.monotonic()
    found = await loop
    return found, throughput(found, begin + seconds / 4, begin + seconds)


class Memory:
    """The server's resident set, from its beginning to its end."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._sizes: List[int] = []
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            self._sizes.append(self._server.rss_bytes())
            await asyncio.sleep(RSS_SECONDS)

    def change(self) -> float:
        """Of the last quarter's median, against the second quarter's."""
        self._task.cancel()
        quarter = max(len(self._sizes) // 4, 1)
        early = statistics.median(self._sizes[quarter:2 * quarter]
                                  or self._sizes)
        return statistics.median(self._sizes[-quarter:]) / early - 1


def report_refusals(found: Sequence[Due], report: Report) -> None:
    # The server cancels nothing: that is what ran or waited at the end.
    refused = [(due, o) for due, o in found
               if not o.token_times and o.code not in (
                   None, grpc.StatusCode.OK, grpc.StatusCode.CANCELLED)]
    wrong = [o for _, o in refused
             if o.code != grpc.StatusCode.RESOURCE_EXHAUSTED or
             not o.has_retry_info]
    for outcome in wrong[:5]:
        print(f"overload: {outcome.code}: {outcome.message}", flush=True)
    report.add("overload.refusals", len(refused), "requests")
    report.add("overload.wrong_refusals", len(wrong), "requests")
    seconds = [o.ended - due for due, o in refused]
    if not seconds:
        raise RuntimeError("nothing was refused")
    for share in (50, 99):
        report.add(f"overload.refusal_p{share}",
                   load.percentile(seconds, share / 100), "s")
    report.add("overload.refusal_max", max(seconds), "s")


async def _overload(server: Server, quick: bool, rng: random.Random,
                    report: Report) -> None:
    seconds = 15.0 if quick else 45.0
    flood_seconds = 30.0 if quick else 120.0
    async with load.channel_of(server) as channel:
        stub = load.pb2_grpc.InferenceStub(channel)
        _, peak = await measured(
            closed_loop(stub, CLOSED_STREAMS, seconds, rng), seconds)
        if peak == 0:
            raise RuntimeError("no token came in time")
        capacity = peak / ANSWER_TOKENS
        report.add("overload.capacity", capacity, "requests/s")
        for share in SWEEP:
            found, tokens = await measured(
                open_loop(stub, share * capacity, seconds, rng), seconds)
            report.add(f"overload.throughput_at_{share:g}", tokens, "tokens/s")
            peak = max(peak, tokens)
            await server.blocks_not_home()
        report.add("overload.peak_throughput", peak, "tokens/s")
        cpu = load.CpuShare()
        memory = Memory(server)
        found, tokens = await measured(
            open_loop(stub, OVERLOAD * peak / ANSWER_TOKENS, flood_seconds,
                      rng), flood_seconds)
        report.add("overload.rss_change", memory.change(), "share")
        report.add("overload.client_cpu", cpu.share(), "share of all cores")
    report.add("overload.requests", len(found), "requests")
    report.add("overload.throughput", tokens, "tokens/s")
    report.add("overload.throughput_share", tokens / peak, "share")
    report_refusals(found, report)


def overload(binary: pathlib.Path, quick: bool, seed: int,
             report: Report) -> None:
    with load.serving(binary, load.dummy_pair() + OVERLOAD_FLAGS) as server:
        asyncio.run(_overload(server, quick, random.Random(seed), report))


async def probe(stub: Any, rng: random.Random) -> Outcome:
    outcome = await load.send(stub, Plan(load.random_prompt(rng, 16), 4))
    if outcome.code != grpc.StatusCode.OK:
        raise RuntimeError(f"a probe ended {outcome.code}: {outcome.message}")
    return outcome


async def _mass_cancel(server: Server, rng: random.Random,
                       report: Report) -> None:
    cpu = load.CpuShare()
    probes, not_home, home_seconds = [], 0.0, []
    async with load.channel_of(server) as channel:
        stub = load.pb2_grpc.InferenceStub(channel)
        idle = [(await probe(stub, rng)).ttft for _ in range(3)]
        for _ in range(CANCEL_ROUNDS):
            outcomes = await asyncio.gather(*(
                load.send(stub, Plan(
                    load.random_prompt(rng, rng.randint(100, 1000)), 1000,
                    cancel_after_seconds=rng.uniform(0.1, CANCEL_SECONDS)))
                for _ in range(CANCEL_REQUESTS)))
            wrong = [o for o in outcomes
                     if o.code != grpc.StatusCode.CANCELLED]
            if wrong:
                raise RuntimeError(f"{len(wrong)} requests were not cancelled "
                                   f"but {wrong[0].code}: {wrong[0].message}")
            probes.append((await probe(stub, rng)).ttft)
            begin = time.monotonic()
            not_home = max(not_home, await server.blocks_not_home())
            home_seconds.append(time.monotonic() - begin)
    report.add("mass_cancel.requests", CANCEL_ROUNDS * CANCEL_REQUESTS,
               "requests")
    report.add("mass_cancel.blocks_not_home", not_home, "blocks")
    report.add("mass_cancel.blocks_home_max", max(home_seconds), "s")
    report.add("mass_cancel.probes", len(probes), "requests")
    report.add("mass_cancel.probe_ttft_max", max(probes), "s")
    report.add("mass_cancel.idle_ttft", statistics.median(idle), "s")
    report.add("mass_cancel.client_cpu", cpu.share(), "share of all cores")


def mass_cancel(binary: pathlib.Path, quick: bool, seed: int,
                report: Report) -> None:
    with load.serving(binary, load.dummy_pair() + CANCEL_FLAGS) as server:
        asyncio.run(_mass_cancel(server, random.Random(seed), report))
