"""What a check found: how bad that is, and in which words it is told; for an operator, and for monitoring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from host import logs
from host.failure import Failure

OK, IMPROVE, BROKEN, NOT_CHECKED = "ok", "improve", "broken", "not checked"
# Exit codes. What was not checked changes none if it is the consequence of something else that is told, or nothing that
# can be known here. What was missed because of some trouble might be broken.
ALL_OK, TO_IMPROVE, DOES_NOT_WORK = 0, 1, 2


class Broken(Failure):
    """It does not work so. The text is one line: what is wrong and what to do. Any other Failure means the same."""


class Improve(Failure):
    """It works, but it should be improved. The text is one line: what is wrong and what to do."""


class Unknown(Failure):
    """It cannot be known here, or without something else that is told. The text is one line that says why."""


class Missed(Failure):
    """It could be known here, but some trouble kept it from being looked at. The text is one line that says which."""


class Finding(NamedTuple):
    """The outcome of one check: its name, one of the four words above, and what to tell.

    `missed`: it was not checked because of some trouble, so nobody can say that all is ok.
    """

    check: str
    status: str
    text: str
    missed: bool = False

    def __str__(self) -> str:
        """Write it in one line that commands no terminal, whatever a program has printed."""
        return logs.printable(f"{self.check}: {self.status}: {' '.join(self.text.split())}")


def exit_status(findings: Iterable[Finding]) -> int:
    """Return the exit status for all findings: that of the worst."""
    found = {IMPROVE if finding.missed else finding.status for finding in findings}
    return DOES_NOT_WORK if BROKEN in found else TO_IMPROVE if IMPROVE in found else ALL_OK
