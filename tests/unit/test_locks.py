"""locks.py: one holder for each name, others in turn; and a gate: many inside, or one alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from host.locks import Gate, GateTimeout, Locks


def test_one_name_has_one_holder() -> None:
    locks, inside, most = Locks(), 0, 0

    def work(_: int) -> None:
        nonlocal inside, most
        with locks.hold("a"):
            inside += 1
            most = max(most, inside)
            threading.Event().wait(0.001)
            inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(100)))
    assert most == 1


def test_other_names_do_not_wait() -> None:
    locks, both = Locks(), threading.Barrier(2)

    def work(name: str) -> None:
        with locks.hold(name):
            both.wait(20)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, ["a", "b"]))


def test_a_thread_may_hold_two() -> None:
    locks = Locks()
    with locks.hold("layer"), locks.hold("parent"):
        pass


def test_an_exception_releases() -> None:
    locks = Locks()
    with pytest.raises(KeyError), locks.hold("a"):
        raise KeyError
    with ThreadPoolExecutor(1) as threads:
        threads.submit(lambda: locks.hold("a").__enter__()).result(20)


def test_a_lock_lives_as_long_as_its_last_waiter() -> None:
    """Layers come and go by the thousand; and a waiter must not be left with a lock that the next one does not see."""
    locks, entered, leave = Locks(), threading.Event(), threading.Event()

    def holder() -> None:
        with locks.hold("a"):
            entered.set()
            leave.wait(20)

    def waiter() -> None:
        with locks.hold("a"):
            pass

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(holder)
        entered.wait(20)
        second = threads.submit(waiter)
        while locks._waiting["a"][1] < 2:
            threading.Event().wait(0.001)
        assert not second.done()
        leave.set()
        first.result(20)
        second.result(20)
    assert locks._waiting == {}


# -- the gate ------------------------------------------------------------------------------------


def test_many_are_inside_at_once() -> None:
    gate, all_inside = Gate(), threading.Barrier(10)

    def work(_: int) -> None:
        with gate.shared(20):
            all_inside.wait(20)

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(work, range(10)))


def test_alone_waits_for_those_inside_and_keeps_others_out() -> None:
    gate, inside, leave, order = Gate(), threading.Event(), threading.Event(), list[str]()

    def first() -> None:
        with gate.shared(20):
            inside.set()
            leave.wait(20)
            order.append("first")

    def alone() -> None:
        with gate.alone(20):
            order.append("alone")

    def late() -> None:
        with gate.shared(20):
            order.append("late")

    with ThreadPoolExecutor(3) as threads:
        jobs = [threads.submit(first)]
        inside.wait(20)
        jobs.append(threads.submit(alone))
        while not gate._closed:
            threading.Event().wait(0.001)
        jobs.append(threads.submit(late))
        threading.Event().wait(0.05)
        assert order == []
        leave.set()
        for job in jobs:
            job.result(20)
    assert order == ["first", "alone", "late"]


def test_alone_gives_up_and_lets_others_in_again() -> None:
    gate = Gate()
    with gate.shared(20):
        with pytest.raises(GateTimeout), gate.alone(0.05):
            pytest.fail("was alone with another inside")
        with gate.shared(20):
            pass
    with gate.alone(0.05), pytest.raises(GateTimeout), gate.alone(0.05):
        pytest.fail("two were alone")


def test_an_exception_opens_the_gate() -> None:
    gate = Gate()
    with pytest.raises(KeyError), gate.alone(1):
        raise KeyError
    with pytest.raises(KeyError), gate.shared(20):
        raise KeyError
    with gate.alone(1):
        pass


def test_who_is_alone_for_too_long_is_not_waited_for() -> None:
    gate = Gate()
    with ThreadPoolExecutor(1) as threads, gate.alone(20), pytest.raises(GateTimeout):
        threads.submit(lambda: gate.shared(0.1).__enter__()).result(20)
    with gate.shared(0.1):
        assert True


def test_one_that_is_closed_lets_nobody_in_any_more() -> None:
    """Those inside are waited for, and may leave when that has been given up."""
    gate = Gate()
    with gate.shared(1):
        assert not gate.close(0.05)
        with pytest.raises(GateTimeout), gate.shared(0.05):
            pytest.fail("is inside")
    assert gate.close(0)
    with pytest.raises(GateTimeout), gate.shared(0.05):
        pytest.fail("is inside")
