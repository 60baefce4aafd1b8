"""driver.py: what Docker is told at once, and what is done in the background until it is done."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_client import wait_until
from unit.fake_host import FakeHost
from unit.fakes import FakePool, failed, timed_out

import archive
import behind
import driver as driver_module
import options
import rbdcli
import reaper
from driver import Driver, DriverError
from layers import LayerError


@pytest.fixture
def pool() -> FakePool:
    made = FakePool()
    made.add("docker_image_base_image", snapshots={"depth0": "empty"}, size=options.DEFAULTS.basesize)
    return made


@pytest.fixture
def host(pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    return FakeHost.in_place(pool, monkeypatch)


@pytest.fixture
def driver(pool: FakePool, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    monkeypatch.setattr(driver_module, "pool_of", lambda _: pool.as_pool())
    monkeypatch.setattr(reaper, "REMOVE_SECONDS", 0.0)
    monkeypatch.setattr(behind, "FIRST_RETRY_SECONDS", 0.1)
    made = Driver(str(tmp_path / "home"), options.DEFAULTS, archive.IdMaps())
    made.learn()
    yield made
    made.end()
    titles = {"removing layer", "unmapping layer", "deleting from the trash", "looking ahead"}
    wait_until(lambda: not titles & {thread.name for thread in threading.enumerate()}, "its threads have ended")


def create(driver: Driver, layer: str, parent: str = "") -> str:
    driver.create(layer, parent, None, leaf=False)
    return layer


def gone(pool: FakePool, layer: str) -> Callable[[], bool]:
    return lambda: f"docker_image_{layer}" not in pool.images


# -- refused -------------------------------------------------------------------------------------


def test_a_layer_is_not_its_own_parent(driver: Driver) -> None:
    """It would wait for itself."""
    create(driver, "a")
    with pytest.raises(DriverError, match="layer a cannot be its own parent"):
        create(driver, "a", "a")


def test_another_host_s_layer_is_not_removed(driver: Driver, pool: FakePool) -> None:
    pool.add("docker_image_a", metadata={"docker_graph_driver.owner": "another /home"})
    with pytest.raises(LayerError, match="belongs to host another"):
        driver.remove("a")
    driver.finish(5)
    assert "docker_image_a" in pool.images


def test_what_is_not_there_is_removed_already(driver: Driver, pool: FakePool) -> None:
    driver.remove("a")
    assert not pool.named("remove_slowly")


# -- removed, whatever is in the way ---------------------------------------------------------------


@pytest.mark.parametrize(
    "failure", [timed_out(), failed(rbdcli.RbdError, errno.ETIMEDOUT), failed(rbdcli.PoolMissing, errno.ENOENT)]
)
def test_a_sick_cluster_keeps_no_remove(driver: Driver, pool: FakePool, failure: Exception) -> None:
    """Whose a layer is was never asked in this life: that is asked before its image goes."""
    pool.add("docker_image_a")
    pool.fails["metadata"] = [failure]
    driver.remove("a")
    assert not driver.exists("a")
    wait_until(gone(pool, "a"), "its image is gone")


@pytest.mark.parametrize(
    "failure", [RuntimeError("a defect"), OSError(errno.EIO, "lost"), timed_out(), failed(rbdcli.ImageBusy, 16)]
)
def test_a_removal_is_done_when_it_is_done(driver: Driver, pool: FakePool, failure: Exception) -> None:
    create(driver, "a")
    pool.fails["remove_slowly"] = [failure, failure]
    driver.remove("a")
    wait_until(gone(pool, "a"), "its image is gone")
    wait_until(lambda: driver.finish(1) and not pool.devices, "nothing is left to do")


def test_an_unmount_that_hangs_keeps_no_remove(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    """The kernel still writes to what nobody wants any more."""
    create(driver, "a")
    driver.get("a", "")
    host.fails["unmount"] = [timed_out()]
    driver.remove("a")
    with pytest.raises(DriverError, match="layer a does not exist"):
        driver.get("a", "")
    wait_until(gone(pool, "a"), "its image is gone")
    assert (host.mounted, pool.devices) == ({}, {})


def test_what_cannot_be_unmapped_makes_room_in_a_full_pool(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    """It fills the pool, which takes neither what is still to be written nor the end of the image's lock."""
    create(driver, "a")
    driver.get("a", "")
    driver.put("a")
    pool.images["docker_image_a"].used = 3 << 18
    pool.fails["unmap"] = [timed_out(), timed_out()]
    driver.remove("a")
    wait_until(gone(pool, "a"), "its image is gone")
    deleted = [words for name, *words in pool.calls if name == "rados" and words[:2] == ["--force-full", "rm"]]
    assert sorted({name for words in deleted for name in words[2:]}) == [
        f"rbd_data.id2.{number:016x}" for number in range(3)
    ]


