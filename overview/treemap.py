"""Rectangles whose areas are as given numbers, within one rectangle: a squarified treemap.

The largest come first, at the upper left. They are laid in rows along the shorter side of what is left, as long as that
makes the rectangles of the row more like squares (Bruls, Huizing, van Wijk: Squarified Treemaps, 2000).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle: its upper left corner, its width and height."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        """Its area."""
        return self.width * self.height


def squarified(sizes: Sequence[float], within: Box) -> list[Box]:
    """Return a box for each size, in the order of the sizes, that fill `within`. A size of 0 gets a box without area.

    Sizes are not below 0. If all of them are 0, nothing is filled.
    """
    total = float(sum(sizes))
    boxes = [Box(within.x, within.y, 0.0, 0.0)] * len(sizes)
    order = sorted((at for at, size in enumerate(sizes) if size > 0), key=lambda at: -sizes[at])
    if not order or within.area <= 0:
        return boxes
    scale = within.area / total
    areas = [sizes[at] * scale for at in order]
    start, left = 0, within
    while start < len(areas):
        end = _row(areas, start, min(left.width, left.height))
        laid, left = _laid(areas[start:end], left, last=end == len(areas))
        for at, box in zip(order[start:end], laid):
            boxes[at] = box
        start = end
    return boxes


def _row(areas: Sequence[float], start: int, side: float) -> int:
    """Return the end of the row that begins at `start`: one more would make its worst rectangle longer."""
    if side <= 0:
        # Nothing is left but what was lost by rounding.
        return len(areas)
    end, total = start + 1, areas[start]
    worst = _worst(areas[start], areas[start], total, side)
    while end < len(areas):
        # The areas become smaller, so the first one of a row is its largest, and the last its smallest.
        longer = _worst(areas[start], areas[end], total + areas[end], side)
        if longer > worst:
            break
        total, worst, end = total + areas[end], longer, end + 1
    return end


def _worst(largest: float, smallest: float, total: float, side: float) -> float:
    """Return how long the longest rectangle of a row is, in the measure of its own width."""
    thickness = total / side
    return max(largest / thickness**2, thickness**2 / smallest)


def _laid(areas: Sequence[float], left: Box, *, last: bool) -> tuple[list[Box], Box]:
    """Lay one row along the shorter side of what is left; return its boxes, and what is left then."""
    is_column = left.width >= left.height
    side, other = (left.height, left.width) if is_column else (left.width, left.height)
    total = sum(areas)
    # The last row ends where the whole does, whatever was lost by rounding.
    thickness = other if last or side <= 0 else min(other, total / side)
    boxes: list[Box] = []
    at = 0.0
    for number, area in enumerate(areas):
        length = side - at if number == len(areas) - 1 else min(side - at, side * area / total)
        boxes.append(
            Box(left.x, left.y + at, thickness, length) if is_column else Box(left.x + at, left.y, length, thickness)
        )
        at += length
    if is_column:
        return boxes, Box(left.x + thickness, left.y, left.width - thickness, left.height)
    return boxes, Box(left.x, left.y + thickness, left.width, left.height - thickness)
