"""Rows, targets and the two documents of a benchmark of several parts."""

import datetime
import json
import pathlib
import sys
from typing import Any, Callable, Collection, Dict, List, Mapping

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training.judge.record import commit, machine  # noqa: E402

TABLE = """
| row | value | unit | target | met |
| --- | ---: | --- | ---: | --- |
"""


class Report:
    """Rows by name, in order; parts run one by one are joined in one file."""

    def __init__(self, name: str, head: str, path: pathlib.Path) -> None:
        """`head` begins the document beside the JSON file `path`."""
        self.name = name
        self.head = head
        self.path = path
        self.rows: Dict[str, Dict[str, Any]] = {}
        self.parts: Dict[str, Dict[str, str]] = {}
        self.reasons: Dict[str, str] = {}
        if path.exists():
            old = json.loads(path.read_text(encoding="utf-8"))
            self.rows = {row["metric"]: row for row in old["results"]}
            self.parts = old.get("parts", {})
            self.reasons = old.get("reasons", {})
        targets = ROOT / "docs" / "benchmarks" / "targets.json"
        self.targets = json.loads(
            targets.read_text(encoding="utf-8"))[name]

    def begin(self, part: str) -> None:
        """Forgets an earlier run of the part."""
        self.rows = {name: row for name, row in self.rows.items()
                     if not name.startswith(part + ".")}
        self.reasons = {name: reason for name, reason in self.reasons.items()
                        if not name.startswith(part + ".")}
        self.parts[part] = {
            "commit": commit(),
            "time": datetime.datetime.now(datetime.timezone.utc).strftime(
                "%Y-%m-%dT%H:%M:%SZ")}

    def fail(self, part: str, reason: str) -> None:
        """Those rows of the part that have a target and no value."""
        for metric in self.targets:
            if metric.startswith(part + ".") and metric not in self.rows:
                self.reasons[metric] = reason
        print(f"{part}: not measured: {reason}", flush=True)

    def run(self, parts: Mapping[str, Callable[[], None]]) -> bool:
        """Each part for itself: one's failure leaves the others. Whether all
        came to their end; written after each."""
        is_whole = True
        for part, measure in parts.items():
            self.begin(part)
            try:
                measure()
            except Exception as error:
                self.fail(part, f"{type(error).__name__}: {error}")
                is_whole = False
            self.write()
        return is_whole

    def add(self, metric: str, value: Any, unit: str) -> None:
        row = {"metric": metric, "value": value, "unit": unit,
               "target": None, "met": None}
        if metric in self.targets:
            bound = self.targets[metric]["target"]
            at_least = self.targets[metric]["met_when"] == "at_least"
            row["target"] = bound
            row["met"] = value is not None and bool(
                value >= bound if at_least else value <= bound)
        self.rows[metric] = row
        print(f"{metric}: {value} {unit} (target {row['target']}, "
              f"met {row['met']})", flush=True)

    def missed(self, parts: Collection[str],
               besides: Collection[str]) -> List[str]:
        """Targets of these parts that are not met, `besides` left out."""
        return [metric for metric in self.targets
                if metric.split(".")[0] in parts and metric not in besides and
                not self.rows[metric]["met"]]

    def write(self) -> None:
        for metric in self.targets:
            if metric not in self.rows:
                self.rows[metric] = {
                    "metric": metric, "value": None, "unit": "",
                    "target": self.targets[metric]["target"], "met": False}
            if self.rows[metric]["value"] is None:
                self.reasons.setdefault(metric, "not run")
        rows: List[Dict[str, Any]] = list(self.rows.values())
        report = {"name": self.name, "commit": commit(),
                  "machine": machine(), "parts": self.parts,
                  "reasons": self.reasons, "results": rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(report, indent=2) + "\n",
                             encoding="utf-8")
        self.path.with_suffix(".md").write_text(
            self._markdown(report), encoding="utf-8")

    def _markdown(self, report: Dict[str, Any]) -> str:
        text = self.head + TABLE
        for row in report["results"]:
            value = row["value"]
            shown = ("not measured" if value is None else
                     f"{value:.4g}" if isinstance(value, float) else value)
            target = "" if row["target"] is None else row["target"]
            met = {True: "yes", False: "no", None: ""}[row["met"]]
            text += (f"| {row['metric']} | {shown} | {row['unit']} | {target} "
                     f"| {met} |\n")
        for metric, reason in report["reasons"].items():
            text += f"\n`{metric}` was not measured: {reason}.\n"
        text += "\n| part | measured at | commit |\n| --- | --- | --- |\n"
        for part, about in report["parts"].items():
            text += f"| {part} | {about['time']} | {about['commit'][:12]} |\n"
        cpu = report["machine"]
        return text + f"\n{cpu['cores']} cores of {cpu['cpu']}.\n"
