"""Small charts as SVG: bars with intervals, and curves."""

from __future__ import annotations

from typing import List, NamedTuple, Sequence, Tuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 360, 250
LEFT, TOP, INNER_WIDTH, INNER_HEIGHT = 46, 34, 300, 160
COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#8d6a9f")


class Bar(NamedTuple):
    label: str
    value: float
    low: float
    high: float


class Curve(NamedTuple):
    label: str
    points: Sequence[Tuple[float, float]]


def _text(x: float, y: float, text: str, anchor: str = "middle",
          size: int = 11) -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
            f'font-size="{size}">{escape(text)}</text>')


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#444",
          width: float = 1.0) -> str:
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{colour}" stroke-width="{width}"/>')


def _y(share: float) -> float:
    return TOP + INNER_HEIGHT * (1.0 - share)


def _frame(title: str, below: str) -> List[str]:
    """Axes from 0 to 100 %."""
    parts = [_text(LEFT + INNER_WIDTH / 2, 18, title, size=13)]
    for percent in (0, 25, 50, 75, 100):
        y = _y(percent / 100)
        parts.append(_line(LEFT, y, LEFT + INNER_WIDTH, y, "#ddd"))
        parts.append(_text(LEFT - 6, y + 4, f"{percent} %", "end", 10))
    parts.append(_text(LEFT + INNER_WIDTH / 2, HEIGHT - 6, below))
    return parts


def bars(title: str, below: str, shown: Sequence[Bar]) -> str:
    """The body of a chart of shares."""
    parts = _frame(title, below)
    step = INNER_WIDTH / max(1, len(shown))
    for index, bar in enumerate(shown):
        x = LEFT + step * (index + 0.5)
        colour = COLOURS[index % len(COLOURS)]
        top = _y(bar.value)
        parts.append(
            f'<rect x="{x - step * 0.3:.1f}" y="{top:.1f}" '
            f'width="{step * 0.6:.1f}" height="{_y(0) - top:.1f}" '
            f'fill="{colour}"/>')
        parts.append(_line(x, _y(bar.low), x, _y(bar.high), "#000", 1.5))
        parts.append(_text(x, _y(0) + 14, bar.label))
        parts.append(_text(x, _y(0) + 28, f"{100 * bar.value:.1f} %", size=10))
    return "\n".join(parts)


def curves(title: str, below: str, shown: Sequence[Curve]) -> str:
    """The body of a chart of shares over numbers."""
    parts = _frame(title, below)
    xs = sorted({x for curve in shown for x, _ in curve.points})
    if not xs:
        return "\n".join(parts)
    span = (xs[-1] - xs[0]) or 1.0

    def at(x: float) -> float:
        return LEFT + 10 + (INNER_WIDTH - 20) * (x - xs[0]) / span

    for x in xs:
        parts.append(_text(at(x), _y(0) + 14, f"{x:g}", size=10))
    for index, curve in enumerate(shown):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{at(x):.1f},{_y(y):.1f}" for x, y in curve.points)
        parts.append(f'<polyline points="{path}" fill="none" '
                     f'stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{at(x):.1f}" cy="{_y(y):.1f}" r="3" '
                  f'fill="{colour}"/>' for x, y in curve.points]
        x = LEFT + 4 + index * INNER_WIDTH / len(shown)
        parts.append(_line(x, _y(0) + 24, x + 14, _y(0) + 24, colour, 2))
        parts.append(_text(x + 18, _y(0) + 28, curve.label, "start", 10))
    return "\n".join(parts)


def page(charts: Sequence[str]) -> str:
    """Charts side by side."""
    body = "\n".join(f'<g transform="translate({index * WIDTH},0)">\n{chart}\n'
                     "</g>" for index, chart in enumerate(charts))
    width = WIDTH * len(charts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
            f'height="{HEIGHT}" viewBox="0 0 {width} {HEIGHT}" '
            'font-family="sans-serif">\n'
            f'<rect width="{width}" height="{HEIGHT}" fill="#fff"/>\n'
            f"{body}\n</svg>\n")
