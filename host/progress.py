"""How far a command is, in one line on standard error, for who waits at a terminal for longer than two seconds.

The line is written anew as the work goes on, and is gone at the end, however that comes. In a pipe, in a log or in
continuous integration there is none. What else is to be printed meanwhile is printed by screen.py, above the line.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

from host import durations, screen
from host.terminal import Terminal, can_be_rewritten

# Seconds before the line is shown first, and then between two looks.
PATIENCE, REFRESH = 2.0, 0.25


class Progress:
    """The progress of one command, shown in a `with` block. Threads may call it at the same time.

    `name` is the command's. A work without steps shows how long it has taken.
    """

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self._name = name
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._what, self._done, self._total = "", 0, 0

    def __enter__(self) -> Progress:
        """Begin; the line comes after PATIENCE seconds, if the stream is a terminal."""
        if can_be_rewritten(self._stream, os.environ):
            self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the line."""
        self._ended.set()
        if self._thread:
            self._thread.join()
            with screen.cleared():
                pass

    def begin(self, what: str, total: int = 0, done: int = 0) -> None:
        """Say what is done from now on, in how many steps (0 if nobody knows), and how many of them are done."""
        with self._lock:
            self._what, self._done, self._total = what, done, total

    def advance(self) -> None:
        """Count one step."""
        with self._lock:
            self._done += 1

    def _show(self) -> None:
        began = time.monotonic()
        pause = PATIENCE
        while not self._ended.wait(pause):
            pause = REFRESH
            # Outside of the lock: a terminal may hold us up (Ctrl-S), and nobody else.
            self._write(self._text(time.monotonic() - began))

    def _text(self, seconds: float) -> str:
        with self._lock:
            # The numbers first: what does not fit is cut at the end.
            steps = f"{self._done} of {self._total}, " if self._total else ""
            return f"{self._name}: {steps}{durations.written(seconds)}, {self._what}"

    def _write(self, text: str) -> None:
        terminal = Terminal.of(self._stream, os.environ)
        # After a full line, some terminals begin the next one.
        screen.show(self._stream, terminal.cut(terminal.shown(text), terminal.width - 1))
