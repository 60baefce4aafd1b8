"""Who holds a mount point or a device: processes, by their mount tables and by what they have open, from /proc.

The file systems of a process are not touched, since they may hang: links are read (proc(5)), and not followed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import mounts
from host import deadline

# To read a process's memory map waits while the process changes it. If that hangs in the kernel, it waits for ever.
SCAN_SECONDS = 2.0
MOST_NAMED = 5
_LINKS = {"cwd": "has its working directory in it", "root": "has its root in it", "exe": "runs a program of it"}


def of_device(number: str) -> str:
    """Say who holds a block device ("major:minor"), for an error message."""
    points = [item.point for item in mounts.table() if item.device_number == number]
    texts = [*mounted_by(number), *(of_mount(point) for point in points)]
    return "; ".join(filter(None, texts)) or "a process has the device open"


def mounted_by(number: str) -> list[str]:
    """Say where each mount namespace has a block device ("major:minor") mounted, with one process of each."""
    return [
        f"{process_name(pid)} has it mounted at {item.point}"
        for pid, item in seen(lambda item: item.device_number == number)
    ]


def seen(wanted: Callable[[mounts.Mount], bool]) -> Iterator[tuple[str, mounts.Mount]]:
    """Yield one process of each mount namespace, ours too, that has a `wanted` mount, and the first such mount."""
    found, read = set(), set()
    for pid in _processes():
        try:
            namespace, root = _view(pid)
            if namespace in found or (namespace, root) in read:
                continue
            table = mounts.table(pid)
        except OSError:
            # The process has ended meanwhile: it holds nothing any more.
            continue
        read.add((namespace, root))
        item = next(filter(wanted, table), None)
        if item is not None:
            found.add(namespace)
            yield pid, item


def overlay_sources() -> set[str]:
    """Return the sources of all overlays that are mounted in any mount namespace, ours too."""
    found = set()

    def note(item: mounts.Mount) -> bool:
        if item.type == "overlay":
            found.add(item.source)
        return False

    for _ in seen(note):
        pass
    return found


def _view(pid: str) -> tuple[str, str]:
    """Name a process's mount namespace, and its root there: a process in a chroot sees fewer mounts. Raises OSError."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt"), os.readlink(f"/proc/{pid}/root")
    except PermissionError:
        # Its mount table can be read all the same (proc(5)). So this process counts as a namespace of its own.
        return f"of process {pid}", ""


def of_mount(point: str) -> str:
    """Say which processes of this mount namespace use the file system at a mount point; "" if none is seen.

    Up to MOST_NAMED processes are named, of those that are found within SCAN_SECONDS.
    """
    found: dict[str, str] = {}

    def look() -> None:
        for pid, what in _users(point):
            found.setdefault(pid, f"{process_name(pid)} {what}")

    with contextlib.suppress(deadline.Overdue):
        deadline.call(look, "the table of processes", SCAN_SECONDS)
    texts = list(found.values())
    more = len(texts) - MOST_NAMED
    return "; ".join([*texts[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])


def _users(point: str) -> Iterator[tuple[str, str]]:
    ours = os.readlink("/proc/self/ns/mnt")
    processes = [pid for pid in _processes() if _read_link(f"/proc/{pid}/ns/mnt") == ours]
    for pid in processes:
        for name, what in _LINKS.items():
            if _is_in(point, _read_link(f"/proc/{pid}/{name}")):
                yield pid, what
        for what in _open_files(pid, point):
            yield pid, what
    for pid in processes:
        # If a line has a path, it ends with the path.
        with (
            contextlib.suppress(OSError),
            open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps,
        ):
            mapped = (line.rstrip("\n").split(None, 5)[5:] for line in maps)
            path = next((words[0] for words in mapped if words and _is_in(point, words[0])), None)
            if path is not None:
                yield pid, f"has {path} mapped"


def _open_files(pid: str, point: str) -> Iterator[str]:
    """Say what a process has open in the file system at a mount point: files, and unix sockets that it is bound to."""
    try:
        links = [_read_link(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return
    path = next((link for link in links if _is_in(point, link)), None)
    if path is not None:
        yield f"has {path} open"
    if any(link.startswith("socket:") for link in links):
        bound = {f"socket:[{inode}]": path for inode, path in _sockets(pid) if _is_in(point, path)}
        socket = next((bound[link] for link in links if link in bound), None)
        if socket is not None:
            yield f"listens at {socket}"


def _sockets(pid: str) -> Iterator[tuple[str, str]]:
    """Yield inode and path of each unix socket in a process's network namespace. The path is as it was bound."""
    with (
        contextlib.suppress(OSError),
        open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="surrogateescape") as table,
    ):
        for line in table:
            words = line.rstrip("\n").split(None, 7)
            if len(words) == 8:
                yield words[6], words[7]


def _processes() -> list[str]:
    return list(filter(str.isdigit, os.listdir("/proc")))


def process_name(pid: str) -> str:
    """Name a process for an error message."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return f"process {pid} ({comm.read().strip()})"
    except OSError:
        return f"process {pid}"


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _is_in(point: str, path: str) -> bool:
    return path == point or path.startswith(f"{point}/")
