"""behind.py: done once when its time has come, again when it could not be, at once when asked to end."""

from __future__ import annotations

import threading
import time

import pytest

import behind
from behind import Behind


class Work:
    """Notes what was done; `results` are what it says, or raises, one after the other."""

    def __init__(self, *results: bool | Exception) -> None:
        self.results = list(results)
        self.done: list[str] = []
        self.called = threading.Condition()

    def __call__(self, name: str) -> bool:
        with self.called:
            self.done.append(name)
            self.called.notify_all()
            result = self.results.pop(0) if self.results else True
        if isinstance(result, Exception):
            raise result
        return result

    def wait(self, times: int) -> None:
        """Wait until it was called so often."""
        with self.called:
            assert self.called.wait_for(lambda: len(self.done) >= times, 10)


def test_each_name_is_done_once_its_time_has_come() -> None:
    work = Work()
    jobs = Behind("test", work, ())
    jobs.later("late", 0.2)
    jobs.later("soon", 0.0)
    work.wait(2)
    assert work.done == ["soon", "late"]


def test_asked_again_the_time_begins_anew_but_not_for_ever() -> None:
    work = Work()
    jobs = Behind("test", work, ())
    begin = time.monotonic()
    while not work.done:
        jobs.later("name", 0.3, at_most=1.0)
        time.sleep(0.02)
    assert time.monotonic() - begin >= 1.0


def test_what_is_pending_can_be_postponed_but_not_for_ever() -> None:
    work = Work()
    jobs = Behind("test", work, ())
    begin = time.monotonic()
    jobs.later("name", 0.1, at_most=0.8)
    while not work.done:
        jobs.postpone(0.3)
        time.sleep(0.02)
    assert time.monotonic() - begin >= 0.8
    jobs.postpone(100)
    jobs.later("next", 0.0)
    work.wait(2)


def test_what_could_not_be_done_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "RETRY_SECONDS", 0.05)
    work = Work(False, ValueError("busy"), True)
    jobs = Behind("test", work, (ValueError,))
    jobs.later("name", 0.0)
    work.wait(3)
    assert jobs.drain(5)
    assert work.done == ["name"] * 3


def test_a_defect_does_not_end_the_thread() -> None:
    work = Work(KeyError("oops"))
    jobs = Behind("test", work, (ValueError,))
    jobs.later("bad", 0.0)
    jobs.later("good", 0.1)
    work.wait(2)
    assert work.done == ["bad", "good"]


def test_drain_does_everything_now_and_tells_when_it_could_not_wait() -> None:
    hold, work = threading.Event(), Work()
    slow = Behind("test", lambda name: hold.wait(10) and work(name), ())
    slow.later("name", 1000.0)
    assert not slow.drain(0.1)
    hold.set()
    assert slow.drain(5)
    assert work.done == ["name"]
    assert slow.drain(0)


def test_stop_forgets_what_has_not_begun() -> None:
    work = Work()
    jobs = Behind("test", work, ())
    jobs.later("name", 0.2)
    assert jobs.stop(5)
    time.sleep(0.4)
    assert work.done == []
