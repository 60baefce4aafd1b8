"""parents.py: a layer that gets a child is finished, and one that cannot be has none."""

from __future__ import annotations

import errno
import io
import os
from typing import Any

import pytest
from unit.fake_host import FakeHost
from unit.fakes import BASE_IMAGE, FakePool
from unit.layered import Life, Lives, again, chain, create, says, use

from graph.driver import Driver
from images import layer_state
from images.layers import LayerError


def test_a_parent_that_is_not_there(driver: Driver, pool: FakePool) -> None:
    with pytest.raises(LayerError, match="layer b: its parent a does not exist: no image docker_image_a"):
        create(driver, "b", "a")
    with pytest.raises(LayerError, match="layer c: its parent c-init does not exist: no image docker_image_c-init"):
        create(driver, "c", "c-init")
    assert [*pool.images] == [BASE_IMAGE]


def test_a_layer_is_finished_by_its_first_child(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    create(driver, "a")
    use(driver, "a")
    assert not says(pool, "a").finished
    create(driver, "b", "a")
    assert says(pool, "a").finished
    for _ in range(2):
        assert host.mounted[driver.get("a", "")].read_only
        driver.put("a")
        with pytest.raises(LayerError, match="layer a is finished: it had its archive, or has children"):
            driver.apply_diff("a", io.BytesIO())
        driver.lifetime.drain(60)


def test_layers_that_nobody_ever_mounted_have_children(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    """Each gets its note, and the attributes of what is below it, when it gets its first child."""
    create(driver, "a")
    os.chmod(pool.files("docker_image_a") / "rootfs", 0o711)
    for parent, layer in zip("abc", "bcd"):
        create(driver, layer, parent)
        driver.lifetime.drain(60)
        assert (host.mounted, pool.devices) == ({}, {})
    assert [says(pool, layer) for layer in "abc"] == [
        layer_state.LayerState("a", (), finished=True),
        layer_state.LayerState("b", ("a",), finished=True),
        layer_state.LayerState("c", ("b", "a"), finished=True),
    ]
    assert (pool.files("docker_image_c") / "rootfs").stat().st_mode & 0o777 == 0o711


def test_a_parent_that_is_mounted_is_not_built_upon(driver: Driver, pool: FakePool) -> None:
    """Docker makes layers of what it has put."""
    create(driver, "a")
    create(driver, "c-init")
    for layer in ("a", "c-init"):
        driver.get(layer, "")
        with pytest.raises(LayerError, match=f"its parent {layer} is mounted writable; put it first"):
            create(driver, "new", layer)
        driver.put(layer)
    create(driver, "new", "a")
    create(driver, "other", "c-init")


def test_a_parent_that_was_put_in_a_former_life(driver: Driver, lives: Lives) -> None:
    create(driver, "a")
    driver.get("a", "")
    again = lives()
    create(again, "b", "a")


@pytest.mark.parametrize("step", ["finish", "write", "_prepare"])
def test_a_parent_that_cannot_be_finished_has_no_child(
    driver: Driver, pool: FakePool, host: FakeHost, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    create(driver, "a")

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(f"mapped.overlays.{step}" if step == "_prepare" else f"images.layer_state.{step}", fails)
        with pytest.raises(OSError, match="Input/output error"):
            create(driver, "b", "a")
    assert "docker_image_b" not in pool.images
    driver.lifetime.drain(60)
    assert (host.mounted, pool.devices) == ({}, {})
    create(driver, "b", "a")


# -- containers ------------------------------------------------------------------------------------


def test_a_container_is_made_of_an_init_layer_that_is_in_the_cluster(
    driver: Driver, pool: FakePool, host: FakeHost
) -> None:
    """A copy of what is mounted would have a log to be written out, and not all that was written."""
    chain(driver, "a", "c-init")
    use(driver, "c-init")
    copied: list[list[str]] = []
    copying = pool.deep_copy

    def copy(*words: Any) -> None:
        copied.append([point for point in host.mounted if "/c-init/" in point])
        copying(*words)

    object.__setattr__(pool, "deep_copy", copy)
    create(driver, "c", "c-init")
    assert copied == [[]]
    root = driver.get("c", "")
    view = host.views()[root]
    assert view.lower[0] == "../mnt/c/layer/init"
    assert says(pool, "c") == layer_state.LayerState("c", ("a",), init="c-init")
    # It may be used again, and be the init layer of another.
    use(driver, "c-init")
    create(driver, "d", "c-init")


def test_an_init_layer_that_was_never_mounted(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    chain(driver, "a", "c-init", "c")
    root = driver.get("c", "")
    view = host.views()[root]
    assert len(view.lower) == 1
    assert says(pool, "c") == layer_state.LayerState("c", ("a",))


@pytest.mark.usefixtures("stack")
def test_a_layer_that_docker_has_put_in_a_former_life(life: Life, host: FakeHost) -> None:
    """A Put that met our end is lost; the layer gets a child now."""
    life.get("c")
    life.get("other")
    new = again(life)
    new.learn()
    new.views.settle_put("c")
    assert [*host.views()] == [new.point("other")]
    # What this life was told, it knows.
    new.get("c")
    new.views.settle_put("c")
    assert sorted(host.views()) == [new.point("c"), new.point("other")]
    new.views.settle_put("missing")
