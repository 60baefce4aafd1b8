"""reaper.py: what was removed goes in the background until it is gone, whatever is in the way."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
from plugin_client import wait_until
from unit.fake_host import FakeHost
from unit.fakes import BASE_IMAGE, FakePool, failed, timed_out
from unit.layered import Lives, chain, create, gone, use

import rbdcli
from cluster.owner import Owner
from graph.driver import Driver
from images.layers import LayerError
from images.record import KEY, Record


@pytest.mark.parametrize(
    "failure", [timed_out(), failed(rbdcli.RbdError, errno.ETIMEDOUT), failed(rbdcli.PoolMissing, errno.ENOENT)]
)
def test_a_sick_cluster_keeps_no_remove(driver: Driver, pool: FakePool, failure: Exception) -> None:
    """Whose a layer is was never asked in this life: that is asked before its image goes."""
    pool.add_layer("a")
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
    wait_until(lambda: driver.lifetime.drain(1) and not pool.devices, "nothing is left to do")


def test_an_unmount_that_hangs_keeps_no_remove(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    """The kernel still writes to what nobody wants any more."""
    create(driver, "a")
    driver.get("a", "")
    host.fails["unmount"] = [timed_out()]
    driver.remove("a")
    with pytest.raises(LayerError, match="layer a does not exist"):
        driver.get("a", "")
    wait_until(gone(pool, "a"), "its image is gone")
    assert (host.mounted, pool.devices) == ({}, {})


def test_what_cannot_be_unmapped_makes_room_in_a_full_pool(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    """It fills the pool, which takes neither what is still to be written nor the end of the image's lock."""
    create(driver, "a")
    use(driver, "a")
    pool.images["docker_image_a"].used = 3 << 18
    pool.fails["unmap"] = [timed_out(), timed_out()]
    driver.remove("a")
    wait_until(gone(pool, "a"), "its image is gone")
    deleted = [words for name, *words in pool.calls if name == "rados" and words[:2] == ["--force-full", "rm"]]
    assert sorted({name for words in deleted for name in words[2:]}) == [
        f"rbd_data.id2.{number:016x}" for number in range(3)
    ]


def test_an_image_stays_until_nothing_stands_on_it_whatever_the_order(driver: Driver, pool: FakePool) -> None:
    """Docker, BuildKit or a crash removes a layer before its children: it is gone for Docker all the same."""
    chain(driver, "a", "b", "c-init", "c")
    create(driver, "d", "b")
    for layer in ("a", "b", "c-init"):
        driver.remove(layer)
        assert not driver.exists(layer)
    wait_until(gone(pool, "c-init"), "nothing stands on an init layer: what it brought is in its container")
    driver.get("c", "")
    driver.get("d", "")
    driver.put("d")
    driver.remove("d")
    wait_until(gone(pool, "d"), "its image is gone")
    driver.lifetime.drain(60)
    assert {"docker_image_a", "docker_image_b"} <= {*pool.images}
    driver.put("c")
    driver.remove("c")
    wait_until(lambda: [*pool.images] == [BASE_IMAGE], "all of them are gone")


def test_what_another_host_made_on_a_layer_keeps_it(
    driver: Driver, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a takeover leaves it, and whatever Docker here knows."""
    monkeypatch.setattr("images.family.LISTED_SECONDS", 0.0)
    create(driver, "a")
    pool.add_layer("theirs", "a", owner="another /home")
    driver.remove("a")
    driver.lifetime.drain(60)
    assert "docker_image_a" in pool.images
    del pool.images["docker_image_theirs"]
    driver.lifetime.resume()
    wait_until(gone(pool, "a"), "its image is gone")


def test_a_layer_that_came_to_be_shared_stays_when_one_host_has_removed_it(driver: Driver, pool: FakePool) -> None:
    """Others may use it. This host forgets it all the same: it goes by the rules of what is shared."""
    create(driver, "a")
    driver._home.layers.share("a")
    driver.remove("a")
    wait_until(lambda: driver.lifetime.drain(1) and "a" not in driver._here.removals, "it is forgotten")
    assert pool.images["docker_image_a"].record.shared


def test_a_shared_layer_that_no_host_uses_waits_for_what_stands_on_it(
    driver: Driver, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what another host made on it, and what a takeover leaves. It is this host's own by then (sharing.py)."""
    monkeypatch.setattr("images.family.LISTED_SECONDS", 0.0)
    pool.add_layer("a", owner="another /home").metadata[KEY] = str(
        Record(Owner.parse("another /home"), (), shared=True)
    )
    pool.add_layer("theirs", "a", owner="another /home")
    driver._home.layers.own("a")
    driver.remove("a")
    driver.lifetime.drain(60)
    assert "docker_image_a" in pool.images
    del pool.images["docker_image_theirs"]
    driver.lifetime.resume()
    wait_until(gone(pool, "a"), "its image is gone")


def test_a_removed_layer_that_others_stand_on_does_not_stay_mapped(lives: Lives, pool: FakePool) -> None:
    """Not even if it was mapped, for whatever reason, when the driver ended."""
    before = lives()
    create(before, "a")
    before.get("a", "")
    pool.add_layer("theirs", "a", owner="another /home")
    before.lifetime.end()
    before.remove("a")
    assert "docker_image_a" in pool.devices
    again = lives()
    again.lifetime.start()
    wait_until(lambda: pool.devices == {}, "it is unmapped")
    assert "docker_image_a" in pool.images
    del pool.images["docker_image_theirs"]


@pytest.mark.parametrize("verb", ["list", "rados"])
def test_a_pool_that_does_not_tell_what_stands_on_a_layer_loses_none(driver: Driver, pool: FakePool, verb: str) -> None:
    create(driver, "a")
    pool.add_layer("theirs", "a", owner="another /home")
    pool.fails[verb] = [failed(rbdcli.RbdError, 110)] * 3
    driver.remove("a")
    driver.lifetime.drain(60)
    assert "docker_image_a" in pool.images


def test_a_layer_that_was_removed_with_its_parents_is_no_reason_to_keep_them(
    driver: Driver, pool: FakePool, lives: Lives
) -> None:
    """Nor in the next life, which asks the pool."""
    chain(driver, "a", "b", "c")
    driver.lifetime.pause(5)
    for layer in "abc":
        driver.remove(layer)
    again = lives()
    again.lifetime.start()
    wait_until(lambda: [*pool.images] == [BASE_IMAGE], "all of them are gone")


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
    with pytest.raises(LayerError, match="does not exist: it was removed"):
        driver.get("a", "")
    driver.put("a")
    driver.remove("a")
    driver.get("c", "")
    assert "docker_image_a" in pool.images
    go.set()
    wait_until(gone(pool, "a"), "its image is gone")
    driver.remove("c")


def test_a_layer_does_not_wait_for_a_removed_one_that_stands_on_it(
    driver: Driver, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose image may take hours to go, and is listed until then."""
    monkeypatch.setattr("images.family.LISTED_SECONDS", 0.0)
    chain(driver, "a", "b")
    go = slow_removal(pool, "b")
    driver.remove("b")
    driver.remove("a")
    wait_until(gone(pool, "a"), "its image is gone")
    assert "docker_image_b" in pool.images
    go.set()
    wait_until(gone(pool, "b"), "the other one's is gone, too")


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
