"""Mixed load on a server whose transfers of KV fail, for as long as asked.

First the capacity is found, with as many requests at a time as fit; then
requests arrive at random at 70 % of it. SIGTERM ends the load early; what was
measured until then is reported, with the time that it really took.
"""

import asyncio
import collections
import dataclasses
import pathlib
import random
import re
import signal
import statistics
import time
from typing import Any, Counter, Dict, List, Set, Tuple

import grpc

import reliability_load as load
from reliability_load import Outcome, Plan, Server
from report import Report

FLAGS = ["--max_sequence_tokens=640", "--transfer_lease=2s"]
FAULT_RATE = 0.3
SHARE_OF_CAPACITY = 0.7
MAX_LIVE = 128
RSS_SECONDS = 2
PROGRESS_SECONDS = 30
# A call without any end after so long counts as one without a terminal.
HANG_SECONDS = 300
# The server compares its blocks each 10 s.
INTEGRITY_SECONDS = 12
# Lines of the log of a server that did not end well.
LAST_WORDS = 120
EXPECTED_CODES = (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED,
                  grpc.StatusCode.DEADLINE_EXCEEDED,
                  grpc.StatusCode.RESOURCE_EXHAUSTED)
# Of a request one of whose transfers passed its lease.
LEASE_WORDS = "took too long"
SERVED_KINDS = ("plain", "cancel", "dead_reader")


@dataclasses.dataclass(frozen=True)
class Scale:
    """Models, stores with room for one or two of the longest sequences, and a
    load that needs more."""
    shapes: Dict[str, Any]
    flags: List[str]
    most_answer_tokens: int
    calibration_streams: int

    @property
    def vocab(self) -> int:
        return self.shapes["vocab_size"]


LARGE = Scale(load.LARGE,
              ["--kv_cache_bytes=45000000", "--swap_bytes=64000000"], 128, 48)
# For builds that are slow.
SMALL = Scale(load.SMALL,
              ["--kv_cache_bytes=700000", "--swap_bytes=1000000"], 128, 48)


def mixed_plan(rng: random.Random, prefixes: List[List[int]],
               scale: Scale) -> Tuple[str, Plan]:
    """A request of the mix, and its kind. One in twelve is long."""
    length = rng.randint(4, 512 if rng.random() < 1 / 12 else 64)
    prefix = rng.choice(prefixes) if rng.random() < 0.5 else []
    prompt = prefix[:length]
    prompt += load.random_prompt(rng, length - len(prompt), scale.vocab)
    plan = Plan(prompt, rng.randint(4, scale.most_answer_tokens),
                path=rng.choice([1, 1, 2, 3]), n=rng.choice([1, 1, 1, 2]),
                priority=rng.choice([0, 0, 0, 1, 5]),
                seed=rng.getrandbits(32))
    draw = rng.random()
    if draw < 0.10:
        plan.cancel_after_tokens = rng.randint(1, plan.max_tokens - 1)
        return "cancel", plan
    if draw < 0.15:
        plan.dead_seconds = rng.uniform(2, 20)
        return "dead_reader", plan
    if draw < 0.20:
        plan.deadline_seconds = rng.uniform(0.001, 0.5)
        return "deadline", plan
    return "plain", plan


def is_whole(plan: Plan, outcome: Outcome) -> bool:
    """Whether an answer with status OK is all that was asked for."""
    return (outcome.num_completions == plan.n and
            outcome.num_events_after_end == 0 and
            all(len(outcome.tokens.get(i, [])) == plan.max_tokens
                for i in range(plan.n)))


@dataclasses.dataclass
class Counts:
    """What the clients saw."""
    sent: Counter[str] = dataclasses.field(
        default_factory=collections.Counter)
    codes: Counter[str] = dataclasses.field(
        default_factory=collections.Counter)
    hanging: int = 0
    broken: int = 0
    internal: int = 0  # such as a transfer that failed three times
    unexpected: int = 0
    tokens: int = 0
    held_back: int = 0


