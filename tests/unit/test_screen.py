"""What is written to a terminal while a line there tells how far a command is."""

from __future__ import annotations

import io
import os
import subprocess
import threading

import pytest
from plugin_client import PYTHON, REPO

from host import screen

CLEAR = "\r\033[K"


def test_what_is_said_stands_in_the_place_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stdout", terminal)
    screen.show(terminal, "1 of 3")
    screen.show(terminal, "1 of 3")
    screen.show(terminal, "2 of 3")
    screen.say("a layer")
    screen.say("another")
    assert terminal.getvalue() == f"{CLEAR}1 of 3{CLEAR}2 of 3{CLEAR}a layer\nanother\n"


def test_nobody_writes_in_between() -> None:
    terminal = io.StringIO()
    shown = threading.Thread(target=screen.show, args=(terminal, "1 of 3"))
    with screen.cleared():
        shown.start()
        shown.join(0.1)
        assert terminal.getvalue() == ""
    shown.join()
    with screen.cleared():
        assert terminal.getvalue() == f"{CLEAR}1 of 3{CLEAR}"


def test_a_terminal_that_was_closed_keeps_nobody_from_working() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    screen.show(Closed(), "1 of 3")
    with screen.cleared():
        pass


def test_a_reader_that_has_seen_enough_changes_no_exit_status() -> None:
    program = "import sys; from host import screen; [screen.say('x' * 9999) for _ in range(99)]; sys.exit(7)"
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": REPO}
    done = subprocess.run(
        [PYTHON, "-c", program], stdout=writer, stderr=subprocess.PIPE, env=environment, timeout=60, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (7, b"")
