"""Lines of the log: one for a message, whatever a caller has sent."""

from __future__ import annotations

import subprocess
import sys

from plugin_client import REPO

from host.logs import printable

# A caller's words in a message and in the text of a failure.
SCRIPT = r"""
import logging
from host import logs
logs.start("%(levelname)s %(message)s", "warning")
evil = "a\nERROR forged\x1b[2J\x9b"
logging.info("not told")
logging.warning("got %s", evil)
try:
    raise ValueError(evil)
except ValueError:
    logging.exception("failed")
"""


def test_what_cannot_be_printed_is_written_in_letters() -> None:
    assert printable("ü plain") == "ü plain"
    assert printable("a\nb\x1b[2J\t\x9b") == r"a\nb\x1b[2J\t\x9b"


def test_no_caller_forges_a_line_or_commands_a_terminal() -> None:
    said = subprocess.run([sys.executable, "-c", SCRIPT], cwd=REPO, capture_output=True, text=True, check=True).stderr
    assert said.replace("\n", "").isprintable()
    first, second, *trace = said.splitlines()
    assert first == r"WARNING got a\nERROR forged\x1b[2J\x9b"
    assert second == "ERROR failed"
    assert trace[0] == "  Traceback (most recent call last):"
    assert r"  ERROR forged\x1b[2J\x9b" in trace, "it is part of the failure's text"
    assert [line for line in trace if not line.startswith("  ")] == []
