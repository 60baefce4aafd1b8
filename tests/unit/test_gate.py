"""gate.py: many inside, or one alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from host.locks import Gate, GateTimeout


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
