"""Figures of this process, counted since its start, and their text for Prometheus (exposition_formats.md, text 0.0.4).

Each family is made once, by the module that counts it, and is in what `text` returns from then on. Its labels must have
few values, which our own code chooses: nothing that a caller sent, and no layer.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Union

Number = Union[int, float]
Labels = tuple[str, ...]

_families: list[Family] = []


class Family:
    """One family of figures. `name` has its unit, and `_total` if it only grows. `labels` are names of labels."""

    type = ""

    def __init__(self, name: str, words: str, labels: Labels = ()) -> None:
        """`words` tell what it is."""
        self.name, self.words, self.labels = name, words, labels
        self._lock = threading.Lock()
        _families.append(self)

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], Number]]:
        """Yield each sample: what comes after the family's name, its labels, its value."""
        raise NotImplementedError


class Counter(Family):
    """Counts what happens."""

    type = "counter"

    def __init__(self, name: str, words: str, labels: Labels = ()) -> None:
        super().__init__(name, words, labels)
        self._counts: dict[Labels, int] = {}

    def add(self, *values: str) -> None:
        """Count one more with these values of the labels."""
        with self._lock:
            self._counts[values] = self._counts.get(values, 0) + 1

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], Number]]:
        with self._lock:
            counts = sorted(self._counts.items())
        return (("", dict(zip(self.labels, values)), count) for values, count in counts)


class Gauge(Family):
    """Shows how much there is of something now."""

    type = "gauge"

    def __init__(self, name: str, words: str, labels: Labels = ()) -> None:
        super().__init__(name, words, labels)
        self._values: Mapping[Labels, Number] = {}

    def set(self, value: Number | None) -> None:
        """Let this be the value, of a gauge without labels; None if it is not known."""
        self.replace({} if value is None else {(): value})

    def replace(self, values: Mapping[Labels, Number]) -> None:
        """Let these be all values, each by those of its labels."""
        with self._lock:
            self._values = dict(values)

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], Number]]:
        with self._lock:
            values = sorted(self._values.items())
        return (("", dict(zip(self.labels, key)), value) for key, value in values)


class Histogram(Family):
    """Counts amounts, such as seconds, by how large they are. `bounds` are the upper ones of its buckets, ascending."""

    type = "histogram"

    def __init__(self, name: str, words: str, labels: Labels, bounds: Sequence[float]) -> None:
        super().__init__(name, words, labels)
        self._bounds = bounds
        # For each combination of labels, how many are in each bucket alone, and the sum of all.
        self._buckets: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, amount: float, *values: str) -> None:
        """Count an amount with these values of the labels."""
        with self._lock:
            buckets = self._buckets.get(values)
            if buckets is None:
                buckets = self._buckets[values] = [0] * (len(self._bounds) + 1)
            buckets[bisect.bisect_left(self._bounds, amount)] += 1
            self._sums[values] = self._sums.get(values, 0.0) + amount

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], Number]]:
        with self._lock:
            found = [(values, list(self._buckets[values]), self._sums[values]) for values in sorted(self._buckets)]
        for values, buckets, total in found:
            labels = dict(zip(self.labels, values))
            count = 0
            for bound, more in zip((*self._bounds, float("inf")), buckets):
                count += more
                yield "_bucket", {**labels, "le": _number(bound)}, count
            yield "_sum", labels, total
            yield "_count", labels, count


def text(common: Mapping[str, str]) -> str:
    """Return all families in Prometheus' text format, each sample with these labels too."""
    lines = []
    for family in sorted(_families, key=lambda family: family.name):
        lines += [f"# HELP {family.name} {_escaped(family.words)}", f"# TYPE {family.name} {family.type}"]
        for suffix, labels, value in family.samples():
            words = ",".join(f'{name}="{_quoted(label)}"' for name, label in {**common, **labels}.items())
            lines.append(f"{family.name}{suffix}{'{' + words + '}' if words else ''} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escaped(words: str) -> str:
    return words.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(label: str) -> str:
    # Whatever is no UTF-8 (a path may have it) would make the whole file useless.
    return _escaped(label.encode("utf-8", "replace").decode()).replace('"', r"\"")


def _number(value: Number) -> str:
    return "+Inf" if value == float("inf") else repr(value)
