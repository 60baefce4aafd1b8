"""Mounts what a snapshotter answers, as containerd does, in a child process: a mount that hangs ends with it.

The rules are those of containerd 1.6 (mount/mount_linux.go), so what is mounted here can be mounted there: words that
are flags of mount(2) become flags, all others are the file system's; a read-only bind mount is a second call; from 512
bytes below a page on, the paths of `lowerdir` are shortened to a directory that they share, where the mount is called.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    # This module is its own child process, which has none of the others on its path.
    from client import Mount

_RDONLY, _REMOUNT, _BIND, _REC = 1, 32, 4096, 16384
# Word -> the bit that it sets, or, below zero, clears.
_FLAGS = {
    "ro": _RDONLY,
    "rw": -_RDONLY,
    "nosuid": 2,
    "suid": -2,
    "nodev": 4,
    "dev": -4,
    "noexec": 8,
    "exec": -8,
    "sync": 16,
    "async": -16,
    "remount": _REMOUNT,
    "dirsync": 128,
    "noatime": 1024,
    "atime": -1024,
    "nodiratime": 2048,
    "diratime": -2048,
    "bind": _BIND,
    "rbind": _BIND | _REC,
    "relatime": 1 << 21,
    "norelatime": -(1 << 21),
    "strictatime": 1 << 24,
    "nostrictatime": -(1 << 24),
}
_PAGE = os.sysconf("SC_PAGESIZE")
_SECONDS = 60.0 * float(os.environ.get("LAB_SLOWNESS", "1"))
_NOFOLLOW = 8


class MountFailed(Exception):
    """mount(2) or umount2(2) failed, or did not return."""


class Call(NamedTuple):
    """The arguments of mount(2), and the directory from which it is called, "" for any."""

    source: str
    type: str
    flags: int
    data: str
    directory: str = ""


@contextlib.contextmanager
def mounted(mounts: Sequence[Mount], directory: str) -> Iterator[str]:
    """Mount all of them at a directory, one over the other, and unmount them at the end."""
    mount_all(mounts, directory)
    try:
        yield directory
    finally:
        unmount_all(directory)


def mount_all(mounts: Sequence[Mount], directory: str) -> None:
    """Mount all of them at a directory; none if one fails. Raises MountFailed."""
    assert mounts, "nothing to mount"
    try:
        for mount in mounts:
            for call in calls(mount):
                _in_child(["mount", directory, *call])
    except MountFailed:
        unmount_all(directory)
        raise


def unmount_all(directory: str) -> None:
    """Unmount all that is mounted at a directory; nothing may hold it. Raises MountFailed."""
    while is_mount_point(directory):
        _in_child(["unmount", directory])


def calls(mount: Mount) -> list[Call]:
    """The calls of mount(2), one or two, that a mount takes. Raises MountFailed if its options are too long."""
    options, directory = mount.options, ""
    if mount.type == "overlay" and sum(map(len, options)) >= _PAGE - 512:
        options, directory = compacted(options)
    flags, words = 0, []
    for word in options:
        bits = _FLAGS.get(word)
        if bits is None:
            words.append(word)
        else:
            flags = flags | bits if bits > 0 else flags & ~-bits
    data = ",".join(words)
    if len(data) > _PAGE:
        raise MountFailed(f"options of {len(data)} bytes")
    first = Call(mount.source, mount.type, flags, data, directory)
    if flags & (_BIND | _RDONLY) != _BIND | _RDONLY:
        return [first]
    return [first, Call("", "", flags | _REMOUNT, "")]


def compacted(options: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The options with lower directories relative to the one they share, and that one; "": they share none but /."""
    lower = next((word for word in options if word.startswith("lowerdir=")), None)
    places = lower.removeprefix("lowerdir=").split(":") if lower else []
    # As containerd has it, to the letter: a directory whose name begins like all the others' is not in it.
    shared = os.path.dirname(os.path.commonprefix(places))  # noqa: RUF071
    if len(places) < 2 or shared in ("", "/"):
        return tuple(options), ""
    relative = ":".join(place[len(shared) + 1 :] for place in places)
    return (*(word for word in options if word != lower), f"lowerdir={relative}"), shared


def is_mount_point(directory: str) -> bool:
    """Whether something is mounted there, of the kernel's table: looking at the directory might hang."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        return any(line.split()[4] == directory for line in table)


def _in_child(request: Sequence[str | int]) -> None:
    argv = [sys.executable, "-ISs", __file__, json.dumps(request)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise MountFailed(f"not within {_SECONDS:g} s: {request}") from None
    if done.returncode:
        raise MountFailed(f"{request}: {done.stderr.strip()}")


def _mount(target: str, source: str, kind: str, flags: int, data: str, directory: str) -> None:
    if directory:
        os.chdir(directory)
    libc = ctypes.CDLL(None, use_errno=True)
    words = [word.encode() or None for word in (source, target, kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _unmount(target: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # As long as containerd tries it: what was busy a moment ago may be free.
    for last in (*[False] * 49, True):
        if libc.umount2(target.encode(), _NOFOLLOW) == 0:
            return
        error = ctypes.get_errno()
        if error != errno.EBUSY or last:
            raise OSError(error, os.strerror(error))
        time.sleep(0.05)


def _child(verb: str, *arguments: str) -> None:
    try:
        _mount(*arguments) if verb == "mount" else _unmount(*arguments)  # type: ignore[arg-type]
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _child(*json.loads(sys.argv[1]))
