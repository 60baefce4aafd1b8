"""layers.py: clone or copy, what a time-out leaves in doubt, and removal, in a pool in memory."""

from __future__ import annotations

import time

import pytest
from unit.fakes import FakePool, failed, timed_out

import options
import rbdcli
from command import CommandGivenUp, CommandTimeout
from layers import LEAF_COPY_LIMIT, MAX_ANCESTORS, OWNER_KEY, LayerError, Layers
from owner import Owner

LARGE = LEAF_COPY_LIMIT + 1
OWNER = str(Owner.here("/home"))


@pytest.fixture
def pool() -> FakePool:
    made = FakePool()
    made.add("docker_image_base_image", snapshots={"depth0": "empty"}, held="empty")
    return made


@pytest.fixture
def layers(pool: FakePool) -> Layers:
    return Layers(pool.as_pool(), options.DEFAULTS, "/home")


def write(pool: FakePool, layer: str, held: str, used: int = LARGE) -> None:
    image = pool.images[f"docker_image_{layer}"]
    image.held, image.used = held, used


# -- clone or copy -------------------------------------------------------------------------------


def test_a_child_holds_what_its_parent_held(pool: FakePool, layers: Layers) -> None:
    layers.create("a", None, None, leaf=False)
    write(pool, "a", "of a")
    layers.create("b", "a", None, leaf=False, written=LARGE)
    assert pool.images["docker_image_b"].held == "of a"
    assert pool.images["docker_image_b"].parent == rbdcli.Parent("docker_image_a", "depth1")
    assert pool.images["docker_image_b"].metadata[OWNER_KEY] == OWNER


def test_a_child_of_what_holds_little_is_a_copy(pool: FakePool, layers: Layers) -> None:
    layers.create("a", None, None, leaf=False)
    write(pool, "a", "of a", 4096)
    layers.create("b", "a", None, leaf=False, written=4096)
    assert pool.images["docker_image_b"].held == "of a"
    assert pool.images["docker_image_a"].snapshots == {}


@pytest.mark.parametrize("taken", [True, False])
def test_after_a_snapshot_that_timed_out_grandchildren_hold_what_their_parent_holds(
    pool: FakePool, layers: Layers, taken: bool
) -> None:
    """A copy of the parent would have a copy of the snapshot, too, and its children were clones of that."""
    layers.create("a", None, None, leaf=False)
    write(pool, "a", "of a")
    pool.fails["snapshot"] = [(timed_out(), True) if taken else timed_out()]
    with pytest.raises(CommandTimeout):
        layers.create("b", "a", None, leaf=False, written=LARGE)
    # Little was written as far as this life of ours knows: the child is to be a copy.
    layers.create("c", "a", None, leaf=True, written=0)
    write(pool, "c", "of c")
    layers.create("d", "c", None, leaf=False, written=LARGE)
    assert pool.images["docker_image_d"].held == "of c"


def test_a_create_that_fails_leaves_no_image(pool: FakePool, layers: Layers) -> None:
    pool.fails["set_metadata"] = [failed(rbdcli.RbdError, 5)]
    with pytest.raises(rbdcli.RbdError):
        layers.create("a", None, None, leaf=False)
    assert list(pool.images) == ["docker_image_base_image"]


def test_a_child_has_its_content_where_its_parent_has_it(pool: FakePool, layers: Layers) -> None:
    """Whatever is configured now: the base image was made so, and docker info shows that pool."""
    pool.images["docker_image_base_image"].data_pool = "objects"
    parent = ""
    for depth in range(MAX_ANCESTORS + 2):
        layers.create(f"l{depth}", parent or None, None, leaf=False, written=LARGE)
        parent = f"l{depth}"
        write(pool, parent, "something")
    layers.create("copy", parent, None, leaf=True, written=0)
    assert {image.data_pool for image in pool.images.values()} == {"objects"}
    assert {"clone", "copy", "deep_copy"} <= {call[0] for call in pool.calls}


# -- removal -------------------------------------------------------------------------------------


def test_an_image_is_deleted_where_it_is(pool: FakePool, layers: Layers) -> None:
    """A full pool does not let an image's metadata be asked for."""
    layers.create("a", None, None, leaf=False)
    pool.snapshot("docker_image_a", "depth1")
    pool.calls.clear()
    layers.check_owner_of_removed("a")
    layers.remove("a")
    assert "docker_image_a" not in pool.images
    assert not pool.trashed_images
    assert not pool.named("metadata")


