"""lifetime.py: one driver after another, each of which begins with what was left, and ends with what it owes."""

from __future__ import annotations

import pytest
from plugin_client import wait_until
from unit.fake_host import FakeHost
from unit.fakes import FakePool
from unit.layered import Lives, chain, create, gone

from graph import lifetime
from graph.driver import Driver


def test_nothing_is_mapped_ahead_for_a_daemon_that_has_ended(
    driver: Driver, lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lets go of its data root, and the next one would mount that above."""
    chain(driver, "a", "b", "c")
    driver.lifetime.drain(60)
    again = lives()
    again.lifetime.pause(60)
    monkeypatch.setattr(lifetime, "CLEANUP_SECONDS", 0.1)
    create(again, "d", "b")
    again.lifetime.cleanup()
    assert again._here.mapping.is_stopped()


def test_a_driver_that_is_paused_begins_nothing_and_goes_on_after_it(driver: Driver, pool: FakePool) -> None:
    create(driver, "a")
    driver.lifetime.pause(5)
    driver.remove("a")
    pool.calls.clear()
    assert not driver.lifetime.drain(0.3)
    assert not pool.named("remove_slowly")
    driver.lifetime.resume()
    wait_until(gone(pool, "a"), "its image is gone")


def test_the_next_life_removes_what_was_removed(driver: Driver, pool: FakePool, lives: Lives, host: FakeHost) -> None:
    create(driver, "a")
    driver.lifetime.pause(5)
    driver.remove("a")
    again = lives()
    assert not again.exists("a")
    again.lifetime.start()
    wait_until(gone(pool, "a"), "its image is gone")
