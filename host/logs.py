"""Lines of a log: what a caller sent stands in them (ids, methods, paths), and must not forge or command anything."""

from __future__ import annotations

import logging


def start(form: str, level: str) -> None:
    """Log to standard error from now on, lines of this form from this level on."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(form))
    logging.basicConfig(handlers=[handler], level=level.upper())


def printable(text: str) -> str:
    """Return a text without control characters and line ends: they are written as Python writes them."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _Formatter(logging.Formatter):
    """A message is one line. The lines of a trace stand further in, so that none looks like a line of the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802
        lines = super().formatException(ei).split("\n")  # type: ignore[arg-type]
        return "\n".join(f"    {printable(line)}" for line in lines)