def slow_removal(pool: FakePool, layer: str) -> threading.Event:
    """The removal of this layer's image takes until the event is set."""
    go, remove = threading.Event(), pool.remove_slowly

    def slowly(image: str, give_up: Callable[[], bool]) -> None:
        if image == f"docker_image_{layer}":
            # Longer than anybody waits.
            assert go.wait(300)
        remove(image, give_up)

    object.__setattr__(pool, "remove_slowly", slowly)
    return go


def test_a_slow_removal_keeps_nobody(driver: Driver, pool: FakePool) -> None:
    """Neither other removals, nor a call for the same layer."""
    for layer in "abc":
        create(driver, layer)
    go = slow_removal(pool, "a")
    driver.remove("a")
    driver.remove("b")
    wait_until(gone(pool, "b"), "the other image is gone")
    with pytest.raises(DriverError, match="does not exist: it was removed"):
        driver.get("a", "")
    driver.put("a")
    driver.remove("a")
    driver.get("c", "")
    assert "docker_image_a" in pool.images
    go.set()
    wait_until(gone(pool, "a"), "its image is gone")
    driver.remove("c")


def test_a_layer_that_is_still_being_removed_is_made_anew_after_it(driver: Driver, pool: FakePool) -> None:
    create(driver, "a")
    first = pool.images["docker_image_a"].image_id
    go = slow_removal(pool, "a")
    driver.remove("a")
    made: list[Any] = []
    creating = threading.Thread(target=lambda: made.append(create(driver, "a")))
    creating.start()
    creating.join(0.2)
    assert made == []
    go.set()
    creating.join(60)
    assert made == ["a"]
    assert pool.images["docker_image_a"].image_id != first


# -- one object after another --------------------------------------------------------------------


def test_a_driver_that_is_paused_begins_nothing_and_goes_on_after_it(driver: Driver, pool: FakePool) -> None:
    create(driver, "a")
    driver.pause(5)
    driver.remove("a")
    pool.calls.clear()
    assert not driver.finish(0.3)
    assert not pool.named("remove_slowly")
    driver.resume()
    wait_until(gone(pool, "a"), "its image is gone")


def test_the_next_life_removes_what_was_removed(driver: Driver, pool: FakePool, tmp_path: Path, host: FakeHost) -> None:
    create(driver, "a")
    driver.pause(5)
    driver.remove("a")
    again = Driver(str(tmp_path / "home"), options.DEFAULTS, archive.IdMaps())
    again.learn()
    assert not again.exists("a")
    again.start()
    wait_until(gone(pool, "a"), "its image is gone")
    again.end()


def test_what_undoes_a_create_does_not_hide_why(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    """And it is one short command: somebody waits for it."""
    host.fails["mount"] = [failed(rbdcli.RbdError, 32)]
    pool.fails["remove"] = [timed_out()]
    with pytest.raises(rbdcli.RbdError) as raised:
        driver.create("a", "", {"size": "20G"}, leaf=True)
    assert raised.value.status == 32
    assert pool.named("remove") == ["docker_image_a"]
    assert not pool.named("remove_slowly")
