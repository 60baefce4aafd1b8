"""What a run of the benchmark has found, and its JSON form."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import platform
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

OURS, PEER, FLOOR = "ours", "overlay2", "floor"


class Window(NamedTuple):
    """When a row was measured against our driver: seconds since 1970."""

    key: str
    begin: float
    end: float


class Results:
    """Samples by row and by whose they are; `facts` of the machine; bytes stored after each step."""

    def __init__(self, *, quick: bool) -> None:
        self.rows: dict[str, dict[str, list[float]]] = {}
        self.stored: list[tuple[str, int]] = []
        self.steps: dict[str, list[float]] = {}
        self.facts: dict[str, str] = {"quick": "yes" if quick else "no", **machine()}
        self.windows: list[Window] = []
        self._lock = threading.Lock()

    def add(self, key: str, who: str, value: float) -> None:
        """Note one sample."""
        with self._lock:
            self.rows.setdefault(key, {}).setdefault(who, []).append(value)

    def p50(self, key: str, who: str = OURS) -> float | None:
        """The median of a row, if it was measured."""
        return quantile(self.rows.get(key, {}).get(who, ()), 0.5)

    def save(self, path: str) -> None:
        """Write the JSON."""
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        self.facts["load at the end"] = load()
        with open(path, "w", encoding="utf-8") as target:
            json.dump(
                {"facts": self.facts, "rows": self.rows, "stored": self.stored, "steps": self.steps}, target, indent=1
            )
            target.write("\n")


def read(path: str) -> Results:
    """Read what `save` wrote."""
    with open(path, encoding="utf-8") as source:
        said: dict[str, Any] = json.load(source)
    results = Results(quick=False)
    results.rows, results.steps = said["rows"], said["steps"]
    results.stored = [(str(step), int(size)) for step, size in said["stored"]]
    results.facts = said["facts"]
    return results


def quantile(values: Sequence[float], part: float) -> float | None:
    """The sample that `part` of the samples do not exceed; the mean of two for the median of an even number."""
    if not values:
        return None
    ranked = sorted(values)
    if part == 0.5 and len(ranked) % 2 == 0:
        return (ranked[len(ranked) // 2 - 1] + ranked[len(ranked) // 2]) / 2
    return ranked[max(0, math.ceil(part * len(ranked)) - 1)]


def machine() -> dict[str, str]:
    """What a reader must know of the machine to judge the numbers."""
    model = "unknown processor"
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as source:
        model = next(line.partition(":")[2].strip() for line in source if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} processors ({model}), {memory / 1e9:.0f} GB",
        "kernel": platform.release(),
        "load at the start": load(),
    }


def load() -> str:
    """The load averages of 1 and 5 minutes: more than the number of processors makes numbers worthless."""
    return "{:.1f} {:.1f}".format(*os.getloadavg()[:2])
