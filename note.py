"""How far a layer's archive has come, written in the layer itself: the file `layer.json` in its file system's own root.

No container sees that directory. A clone holds its parent's note too, so a note names its layer.
"""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any

import deadline

NAME = "layer.json"
APPLYING, APPLIED = "applying", "applied"


def read(directory: str, layer: str, seconds: float) -> str:
    """Return how far a layer's archive has come: "" (none was begun), APPLYING, or APPLIED.

    `directory` is the root of the layer's mounted file system. A finished parent says nothing of the layer itself, a
    half-applied one spoils it. Raises deadline.Overdue if the file system does not answer within `seconds`.
    """
    return deadline.call(lambda: _read(os.path.join(directory, NAME), layer), f"layer {layer}", seconds)


def began(directory: str, layer: str, seconds: float) -> int | None:
    """Return when a layer's archive was begun, in nanoseconds since 1970 as its file system counts; None if unknown.

    Raises deadline.Overdue.
    """
    return deadline.call(lambda: _began(os.path.join(directory, NAME), layer), f"layer {layer}", seconds)


def write(directory: str, layer: str, state: str, seconds: float) -> None:
    """Write a note that is whole or not there, and there for good when this returns.

    APPLYING may be empty after a power cut, that much less is flushed. With APPLIED what was written to the file system
    before is there for good too: a layer must not be called applied whose files were still in memory, as they are as
    long as Docker has it mounted.
    Raises deadline.Overdue if that takes more than `seconds`.
    """
    deadline.call(lambda: _write(directory, layer, state), f"layer {layer}", seconds)


def _read(path: str, layer: str) -> str:
    note = _load(path)
    if note == {}:
        return APPLYING
    if note is None or (note["layer"] != layer and note["archive"] == APPLIED):
        return ""
    return str(note["archive"])


def _began(path: str, layer: str) -> int | None:
    note = _load(path)
    # Notes of older versions do not tell.
    return int(note["began"]) if note and note["layer"] == layer and "began" in note else None


def _load(path: str) -> dict[str, Any] | None:
    """What a note says; nothing, if it is empty: the power failed before what was in it was written out."""
    try:
        with open(path, encoding="utf-8") as source:
            return dict(json.loads(source.read() or "{}"))
    except FileNotFoundError:
        return None


def _write(directory: str, layer: str, state: str) -> None:
    path = os.path.join(directory, NAME)
    note: dict[str, Any] = {"layer": layer, "archive": state}
    if state == APPLIED:
        note["began"] = os.stat(path).st_ctime_ns
    with open(path + ".new", "w", encoding="utf-8") as target:
        json.dump(note, target)
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if state == APPLIED:
            _flush(opened)
        os.replace(path + ".new", path)
        os.fsync(opened)
    finally:
        os.close(opened)


def _flush(opened: int) -> None:
    """Write out the file system of an open directory: syncfs(2), for which Python has no name. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).syncfs(opened):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
