"""Rectangles whose areas are as given numbers: whatever these are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overview.treemap import Box, squarified

SIDES = st.floats(10, 4000)
SIZES = st.lists(st.integers(0, 2**50) | st.sampled_from([0, 1, 1 << 18, 1 << 40]), max_size=60)
# Of a side: what rounding may cost.
LITTLE = 1e-6


@given(SIZES, SIDES, SIDES)
def test_areas_are_as_the_sizes(sizes: list[int], width: float, height: float) -> None:
    within = Box(3.0, 5.0, width, height)
    boxes = squarified(sizes, within)
    assert len(boxes) == len(sizes)
    for size, box in zip(sizes, boxes):
        share = size / sum(sizes) if sum(sizes) else 0.0
        assert box.area == pytest.approx(share * within.area, rel=1e-6, abs=LITTLE * within.area)
    if any(sizes):
        assert sum(box.area for box in boxes) == pytest.approx(within.area)


@given(SIZES, SIDES, SIDES)
def test_nothing_is_outside(sizes: list[int], width: float, height: float) -> None:
    little = LITTLE * max(width, height)
    for box in squarified(sizes, Box(3.0, 5.0, width, height)):
        assert box.width >= 0
        assert box.height >= 0
        assert box.x >= 3.0 - little
        assert box.y >= 5.0 - little
        assert box.x + box.width <= 3.0 + width + little
        assert box.y + box.height <= 5.0 + height + little


@given(SIZES, SIDES, SIDES)
def test_no_two_lie_on_each_other(sizes: list[int], width: float, height: float) -> None:
    boxes = [box for box in squarified(sizes, Box(0.0, 0.0, width, height)) if box.area]
    little = LITTLE * max(width, height)
    for one, other in itertools.combinations(boxes, 2):
        common_width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
        common_height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
        assert min(common_width, common_height) <= little


def test_equal_sizes_are_nearly_squares() -> None:
    boxes = squarified([1] * 12, Box(0, 0, 400, 300))
    assert {(round(box.width), round(box.height)) for box in boxes} == {(100, 100)}


def test_the_example_of_the_paper() -> None:
    """Bruls, Huizing, van Wijk, figure 4: 6 by 4, of the areas 6 6 4 3 2 2 1."""
    boxes = squarified([6, 6, 4, 3, 2, 2, 1], Box(0, 0, 6, 4))
    assert [(round(box.width, 2), round(box.height, 2)) for box in boxes[:4]] == [
        (3.0, 2.0),
        (3.0, 2.0),
        (1.71, 2.33),
        (1.29, 2.33),
    ]


def test_the_order_of_the_sizes_is_kept() -> None:
    assert [round(box.area) for box in squarified([1, 3, 0, 2], Box(0, 0, 3, 2))] == [1, 3, 0, 2]


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]])
def test_nothing_fills_nothing(sizes: list[int]) -> None:
    assert sum(box.area for box in squarified(sizes, Box(0, 0, 3, 2))) == 0
