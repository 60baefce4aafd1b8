"""tests/turns.py: which part of a table a commit runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import turns

ROWS = list("abcdefg")


@pytest.fixture(autouse=True)
def nobody_chooses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("TURN", "RUN_ALL", "SHARE"):
        monkeypatch.delenv(name, raising=False)
    turns._number.cache_clear()
    yield
    turns._number.cache_clear()


def test_in_time_every_row_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run: set[str] = set()
    for number in range(6, 9):
        monkeypatch.setenv("TURN", str(number))
        turns._number.cache_clear()
        mine = turns.chosen(ROWS, 3)
        assert mine[0] == "a", "the first row is what all others are compared with"
        assert len(mine) <= 4
        assert turns.told() == f"a part of the long tables: TURN={number}"
        run.update(mine)
    assert run == set(ROWS)


def test_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_ALL", "1")
    assert turns.chosen(ROWS, 3) == ROWS
    assert turns.turn(3) is None


def test_a_commit_chooses_the_same_again() -> None:
    first = turns.chosen(ROWS, 3)
    turns._number.cache_clear()
    assert turns.chosen(ROWS, 3) == first
    assert turns.turn(3) in range(3)


def test_in_time_every_test_is_run_beside_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARE", "2")
    met: set[tuple[str, int | None]] = set()
    for number in range(24):
        monkeypatch.setenv("TURN", str(number))
        turns._number.cache_clear()
        assert turns.told() == f"a part of the long tables: TURN={number}, and one of 2 tests: SHARE=2"
        met.update((test, turns.turn(6)) for test in turns.share(ROWS))
    assert len(met) == len(ROWS) * 6


@pytest.mark.parametrize(("name", "value"), [("RUN_ALL", "1"), ("SHARE", "1"), ("TURN", "12")])
def test_all_tests_are_run_if_nobody_shares_them_out(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert turns.share(ROWS) == ROWS
