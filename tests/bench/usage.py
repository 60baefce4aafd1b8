"""What a process costs: its peak memory, that of it with its children, and processor time."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import NamedTuple

SAMPLE_SECONDS = 0.2


class Usage(NamedTuple):
    """`peak` is the process's own (VmHWM), `tree` sampled with its children; bytes. `cpu` in seconds, with children."""

    peak: int
    tree: int
    cpu: float


class Watch:
    """Looks at a process five times a second until told to stop; a child between two looks is not seen."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._tree = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name="usage", daemon=True)
        self._thread.start()

    def usage(self) -> Usage:
        """What it has cost so far. Raises OSError when it is gone."""
        return Usage(_status(self._pid, "VmHWM"), self._tree, _cpu(self._pid))

    def stop(self) -> None:
        """Look no more."""
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError):
                self._tree = max(self._tree, sum(map(_proportional, _family(self._pid))))


def _family(pid: int) -> list[int]:
    """A process and its descendants, as far as they live; what became a daemon (a stand-in's mapping) is none."""
    children: list[str] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as said:
                children += said.read().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def _proportional(pid: int) -> int:
    """Memory with shared pages divided among those who share them; 0 for one that has just ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as source:
            return next(int(line.split()[1]) << 10 for line in source if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def _status(pid: int, key: str) -> int:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as source:
        return next(int(line.split()[1]) << 10 for line in source if line.startswith(key + ":"))


def _cpu(pid: int) -> float:
    """User and system time of a process and of the children that it has waited for."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as source:
        words = source.read().rpartition(")")[2].split()
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")
