"""The rules, their unit tests and promtool."""

import dataclasses
import functools
import pathlib
import re
import subprocess
from typing import Any, Dict, List, Tuple

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
RULES = sorted((MONITORING / "rules").glob("*.yaml"))
UNIT_TESTS = sorted((ROOT / "tests" / "monitoring" / "rules").glob("*.yaml"))
PROMTOOL_SECONDS = 120
# In C where there is one: ten times as fast.
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_PERIOD = re.compile(r"(\d+)(ms|[smhdwy])")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400,
            "w": 7 * 86400, "y": 365 * 86400}


def promtool(*arguments: Any, text: str = "") -> Tuple[int, str]:
    """(exit code, all that it printed)"""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=text, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=PROMTOOL_SECONDS, check=False)
    return done.returncode, done.stdout


@functools.lru_cache(maxsize=None)
def load(path: pathlib.Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)


def seconds(period: str) -> float:
    """Of Prometheus' durations, such as 1h30m."""
    parts = _PERIOD.findall(period)
    if "".join(number + unit for number, unit in parts) != period:
        raise ValueError(f"not a duration: {period!r}")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


@dataclasses.dataclass
class Rule:
    name: str
    is_alert: bool
    content: Dict[str, Any]
    path: pathlib.Path

    @property
    def expr(self) -> str:
        return self.content["expr"]

    @property
    def hold(self) -> float:
        """Seconds that an alert is pending for."""
        return seconds(self.content.get("for", "0s"))


def rules() -> List[Rule]:
    found = []
    for path in RULES:
        for group in load(path)["groups"]:
            for content in group["rules"]:
                is_alert = "alert" in content
                name = content["alert" if is_alert else "record"]
                found.append(Rule(name, is_alert, content, path))
    return found


def alerts() -> List[Rule]:
    return [rule for rule in rules() if rule.is_alert]


def records() -> List[Rule]:
    return [rule for rule in rules() if not rule.is_alert]
