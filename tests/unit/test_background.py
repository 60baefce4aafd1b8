"""background.py: done once when its time has come, again when it could not be, at once when asked to end."""

from __future__ import annotations

import threading
import time
from unittest.mock import Mock

import pytest

from host import background, task
from host.background import Background


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
    jobs = Background("test", work)
    jobs.later("late", 0.2)
    jobs.later("soon", 0.0)
    work.wait(2)
    assert work.done == ["soon", "late"]


def test_asked_again_the_time_begins_anew_but_not_for_ever() -> None:
    work = Work()
    jobs = Background("test", work)
    begin = time.monotonic()
    while not work.done:
        jobs.later("name", 0.3, at_most=1.0)
        time.sleep(0.02)
    assert time.monotonic() - begin >= 1.0


def test_what_is_pending_can_be_postponed_but_not_for_ever() -> None:
    work = Work()
    jobs = Background("test", work)
    begin = time.monotonic()
    jobs.later("name", 0.1, at_most=0.8)
    while not work.done:
        jobs.postpone(0.3)
        time.sleep(0.02)
    assert time.monotonic() - begin >= 0.8
    jobs.postpone(100)
    jobs.later("next", 0.0)
    work.wait(2)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon."""
    monkeypatch.setattr(background, "FIRST_RETRY_SECONDS", 0.05)


class Defect(Exception):
    """Nothing that was to be expected."""


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("failure", [False, ValueError("busy"), Defect("oops"), OSError(5, "EIO")])
def test_what_could_not_be_done_is_tried_again_whatever_was_in_the_way(failure: bool | Exception) -> None:
    work = Work(failure, failure, True)
    jobs = Background("test", work)
    jobs.later("name", 0.0)
    work.wait(3)
    assert jobs.drain(5)
    assert work.done == ["name"] * 3


@pytest.mark.usefixtures("quick")
def test_what_fails_is_told_once_and_a_defect_with_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(Defect("oops"), Defect("oops"), ValueError("busy"), ValueError("busy"), True)
    jobs = Background("test", work)
    jobs.later("name", 0.0)
    work.wait(5)
    told = [(record.levelname, record.exc_info is not None) for record in caplog.records]
    assert told == [("ERROR", True), ("WARNING", False)]
    assert caplog.messages[0] == "test name: again in 1 to 30 s: oops"


def test_each_try_waits_longer_up_to_a_limit() -> None:
    pauses = [background._pause(failures) for failures in range(1, 12)]
    for failures, pause in enumerate(pauses):
        longest = min(2**failures, background.RETRY_SECONDS)
        assert 0.7 * longest <= pause <= longest


def test_after_a_success_what_failed_before_is_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_RETRY_SECONDS", 1000.0)
    monkeypatch.setattr(background, "RETRY_SECONDS", 1000.0)
    work = Work(False, True, True)
    jobs = Background("test", work)
    jobs.later("first", 0.0)
    work.wait(1)
    jobs.later("second", 0.0)
    work.wait(3)
    assert work.done == ["first", "second", "first"]


def test_who_knows_that_the_cluster_is_back_can_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_RETRY_SECONDS", 1000.0)
    monkeypatch.setattr(background, "RETRY_SECONDS", 1000.0)
    work = Work(False, False)
    jobs = Background("test", work)
    for name in ("one", "two"):
        jobs.later(name, 0.0)
    jobs.later("not yet", 1000.0)
    work.wait(2)
    assert jobs.pause(5), "both are over"
    jobs.resume()
    jobs.wake()
    work.wait(4)
    assert sorted(work.done[2:4]) == ["one", "two"]


def test_one_that_takes_long_does_not_keep_the_others() -> None:
    hold, work = threading.Event(), Work()
    jobs = Background("test", lambda name: hold.wait(10) if name == "slow" else work(name), at_once=2)
    for name in ("slow", "a", "b", "c"):
        jobs.later(name, 0.0)
    work.wait(3)
    assert not jobs.wait_for("slow", 0.1)
    hold.set()
    assert jobs.wait_for("slow", 5)


def test_one_name_is_never_done_twice_at_once() -> None:
    hold, began = threading.Event(), Work()

    def work(name: str) -> bool:
        began(name)
        return hold.wait(10)

    jobs = Background("test", work, at_once=4)
    jobs.later("name", 0.0)
    began.wait(1)
    jobs.later("name", 0.0)
    jobs.later("other", 0.0)
    began.wait(2)
    assert began.done == ["name", "other"]
    hold.set()
    began.wait(3)
    assert began.done[2] == "name", "what was asked for while it was being done is done once more"


@pytest.mark.usefixtures("quick")
def test_finish_waits_for_one_name_until_it_is_done() -> None:
    work = Work(False, False, True)
    jobs = Background("test", work)
    jobs.later("name", 1000.0)
    jobs.later("other", 1000.0)
    assert jobs.wait_for("name", 5)
    assert work.done == ["name"] * 3
    assert jobs.wait_for("never asked for", 5)


def test_a_defect_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(KeyError("oops"))
    jobs = Background("test", work)
    jobs.later("bad", 0.0)
    jobs.later("good", 0.1)
    work.wait(2)
    assert work.done[:2] == ["bad", "good"]
    # It is one of ours, and told with its trace.
    assert "Traceback" in caplog.text


def test_drain_does_everything_now_and_tells_when_it_could_not_wait() -> None:
    hold, work = threading.Event(), Work()
    slow = Background("test", lambda name: hold.wait(10) and work(name))
    slow.later("name", 1000.0)
    assert not slow.drain(0.1)
    hold.set()
    assert slow.drain(5)
    assert work.done == ["name"]
    assert slow.drain(0)


def test_drain_does_what_is_asked_for_meanwhile() -> None:
    done: list[str] = []

    def work(name: str) -> bool:
        done.append(name)
        if name == "list":
            jobs.later("listed", 1000.0)
        return True

    jobs = Background("test", work)
    jobs.later("list", 1000.0)
    assert jobs.drain(5)
    assert done == ["list", "listed"]


def test_what_is_paused_goes_on_where_it_was() -> None:
    work = Work()
    jobs = Background("test", work)
    jobs.later("name", 1000.0)
    assert jobs.pause(5)
    assert not jobs.wait_for("name", 0.3)
    assert work.done == []
    jobs.resume()
    assert jobs.wait_for("name", 60)
    assert work.done == ["name"]


def test_pause_tells_that_something_did_not_end() -> None:
    hold, began = threading.Event(), Work()
    jobs = Background("test", lambda name: began(name) and hold.wait(10))
    jobs.later("name", 0.0)
    began.wait(1)
    assert not jobs.pause(0.1)
    hold.set()
    assert jobs.pause(5)


def test_what_is_not_done_is_told_with_the_age_of_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_RETRY_SECONDS", 1000.0)
    monkeypatch.setattr(background, "RETRY_SECONDS", 1000.0)
    work, jobs_of_others = Work(False), Background("other", Work())
    jobs = Background("test", work)
    assert jobs.waiting() == [("test", 0, 0.0)]
    jobs.later("name", 0.0)
    work.wait(1)
    assert jobs.pause(5), "it has failed"
    [(_, number, oldest)] = jobs.waiting()
    time.sleep(0.1)
    # To ask for it once more makes it no younger.
    jobs.later("name", 1000.0)
    [(_, again, older)] = jobs.waiting()
    assert (number, again) == (1, 1)
    assert older >= oldest + 0.1
    assert [title for title, *_ in background.Group(jobs, background.Group(jobs_of_others)).waiting()] == [
        "test",
        "other",
    ]


def test_what_is_not_due_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as what is done from time to time, and a layer that stays mapped for a while."""
    now = 1000.0
    monkeypatch.setattr(background, "time", Mock(monotonic=lambda: now))
    jobs = Background("test", Work())
    jobs.pause(0)
    jobs.later("name", 600.0)
    now += 599
    assert jobs.waiting() == [("test", 0, 0.0)]
    now += 4
    assert jobs.waiting() == [("test", 1, 3.0)], "it is late"
    jobs.later("name", 600.0)
    assert jobs.waiting() == [("test", 0, 0.0)], "its time begins anew"
    jobs.later("name", 0.0)
    now += 5
    jobs.postpone(10.0)
    assert jobs.waiting() == [("test", 0, 0.0)]
    jobs.end()


