"""What metrics cost of the decode throughput. Not a test: it is run by hand, on
a machine that has nothing else to do.

    ./dev build release
    /usr/bin/python3 -B tests/monitoring/metrics_cost.py [--cycles N]

One server process decodes 64 streams of the bundled pair, whose tokens are so
cheap that any cost beside them shows more than it would with a large model. It
runs with metrics_switch.cc preloaded, which can keep every call of an
observation or an increment from prometheus-cpp. Each cycle has three windows of
half a second, in an order that is drawn: recording off; on; on, with one scrape
(thirty times as often as usual). The tokens are those that the clients got. Two
ratios are printed, each to that with recording off and with its bounds
(bootstrap over the cycles, 95 %): of tokens per second, and of tokens per
second of the server's CPU time (.cpu), which other programs disturb less.

A ratio cannot show less than the noise of the machine. So the cost is also
computed: the events that a generated token takes, counted in the same run,
times what one takes alone, of the CPU time that the server spends for a token.
An observation increments a counter of its bucket, which is counted once more.
And a scrape's CPU time is measured with the server idle, and set against the
15 s from one to the next on one core.
"""

import argparse
import bisect
import ctypes
import dataclasses
import json
import math
import mmap
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import Dict, List, Sequence, Tuple


from clients import DEMO, ROOT, STREAMS, harness, servers

RECORD, SKIP, COUNT = range(3)  # as in metrics_switch.cc
MODES = {"off": SKIP, "on": RECORD, "scraped": RECORD}
WINDOW = 0.5
WARM_UP, COUNT_SECONDS = 5.0, 3.0
SETTLE = 0.1  # after a switch, until the tokens on their way have come
BUCKETS = 21  # of the histogram of each token
LOOPS = 2_000_000
NUM_SCRAPES, SCRAPE_INTERVAL = 100, 15


class Switch:
    """The page that metrics_switch.cc shares."""

    def __init__(self, path: pathlib.Path) -> None:
        path.write_bytes(bytes(mmap.PAGESIZE))
        with open(path, "r+b") as file:
            self._page = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def set(self, mode: int) -> None:
        self._page[0:4] = struct.pack("=I", mode)

    def counts(self) -> Tuple[int, int]:
        """(observations, increments) while it counted."""
        return struct.unpack("=QQ", self._page[8:24])


def scrape(address: str) -> None:
    with urllib.request.urlopen(f"http://{address}/metrics",
                                timeout=30) as page:
        page.read()


def cpu_seconds(pid: int) -> float:
    """Of a process; its clock as clock_getcpuclockid(3) makes it."""
    return time.clock_gettime((~pid << 3) | 2)


@dataclasses.dataclass
class Window:
    begin: float
    end: float
    cpu: float  # seconds of the server


def run_windows(switch: Switch, address: str, pid: int, cycles: int,
                rng: random.Random) -> List[Dict[str, Window]]:
    """By their names, for each cycle."""
    found = []
    for _ in range(cycles):
        order = list(MODES)
        rng.shuffle(order)
        windows = {}
        for name in order:
            switch.set(MODES[name])
            time.sleep(SETTLE)
            begin, cpu = time.monotonic(), cpu_seconds(pid)
            if name == "scraped":
                scrape(address)
            time.sleep(max(0.0, begin + WINDOW - time.monotonic()))
            windows[name] = Window(begin, time.monotonic(),
                                   cpu_seconds(pid) - cpu)
        found.append(windows)
    return found


def token_times(path: pathlib.Path) -> Tuple[List[float], List[int]]:
    """When tokens came, and how many had by then."""
    arrivals = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            for sample in json.loads(line)["samples"]:
                arrivals += zip(sample["at"], sample["num_tokens"])
    arrivals.sort()
    times, totals, total = [], [], 0
    for at, count in arrivals:
        total += count
        times.append(at)
        totals.append(total)
    return times, totals


def tokens_in(times: List[float], totals: List[int], window: Window) -> int:
    first, last = (bisect.bisect_left(times, at) - 1
                   for at in (window.begin, window.end))
    return (totals[last] if last >= 0 else 0) - (
        totals[first] if first >= 0 else 0)


Pairs = List[Tuple[float, float]]  # (tokens, time), one of each cycle


def ratio_and_bounds(over: Pairs, under: Pairs, rng: random.Random
                     ) -> Tuple[float, float, float]:
    """Of the tokens in a time, between two kinds of windows."""
    def ratio(cycles: Sequence[int]) -> float:
        rates = [sum(pairs[i][0] for i in cycles) /
                 sum(pairs[i][1] for i in cycles) for pairs in (over, under)]
        return rates[0] / rates[1]

    everything = range(len(over))
    drawn = sorted(ratio(rng.choices(everything, k=len(over)))
                   for _ in range(2000))
    return ratio(everything), drawn[49], drawn[-50]


