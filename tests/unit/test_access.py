"""access.py: a layer is had for as long as it is used, by many at once, and let go of in the end."""

from __future__ import annotations

import threading

import pytest
from unit.fake_host import FakeHost
from unit.fakes import FakePool
from unit.layered import chain, create, use

from graph.driver import Driver
from host import deadline


def test_a_put_that_cannot_have_the_layer_in_time_counts_all_the_same(driver: Driver, pool: FakePool) -> None:
    """A sick cluster holds up a request that came before it."""
    create(driver, "a")
    driver.get("a", "")
    with driver._home.locks.hold("a"), deadline.within(0.05), pytest.raises(deadline.Overdue):
        driver.put("a")
    driver.lifetime.drain(60)
    assert pool.devices == {}


def test_two_who_need_the_same_layers_at_once(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    chain(driver, "a", "b", "c")
    for number in range(8):
        create(driver, f"d{number}", "c")
    driver.lifetime.drain(60)
    driver.lifetime.resume()
    together, failures = threading.Barrier(8, timeout=300), list[BaseException]()

    def work(layer: str) -> None:
        together.wait()
        try:
            for _ in range(5):
                use(driver, layer)
            driver.get(layer, "")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"d{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert failures == []
    assert len(host.views()) == 8
    assert len([point for point in host.systems() if point.split("/")[-2] in "abc"]) == 3
    for number in range(8):
        driver.put(f"d{number}")
    driver.lifetime.drain(60)
    assert (host.mounted, pool.devices) == ({}, {})
