"""The plot of a run as SVG: a bar per row on a logarithmic axis, and curves against depth or the size of the pool."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from goals import FLOOR, PEER, ROWS, row_of
from report import bound, floor_of
from results import OURS, Results

WIDTH, LEFT, RIGHT = 900, 300, 30
BAR, GAP = 7, 12
CURVES_HEIGHT = 260
COLOURS = {OURS: "#0b6e99", PEER: "#b0b0b0", FLOOR: "#e0a030", "goal": "#c02020"}
SERIES = {
    "run": "create + start + wait: seconds by layers",
    "read": "100 MB read: seconds by layers",
    "cold": "first start with nothing mapped: seconds by layers",
    "create": "create: seconds by images in the pool",
    "get": "get: seconds by images in the pool",
    "put": "put: seconds by images in the pool",
    "remove": "remove: seconds by images in the pool",
    "memory": "the driver's peak memory: MB by images in the pool",
}
NAMES = {OURS: "docker-graph-driver", PEER: "overlay2", FLOOR: "floor", "goal": "goal"}
DASHES = {OURS: "", PEER: ' stroke-dasharray="5 4"', FLOOR: ' stroke-dasharray="2 3"'}


def svg(results: Results) -> str:
    """The whole drawing."""
    bars, height = _bars(results)
    curves = _curves(results, height + 40)
    total = height + 10 + (len(_series(results)) + 1) // 2 * CURVES_HEIGHT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{total}" fill="white"/>'
    )
    return "\n".join([head, *_legend(), *bars, *curves, "</svg>", ""])


def _legend() -> list[str]:
    parts = []
    for index, (who, colour) in enumerate(COLOURS.items()):
        x = LEFT + index * 150
        parts.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 18, 18, NAMES[who]))
    return parts


def _bars(results: Results) -> tuple[list[str], int]:
    """A group of bars for each row in seconds, and where the drawing of them ends."""
    rows = [row for row in ROWS if row.unit == "s" and row.key != "cpu" and row.key in results.rows]
    values: list[tuple[str, dict[str, float | None]]] = []
    for row in rows:
        sizes = {OURS: results.p50(row.key), PEER: results.p50(row.key, PEER), FLOOR: floor_of(results, row)}
        values.append((row.title, {**sizes, "goal": bound(results, row)}))
    known = [value for _, sizes in values for value in sizes.values() if value]
    if not known:
        return [], 40
    axis = Axis(min(known), max(known), LEFT, WIDTH - RIGHT)
    y, parts = 40, []
    for title, sizes in values:
        parts.append(_text(LEFT - 8, y + 2 * BAR, title, "end"))
        for who in (OURS, PEER, FLOOR):
            width = axis.at(sizes[who]) - LEFT
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{COLOURS[who]}"/>')
            y += BAR
        if sizes["goal"]:
            x = axis.at(sizes["goal"])
            line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3 * BAR}" y2="{y}" stroke="{COLOURS["goal"]}"'
            parts.append(f'{line} stroke-width="2"/>')
        y += GAP
    ticks = [part for tick in axis.ticks() for part in _tick(axis.at(tick), 36, y, f"{tick:g} s")]
    return ticks + parts, y + 20


def _tick(x: float, top: float, bottom: float, label: str) -> list[str]:
    line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="#dddddd"/>'
    return [line, _text(x, bottom + 14, label, "middle")]


class Axis:
    """A logarithmic axis from `low` to `high` between two places of the drawing."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        self._low, self._high = math.floor(math.log10(low)), max(math.log10(high), math.floor(math.log10(low)) + 1)
        self._begin, self._end = begin, end

    def at(self, value: float | None) -> float:
        """Where a value is; nothing is at the beginning."""
        if not value:
            return self._begin
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> list[float]:
        """The powers of ten."""
        return [10.0**power for power in range(self._low, math.floor(self._high) + 1)]


def _curves(results: Results, top: float) -> list[str]:
    """A drawing for each thing that was measured at several depths or sizes of the pool; two beside each other."""
    parts: list[str] = []
    for index, (name, title) in enumerate(_series(results).items()):
        lines: dict[str, dict[int, float]] = {}
        keys = {int(key.partition("@")[2]): key for key in results.rows if key.startswith(name + "@")}
        for who in (OURS, PEER):
            lines[who] = {number: results.p50(key, who) or 0.0 for number, key in keys.items()}
        lines[FLOOR] = {number: floor_of(results, row_of(key)) or 0.0 for number, key in keys.items()}
        left = 50 + index % 2 * (WIDTH // 2)
        parts += _curve(title, lines, left, WIDTH // 2 - 80, top + index // 2 * CURVES_HEIGHT)
    return parts


def _series(results: Results) -> dict[str, str]:
    """The names of the curves that there are, and their titles."""
    measured = {key.partition("@")[0] for key in results.rows if "@" in key}
    return {name: title for name, title in SERIES.items() if name in measured}


def _curve(title: str, lines: Mapping[str, Mapping[int, float]], left: float, width: float, top: float) -> list[str]:
    deepest = max(max(line, default=1) for line in lines.values())
    most = max(max(line.values(), default=0.0) for line in lines.values()) * 1.1 or 1.0
    bottom = top + CURVES_HEIGHT - 60
    parts = [_text(left, top - 8, title), *_frame(left, width, top, bottom, most)]
    for depth in sorted({depth for line in lines.values() for depth in line}):
        parts.append(_text(left + width * depth / deepest, bottom + 16, str(depth), "middle"))
    for who, line in lines.items():
        points = [
            (left + width * depth / deepest, bottom - (bottom - top) * value / most)
            for depth, value in sorted(line.items())
            if value
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline fill="none" stroke="{COLOURS[who]}" stroke-width="2"{DASHES[who]} points="{path}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[who]}"/>' for x, y in points]
    return parts


def _frame(left: float, width: float, top: float, bottom: float, most: float) -> Sequence[str]:
    parts = [f'<path d="M{left},{top} V{bottom} H{left + width}" fill="none" stroke="black"/>']
    for share in (0.5, 1.0):
        y = bottom - (bottom - top) * share
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y}" y2="{y}" stroke="#dddddd"/>')
        parts.append(_text(left - 6, y + 4, f"{most * share:.2g}", "end"))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