def test_who_is_told_to_do_it_now_makes_it_due(monkeypatch: pytest.MonkeyPatch) -> None:
    hold, work = threading.Event(), Work()
    jobs = Background("test", lambda name: work(name) and hold.wait(10))
    jobs.later("name", 600.0)
    assert not jobs.drain(0.1)
    work.wait(1)
    [(_, number, oldest)] = jobs.waiting()
    assert number == 1
    assert oldest < 20, "from then on, and not since the machine was started"
    hold.set()
    assert jobs.drain(10)
    jobs.end()


def test_what_is_asked_for_again_while_it_is_done_is_one() -> None:
    hold, began = threading.Event(), Work()
    jobs = Background("test", lambda name: began(name) and hold.wait(10))
    jobs.later("name", 0.0)
    began.wait(1)
    jobs.later("name", 0.0)
    time.sleep(0.01)
    [(_, number, _)] = jobs.waiting()
    assert number == 1
    hold.set()
    assert jobs.drain(10)
    jobs.end()


def test_work_has_its_name_in_the_log() -> None:
    """A request that asks for it is not what it works for."""
    names: list[str] = []

    def work(_: str) -> bool:
        names.append(task.name())
        return True

    jobs = Background("removing layer", work)
    with task.request():
        jobs.later("a", 0.0)
    assert jobs.drain(5)
    # Other tests wait until no thread of that name is there.
    jobs.end()
    assert names == ["removing layer a"]


def test_its_threads_end_and_what_had_not_begun_is_left() -> None:
    """A driver is made anew by each Init: threads must not stay behind."""
    work = Work()
    jobs = Background("of a former driver", work, at_once=3)
    for name in "abc":
        jobs.later(name, 1000.0)
    jobs.end()
    jobs.later("d", 0.0)
    deadline = time.monotonic() + 10
    while [thread for thread in threading.enumerate() if thread.name == "of a former driver"]:
        assert time.monotonic() < deadline, "its threads end"
        time.sleep(0.01)
    assert work.done == []


def test_the_works_of_a_group_share_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first takes longer than there is time for both: the second is asked for what it can do at once."""
    now, given = 100.0, list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def drain(left: float) -> bool:
        nonlocal now
        given.append(left)
        now += 4
        return left >= 4

    work = Mock(drain=drain)
    assert not background.Group(work, work, work).drain(6)
    assert given == [6, 2, 0]
    given.clear()
    assert background.Group(work, work).drain(8)
    assert given == [8, 4]
