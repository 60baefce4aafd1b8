"""logs.py: no text that a caller sent makes a line of the log, or commands a terminal."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from host import logs

FORGED = "2026-01-01 00:00:00,000 INFO Remove forged 3 ms"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged, by a logger of our own form."""
    made = io.StringIO()
    handler = logging.StreamHandler(made)
    handler.setFormatter(logs._Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("test_logs")
    logger.addHandler(handler)
    logger.propagate = False
    yield made
    logger.removeHandler(handler)


def test_a_message_is_one_line(written: io.StringIO) -> None:
    logging.getLogger("test_logs").warning("Get %s", f"a\n{FORGED}\x1b[2J")
    [line] = written.getvalue().splitlines()
    assert line.endswith(f"Get a\\n{FORGED}\\x1b[2J")


def test_no_line_of_a_trace_looks_like_one_of_the_log(written: io.StringIO) -> None:
    """The text of an error may be a caller's."""
    try:
        raise KeyError
    except KeyError:
        try:
            raise ValueError(f"text\n{FORGED}")
        except ValueError:
            logging.getLogger("test_logs").exception("a defect")
    first, *trace = written.getvalue().splitlines()
    assert first.endswith("a defect")
    assert trace
    assert all(line.startswith("    ") for line in trace if line)
    assert any(FORGED in line for line in trace)


def test_what_is_printable_stays_as_it_is() -> None:
    assert logs.printable("déjà vu 你好") == "déjà vu 你好"
    assert logs.printable("a\tb\x00\u2028") == "a\\tb\\x00\\u2028"
