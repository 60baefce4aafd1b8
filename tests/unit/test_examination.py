"""examination.py: each check makes a finding, whatever becomes of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest
from unit.doctored import DoctoredPool, found

from doctor import examination
from doctor.finding import BROKEN, IMPROVE, NOT_CHECKED, OK, Broken, Improve, Missed, Unknown
from graph.preconditions import Check, NotReady
from host import deadline
from host.command import CommandError, CommandMissing, CommandTimeout


def raising(error: BaseException) -> Callable[[], str]:
    def look() -> str:
        raise error

    return look


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (Improve("do this"), IMPROVE, "do this"),
        (Broken("do that"), BROKEN, "do that"),
        (NotReady("do that"), BROKEN, "do that"),
        (Unknown("who knows"), NOT_CHECKED, "who knows"),
        (OSError(5, "Input/output error"), BROKEN, "[Errno 5] Input/output error"),
        (CommandError(("mount",), 32, "no"), BROKEN, "mount : no"),
        (Missed("later"), NOT_CHECKED, "later"),
        (CommandMissing(("ceph", "health"), None, "not found"), NOT_CHECKED, "ceph is not installed"),
        (KeyError("stats"), NOT_CHECKED, "what a program or a file says is not understood (KeyError('stats'))"),
        (ZeroDivisionError("by zero"), NOT_CHECKED, "a defect of the doctor: ZeroDivisionError('by zero')"),
    ],
)
def test_an_error_is_a_finding(error: Exception, status: str, text: str) -> None:
    finding = found([Check("it", raising(error))])["it"]
    assert (finding.status, finding.text) == (status, text)
    # What cannot be known here counts for nothing. Of the rest nobody may think that it is well.
    counts = status == NOT_CHECKED and not isinstance(error, (Unknown, CommandMissing))
    assert finding.missed == counts


@pytest.mark.parametrize(("number", "status"), [(0, BROKEN), (1000, NOT_CHECKED)])
def test_what_only_root_may_look_at(monkeypatch: pytest.MonkeyPatch, number: int, status: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: number)
    finding = found([Check("it", raising(PermissionError(13, "Permission denied")))])["it"]
    assert (finding.status, finding.missed) == (status, False)


def test_what_needs_a_check_that_failed_is_not_made() -> None:
    """Nor what needs that. One that could not be known keeps none from being made."""
    made: list[str] = []

    def making(name: str) -> Callable[[], str]:
        return lambda: made.append(name) or name  # type: ignore[func-returns-value]

    checks = [
        Check("broken", raising(Broken("do"))),
        Check("unknown", raising(Unknown("who knows"))),
        Check("poor", raising(Improve("do"))),
        Check("below", making("below"), ("broken", "unknown")),
        Check("last", making("last"), ("below",)),
        Check("free", making("free"), ("unknown", "poor", "no such check")),
    ]
    findings = found(checks)
    assert made == ["free"]
    assert [finding.status for finding in findings.values()][3:] == [NOT_CHECKED, NOT_CHECKED, OK]
    assert not any(finding.missed for finding in findings.values())
    assert str(findings["below"]) == "below: not checked: it makes no sense without: broken"
    assert str(findings["last"]) == "last: not checked: it makes no sense without: below"


def test_a_check_that_hangs_ends_in_time_and_the_next_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "MORE_SECONDS", 0.05)
    monkeypatch.setattr(deadline, "GRACE_SECONDS", 0.05)
    let_go = threading.Event()
    try:
        findings = found([Check("hangs", lambda: str(let_go.wait(30)), seconds=0.05), Check("next", lambda: "fine")])
    finally:
        let_go.set()
    assert str(findings["hangs"]) == "hangs: broken: no answer within 0.1 s"
    assert findings["next"].status == OK


def test_a_check_has_its_deadline_in_its_own_thread() -> None:
    [finding] = found([Check("it", lambda: f"{deadline.left(100):.0f}", seconds=7)]).values()
    assert finding.text == "7"


def test_a_sick_cluster_is_explained_as_in_an_init() -> None:
    pool = DoctoredPool()
    full = {"OSD_FULL": {"summary": {"message": "1 full osd(s)"}}}
    pool.answers["health detail"] = {"status": "HEALTH_ERR", "checks": full}
    [finding] = found([Check("it", raising(CommandTimeout(("rbd", "ls"), None, "no answer")))], pool).values()
    assert finding.status == BROKEN
    assert "no answer; the cluster says HEALTH_ERR: 1 full osd(s); see: ceph health detail" in finding.text
