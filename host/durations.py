"""Spans of time in few letters, for people."""

from __future__ import annotations


def written(seconds: float) -> str:
    """Write seconds in the largest two units: 93784 -> 1d2h."""
    words: list[str] = []
    left = max(0, int(seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= length or words or unit == "s":
            words.append(f"{left // length}{unit}")
        left %= length
    return "".join(words[:2])
