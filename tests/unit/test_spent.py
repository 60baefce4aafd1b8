"""spent.py: where the time of a request went, also when its commands ran beside each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from host.locks import Locks
from host.served import request
from host.spent import MOST_NAMED, Spent

At = Callable[[float], None]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> At:
    """Sets the time."""
    return lambda now: monkeypatch.setattr(time, "monotonic", lambda: now)


def test_all_of_it_is_the_rest_if_nothing_was_noted() -> None:
    assert Spent().told(2.0) == "the rest 2.00 s"


def test_commands_beside_each_other_are_waited_for_once(at: At) -> None:
    spent = Spent()
    at(3.0)
    spent.command("rbd device map", 1.0)
    spent.command("rbd device map", 2.0)
    at(4.0)
    spent.command("mount", 3.5)
    assert spent.told(4.0) == "commands 2.50 s (rbd device map 2 in 3.00 s, mount 1 in 0.50 s), the rest 1.50 s"


def test_waits_for_locks_are_told_apart(at: At) -> None:
    spent = Spent()
    at(2.0)
    spent.wait(0.5)
    at(2.5)
    spent.command("mount", 1.5)
    assert spent.told(3.0) == "commands 1.00 s (mount 1 in 1.00 s), waits for locks 1.50 s, the rest 1.00 s"


def test_few_programs_are_named(at: At) -> None:
    spent = Spent()
    at(10.0)
    for number in range(MOST_NAMED + 2):
        spent.command(f"program{number}", 9.0 + number / 10)
    told = spent.told(10.0)
    assert "program0 1 in 1.00 s, program1 1 in 0.90 s" in told
    assert f"program{MOST_NAMED}" not in told
    assert "others 2 in 0.70 s" in told


def test_a_lock_that_others_hold_is_time_of_the_request(caplog: pytest.LogCaptureFixture) -> None:
    locks, held = Locks(), threading.Event()

    def hold() -> None:
        with locks.hold("a"):
            held.set()
            time.sleep(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    with request() as served, locks.hold("a"), locks.hold("free"):
        assert served._spent
        told = served._spent.told(1.0)
    holder.join()
    assert told.startswith("waits for locks 0.")
    assert "commands" not in told
