"""finding.py: each finding is one line, and the worst of them is the exit status."""

from __future__ import annotations

import pytest

from doctor.finding import BROKEN, IMPROVE, NOT_CHECKED, OK, Finding, exit_status


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ([], 0),
        ([OK, OK], 0),
        ([OK, NOT_CHECKED], 0),
        ([OK, IMPROVE, NOT_CHECKED], 1),
        ([BROKEN, OK, IMPROVE], 2),
    ],
)
def test_the_worst_is_the_exit_status(found: list[str], status: int) -> None:
    assert exit_status(Finding("check", word, "") for word in found) == status


@pytest.mark.parametrize(
    ("found", "status"), [([OK], 1), ([IMPROVE], 1), ([BROKEN], 2), ([], 1), ([OK, NOT_CHECKED, BROKEN], 2)]
)
def test_nobody_is_told_that_all_is_ok_if_something_was_missed(found: list[str], status: int) -> None:
    findings = [Finding("missed", NOT_CHECKED, "", missed=True), *(Finding("check", word, "") for word in found)]
    assert exit_status(findings) == status


def test_a_finding_is_one_line() -> None:
    assert str(Finding("pool", BROKEN, "it\n  failed\t twice")) == "pool: broken: it failed twice"
    assert str(Finding("pool", BROKEN, "a\x1b[2Jb")) == "pool: broken: a\\x1b[2Jb"
