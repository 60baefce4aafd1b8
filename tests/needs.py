"""What a test needs of the machine beyond the packages: the one place where a test in Python is skipped.

Where it is missing the test is skipped; with NO_SKIPS=1 (.ci/run) it fails. tests/may_be_missing names what may be
missing even so, and why. `requires` of tests/lib.bash does the same for bats.
"""

from __future__ import annotations

import os

import pytest

# As tests/may_be_missing has it: what the stand-in for the kernel's rbd needs to be called at all.
NO_RBD = "a kernel without rbd"


def requires(holds: bool, what: str) -> None:
    """Go on if it holds. In a test, in a fixture, or at the head of a module, for all its tests."""
    if not holds:
        _check(what)
        pytest.skip(f"needs {what}", allow_module_level=True)


def needs(holds: bool, what: str) -> pytest.MarkDecorator:
    """The same as a mark. With NO_SKIPS=1 the whole module fails, when it is read."""
    if not holds:
        _check(what)
    return pytest.mark.skipif(not holds, reason=f"needs {what}")


def may_be_missing() -> dict[str, str]:
    """What tests/may_be_missing names: with each, who looks at that in its place."""
    path = os.path.join(os.path.dirname(__file__), "may_be_missing")
    with open(path, encoding="utf-8") as source:
        rows = [line.rstrip("\n").partition(": ") for line in source if not line.startswith("#")]
    return {what: why for what, _, why in rows}


def _check(what: str) -> None:
    if os.environ.get("NO_SKIPS") == "1" and what not in may_be_missing():
        pytest.fail(f"needs {what}, and NO_SKIPS=1 forbids to skip", pytrace=False)
