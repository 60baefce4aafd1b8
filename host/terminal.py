"""What can be shown where we write to: how wide it is, and whether it knows colours and drawn lines.

All programs of ours run with UTF-8, whatever the locale (environment.py). So it is the locale's own name that tells
what its user's terminal shows.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple, TextIO

from host import logs

# Columns of a terminal that does not tell, and of what is no terminal. COLUMNS wins over both.
UNKNOWN, ELSEWHERE = 80, 100
_NARROWEST = 20
# The variables that name the locale of characters: the first one that is set counts (locale(7)).
_LOCALE = ("LC_ALL", "LC_CTYPE", "LANG")


class Terminal(NamedTuple):
    """What can be shown: `width` in columns; `colours`; `draws`: line drawing and other characters beside ASCII."""

    width: int
    colours: bool
    draws: bool

    @staticmethod
    def of(stream: TextIO, variables: Mapping[str, str]) -> Terminal:
        """Return what a stream can show. Colours are for terminals only, and not with NO_COLOR (no-color.org)."""
        is_terminal = stream.isatty()
        colours = is_terminal and variables.get("TERM", "dumb") != "dumb" and not variables.get("NO_COLOR")
        return Terminal(_width(stream, variables), colours, _is_utf8(variables))

    def shown(self, text: str) -> str:
        """Return a text as this terminal can show it, and is not commanded by it: the rest is written as in Python."""
        text = logs.printable(text)
        return text if self.draws else text.encode("ascii", "backslashreplace").decode()

    def cut(self, text: str, width: int) -> str:
        """Return a text of that many columns at the most, with a mark at its end if something is left out."""
        if columns(text) <= width:
            return text
        mark = "…" if self.draws else "~"
        while text and columns(text) + 1 > width:
            text = text[:-1]
        return (text + mark)[: max(0, width)]


def can_be_rewritten(stream: TextIO, variables: Mapping[str, str]) -> bool:
    """Tell whether a line on a stream can be cleared and written anew; nobody watches one in continuous integration."""
    return stream.isatty() and variables.get("TERM", "dumb") != "dumb" and not variables.get("CI")


def columns(text: str) -> int:
    """Return how many columns a text takes (Unicode, UAX 11): some characters of Asia take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _width(stream: TextIO, variables: Mapping[str, str]) -> int:
    wanted = variables.get("COLUMNS", "")
    if wanted.isdecimal() and int(wanted):
        return max(_NARROWEST, int(wanted))
    try:
        # A terminal that does not tell has 0.
        width = os.get_terminal_size(stream.fileno()).columns or UNKNOWN
    except (OSError, ValueError):
        width = UNKNOWN if stream.isatty() else ELSEWHERE
    return max(_NARROWEST, width)


def _is_utf8(variables: Mapping[str, str]) -> bool:
    name = next((variables[name] for name in _LOCALE if variables.get(name)), "")
    return name.lower().replace("-", "").endswith("utf8") or "utf8@" in name.lower().replace("-", "")
