"""What can be shown where we write to."""

from __future__ import annotations

import fcntl
import io
import os
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host import terminal
from host.terminal import Terminal, columns


@pytest.fixture
def tty() -> Iterator[TextIO]:
    """A terminal of 91 columns."""
    master, slave = os.openpty()
    with open(slave, "w", encoding="utf-8") as stream:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x18\x00\x5b\x00\x00\x00\x00\x00")
        yield stream
    os.close(master)


TERM = {"TERM": "xterm", "LANG": "de_DE.UTF-8"}


def test_a_terminal(tty: TextIO) -> None:
    assert Terminal.of(tty, TERM) == Terminal(91, colours=True, draws=True)


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_colours(tty: TextIO, variables: dict[str, str]) -> None:
    assert Terminal.of(tty, {**TERM, **variables}).colours is False


@pytest.mark.parametrize(("wanted", "width"), [("40", 40), ("3", 20), ("0", 91), ("", 91), ("wide", 91)])
def test_the_width_that_is_wished(tty: TextIO, wanted: str, width: int) -> None:
    assert Terminal.of(tty, {**TERM, "COLUMNS": wanted}).width == width


def test_a_pipe() -> None:
    assert Terminal.of(io.StringIO(), TERM) == Terminal(terminal.ELSEWHERE, colours=False, draws=True)


@pytest.mark.parametrize(
    ("variables", "draws"),
    [
        ({}, False),
        ({"LANG": "C"}, False),
        ({"LANG": "C.UTF-8"}, True),
        ({"LANG": "en_US.utf8"}, True),
        ({"LANG": "de_DE.UTF-8@euro"}, True),
        ({"LANG": "de_DE@euro"}, False),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8", "LC_ALL": ""}, True),
    ],
)
def test_lines_are_drawn_where_the_locale_has_them(variables: dict[str, str], draws: bool) -> None:
    assert Terminal.of(io.StringIO(), variables).draws is draws


@pytest.mark.parametrize(("variables", "can"), [({}, True), ({"CI": "true"}, False), ({"TERM": "dumb"}, False)])
def test_where_a_line_can_be_rewritten(tty: TextIO, variables: dict[str, str], can: bool) -> None:
    assert terminal.can_be_rewritten(tty, {**TERM, **variables}) is can
    assert not terminal.can_be_rewritten(io.StringIO(), {**TERM, **variables})


@given(st.text(), st.integers(0, 40), st.booleans())
def test_what_is_cut_fits(text: str, width: int, draws: bool) -> None:
    screen = Terminal(80, colours=False, draws=draws)
    shown = screen.shown(text)
    assert shown.isprintable()
    assert columns(screen.cut(shown, width)) <= width
    if columns(shown) <= width:
        assert screen.cut(shown, width) == shown


@pytest.mark.parametrize(("text", "width"), [("abc", 3), ("日本", 4), ("e\u0301", 1)])
def test_columns(text: str, width: int) -> None:
    assert columns(text) == width
