#!/usr/bin/env python3
"""Which part of a long table of tests a commit runs: all of them at each commit would take CI too long.

    tests/turns.py                  prints what chooses
    tests/turns.py OF               prints the turn of this commit, a number below OF; "all" if all are wanted
    tests/turns.py share NAME...    prints those of the names that are in this commit's share

The id of the commit chooses, so that a failure can be seen again, and that in time all rows are run. In the
environment, TURN=N is the turn of another commit, and RUN_ALL=1 runs all. With SHARE=N a commit runs one of N tests of
the large suites (`./test.sh` without a PART sets it).
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import TypeVar

_Row = TypeVar("_Row")
# A multiple of all numbers of turns.
_TABLES = 12


def turn(of: int) -> int | None:
    """Return the turn of this commit, a number below `of`; None if all are wanted."""
    if os.environ.get("RUN_ALL"):
        return None
    return _number() % of


def chosen(rows: Sequence[_Row], of: int) -> list[_Row]:
    """Return the first row and one of `of` others, those whose turn it is."""
    mine = turn(of)
    return [row for at, row in enumerate(rows) if not at or mine is None or at % of == mine]


def share(tests: Sequence[_Row]) -> list[_Row]:
    """Return this commit's share of the tests of a suite, all of them without SHARE."""
    of = int(os.environ.get("SHARE", "1"))
    if os.environ.get("RUN_ALL"):
        return list(tests)
    # By another part of the number than the tables within them go by: a half must not always meet the same rows.
    return list(tests[_number() // _TABLES % of :: of])


def told() -> str:
    """Return what chooses, for who wants to run the same again."""
    if os.environ.get("RUN_ALL"):
        return "all rows of all tables"
    of = os.environ.get("SHARE")
    return f"a part of the long tables: TURN={_number()}" + (f", and one of {of} tests: SHARE={of}" if of else "")


@functools.cache
def _number() -> int:
    if said := os.environ.get("TURN"):
        return int(said)
    words = ["git", "-C", os.path.dirname(os.path.abspath(__file__)), "rev-parse", "HEAD"]
    # A copy without git is as good as any commit.
    commit = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
    return int(commit[-4:] or "0", 16)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(told())
    elif sys.argv[1] == "share":
        print(*share(sys.argv[2:]), sep="\n")
    else:
        mine = turn(int(sys.argv[1]))
        print("all" if mine is None else mine)
