"""Lines of a log. Each tells its thread, and the request or the work in the background that it belongs to (task.py).

    2026-11-27 12:00:00,123 [4711 #17] INFO Get abc 14 ms
    2026-11-27 12:00:00,456 [4712 removing layer abc] DEBUG rbd rm ... -> 0 in 320 ms

The first number is the thread's, as the kernel has it: a thread that hangs is found in /proc/PID/task by it.
`grep -F '#17]'` shows one request with its commands.

The journal knows time and process itself. It takes the priority of a line from `<3>` to `<7>` before it (sd-daemon(3)).

What a caller sent stands in lines (ids, methods, paths), and must not forge or command anything.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping

from host import screen, task

# The priorities of syslog(3), by the least level that has each.
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))
_LINE = "%(asctime)s [%(task)s] %(levelname)s %(message)s"
_LINE_OF_JOURNAL = "[%(task)s] %(message)s"


def start(level: str) -> None:
    """Log to standard error from now on, from this level on: as a service does."""
    journal = goes_to_journal(os.environ)
    _start(_JournalFormatter(_LINE_OF_JOURNAL) if journal else _Formatter(_LINE), level)


def start_plain(level: str) -> None:
    """Log to standard error from now on, from this level on: for a command that an operator has typed."""
    _start(_Formatter("%(levelname)s %(message)s"), level)


def _start(formatter: logging.Formatter, level: str) -> None:
    handler = _Handler()
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level.upper())


def goes_to_journal(environment: Mapping[str, str], descriptor: int = 2) -> bool:
    """Tell whether a descriptor, standard error by default, is a stream of systemd's journal.

    JOURNAL_STREAM has its device and inode (systemd.exec(5)). The variable alone says nothing: a program that was
    started by a service, with its output elsewhere, has it too. Nor does NOTIFY_SOCKET, which others set as well.
    """
    try:
        there = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def printable(text: str) -> str:
    """Return a text without control characters and line ends: they are written as Python writes them."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg] # Python 3.9 knows no other form
    """Writes to standard error. Where a command shows how far it is, its line is cleared before."""

    def emit(self, record: logging.LogRecord) -> None:
        with screen.cleared():
            super().emit(record)


class _Formatter(logging.Formatter):
    """A message is one line. The lines of a trace stand further in, so that none looks like a line of the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = printable(record.message)
        record.task = printable(f"{threading.get_native_id()} {task.name()}")
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802
        lines = super().formatException(ei).split("\n")  # type: ignore[arg-type]
        return "\n".join(f"    {printable(line)}" for line in lines)


class _JournalFormatter(_Formatter):
    """Each line has its priority, those of a trace too: the journal takes each for a message of its own."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))
