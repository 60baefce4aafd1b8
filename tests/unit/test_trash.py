"""trash.py: what a removal left in the trash goes, as far as it can; what an operator moved there stays."""

from __future__ import annotations

import time

import pytest
from unit.fakes import FakePool, failed, timed_out

import rbdcli
from host.command import CommandGivenUp
from images import options
from images.layers import Layers


@pytest.fixture
def pool() -> FakePool:
    made = FakePool()
    made.add_base(size=options.DEFAULTS.basesize)
    return made


@pytest.fixture
def layers(pool: FakePool) -> Layers:
    return Layers(pool.as_pool(), options.DEFAULTS, "/home")


def trashed(pool: FakePool, *names: str) -> list[str]:
    """Put images into the trash as `rbd rm` does; return their ids."""
    for name in names:
        pool.add(f"docker_image_{name}", created=time.time())
        pool.trash(f"docker_image_{name}")
    return list(pool.trashed_images)


def test_what_has_clones_goes_to_the_trash_and_after_them(pool: FakePool, layers: Layers) -> None:
    """An operator's: we make none of a layer."""
    layers.create("a", None, None)
    pool.snapshot("docker_image_a", "backup")
    pool.clone(rbdcli.Parent("docker_image_a", "backup"), "restored", (), 1, "")
    layers.remove("a")
    [image_id] = [item.image_id for item in layers.trash.removed()]
    assert layers.trash.delete(image_id) is False
    pool.remove("restored")
    assert layers.trash.delete(image_id) is True
    assert pool.trashed_images == {}


def test_one_that_cannot_go_does_not_keep_the_rest_of_the_trash(pool: FakePool, layers: Layers) -> None:
    """An operator's protected snapshot, somebody's lock, a deletion that does not get on."""
    trashed(pool, "a", "b", "c")
    pool.fails["remove_trashed"] = [failed(rbdcli.ImageBusy, 16), timed_out(), None, failed(rbdcli.ImageBusy, 16)]
    pool.fails["remove_trashed"] += [timed_out()] * 9
    layers.trash.empty()
    assert len(pool.trashed_images) == 2


def test_what_an_operator_moved_there_stays(pool: FakePool, layers: Layers) -> None:
    mine, _ = trashed(pool, "a", "b")
    moved = [item._replace(source="USER") if item.image_id == mine else item for item in pool.trashed()]
    object.__setattr__(pool, "trashed", lambda: [item for item in moved if item.image_id in pool.trashed_images])
    assert [item.image_id for item in layers.trash.images()] == [*pool.trashed_images]
    layers.trash.empty()
    assert [*pool.trashed_images] == [mine]


def test_what_has_gone_by_itself_is_gone(layers: Layers) -> None:
    assert layers.trash.delete("nothing")


def test_a_deletion_that_is_given_up_is_told(pool: FakePool, layers: Layers) -> None:
    [image_id] = trashed(pool, "a")
    pool.fails["remove_trashed"] = [CommandGivenUp(("rbd",), None, "given up")]
    with pytest.raises(CommandGivenUp):
        layers.trash.delete(image_id)
    assert layers.trash.delete(image_id)
    assert pool.trashed_images == {}