class Soak:
    """One run. Everything happens on the event loop's thread."""

    def __init__(self, server: Server, stub: Any, rng: random.Random,
                 scale: Scale) -> None:
        self.server = server
        self.counts = Counts()
        self.rss: List[Tuple[float, int]] = []
        self.stop = asyncio.Event()
        self.minutes = 0.0
        self._stub = stub
        self._rng = rng
        self._scale = scale
        self._prefixes = [
            load.random_prompt(rng, rng.randint(16, 256), scale.vocab)
            for _ in range(8)]
        self._live: Set[asyncio.Task[None]] = set()

    async def _one(self) -> None:
        kind, plan = mixed_plan(self._rng, self._prefixes, self._scale)
        self.counts.sent[kind] += 1
        outcome = Outcome(kind)
        try:
            await asyncio.wait_for(
                load.send(self._stub, plan, kind, outcome), HANG_SECONDS)
        except asyncio.TimeoutError:
            pass
        if outcome.code is None or (outcome.ended - outcome.sent >=
                                    HANG_SECONDS):
            self.counts.hanging += 1
            return
        self.counts.tokens += outcome.num_tokens
        self.counts.codes[f"{kind}.{outcome.code.name.lower()}"] += 1
        is_lease = (outcome.code == grpc.StatusCode.UNAVAILABLE and
                    LEASE_WORDS in outcome.message)
        if outcome.code == grpc.StatusCode.INTERNAL:
            self.counts.internal += 1
        elif outcome.code not in EXPECTED_CODES and not is_lease:
            self.counts.unexpected += 1
            print(f"soak: {kind}: {outcome.code.name}: {outcome.message}",
                  flush=True)
        if outcome.code == grpc.StatusCode.OK and kind != "dead_reader":
            self.counts.broken += not is_whole(plan, outcome)

    def _start(self) -> None:
        task = asyncio.create_task(self._one())
        self._live.add(task)
        task.add_done_callback(self._live.discard)

    async def _wait(self, seconds: float) -> None:
        """Until then, or until the run is to stop."""
        try:
            await asyncio.wait_for(self.stop.wait(), max(seconds, 0))
        except asyncio.TimeoutError:
            pass

    async def calibrate(self, seconds: float) -> float:
        """Requests per second with many at a time, in `seconds` or more."""
        begin = time.monotonic()
        streams = self._scale.calibration_streams

        def is_enough() -> bool:
            passed = time.monotonic() - begin
            done = sum(self.counts.codes.values())
            return (self.stop.is_set() or passed > 3 * seconds or
                    (passed > seconds and done >= 2 * streams))

        while not is_enough():
            while len(self._live) < streams:
                self._start()
            await asyncio.wait(self._live, timeout=1,
                               return_when=asyncio.FIRST_COMPLETED)
        done = sum(self.counts.codes.values())
        return max(done, 1) / (time.monotonic() - begin)

    async def run(self, seconds: float, rate: float) -> None:
        """Requests arrive at random, `rate` per second on the average."""
        begin = time.monotonic()
        watch = asyncio.create_task(self._watch(begin))
        due = begin
        while not self.stop.is_set():
            due += self._rng.expovariate(rate)
            if due - begin >= seconds:
                await self._wait(begin + seconds - time.monotonic())
                break
            await self._wait(due - time.monotonic())
            if self.stop.is_set():
                break
            if len(self._live) < MAX_LIVE:
                self._start()
            else:
                self.counts.held_back += 1
        self.minutes = (time.monotonic() - begin) / 60
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    async def _watch(self, begin: float) -> None:
        next_line = begin + PROGRESS_SECONDS
        while True:
            now = time.monotonic()
            if self.server.process.poll() is not None:
                print("soak: the server has ended", flush=True)
                self.stop.set()
                return
            self.rss.append((now - begin, self.server.rss_bytes()))
            if now >= next_line:
                next_line += PROGRESS_SECONDS
                print(f"soak: {now - begin:.0f} s, "
                      f"{sum(self.counts.sent.values())} sent, "
                      f"{len(self._live)} live, "
                      f"{self.rss[-1][1] / 2**20:.0f} MiB, "
                      f"{dict(self.counts.codes)}", flush=True)
            await asyncio.sleep(RSS_SECONDS)

    async def drain(self) -> None:
        if self._live:
            await asyncio.wait(self._live, timeout=2 * HANG_SECONDS)
        self.counts.hanging += len(self._live)

    def rss_change(self) -> float:
        """Of the last fifth's median, against the second fifth's."""
        fifth = max(len(self.rss) // 5, 1)
        early = statistics.median(
            size for _, size in self.rss[fifth:2 * fifth] or self.rss)
        late = statistics.median(size for _, size in self.rss[-fifth:])
        return late / early - 1


def unaccounted(server: Server, counts: Counts) -> float:
    """Requests that the server ended more often, or less often, than once.

    One whose deadline is tiny may pass away before it reaches the server.
    """
    metrics = server.metrics()
    ends = sum(value for key, value in metrics.items() if key.split("{")[0] in (
        "overfill_requests_total", "overfill_requests_rejected_total"))
    sent = sum(counts.sent.values())
    least = sum(counts.sent[kind] for kind in SERVED_KINDS)
    missing = max(ends - sent, least - ends, 0)
    if missing:
        for key, value in sorted(metrics.items()):
            if value and re.match(r"overfill_requests(_rejected)?_total", key):
                print(f"soak: {key} {value:g}", flush=True)
    return missing


def report_faults(lines: List[str], report: Report) -> None:
    """What the planted faults were, from the server's last words."""
    said = next((line for line in reversed(lines) if "faults: of" in line), "")
    planted = re.search(r"faults: of (\d+) transfers (.*)", said)
    if planted is None:
        report.add("soak.transfers", None, "transfers")
        return
    report.add("soak.transfers", int(planted.group(1)), "transfers")
    for count, what in re.findall(r"(\d+) (fences late|\w+)",
                                  planted.group(2)):
        report.add(f"soak.faults.{what.replace(' ', '_')}", int(count),
                   "transfers")


def print_last_words(lines: List[str]) -> None:
    """A sanitizer's first report, where there is one."""
    begin = next((i for i, line in enumerate(lines) if "Sanitizer" in line),
                 max(len(lines) - 20, 0))
    print("\n".join(lines[begin:begin + LAST_WORDS]), flush=True)


async def report_run(run: Soak, report: Report) -> None:
    """The rows of a run that has drained; the server still serves."""
    server, counts = run.server, run.counts
    report.add("soak.minutes", round(run.minutes, 2), "minutes")
    report.add("soak.requests", sum(counts.sent.values()), "requests")
    for kind, count in sorted(counts.sent.items()):
        report.add(f"soak.sent.{kind}", count, "requests")
    for code, count in sorted(counts.codes.items()):
        report.add(f"soak.status.{code}", count, "requests")
    report.add("soak.held_back", counts.held_back, "requests")
    report.add("soak.tokens", counts.tokens, "tokens")
    report.add("soak.without_terminal", counts.hanging, "requests")
    report.add("soak.broken_answers", counts.broken, "requests")
    report.add("soak.internal_share",
               counts.internal / max(sum(counts.codes.values()), 1), "share")
    report.add("soak.unexpected_statuses", counts.unexpected, "requests")
    report.add("soak.rss_change", run.rss_change(), "share")
    report.add("soak.rss_end", run.rss[-1][1] / 2**20, "MiB")
    if server.process.poll() is not None:
        raise RuntimeError(
            f"the server ended with {server.process.returncode}: "
            + "; ".join(server.lines[-3:]))
    report.add("soak.blocks_not_home", await server.blocks_not_home(),
               "blocks")
    await asyncio.sleep(INTEGRITY_SECONDS)
    report.add("soak.unaccounted_requests", unaccounted(server, counts),
               "requests")
    report.add("soak.integrity_failures",
               server.total("overfill_integrity_failures_total"), "checks")
    for metric in ["preemptions", "transfer_retries", "discarded_commits",
                   "stuck_steps", "prefix_cache_hit_tokens"]:
        report.add(f"soak.{metric}", server.total(f"overfill_{metric}_total"),
                   "tokens" if metric.endswith("tokens") else "times")


async def _soak(server: Server, minutes: float, rng: random.Random,
                scale: Scale, report: Report) -> None:
    async with load.channel_of(server) as channel:
        run = Soak(server, load.pb2_grpc.InferenceStub(channel), rng, scale)
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGTERM, run.stop.set)
        capacity = await run.calibrate(min(60.0, minutes * 30))
        rate = SHARE_OF_CAPACITY * capacity
        report.add("soak.capacity", capacity, "requests/s")
        report.add("soak.rate", rate, "requests/s")
        cpu = load.CpuShare()
        await run.run(minutes * 60, rate)
        report.add("soak.client_cpu", cpu.share(), "share of all cores")
        await run.drain()
        await report_run(run, report)


def soak(binary: pathlib.Path, minutes: float, seed: int, small: bool,
         report: Report) -> None:
    """Runs it on overfill-server-faulty; raises what kept it from its end.

    `small`: with models that are quick where the server is slow.
    """
    rng = random.Random(seed)
    scale = SMALL if small else LARGE
    server = Server(binary, [
        *load.dummy_pair(True, scale.shapes), *FLAGS, *scale.flags,
        f"--fault_rate={FAULT_RATE}", f"--fault_seed={rng.getrandbits(31)}"])
    try:
        asyncio.run(_soak(server, minutes, rng, scale, report))
    finally:
        exit_code = server.stop()
        report.add("soak.exit_code", exit_code, "")
        report_faults(server.lines, report)
        if exit_code != 0:
            print_last_words(server.lines)
