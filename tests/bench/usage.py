"""What a process costs (its peak memory, that of it with its children, and processor time), and files in memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import threading
from collections.abc import Sequence
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


def page_cache(paths: Sequence[str]) -> int:
    """Bytes of memory that files take once they are read whole, a page that several of them share counted once.

    The files must have one name, and no other file of that name may be mapped here. They are mapped and read, and the
    kernel is asked for the proportional size of each mapping (Pss), where a page counts for its part of all mappings of
    it. Other programs do not disturb that, as they do /proc/meminfo, and no memory controller is needed.
    """
    with contextlib.ExitStack() as stack:
        for path in paths:
            with open(path, "rb") as source:
                mapping = stack.enter_context(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ))
            for offset in range(0, len(mapping), mmap.PAGESIZE):
                mapping[offset]
        with open("/proc/self/smaps", encoding="utf-8", errors="surrogateescape") as source:
            said = source.read()
    name = re.escape(os.path.basename(paths[0]))
    sizes = re.findall(rf"^[0-9a-f]+-[^\n]*/{name}\n(?:\w+: .*\n)*?Pss: +(\d+) kB$", said, re.MULTILINE)
    if len(sizes) != len(paths):
        raise RuntimeError(f"{len(sizes)} mappings of {paths[0]} and its like, not {len(paths)}")
    return sum(map(int, sizes)) << 10


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
