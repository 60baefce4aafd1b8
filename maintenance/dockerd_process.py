"""The dockerd that runs on a data root, found by the locks that it holds, without asking it.

A dockerd has BuildKit's databases open and locked (Bolt takes an flock) from the moment when it has read its data root
until it ends; seen with 20.10 and 26. Docker before 18.06 has no BuildKit: then no dockerd is found.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

_FLOCK = re.compile(r"FLOCK +ADVISORY +WRITE +(\d+) ")


class Dockerd(NamedTuple):
    """A process; its data root, by the path that the process sees; and when it started, in seconds since 1970."""

    pid: int
    root: str
    started: float

    def shares(self, directory: str) -> bool:
        """Tell whether the dockerd has seen our `directory` as that of this name in its data root, since it started.

        False for a mount point, which may have been mounted later, or for one of us only. False for a symlink, since
        its target may be such a mount point.
        """
        if os.path.islink(directory):
            return False
        theirs = os.path.join(self.root, os.path.basename(directory))
        try:
            same = os.path.samestat(os.stat(directory), os.stat(f"/proc/{self.pid}/root{theirs}"))
            with open(f"/proc/{self.pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as source:
                points = {line.split(" ")[4] for line in source}
        except OSError:
            return False
        # The kernel writes a space as \\040 (proc(5)). For a data root with a space in its path the answer is False.
        return same and theirs not in points and not re.search(r"\s|\\", theirs)


def running(data_root: str) -> Dockerd | None:
    """Return the dockerd that runs on a data root; None if there is none, or if it is in another pid namespace."""
    for pid in _lockers():
        with contextlib.suppress(OSError, ValueError):
            root = _data_root(pid, os.path.join(data_root, "buildkit"))
            if root:
                return Dockerd(pid, root, _started(pid))
    return None


def _lockers() -> Iterator[int]:
    """Yield the processes named dockerd that have an exclusive flock of any file."""
    with open("/proc/locks", encoding="ascii") as source:
        pids = {int(found[1]) for line in source if (found := _FLOCK.search(line))}
    for pid in sorted(pids):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as source:
            if source.read().strip() == "dockerd":
                yield pid


def _data_root(pid: int, buildkit: str) -> str:
    """Return the data root of a process, as it sees it; "" unless it has a lock of a database in our `buildkit`."""
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            path = os.readlink(f"/proc/{pid}/fd/{number}")
            ours = os.path.join(buildkit, os.path.basename(path))
            if os.path.basename(os.path.dirname(path)) != "buildkit" or not path.endswith(".db"):
                continue
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), os.stat(ours)) and _is_locked(pid, number):
                return os.path.dirname(os.path.dirname(path))
    return ""


def _is_locked(pid: int, number: str) -> bool:
    with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as source:
        return any(line.startswith("lock:") and _FLOCK.search(line) for line in source)


def _started(pid: int) -> float:
    """Return when a process started, by the clock as it goes now (proc(5), /proc/PID/stat, field 22)."""
    with open(f"/proc/{pid}/stat", "rb") as source:
        ticks = int(source.read().rpartition(b")")[2].split()[19])
    since = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - since
