"""Map commands that an earlier life of this process has started, and that still run after it was killed.

Nobody waits for them, and they have no deadline. So they are killed before we look at what is mapped: otherwise one
could end later, and leave a device that nobody knows.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Collection, Iterator

import rbdcli
from host import processes
from mapped import unmounting

log = logging.getLogger("former_maps")


def end_maps(pool: rbdcli.Pool, images: Collection[str]) -> set[str]:
    """Kill the commands that map one of these images. Name the images of the commands that do not die of it."""
    found = dict(_maps(pool, images))
    for process, image in found.items():
        log.warning("killed: process %d, which maps %s for an earlier life of this one", process, image)
        _kill(process)
    for _ in unmounting.until_free(processes.REAP_SECONDS) if found else ():
        found = dict(_maps(pool, images))
        if not found:
            break
    return set(found.values())


def maps(pool: rbdcli.Pool, images: Collection[str]) -> set[str]:
    """Name those of these images that are being mapped by commands of others than this process."""
    return {image for _, image in _maps(pool, images)}


def _maps(pool: rbdcli.Pool, images: Collection[str]) -> Iterator[tuple[int, str]]:
    ours = os.readlink("/proc/self/ns/pid")
    for name in filter(str.isdigit, os.listdir("/proc")) if images else ():
        try:
            # If a container's process hangs on a device of ours, its command line cannot be read.
            if os.readlink(f"/proc/{name}/ns/pid") != ours:
                continue
            with open(f"/proc/{name}/cmdline", encoding="utf-8", errors="surrogateescape") as source:
                image = pool.mapped_by(source.read().split("\0"))
            if image in images and _parent(name) != os.getpid():
                yield int(name), image
        except OSError:
            # The process has ended meanwhile.
            continue


def _parent(name: str) -> int:
    """Return the pid of a process's parent (proc(5), /proc/PID/stat, field 4). Raises OSError."""
    with open(f"/proc/{name}/stat", "rb") as source:
        return int(source.read().rpartition(b")")[2].split()[1])


def _kill(process: int) -> None:
    """Kill a command with all that it has started: it has a process group of its own (processes.start)."""
    try:
        if os.getpgid(process) == process:
            os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        # The process has ended by itself.
        log.info("process %d is gone", process)
