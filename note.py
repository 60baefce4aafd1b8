"""How far a layer's archive has come, written in the layer itself: the file `layer.json` in its file system's own root.

No container sees that directory. A clone holds its parent's note too, so a note names its layer.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import deadline
import inodes

NAME = "layer.json"
APPLYING, APPLIED = "applying", "applied"


def read(directory: str, layer: str, seconds: float) -> str:
    """Return how far a layer's archive has come: "" (none was begun), APPLYING, or APPLIED.

    `directory` is the root of the layer's mounted file system. A finished parent says nothing of the layer itself, a
    half-applied one spoils it. Raises deadline.Overdue if the file system does not answer within `seconds`.
    """
    return deadline.call(lambda: _read(os.path.join(directory, NAME), layer), f"layer {layer}", seconds)


class Own(NamedTuple):
    """What of a finished layer's file system is not its parent's.

    `began`: when its archive was begun, in nanoseconds since 1970 as its file system counts. `chunks`: the chunks of
    inodes (inodes.py) that what it brought is in; None if that is not known.
    """

    began: int
    chunks: Sequence[int] | None


def own(directory: str, layer: str, seconds: float) -> Own | None:
    """Return what of a finished layer is its own; None if its note does not tell. Raises deadline.Overdue."""
    return deadline.call(lambda: _own(os.path.join(directory, NAME), layer), f"layer {layer}", seconds)


def begin(directory: str, layer: str, seconds: float) -> Mapping[int, int] | None:
    """Write that a layer's archive is being applied, and return what `finish` will ask for.

    The note is whole or not there, but may be empty after a power cut: that much less is flushed. Raises
    deadline.Overdue if that takes more than `seconds`.
    """

    def work() -> Mapping[int, int] | None:
        with _opened(directory) as opened:
            _write(opened, directory, {"layer": layer, "archive": APPLYING})
            return inodes.chunks(opened)

    return deadline.call(work, f"layer {layer}", seconds)


def finish(
    directory: str, layer: str, before: Mapping[int, int] | None, removed: Collection[int], seconds: float
) -> None:
    """Write that a layer's archive is applied. The note is whole, and there for good when this returns.

    So is all that was written to the file system before: a layer must not be called applied whose files were still in
    memory, as they are as long as Docker has it mounted. `before` is from `begin`; `removed` are the inodes of files
    removed since, 64 by their first number. Raises deadline.Overdue if that takes more than `seconds`.
    """

    def work() -> None:
        with _opened(directory) as opened:
            note = {"layer": layer, "archive": APPLIED, "began": os.stat(os.path.join(directory, NAME)).st_ctime_ns}
            now = inodes.chunks(opened)
            if before is not None and now is not None:
                note["chunks"] = _touched(before, now, removed)
            _write(opened, directory, note, flush=True)

    deadline.call(work, f"layer {layer}", seconds)


def _touched(before: Mapping[int, int], now: Mapping[int, int], removed: Collection[int]) -> list[int]:
    """Return the chunks that have inodes which they had not, or in which one that was removed may be in use again."""
    return [
        first
        for first, used in now.items()
        if used & ~before.get(first, 0)
        or not {inodes.sixty_four(first), inodes.sixty_four(first + inodes.CHUNK - 1)}.isdisjoint(removed)
    ]


def _read(path: str, layer: str) -> str:
    note = _load(path)
    if note == {}:
        return APPLYING
    if note is None or (note["layer"] != layer and note["archive"] == APPLIED):
        return ""
    return str(note["archive"])


def _own(path: str, layer: str) -> Own | None:
    note = _load(path)
    # Notes of older versions do not tell, or less.
    if not note or note["layer"] != layer or "began" not in note:
        return None
    return Own(int(note["began"]), note.get("chunks"))


def _load(path: str) -> dict[str, Any] | None:
    """What a note says; nothing, if it is empty: the power failed before what was in it was written out."""
    try:
        with open(path, encoding="utf-8") as source:
            return dict(json.loads(source.read() or "{}"))
    except FileNotFoundError:
        return None


def _write(opened: int, directory: str, note: Mapping[str, Any], *, flush: bool = False) -> None:
    """Replace the note in a directory, which is open; `flush`: when all else in its file system is written out."""
    path = os.path.join(directory, NAME)
    with open(path + ".new", "w", encoding="utf-8") as target:
        json.dump(note, target)
    if flush:
        _flush(opened)
    os.replace(path + ".new", path)
    os.fsync(opened)


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[int]:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield opened
    finally:
        os.close(opened)


def _flush(opened: int) -> None:
    """Write out the file system of an open directory: syncfs(2), for which Python has no name. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).syncfs(opened):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
