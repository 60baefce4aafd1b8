"""locks.py: one holder per name, others in turn, nothing left when nobody holds or waits."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from host.locks import Locks


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
