"""Skips in one place (tests/needs.py, tests/lib.bash), and NO_SKIPS=1, with which nothing is skipped unseen."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import needs
import pytest
from plugin_client import REPO

TESTS = Path(REPO) / "tests"
IN_PYTHON = re.compile(r"pytest\.(skip|importorskip|xfail|mark\.(skip|xfail))|unittest\.skip")
IN_BATS = re.compile(r"(^|[\s{;&|])skip($|[\s;}])", re.MULTILINE)


def shell(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`requires` with these words, and bats's `skip`, which ends a test."""
    script = f'source "{TESTS}/lib.bash"; skip() {{ echo "skipped: $*"; exit 0; }}; requires "$@"; echo "done: $?"'
    return subprocess.run(
        ["bash", "-c", script, "-", *words],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_nobody_else_skips() -> None:
    """A skip beside them would not hear of NO_SKIPS."""
    in_python = [path.name for path in TESTS.rglob("*.py") if IN_PYTHON.search(path.read_text(encoding="utf-8"))]
    assert sorted(in_python) == ["needs.py"]
    shells = [path for pattern in ("*.bats", "*.bash", "*.sh") for path in TESTS.rglob(pattern)]
    code = {path.name: re.sub(r"^\s*#.*", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE) for path in shells}
    assert [name for name, text in code.items() if IN_BATS.search(text)] == ["lib.bash"]


def test_ci_forbids_skips() -> None:
    assert "NO_SKIPS=1" in (Path(REPO) / ".ci" / "run").read_text(encoding="utf-8")


def test_what_may_be_missing_has_a_reason() -> None:
    assert needs.NO_RBD in needs.may_be_missing()
    assert [what for what, why in needs.may_be_missing().items() if len(why.split()) < 4] == []


@pytest.mark.parametrize("way", [needs.requires, needs.needs])
def test_what_is_there_is_no_reason(way: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(way)
    monkeypatch.setenv("NO_SKIPS", "1")
    way(True, "a moon")
    assert "done: 0" in shell("a moon", "true", NO_SKIPS="1").stdout


def test_what_is_missing_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SKIPS", raising=False)
    with pytest.raises(BaseException, match="needs a moon") as raised:
        needs.requires(False, "a moon")
    assert type(raised.value).__name__ == "Skipped"
    assert needs.needs(False, "a moon").mark.args == (True,)
    assert shell("a moon", "false").stdout == "skipped: needs a moon\n"


def test_with_no_skips_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_SKIPS", "1")
    for way in (needs.requires, needs.needs):
        with pytest.raises(BaseException, match="needs a moon, and NO_SKIPS=1 forbids to skip") as raised:
            way(False, "a moon")
        assert type(raised.value).__name__ == "Failed"
    assert "done: 1" in shell("a moon", "false", NO_SKIPS="1").stdout


def test_with_no_skips_what_may_be_missing_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_SKIPS", "1")
    assert needs.needs(False, needs.NO_RBD).mark.args == (True,)
    assert shell(needs.NO_RBD, "false", NO_SKIPS="1").stdout == f"skipped: needs {needs.NO_RBD}\n"
    assert "done: 1" in shell("a kernel", "false", NO_SKIPS="1").stdout
