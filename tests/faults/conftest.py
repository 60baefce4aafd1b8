"""A real cluster for the whole session, a plugin for each test, and a count of the faults that were survived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from lab_fixtures import (
    client,
    cluster,
    new_id,
    plugin,
    pytest_collection_modifyitems,
    session_directory,
    start_plugin,
)

__all__ = [
    "client",
    "cluster",
    "new_id",
    "plugin",
    "pytest_collection_modifyitems",
    "session_directory",
    "start_plugin",
]

_COUNTS: Counter[str] = Counter()


@pytest.fixture
def tally() -> Callable[[str, int], None]:
    """Count what was survived: `tally("steps killed", 12)`."""

    def count(what: str, number: int) -> None:
        _COUNTS[what] += number

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts."""
    for what, number in _COUNTS.items():
        terminalreporter.write_line(f"faults: {number} {what}")
