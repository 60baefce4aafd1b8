"""Spans of time in few letters."""

from __future__ import annotations

import pytest

from host import durations


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m0s"), (3599, "59m59s"), (93784, "1d2h"), (86400 * 400, "400d0h")],
)
def test_the_largest_two_units(seconds: float, text: str) -> None:
    assert durations.written(seconds) == text
