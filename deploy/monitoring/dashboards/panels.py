"""The dashboard's parts, as Grafana's classic model (schema 42) wants them."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

Json = Dict[str, Any]
WIDTH = 24  # columns of Grafana's grid
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
TOKENS = "suffix:tok/s"


class Target:
    """A query and how its lines are called."""

    def __init__(self, expr: str, legend: str, **extra: Any) -> None:
        self.expr = " ".join(expr.split()).replace("( ", "(")
        self.legend = legend
        self.extra = extra

    def json(self, index: int) -> Json:
        return {"datasource": SOURCE, "editorMode": "code", "expr": self.expr,
                "legendFormat": self.legend, "range": True,
                "refId": chr(ord("A") + index), **self.extra}


def _steps(limits: Sequence[Tuple[str, Optional[float]]]) -> Json:
    return {"mode": "absolute",
            "steps": [{"color": color, "value": value}
                      for color, value in limits]}


def limits(orange: float, red: float) -> List[Tuple[str, Optional[float]]]:
    return [("green", None), ("orange", orange), ("red", red)]


def floor(orange: float, red: float) -> List[Tuple[str, Optional[float]]]:
    """Where less is worse."""
    return [("red", None), ("orange", red), ("green", orange)]


def _panel(kind: str, title: str, about: str, unit: str,
           targets: Sequence[Target], size: Tuple[int, int]) -> Json:
    return {"type": kind, "title": title, "description": about,
            "datasource": SOURCE,
            "gridPos": {"w": size[0], "h": size[1], "x": 0, "y": 0},
            "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
            "options": {},
            "targets": [target.json(i) for i, target in enumerate(targets)]}


def stat(title: str, about: str, unit: str, target: Target,
         steps: Sequence[Tuple[str, Optional[float]]] = (("green", None),),
         size: Tuple[int, int] = (3, 4), decimals: Optional[int] = None
         ) -> Json:
    panel = _panel("stat", title, about, unit, [target], size)
    defaults = panel["fieldConfig"]["defaults"]
    defaults.update(color={"mode": "thresholds"}, thresholds=_steps(steps),
                    noValue="none")
    if decimals is not None:
        defaults["decimals"] = decimals
    panel["options"] = {
        "colorMode": "value", "graphMode": "area", "justifyMode": "auto",
        "orientation": "auto", "textMode": "auto", "wideLayout": True,
        "showPercentChange": False, "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "",
                          "values": False}}
    return panel


def _colored(name: str, color: str) -> Json:
    return {"matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {
                "mode": "fixed", "fixedColor": color}}]}


def lines(title: str, about: str, unit: str, *targets: Target,
          stacked: bool = False, limit: Optional[float] = None,
          most: Optional[float] = None, size: Tuple[int, int] = (8, 8),
          colors: Optional[Dict[str, str]] = None) -> Json:
    """Lines over time; `limit` is drawn, `most` is the axis' end."""
    panel = _panel("timeseries", title, about, unit, targets, size)
    panel["fieldConfig"]["overrides"] = [
        _colored(name, color) for name, color in (colors or {}).items()]
    defaults = panel["fieldConfig"]["defaults"]
    steps = [("green", None)] + ([("red", limit)] if limit else [])
    defaults.update(
        color={"mode": "palette-classic"}, min=0, thresholds=_steps(steps),
        custom={
            "drawStyle": "line", "lineInterpolation": "linear", "lineWidth": 1,
            "fillOpacity": 60 if stacked else 8, "gradientMode": "none",
            "showPoints": "never", "spanNulls": False,
            "axisPlacement": "auto", "axisLabel": "",
            "stacking": {"mode": "normal" if stacked else "none",
                         "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if limit else "off"}})
    if most is not None:
        defaults["max"] = most
    panel["options"] = {
        "legend": {"displayMode": "table", "placement": "bottom",
                   "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}}
    return panel


def heatmap(title: str, about: str, unit: str, target: Target,
            size: Tuple[int, int] = (12, 8)) -> Json:
    """Of the buckets of a histogram."""
    target.extra["format"] = "heatmap"
    panel = _panel("heatmap", title, about, unit, [target], size)
    panel["fieldConfig"]["defaults"]["custom"] = {
        "hideFrom": {"legend": False, "tooltip": False, "viz": False},
        "scaleDistribution": {"type": "linear"}}
    panel["options"] = {
        "calculate": False, "cellGap": 1, "showValue": "never",
        "cellValues": {"unit": "short", "decimals": 0},
        "color": {"mode": "scheme", "scheme": "Turbo", "steps": 64,
                  "exponent": 0.5, "fill": "dark-orange", "reverse": False,
                  "scale": "exponential"},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9}, "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "showColorScale": False,
                    "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit}}
    return panel


def table(title: str, about: str, target: Target, hidden: Sequence[str],
          size: Tuple[int, int] = (WIDTH, 6)) -> Json:
    """The labels of series whose value says nothing."""
    target.extra.update(format="table", instant=True, range=False)
    panel = _panel("table", title, about, "none", [target], size)
    panel["fieldConfig"]["defaults"]["custom"] = {
        "align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}
    panel["options"] = {"showHeader": True, "cellHeight": "sm",
                        "frameIndex": 0}
    panel["transformations"] = [{
        "id": "organize",
        "options": {"excludeByName": {name: True for name in hidden},
                    "indexByName": {}, "renameByName": {}}}]
    return panel


def row(title: str) -> Json:
    return {"type": "row", "title": title, "collapsed": False, "panels": [],
            "gridPos": {"w": WIDTH, "h": 1, "x": 0, "y": 0}}


def place(rows: Sequence[Tuple[str, Sequence[Json]]]) -> List[Json]:
    """Panels from left to right under their rows, with ids and places."""
    placed: List[Json] = []
    y = 0
    for title, panels in rows:
        head = row(title)
        head["gridPos"]["y"] = y
        placed.append(head)
        x, y, height = 0, y + 1, 0
        for panel in panels:
            grid = panel["gridPos"]
            if x + grid["w"] > WIDTH:
                x, y, height = 0, y + height, 0
            grid["x"], grid["y"] = x, y
            x, height = x + grid["w"], max(height, grid["h"])
            placed.append(panel)
        y += height
    for number, panel in enumerate(placed, start=1):
        panel["id"] = number
    return placed


def query_variable(name: str, label: str, query: str, help_text: str) -> Json:
    return {"name": name, "label": label, "description": help_text,
            "type": "query", "datasource": SOURCE, "definition": query,
            "query": {"qryType": 1, "query": query,
                      "refId": "PrometheusVariableQueryEditor-VariableQuery"},
            "refresh": 2, "regex": "", "sort": 1, "multi": True,
            "includeAll": True, "hide": 0, "skipUrlSync": False,
            "current": {"selected": True, "text": ["All"],
                        "value": ["$__all"]},
            "options": []}