def event_seconds(library: pathlib.Path) -> Tuple[float, float]:
    """(of an observation, of an increment): the least of five times."""
    events = ctypes.CDLL(str(library))
    events.overfill_observe_seconds.restype = ctypes.c_double
    events.overfill_increment_seconds.restype = ctypes.c_double
    return (min(events.overfill_observe_seconds(
                    ctypes.c_int32(BUCKETS), ctypes.c_int64(LOOPS))
                for _ in range(5)),
            min(events.overfill_increment_seconds(ctypes.c_int64(LOOPS))
                for _ in range(5)))


def cpu_of_a_scrape(address: str, pid: int) -> float:
    """Less what the idle server spends meanwhile."""
    begin, cpu = time.monotonic(), cpu_seconds(pid)
    for _ in range(NUM_SCRAPES):
        scrape(address)
    taken, cpu = time.monotonic() - begin, cpu_seconds(pid) - cpu
    idle = cpu_seconds(pid)
    time.sleep(taken)
    return max(0.0, cpu - (cpu_seconds(pid) - idle)) / NUM_SCRAPES


def say(metric: str, value: float, unit: str) -> None:
    print(json.dumps({"metric": f"monitoring.cost.{metric}",
                      "value": float(f"{value:.4g}"), "unit": unit}))


def measure(args: argparse.Namespace, directory: pathlib.Path) -> None:
    rng = random.Random(args.seed)
    library = args.build / "tests/monitoring/liboverfill_metrics_switch.so"
    path = directory / "switch"
    switch = Switch(path)
    harness.server_binary = str(args.build / "server/overfill-server")
    server = servers.Server(
        "--log_requests=false", pair=DEMO,
        wrapper=["env", f"LD_PRELOAD={library}",
                 f"OVERFILL_METRICS_SWITCH={path}"])
    seconds = WARM_UP + COUNT_SECONDS + args.cycles * 3 * (WINDOW + SETTLE)
    records = directory / "records"
    bench = subprocess.Popen(
        [str(args.build / "benchmarks/overfill-bench"), "serve",
         f"--target={server.target}", f"--concurrency={STREAMS}",
         f"--duration={math.ceil(1.1 * seconds) + 5}s", "--cancel_at_end",
         "--prompt=fixed:16", "--output=uniform:300:900",
         f"--records={records}"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(WARM_UP)
        switch.set(COUNT)
        pid = server.process.pid
        begin, cpu = time.monotonic(), cpu_seconds(pid)
        time.sleep(COUNT_SECONDS)
        counted = Window(begin, time.monotonic(), cpu_seconds(pid) - cpu)
        windows = run_windows(switch, server.metrics_address, pid, args.cycles,
                              rng)
        done = time.monotonic()
        bench.wait(timeout=120 + seconds)
        scrape_cpu = cpu_of_a_scrape(server.metrics_address, pid)
    finally:
        if bench.poll() is None:
            bench.kill()
            bench.wait()
        server.kill()
    times, totals = token_times(records)
    if not times or times[-1] < done:
        raise SystemExit("the load ended before the last window: is the "
                         "machine busy with something else?")
    report_ratios(times, totals, windows, rng)
    report_computed(switch.counts(), event_seconds(library),
                    tokens_in(times, totals, counted), counted.cpu)
    say("scrape", 1e3 * scrape_cpu, "ms of CPU")
    say("scrape_share", 100 * scrape_cpu / SCRAPE_INTERVAL, "%")


def report_ratios(times: List[float], totals: List[int],
                  windows: Sequence[Dict[str, Window]],
                  rng: random.Random) -> None:
    tokens = [{name: tokens_in(times, totals, window)
               for name, window in cycle.items()} for cycle in windows]
    say("tokens_per_second",
        sum(cycle["off"] for cycle in tokens) / (WINDOW * len(tokens)),
        "tokens/s")
    for kind, time_of in (("", lambda window: window.end - window.begin),
                          (".cpu", lambda window: window.cpu)):
        pairs = {name: [(count[name], time_of(cycle[name]))
                        for count, cycle in zip(tokens, windows)]
                 for name in MODES}
        for name in ("on", "scraped"):
            for part, value in zip(("", ".low", ".high"), ratio_and_bounds(
                    pairs[name], pairs["off"], rng)):
                say(f"{name}_to_off{kind}{part}", value, "ratio")


def report_computed(counts: Tuple[int, int], each: Tuple[float, float],
                    tokens: int, cpu: float) -> None:
    say("observations_per_token", counts[0] / tokens, "events")
    say("increments_per_token", counts[1] / tokens, "events")
    say("observation", 1e9 * each[0], "ns")
    say("increment", 1e9 * each[1], "ns")
    say("cpu_per_token", 1e6 * cpu / tokens, "us")
    spent = sum(count * one for count, one in zip(counts, each))
    say("computed_share", 100 * spent / cpu, "%")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--build", type=pathlib.Path,
                        default=ROOT / "build" / "release")
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measure(args, pathlib.Path(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
