"""driver.py: what is no layer's id, what is made and removed and what stays of it, what Docker is told.

On a host and a pool in memory; what an archive holds is none of its business.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from plugin_client import wait_until
from unit.fake_host import FakeHost, refused
from unit.fakes import BASE_IMAGE, FakePool, failed, timed_out
from unit.layered import chain, create, gone, use

import rbdcli
from graph.driver import Driver
from host.command import CommandError
from images import options
from images.layers import LayerError, LayerRefused
from mapped.file_systems import LayerLost
from mapped.unmounting import LayerBusy

# -- refused -------------------------------------------------------------------------------------


def test_a_layer_is_not_its_own_parent(driver: Driver) -> None:
    """It would wait for itself."""
    create(driver, "a")
    with pytest.raises(LayerError, match="layer a cannot be its own parent"):
        create(driver, "a", "a")


def test_another_host_s_layer_is_not_removed(driver: Driver, pool: FakePool) -> None:
    pool.add_layer("a", owner="another /home")
    with pytest.raises(LayerError, match="belongs to host another"):
        driver.remove("a")
    driver.lifetime.drain(5)
    assert "docker_image_a" in pool.images


def test_what_is_not_there_is_removed_already(driver: Driver, pool: FakePool) -> None:
    driver.remove("a")
    assert not pool.named("remove_slowly")


@pytest.mark.parametrize("layer", ["", ".", "..", "a/b", "-a", "a b", "a@b", "a" * 129, "base_image", "é", "a\n"])
def test_what_is_no_id_is_refused_by_every_call(driver: Driver, pool: FakePool, layer: str) -> None:
    """It becomes part of a path and of an image's name."""
    create(driver, "a")
    calls = len(pool.calls)
    asked: list[Callable[[], object]] = [
        lambda: create(driver, layer),
        *([lambda: create(driver, "b", layer)] if layer else []),
        *(lambda call=call: call(layer) for call in (driver.remove, driver.exists, driver.put, driver.metadata)),
        lambda: driver.get(layer, ""),
        lambda: driver.apply_diff(layer, io.BytesIO()),
        lambda: driver.changes(layer, ""),
        lambda: driver.diff_size(layer, ""),
        lambda: list(driver.diff(layer, "")),
        *([lambda: driver.changes("a", layer)] if layer else []),
    ]
    for ask in asked:
        with pytest.raises(LayerError, match="is not a layer id"):
            ask()
    assert len(pool.calls) == calls


def test_what_is_not_there_is_refused(driver: Driver) -> None:
    """It is of the caller's making: nobody is woken for it (served.py)."""
    create(driver, "a")
    asked: list[Callable[[], object]] = [
        lambda: create(driver, "a"),
        lambda: create(driver, "b", "none"),
        lambda: create(driver, "c", "none-init"),
        lambda: driver.get("none", ""),
        lambda: driver.metadata("none"),
        lambda: driver.apply_diff("none", io.BytesIO()),
        lambda: driver.changes("none", ""),
        lambda: driver.diff_size("none", ""),
        lambda: list(driver.diff("none", "")),
        lambda: driver.diff_size("a", "none"),
    ]
    for ask in asked:
        with pytest.raises(LayerRefused, match=r"none|a exists already"):
            ask()


def test_a_parent_that_was_removed(driver: Driver) -> None:
    chain(driver, "a", "c-init")
    for layer in ("a", "c-init"):
        driver.lifetime.pause(5)
        driver.remove(layer)
        with pytest.raises(LayerError, match=f"layer {layer} does not exist: it was removed"):
            create(driver, "new", layer)
        driver.lifetime.resume()


# -- made ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", ["clone", "set_metadata", "resize", "map", "mount", "grow_mounted", "unmount", "unmap"]
)
@pytest.mark.parametrize("late", [False, True])
def test_a_create_that_fails_leaves_nothing(
    driver: Driver, pool: FakePool, host: FakeHost, step: str, late: bool
) -> None:
    """Whatever step it had reached, and whether that was done all the same."""
    fails = host.fails if step in ("mount", "grow_mounted", "unmount") else pool.fails
    failure: Any = timed_out() if late else refused() if fails is host.fails else failed(rbdcli.RbdError, 5)
    fails[step] = [(failure, True) if late else failure] * (2 if step == "unmount" and not late else 1)
    with pytest.raises((CommandError, LayerBusy)):
        driver.create("a", "", {"size": "20G"})
    assert driver.lifetime.drain(60)
    assert ([*pool.images], pool.devices, host.mounted) == ([BASE_IMAGE], {}, {})
    driver.create("a", "", {"size": "20G"})
    driver.get("a", "")


def test_a_layer_grows_before_it_is_used(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    """Then nobody need have it mapped so that it can."""
    driver.create("a", "", {"size": "20G"})
    assert (len(host.grown), pool.devices) == (1, {})
    create(driver, "b")
    assert len(host.grown) == 1
    with pytest.raises(options.OptionError, match="sise"):
        driver.create("c", "", {"sise": "20G"})


def test_what_reads_a_layer_and_cannot_die_keeps_nobody_from_removing_it(
    driver: Driver, host: FakeHost, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(driver, "a")
    use(driver, "a")
    host.fails["unmount"] = [refused("target is busy")] * 4
    with pytest.raises(LayerBusy):
        driver.remove("a")
    host.fails["unmount"] = [refused("target is busy")] * 2
    monkeypatch.setattr(driver._ahead, "hangs", lambda layer: layer == "a")
    driver.remove("a")
    assert not driver.exists("a")
    wait_until(gone(pool, "a"), "its image is gone")


def test_what_undoes_a_create_does_not_hide_why(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    """And it is one short command: somebody waits for it."""
    host.fails["mount"] = [failed(rbdcli.RbdError, 32)]
    pool.fails["remove"] = [timed_out()]
    with pytest.raises(rbdcli.RbdError) as raised:
        driver.create("a", "", {"size": "20G"})
    assert raised.value.status == 32
    assert pool.named("remove") == ["docker_image_a"]
    assert not pool.named("remove_slowly")


# -- what is told --------------------------------------------------------------------------------


def test_what_docker_inspect_shows(driver: Driver, pool: FakePool) -> None:
    chain(driver, "a", "b", "c-init", "c")
    said = driver.metadata("b")
    assert (said["Image"], said["Parent"], said["Depth"]) == ("docker_image_b", "docker_image_a", "1")
    assert (said["Device"], said["MountPoint"], said["Size"]) == ("", "", str(options.DEFAULTS.basesize))
    # Its init layer is in its own.
    assert driver.metadata("c")["Parent"] == "docker_image_b"
    assert driver.metadata("a")["Parent"] == ""
    root = driver.get("c", "")
    said = driver.metadata("c")
    assert (said["Device"], said["MountPoint"]) == (pool.devices["docker_image_c"], root)


def test_a_dead_device_of_a_parent_is_named_to_who_needs_it(driver: Driver, host: FakeHost) -> None:
    chain(driver, "a", "b", "c", "d")
    driver.get("d", "")
    host.die("a")
    create(driver, "e", "c")
    with pytest.raises(LayerLost, match=r"layer a: its device .* is gone .*stop what uses it \(d\): "):
        driver.get("e", "")
    driver.put("d")
    driver.get("e", "")
