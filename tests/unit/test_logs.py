"""logs.py: no text that a caller sent makes a line of the log, or commands a terminal; each line tells whose it is."""

from __future__ import annotations

import io
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plugin_client import PluginProcess

from host import logs, screen, task

FORGED = "2026-01-01 00:00:00,000 [1 #1] INFO Remove forged 3 ms"
Logger = Callable[[logging.Formatter], io.StringIO]


@pytest.fixture
def logger() -> Iterator[Logger]:
    """What the logger of these tests writes, in one of our forms."""
    log = logging.getLogger("test_logs")
    log.propagate = False

    def write(formatter: logging.Formatter) -> io.StringIO:
        made = io.StringIO()
        handler = logging.StreamHandler(made)
        handler.setFormatter(formatter)
        log.handlers = [handler]
        return made

    yield write
    log.handlers = []


@pytest.fixture
def written(logger: Logger) -> io.StringIO:
    return logger(logs._Formatter(logs._LINE))


def test_a_line_of_the_log_stands_above_the_line_that_tells_how_far_we_are() -> None:
    made = io.StringIO()
    handler = logs._Handler(made)
    handler.setFormatter(logs._Formatter("%(levelname)s %(message)s"))
    screen.show(made, "tree: 3 of 7")
    handler.handle(logging.LogRecord("test", logging.WARNING, "", 0, "odd", (), None))
    screen.show(made, "tree: 3 of 7")
    with screen.cleared():
        assert made.getvalue() == "\r\033[Ktree: 3 of 7\r\033[KWARNING odd\n\r\033[Ktree: 3 of 7\r\033[K"


def trace(log: logging.Logger) -> None:
    """Log a trace in which the text of an error is a caller's."""
    try:
        raise KeyError
    except KeyError:
        try:
            raise ValueError(f"text\n{FORGED}")
        except ValueError:
            log.exception("a defect")


def test_a_message_is_one_line(written: io.StringIO) -> None:
    logging.getLogger("test_logs").warning("Get %s", f"a\n{FORGED}\x1b[2J")
    [line] = written.getvalue().splitlines()
    assert line.endswith(f"Get a\\n{FORGED}\\x1b[2J")


def test_no_line_of_a_trace_looks_like_one_of_the_log(written: io.StringIO) -> None:
    trace(logging.getLogger("test_logs"))
    first, *rest = written.getvalue().splitlines()
    assert first.endswith("a defect")
    assert rest
    assert all(line.startswith("    ") for line in rest if line)
    assert any(FORGED in line for line in rest)


def test_what_is_printable_stays_as_it_is() -> None:
    assert logs.printable("déjà vu 你好") == "déjà vu 你好"
    assert logs.printable("a\tb\x00\u2028") == "a\\tb\\x00\\u2028"


def test_a_line_tells_its_thread_and_what_that_works_for(written: io.StringIO) -> None:
    log = logging.getLogger("test_logs")
    with task.background("removing layer\na"):
        log.warning("busy")
    log.warning("idle")
    kernel = threading.get_native_id()
    heads = [line.split("[", 1)[1] for line in written.getvalue().splitlines()]
    assert heads == [f"{kernel} removing layer\\na] WARNING busy", f"{kernel} MainThread] WARNING idle"]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \[", written.getvalue())


def test_the_journal_gets_priorities_and_no_times(logger: Logger) -> None:
    log = logging.getLogger("test_logs")
    log.setLevel(logging.DEBUG)
    written = logger(logs._JournalFormatter(logs._LINE_OF_JOURNAL))
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        log.log(level, "words")
    lines = written.getvalue().splitlines()
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>", "<3>"]
    assert lines[0] == f"<7>[{threading.get_native_id()} MainThread] words"


def test_each_line_of_a_trace_has_its_priority(logger: Logger) -> None:
    """The journal takes each for a message of its own; without one it would be information."""
    written = logger(logs._JournalFormatter(logs._LINE_OF_JOURNAL))
    trace(logging.getLogger("test_logs"))
    lines = written.getvalue().splitlines()
    assert len(lines) > 5
    assert all(line.startswith("<3>") for line in lines)


def test_the_journal_is_told_by_device_and_inode(tmp_path: Path) -> None:
    """A program that a service has started has the variable too, wherever its output goes."""
    with open(tmp_path / "log", "w", encoding="ascii") as file:
        there = os.fstat(file.fileno())
        ours = f"{there.st_dev}:{there.st_ino}"
        assert logs.goes_to_journal({"JOURNAL_STREAM": ours}, file.fileno())
        assert not logs.goes_to_journal({"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino + 1}"}, file.fileno())
        assert not logs.goes_to_journal({"NOTIFY_SOCKET": "/run/systemd/notify"}, file.fileno())
    assert not logs.goes_to_journal({"JOURNAL_STREAM": ours}, -1), "it is closed"


def test_a_driver_whose_output_is_the_journal(short: Path) -> None:
    process = PluginProcess(str(short / "p"), os.environ)
    with open(process.log, "ab") as log:
        there = os.fstat(log.fileno())
    process.start(JOURNAL_STREAM=f"{there.st_dev}:{there.st_ino}")
    assert process.client.call("Capabilities")
    assert process.terminate() == 0
    lines = process.log_text().splitlines()
    assert all(re.match(r"<[3-7]>\[\d+ [^]]+\] ", line) for line in lines)
    [request] = [line for line in lines if "Capabilities" in line and "POST" not in line]
    assert re.fullmatch(r"<6>\[\d+ #1\] Capabilities \d+ ms", request)
