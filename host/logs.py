"""Lines of a log. They hold what a caller sent (ids, methods, paths), which must forge no line and command nothing."""

from __future__ import annotations

import logging


def start(form: str, level: str) -> None:
    """Log to standard error from now on: messages of at least `level`, each line in the form `form` (logging)."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(form))
    logging.basicConfig(handlers=[handler], level=level.upper())


def printable(text: str) -> str:
    """Return a text with control characters and line ends escaped, as Python writes them."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _Formatter(logging.Formatter):
    """Writes a message in one line, and a trace with no line ends but its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802
        return "\n".join(map(printable, super().formatException(ei).split("\n")))  # type: ignore[arg-type]
