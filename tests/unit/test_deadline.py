"""deadline.py: what may hang is waited for as long as the request may take, and no longer."""

from __future__ import annotations

import threading

import pytest

from host import deadline


def test_several_are_done_at_the_same_time() -> None:
    together = threading.Barrier(3)
    assert sorted(deadline.call_all([lambda: together.wait(60)] * 3, "a device", 60)) == [0, 1, 2]
    assert deadline.call_all([lambda: 1, lambda: 2], "a device", 60) == [1, 2]
    assert deadline.call_all([], "a device", 60) == []


def test_one_that_hangs_is_told() -> None:
    hung = threading.Event()
    works = [lambda: True, lambda: hung.wait(60)]
    try:
        with pytest.raises(deadline.Overdue, match=r"a device: no answer from its file system within 0\.05 s"):
            deadline.call_all(works, "a device", 0.05)
    finally:
        hung.set()


def test_what_is_raised_is_raised_to_the_caller() -> None:
    def fail() -> bool:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        deadline.call(fail, "a device", 60)
    with pytest.raises(OSError, match="no"):
        deadline.call_all([lambda: True, fail], "a device", 60)


def test_what_must_be_undone_gets_a_moment_after_the_deadline_too() -> None:
    with deadline.within(-1):
        assert deadline.left(60) == deadline.GRACE_SECONDS
        assert deadline.left(1) == 1
        with deadline.within(30):
            assert 29 < deadline.left(60) <= 30
    assert deadline.left(60) == 60
