"""availability.py: why a layer cannot be had on this host: it is in use elsewhere, or gone."""

from __future__ import annotations

import pytest
from unit.fakes import FakePool, failed
from unit.layered import create

import rbdcli
from graph.driver import Driver
from images.layers import LayerError


def test_a_layer_that_is_not_there(driver: Driver, pool: FakePool) -> None:
    for ask in (lambda: driver.get("a", ""), lambda: driver.changes("a", "")):
        with pytest.raises(LayerError, match="layer a does not exist: no image docker_image_a"):
            ask()
    driver.put("a")


def test_a_layer_that_is_in_use_elsewhere(driver: Driver, pool: FakePool) -> None:
    pool.add_layer("a", watchers=["10.0.0.2:0/9"])
    for ask in (lambda: driver.get("a", ""), lambda: driver.create("b", "a", None)):
        pool.fails["map"] = [failed(rbdcli.ImageLocked, 30)]
        with pytest.raises(LayerError, match=r"layer a is in use elsewhere: .*it is open at 10\.0\.0\.2:0/9"):
            ask()


def test_a_parent_that_is_in_use_elsewhere_since_it_was_made(driver: Driver, pool: FakePool) -> None:
    """What is known of it is no reason not to say who has it; nor is it if the pool has gone."""
    create(driver, "a")
    pool.images["docker_image_a"].watchers = ["10.0.0.2:0/9"]
    pool.fails["map"] = [failed(rbdcli.ImageLocked, 30)]
    with pytest.raises(LayerError, match=r"layer a is in use elsewhere: .*it is open at 10\.0\.0\.2:0/9"):
        driver.create("b", "a", None)
    pool.fails.update({"map": [failed(rbdcli.ImageLocked, 30)], "info": [failed(rbdcli.PoolMissing, 2)]})
    with pytest.raises(rbdcli.PoolMissing):
        driver.create("b", "a", None)