def test_what_has_clones_goes_to_the_trash_and_after_them(pool: FakePool, layers: Layers) -> None:
    layers.create("a", None, None, leaf=False)
    write(pool, "a", "of a")
    layers.create("b", "a", None, leaf=False, written=LARGE)
    layers.remove("a")
    [image_id] = [item.image_id for item in layers.removed()]
    assert layers.delete_trashed(image_id) is False
    layers.remove("b")
    assert layers.delete_trashed(image_id) is True
    assert pool.trashed_images == {}


def test_a_removal_that_is_given_up_goes_on_with_the_next(pool: FakePool, layers: Layers) -> None:
    layers.create("a", None, None, leaf=False)
    pool.fails["remove_slowly"] = [CommandGivenUp(("rbd",), None, "given up")]
    with pytest.raises(CommandGivenUp):
        layers.remove("a")
    layers.remove("a")
    assert list(pool.images) == ["docker_image_base_image"]


def test_what_is_gone_is_said(layers: Layers) -> None:
    with pytest.raises(rbdcli.ImageMissing):
        layers.remove("a")


def test_the_owner_of_what_is_removed_is_asked_for(pool: FakePool, layers: Layers) -> None:
    pool.add("docker_image_a", metadata={OWNER_KEY: "another /home"})
    with pytest.raises(LayerError, match="layer a belongs to host another"):
        layers.check_owner_of_removed("a")
    with pytest.raises(rbdcli.ImageMissing):
        layers.check_owner_of_removed("b")


def test_content_is_deleted_until_it_is_enough(pool: FakePool, layers: Layers) -> None:
    pool.add("docker_image_a", used=500 << 18)
    looks = iter([False, False, True])
    layers.empty("a", lambda: next(looks))
    deleted = [words for name, *words in pool.calls if name == "rados"]
    names = [name for words in deleted for name in words[2:]]
    assert sorted(names) == [f"rbd_data.id2.{number:016x}" for number in range(200)]
    assert all(words[:2] == ["--force-full", "rm"] for words in deleted)


def test_one_that_cannot_go_does_not_keep_the_rest_of_the_trash(pool: FakePool, layers: Layers) -> None:
    """An operator's protected snapshot, somebody's lock, a deletion that does not get on."""
    for name in "abc":
        pool.add(f"docker_image_{name}", created=time.time())
        pool.trash(f"docker_image_{name}")
    pool.fails["remove_trashed"] = [failed(rbdcli.ImageBusy, 16), timed_out(), None, failed(rbdcli.ImageBusy, 16)]
    pool.fails["remove_trashed"] += [timed_out()] * 9
    layers.reap()
    assert len(pool.trashed_images) == 2


# -- what others, and crashes, leave ----------------------------------------------------------------


def test_an_operator_s_snapshot_is_not_taken_for_ours(pool: FakePool, layers: Layers) -> None:
    """`rbd snap create` for a backup: a copy would get it too, and a clone needs one of ours."""
    layers.create("a", None, None, leaf=False)
    pool.snapshot("docker_image_a", "backup")
    again = Layers(pool.as_pool(), options.DEFAULTS, "/home")
    assert again.create("b", "a", None, leaf=False).parent == rbdcli.Parent("docker_image_a", "depth1")
    assert [*pool.images["docker_image_b"].snapshots] == []


@pytest.mark.parametrize("failure", [timed_out(), failed(rbdcli.RbdError, -9)])
def test_a_snapshot_that_was_cut_off_is_not_copied_for_the_child_s(
    pool: FakePool, layers: Layers, failure: Exception
) -> None:
    """The child of the copy would be a clone of what the parent held."""
    layers.create("a", None, None, leaf=False)
    write(pool, "a", "of a")
    pool.fails["snapshot"] = [(failure,)]
    with pytest.raises(type(failure)):
        layers.prepare("a")
    layers.create("b", "a", None, leaf=True, written=0)
    write(pool, "b", "of b")
    layers.create("c", "b", None, leaf=False, written=LARGE)
    assert pool.images["docker_image_c"].held == "of b"


def test_content_that_clones_may_need_stays(pool: FakePool, layers: Layers) -> None:
    layers.create("a", None, None, leaf=False)
    write(pool, "a", "of a")
    layers.create("b", "a", None, leaf=False, written=LARGE)
    pool.images["docker_image_a"].used = 500 << 18
    pool.calls.clear()
    layers.empty("a")
    assert not pool.named("rados")
