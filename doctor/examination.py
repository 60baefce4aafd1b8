"""Makes checks, one after the other, and tells of each, whatever becomes of it.

Each one has a thread of its own, so that it cannot hang the others: what it touches may be a device whose cluster does
not answer. A check that needs one that failed is not made.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator

import rbdcli
from cluster import diagnosis
from doctor.finding import BROKEN, IMPROVE, NOT_CHECKED, OK, Finding, Improve, Missed, Unknown
from graph.preconditions import Check
from host import command, deadline
from host.failure import EXPECTED

log = logging.getLogger("examination")

# A check that has reached its deadline still has this long to undo what it did, and to ask the cluster for the reason.
MORE_SECONDS = 5 * deadline.GRACE_SECONDS


def examine(checks: Iterable[Check], pool: rbdcli.Pool) -> Iterator[Finding]:
    """Make the checks, and yield what each found. `pool` is asked what is wrong if a command of Ceph's fails.

    Raises nothing but what interrupts this thread: an error that nobody expected makes a finding, too.
    """
    unusable: set[str] = set()
    for check in checks:
        missing = [name for name in check.needs if name in unusable]
        if missing:
            unusable.add(check.name)
            yield Finding(check.name, NOT_CHECKED, f"it makes no sense without: {', '.join(missing)}")
            continue
        finding = _made(check, pool)
        if finding.status == BROKEN:
            unusable.add(check.name)
        yield finding


def _made(check: Check, pool: rbdcli.Pool) -> Finding:
    """Make one check."""

    def look() -> Finding:
        # The deadline belongs to a thread.
        with deadline.within(check.seconds):
            return _looked(check, pool)

    try:
        return deadline.call(look, check.name, check.seconds + MORE_SECONDS)
    except deadline.Overdue:
        return Finding(check.name, BROKEN, f"no answer within {check.seconds + MORE_SECONDS:.3g} s")


def _looked(check: Check, pool: rbdcli.Pool) -> Finding:
    try:
        return Finding(check.name, OK, check.look())
    except Exception as error:
        return Finding(check.name, *_told(error, pool))


def _told(error: Exception, pool: rbdcli.Pool) -> tuple[str, str, bool]:
    """Return the status and the words of a check that raised an error, and whether it was missed."""
    status, text, missed = BROKEN, str(error), False
    if isinstance(error, Improve):
        status = IMPROVE
    elif isinstance(error, Unknown):
        status = NOT_CHECKED
    elif isinstance(error, Missed):
        status, missed = NOT_CHECKED, True
    elif isinstance(error, PermissionError) and os.geteuid() != 0:
        status, text = NOT_CHECKED, f"only root may look ({error})"
    elif isinstance(error, command.CommandMissing):
        # That is told by the check of the programs.
        status, text = NOT_CHECKED, f"{error.argv[0]} is not installed"
    elif isinstance(error, command.CommandError):
        # These are the words of an Init that fails for the same reason (graph/bounds.py).
        text = str(diagnosis.explain(pool, error))
    elif isinstance(error, diagnosis.NOT_UNDERSTOOD):
        status, text, missed = NOT_CHECKED, f"what a program or a file says is not understood ({error!r})", True
    elif not isinstance(error, EXPECTED):
        log.debug("a defect of the doctor", exc_info=True)
        status, text, missed = NOT_CHECKED, f"a defect of the doctor: {error!r}", True
    return status, text, missed
