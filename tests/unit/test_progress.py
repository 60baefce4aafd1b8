"""The line that says how far a command is: where it is, where it is not, and that it goes."""

from __future__ import annotations

import io
import threading
import time

import pytest
from plugin_client import wait_until

from host import progress
from host.progress import Progress


class Screen(io.StringIO):
    """A terminal that is watched."""

    def isatty(self) -> bool:
        """It is one."""
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal in front of somebody who has no patience."""
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    monkeypatch.setattr(progress, "REFRESH", 0.01)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    for name in ("CI", "LC_ALL"):
        monkeypatch.delenv(name, raising=False)
    return Screen()


def test_it_tells_how_far_it_is_and_is_gone_at_the_end(screen: Screen) -> None:
    with Progress("tree", screen) as shown:
        shown.begin("asking what each layer is", 12)
        shown.advance()
        wait_until(lambda: "1 of 12, 0s" in screen.getvalue(), "it is shown")
    assert screen.getvalue().endswith("\r\033[K")
    lines = screen.getvalue().split("\r\033[K")
    assert max(map(len, lines)) < 40
    assert "\n" not in screen.getvalue()


def test_work_without_steps_tells_its_time(screen: Screen) -> None:
    with Progress("gc", screen) as shown:
        shown.begin("looking")
        wait_until(lambda: "gc: 0s, looking" in screen.getvalue(), "it is shown")


def test_a_terminal_that_takes_nothing_holds_up_no_work(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    writing, resumed = threading.Event(), threading.Event()

    def write(_: str) -> int:
        writing.set()
        resumed.wait(60)
        return 0

    monkeypatch.setattr(screen, "write", write)
    with Progress("tree", screen) as shown:
        shown.begin("asking", 2)
        assert writing.wait(60)
        shown.advance()
        shown.begin("more", 2)
        resumed.set()


def test_who_does_not_wait_for_long_sees_nothing(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 60.0)
    began = time.monotonic()
    with Progress("tree", screen) as shown:
        shown.begin("asking", 3)
    assert screen.getvalue() == ""
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("variables", [{"CI": "1"}, {"TERM": "dumb"}])
def test_nobody_watches(screen: Screen, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with Progress("tree", screen):
        time.sleep(0.05)
    assert screen.getvalue() == ""


def test_in_a_pipe_there_is_none(screen: Screen) -> None:
    pipe = io.StringIO()
    with Progress("tree", pipe):
        time.sleep(0.05)
    assert pipe.getvalue() == ""


def test_it_is_gone_after_a_failure(screen: Screen) -> None:
    def fails() -> None:
        with Progress("tree", screen):
            wait_until(lambda: screen.getvalue() != "", "it is shown")
            raise ValueError

    with pytest.raises(ValueError):
        fails()
    assert screen.getvalue().endswith("\r\033[K")


def test_a_terminal_that_was_closed_keeps_nobody_from_working(screen: Screen) -> None:
    class Closed(Screen):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    with Progress("tree", Closed()) as shown:
        time.sleep(0.05)
        shown.begin("asking", 3)
