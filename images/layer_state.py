"""The state of a layer, kept in the layer's own file system: its name, its parents, and how far its archive has come.

    layer.json   the layer, its parents, and whether it is finished
    applying     an archive was begun and has not come to its end: the mark, a file without content
    rootfs/      what the layer brought: overlayfs' upper directory
    work/        overlayfs' own
    none/        always empty: the bottom of every stack of directories (views.py)
    init/        only in a container's layer: what its init layer brought

No container sees them. The copy of an init layer holds the state of that layer, so a state names its layer.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

from host import deadline

NAME, MARK = "layer.json", "applying"
ROOT, WORK, NONE, INIT = "rootfs", "work", "none", "init"


class LayerState(NamedTuple):
    """One layer. `parents`: the layers below, nearest first. `init`: the init layer that it is a copy of, or "".

    `finished`: nobody writes to the layer any more. `applying`: an archive was begun and has not come to its end.
    """

    layer: str
    parents: tuple[str, ...]
    init: str = ""
    finished: bool = False
    applying: bool = False


def read(directory: str, seconds: float) -> LayerState | None:
    """Return the state in a layer's mounted file system; None if there is none, or if a power cut took it.

    If the mark is there even then, the state has no name, no parents, and `applying`. Raises deadline.Overdue if the
    file system does not answer within `seconds`, OSError, and ValueError if layer.json is none of ours.
    """
    return deadline.call(lambda: _read(directory), directory, seconds)


def write(directory: str, state: LayerState, seconds: float) -> None:
    """Write a state. It is whole or not there. A power cut may leave it empty, as if it had never been written.

    The state of a container is durable when this returns: nothing else names its init layer, whose state it replaces.
    Raises deadline.Overdue if that takes more than `seconds`, OSError.
    """
    deadline.call(lambda: _replace(directory, state, durable=bool(state.init)), directory, seconds)


def begin(directory: str, seconds: float) -> None:
    """Mark that an archive is being laid down. Mark and state are durable when this returns.

    Raises deadline.Overdue if that takes more than `seconds`, OSError.
    """

    def work() -> None:
        with contextlib.suppress(FileNotFoundError), open(os.path.join(directory, NAME), "rb") as written:
            os.fsync(written.fileno())
        os.close(os.open(os.path.join(directory, MARK), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with _opened(directory) as opened:
            os.fsync(opened)

    deadline.call(work, directory, seconds)


def finish(directory: str, state: LayerState, seconds: float) -> None:
    """Write that a layer is finished, and remove the mark. The state is whole and durable when this returns.

    So is all that was written to the file system before: a layer must not be called finished while its files are in
    memory only. Raises deadline.Overdue if that takes more than `seconds`, OSError.
    """

    def work() -> None:
        with _opened(directory) as opened:
            _replace(directory, state._replace(finished=True, applying=False), opened)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(MARK, dir_fd=opened)
            os.fsync(opened)

    deadline.call(work, directory, seconds)


def flush(directory: str) -> None:
    """Write out all of a layer's file system that is still in memory. This has no deadline. Raises OSError."""
    with _opened(directory) as opened:
        _flush(opened)


def _read(directory: str) -> LayerState | None:
    path, content = os.path.join(directory, NAME), b""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as source:
        content = source.read()
    applying = os.path.lexists(os.path.join(directory, MARK))
    if not content:
        return LayerState("", (), applying=True) if applying else None
    try:
        fields = json.loads(content)
        return LayerState(
            str(fields["layer"]),
            tuple(map(str, fields["parents"])),
            str(fields.get("init", "")),
            finished=bool(fields.get("finished")),
            applying=applying,
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} says {content[:80]!r}, which no driver of this version wrote") from error


def _replace(directory: str, state: LayerState, flushed: int | None = None, *, durable: bool = False) -> None:
    """Replace the state. If it is `durable`, no power cut leaves it empty.

    `flushed`: the open directory, if all else in its file system is to be written out before.
    """
    path = os.path.join(directory, NAME)
    fields = {"layer": state.layer, "parents": state.parents, "init": state.init, "finished": state.finished}
    with open(path + ".new", "w", encoding="utf-8") as target:
        json.dump(fields, target)
        if durable:
            target.flush()
            os.fsync(target.fileno())
    if flushed is not None:
        _flush(flushed)
    os.replace(path + ".new", path)


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
