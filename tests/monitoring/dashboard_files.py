"""The dashboard: its panels and its queries."""

import dataclasses
import json
import re
from typing import Any, Dict, Iterator, List

from rule_files import MONITORING

DASHBOARD = MONITORING / "dashboards" / "overfill.json"
MAKE = MONITORING / "dashboards" / "make_dashboard.py"
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_LABEL_VALUES = re.compile(r"label_values\((.*), (\w+)\)")


@dataclasses.dataclass
class Query:
    """One query as it is in the file, and whose it is."""
    where: str
    expr: str
    legend: str
    is_table: bool = False


def load() -> Dict[str, Any]:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def panels(dashboard: Dict[str, Any]) -> List[Dict[str, Any]]:
    """All, rows among them; those inside of collapsed rows too."""
    found = []
    for panel in dashboard["panels"]:
        found.append(panel)
        found += panel.get("panels", [])
    return found


def charts(dashboard: Dict[str, Any]) -> List[Dict[str, Any]]:
    return [panel for panel in panels(dashboard) if panel["type"] != "row"]


def panel_queries(panel: Dict[str, Any]) -> Iterator[Query]:
    for target in panel["targets"]:
        yield Query(f"{panel['title']} {target['refId']}", target["expr"],
                    target["legendFormat"], panel["type"] == "table")


def queries(dashboard: Dict[str, Any]) -> List[Query]:
    """Of panels, variables and annotations."""
    found = []
    for panel in charts(dashboard):
        found += panel_queries(panel)
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            match = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            found.append(Query(f"variable {variable['name']}", match[1],
                               "{{%s}}" % match[2]))
    for annotation in dashboard["annotations"]["list"]:
        found.append(Query(f"annotation {annotation['name']}",
                           annotation["expr"], annotation["titleFormat"]))
    return found


def fill_in(expr: str, values: Dict[str, str]) -> str:
    """The query with Grafana's variables replaced; an unknown one is an
    error."""
    return _VARIABLE.sub(lambda match: values[match[1]], expr)


def legend_labels(legend: str) -> List[str]:
    return re.findall(r"\{\{(\w+)\}\}", legend)


def legend_of(legend: str, labels: Dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels[match[1]], legend)


def overlap(a: Dict[str, int], b: Dict[str, int]) -> bool:
    return (a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"] and
            a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"])
