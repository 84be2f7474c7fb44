"""What happens while Debian's Prometheus looks: a minute of load on a healthy
server and on a troubled one, and the end of the troubled one.

Rules run at thirty times their speed, with a scrape each second in place of
each half a minute, so that a minute shows what half an hour would.
"""

import pathlib
import time
import urllib.request
from typing import Any, Dict, List

import yaml

import clients
import rule_files
import stack

FASTER = 30
INTERVAL = 1  # also the longest that a scrape may take
LOAD_SECONDS = 60
READS, PAUSE = 900, 0.04  # of timed reads
DOWN_SECONDS = 30  # more than enough for an alert of a minute

current = None  # what the tests look at


def text_of(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics",
                                timeout=30) as page:
        return page.read().decode()


class Scenario:
    """Each step leaves what there is to look at in a member."""

    def __init__(self, bench: str, directory: pathlib.Path) -> None:
        self._bench = bench
        self._directory = directory
        self._cleanups: List[Any] = []
        self.pages: Dict[str, str] = {}  # /metrics, by when and whose

    def close(self) -> None:
        while self._cleanups:
            self._cleanups.pop()()

    def _keep(self, thing: Any, end: str) -> Any:
        self._cleanups.append(getattr(thing, end))
        return thing

    def run(self) -> None:
        self._start()
        self._load()
        self._settle()
        self._kill()

    def _start(self) -> None:
        self.healthy = self._keep(clients.start_healthy(), "kill")
        self.troubled = self._keep(clients.Troubled(self._directory), "kill")
        self.instances = {"healthy": self.healthy.metrics_address,
                          "troubled": self.troubled.server.metrics_address}
        rules = []
        for path in rule_files.RULES:
            copied = self._directory / path.name
            copied.write_text(yaml.safe_dump(
                stack.faster_rules(rule_files.load(path), FASTER)),
                encoding="utf-8")
            rules.append(copied)
        self.prometheus = self._keep(stack.Prometheus(
            self._directory, stack.example_config(
                list(self.instances.values()), rules,
                f"{round(INTERVAL * 1000)}ms")), "stop")
        time.sleep(4 * INTERVAL)
        self._read("idle")
        self.begin = time.time()

    def _read(self, when: str) -> None:
        for name, address in self.instances.items():
            self.pages[f"{when} {name}"] = text_of(address)

    def _load(self) -> None:
        begin = time.monotonic()
        bench = self._keep(clients.Bench(
            self._bench, self.healthy.target, LOAD_SECONDS, self._directory),
            "kill")
        gets = self._keep(clients.TimedGets(
            self.instances["healthy"], READS, PAUSE), "kill")
        self.troubled.start()
        for at, act in [(8, self.troubled.renew_certificate),
                        (10, self.troubled.renew_tokens),
                        (20, self.troubled.break_tokens),
                        (45, self.troubled.renew_tokens)]:
            time.sleep(max(0.0, begin + at - time.monotonic()))
            act()
        self.reads = gets.result()
        self.reads_end = time.time()
        self.bench = bench.result()
        self.load_end = time.time()
        self.troubled.stop()

    def _settle(self) -> None:
        """Until Prometheus has seen the last of it, and its rules too."""
        time.sleep(6 * INTERVAL)
        self.end = time.time()
        self._read("loaded")
        self.rules = self.prometheus.api("rules")["groups"]

    def _kill(self) -> None:
        self.troubled.server.kill()
        end = time.monotonic() + DOWN_SECONDS
        self.firing_after_kill: List[Dict[str, str]] = []
        while time.monotonic() < end and not any(
                labels["alertname"] == "OverfillServerDown"
                for labels in self.firing_after_kill):
            time.sleep(INTERVAL)
            self.firing_after_kill = self.prometheus.firing()
        time.sleep(4 * INTERVAL)
        self.last = time.time()
        self.exit_code = self.healthy.stop()
