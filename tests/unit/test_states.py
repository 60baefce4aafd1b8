"""states.py: how far a layer has come is known, also after a restart."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import pytest
from unit.fake_host import FakeHost
from unit.fakes import BASE_IMAGE, FakePool, timed_out
from unit.layered import Lives, chain, create

from archive import transfer
from graph.driver import Driver
from images.layers import LayerError


def test_a_finished_layer_is_got_after_a_restart_without_the_cluster(
    driver: Driver, lives: Lives, pool: FakePool
) -> None:
    """What is mounted needs no cluster; to read ahead is a favour."""
    chain(driver, "a", "b")
    driver.get("a", "")
    driver.lifetime.end()
    again = lives()
    pool.fails.update(dict.fromkeys(("metadata", "data", "info"), [timed_out()] * 9))
    again.get("a", "")
    pool.fails.clear()


@pytest.mark.usefixtures("applied")
def test_a_layer_whose_archive_failed_is_broken_for_good(
    driver: Driver, pool: FakePool, host: FakeHost, lives: Lives
) -> None:
    """Only Remove is left, also in the next life."""
    for layer in ("a", "c-init"):
        create(driver, layer)
        with pytest.raises(transfer.ArchiveError, match="cut off"):
            driver.apply_diff(layer, io.BytesIO(b"fail"))
    again = lives()
    for life in (driver, again):
        calls: Mapping[str, Callable[[], object]] = {
            "get": lambda life=life: life.get("a", ""),  # type: ignore[misc]
            "apply": lambda life=life: life.apply_diff("a", io.BytesIO()),  # type: ignore[misc]
            "changes": lambda life=life: life.changes("a", ""),  # type: ignore[misc]
            "child": lambda life=life: create(life, "b", "a"),  # type: ignore[misc]
            "container": lambda life=life: create(life, "c", "c-init"),  # type: ignore[misc]
        }
        for call in calls.values():
            with pytest.raises(
                LayerError,
                match=r"layer .* broken.*; remove it",
            ):
                call()
    again.remove("a")
    again.remove("c-init")
    again.lifetime.drain(60)
    assert ([*pool.images], pool.devices, host.mounted) == ([BASE_IMAGE], {}, {})
