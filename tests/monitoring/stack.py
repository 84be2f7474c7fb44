"""A real Prometheus on a free port, and rules that run faster."""

import copy
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Dict, List, Sequence

import yaml

import rule_files

START_SECONDS = 60
STOP_SECONDS = 30
API_SECONDS = 30
_WINDOW = re.compile(r"\[([^\]:]+)(?::([^\]]+))?\]")


def free_port() -> int:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return end.getsockname()[1]


def faster(period: str, factor: float) -> str:
    return f"{round(rule_files.seconds(period) / factor * 1000)}ms"


def faster_rules(content: Dict[str, Any], factor: float) -> Dict[str, Any]:
    """The rules with every period so many times shorter: windows, steps of
    subqueries and `for`. Limits stay, those of rates too."""
    def window(match: "re.Match[str]") -> str:
        parts = [faster(part, factor) for part in match.groups() if part]
        return "[" + ":".join(parts) + "]"

    content = copy.deepcopy(content)
    for group in content["groups"]:
        for rule in group["rules"]:
            rule["expr"] = _WINDOW.sub(window, rule["expr"])
            if "for" in rule:
                rule["for"] = faster(rule["for"], factor)
    return content


def example_config(targets: Sequence[str], rules: Sequence[pathlib.Path],
                   interval: str) -> Dict[str, Any]:
    """deploy/monitoring/prometheus.yaml with other targets and times; nobody is
    told of alerts."""
    config = copy.deepcopy(
        rule_files.load(rule_files.MONITORING / "prometheus.yaml"))
    config["global"].update(scrape_interval=interval, scrape_timeout=interval,
                            evaluation_interval=interval)
    config["rule_files"] = [str(path) for path in rules]
    del config["alerting"]
    (job,) = config["scrape_configs"]
    (group,) = job["static_configs"]
    group["targets"] = list(targets)
    return config


class Prometheus:
    """Ready when the constructor returns."""

    def __init__(self, directory: pathlib.Path, config: Dict[str, Any]) -> None:
        path = directory / "prometheus.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        code, output = rule_files.promtool("check", "config", path)
        if code:
            raise RuntimeError(output)
        self.address = f"127.0.0.1:{free_port()}"
        self._log = open(directory / "log", "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={path}",
             f"--storage.tsdb.path={directory / 'data'}",
             f"--web.listen-address={self.address}", "--log.level=warn"],
            stdout=self._log, stderr=subprocess.STDOUT,
            env=dict(os.environ, GOMAXPROCS="1"))
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://{self.address}/-/ready",
                                            timeout=API_SECONDS):
                    return
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None:
                    raise RuntimeError(self.log()) from None
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def log(self) -> str:
        self._log.flush()
        self._log.seek(0)
        return self._log.read()

    def api(self, path: str, **parameters: Any) -> Any:
        """The data of an answer; what Prometheus refuses is an error."""
        url = f"http://{self.address}/api/v1/{path}"
        if parameters:
            url += "?" + urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(url, timeout=API_SECONDS) as page:
                answer = json.load(page)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path} {parameters}: "
                               f"{error.read().decode()}") from None
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expr: str, when: float) -> List[Dict[str, Any]]:
        """[{"metric": labels, "value": (time, text)}]"""
        return self.api("query", query=expr, time=when)["result"]

    def value(self, expr: str, when: float) -> float:
        """Of the one series."""
        (sample,) = self.query(expr, when)
        return float(sample["value"][1])

    def query_range(self, expr: str, begin: float, end: float,
                    step: float) -> List[Dict[str, Any]]:
        """[{"metric": labels, "values": [(time, text), ...]}]"""
        return self.api("query_range", query=expr, start=begin, end=end,
                        step=step)["result"]

    def series(self, selector: str) -> List[Dict[str, str]]:
        """Labels of each series that there ever was."""
        return self.api("series", **{"match[]": selector})

    def firing(self) -> List[Dict[str, str]]:
        """Labels of the alerts that fire now."""
        return [alert["labels"] for alert in self.api("alerts")["alerts"]
                if alert["state"] == "firing"]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()
