"""What an operator's command writes to its terminal: lines that stay, and one below them that tells how far it is.

A process has one such line at the most (progress.py). It is cleared before anything else is written, by the log too
(logs.py), and comes again with the next step.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

_CLEAR = "\r\033[K"


class _Shown:
    """The line that is shown, and where; no line if it is "". Whoever holds `writing` writes, and nobody else does."""

    def __init__(self) -> None:
        # A signal may come while it is held, and lead to the log.
        self.writing = threading.RLock()
        self.stream: TextIO | None = None
        self.line = ""


_shown = _Shown()


def show(stream: TextIO, line: str) -> None:
    """Write the line that tells how far we are, in place of the last one."""
    with _shown.writing:
        if line != _shown.line:
            _put(stream, _CLEAR + line)
        _shown.stream, _shown.line = stream, line


@contextlib.contextmanager
def cleared() -> Iterator[None]:
    """Clear that line, and let nobody else write it or anything beside it in the `with` block."""
    with _shown.writing:
        if _shown.stream and _shown.line:
            _put(_shown.stream, _CLEAR)
        _shown.line = ""
        yield


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a text, to standard output if no other stream is given.

    Who reads it may have seen enough before its end, as `head` does. Then the exit status still tells.
    """
    with cleared():
        try:
            print(text, file=stream, flush=True)
        except BrokenPipeError:
            # At its end, Python would try to write the rest.
            os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())


def _put(stream: TextIO, text: str) -> None:
    # A terminal that was closed keeps nobody from working.
    with contextlib.suppress(OSError):
        stream.write(text)
        stream.flush()
