"""layers.py: what a layer's image is made of, what a time-out leaves in doubt, and removal; in a pool in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from unit.fakes import BASE_IMAGE, SIZE, FakePool, failed, missing, recorded, timed_out

import rbdcli
from cluster.owner import Owner
from host.command import CommandError, CommandGivenUp
from images import options
from images.layers import TAKEN_KEY, LayerError, Layers
from images.record import KEY, Record

OWNER = Owner.here("/home")
SMALL = options.parse(["ceph.basesize=512M"])
# Of a base image and of what is configured now.
BASE_SIZE = options.DEFAULTS.basesize


@pytest.fixture
def pool() -> FakePool:
    made = FakePool()
    made.add_base(size=BASE_SIZE)
    return made


@pytest.fixture
def layers(pool: FakePool) -> Layers:
    return new_life(pool)


def new_life(pool: FakePool, said: options.Options = options.DEFAULTS) -> Layers:
    """What a new process has, which has asked for nothing yet."""
    return Layers(pool.as_pool(), said, "/home")


def chain(layers: Layers, *names: str) -> None:
    """Layers, each on the one before."""
    parent = None
    for name in names:
        layers.create(name, parent, None)
        parent = name


# -- create --------------------------------------------------------------------------------------


def test_every_layer_is_a_clone_of_the_base_image(pool: FakePool, layers: Layers) -> None:
    """However many are below it: what those brought is in their images."""
    names = [f"l{number}" for number in range(40)]
    chain(layers, *names)
    for at, name in enumerate(names):
        made = pool.images[f"docker_image_{name}"]
        assert made.parent == rbdcli.Parent(BASE_IMAGE, "empty")
        assert made.record == Record(OWNER, tuple(reversed(names[:at])))
    assert {item for item in pool.calls if item[0] == "snapshot"} == set()
    assert pool.images[BASE_IMAGE].snapshots == ["empty"]


def test_what_is_below_a_layer_is_asked_for_once(pool: FakePool, layers: Layers) -> None:
    chain(layers, "a", "b", "c")
    assert (layers.parents("c"), layers.parents("a")) == (("b", "a"), ())
    assert not pool.named("metadata")
    again = new_life(pool)
    assert again.parents("c") == again.parents("c") == ("b", "a")
    # In a way that a full pool answers, too.
    assert (pool.named("metadata"), pool.named("data")) == ([], ["docker_image_c"])


def test_a_child_of_a_layer_from_before_our_start(pool: FakePool, layers: Layers) -> None:
    chain(layers, "a", "b")
    new_life(pool).create("c", "b", None)
    assert pool.images["docker_image_c"].record == Record(OWNER, ("b", "a"))
    # One question tells whose the parent is, and what is below it.
    assert (pool.named("metadata"), pool.named("data")) == (["docker_image_b"], [])


def test_a_container_is_a_copy_of_its_init_layer(pool: FakePool, layers: Layers) -> None:
    """It stands on the same, and not on the init layer: what that brought is in it."""
    chain(layers, "a", "b", "c-init")
    pool.images["docker_image_c-init"].used = 4096
    pool.calls.clear()
    layers.create("c", "c-init", None)
    made = pool.images["docker_image_c"]
    assert (made.used, made.parent) == (4096, rbdcli.Parent(BASE_IMAGE, "empty"))
    assert made.record == pool.images["docker_image_c-init"].record == Record(OWNER, ("b", "a"))
    assert layers.parents("c") == ("b", "a")
    # One command makes it.
    assert [call[0] for call in pool.calls] == ["deep_copy"]


def test_an_init_layer_without_a_parent(pool: FakePool, layers: Layers) -> None:
    """Of a container of an empty image."""
    chain(layers, "c-init", "c")
    assert pool.images["docker_image_c"].record == Record(OWNER, ())


def test_a_layer_has_its_content_where_the_base_image_has_it(pool: FakePool, layers: Layers) -> None:
    """Whatever is configured now: the base image was made so, and docker info shows that pool."""
    pool.images[BASE_IMAGE].data_pool = "objects"
    chain(layers, "a", "b", "c-init", "c")
    assert {item.data_pool for item in pool.images.values()} == {"objects"}
    assert {"clone", "deep_copy"} <= {call[0] for call in pool.calls}


def test_what_is_there_already(pool: FakePool, layers: Layers) -> None:
    chain(layers, "a")
    first = pool.images["docker_image_a"]
    with pytest.raises(LayerError, match="layer a exists already: image docker_image_a"):
        layers.create("a", None, None)
    assert pool.images["docker_image_a"] is first


def test_a_parent_of_another_host(pool: FakePool, layers: Layers) -> None:
    pool.add_layer("a", owner="another /home")
    with pytest.raises(LayerError, match="layer a belongs to host another"):
        layers.create("b", "a", None)
    assert "docker_image_b" not in pool.images


def test_a_parent_that_was_never_made_to_its_end(pool: FakePool, layers: Layers) -> None:
    """Its Create was killed between its image and the record of it."""
    pool.add("docker_image_a", metadata={key: said for key, said in recorded(OWNER).items() if key != KEY})
    said = f"layer a was never made to its end: docker_image_a has no {KEY}; remove it"
    for ask in (lambda: layers.parents("a"), lambda: layers.create("b", "a", None)):
        with pytest.raises(LayerError, match=said):
            ask()
    assert layers.parents_if_there("a") is None
    layers.check_owner_of_removed("a")
    layers.remove("a")


def test_a_record_that_no_driver_wrote(pool: FakePool, layers: Layers) -> None:
    pool.add("docker_image_a", metadata={KEY: "{}"})
    for ask in (layers.parents, layers.parents_if_there, layers.check_owner_of_removed):
        with pytest.raises(LayerError, match=f"layer a: {KEY} is '{{}}'"):
            ask("a")


@pytest.mark.parametrize("parent", ["a", "c-init"])
def test_a_parent_that_goes_meanwhile(pool: FakePool, layers: Layers, parent: str) -> None:
    chain(layers, parent)
    again = new_life(pool)
    del pool.images[f"docker_image_{parent}"]
    with pytest.raises((LayerError, rbdcli.ImageMissing)):
        again.create("new", parent, None)
    assert "docker_image_new" not in pool.images


def test_an_init_layer_that_goes_is_named(pool: FakePool, layers: Layers) -> None:
    chain(layers, "c-init")
    del pool.images["docker_image_c-init"]
    with pytest.raises(LayerError, match="layer c: its parent c-init does not exist"):
        layers.create("c", "c-init", None)


# -- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "configured", "asked", "size"),
    [
        ("10G", "10G", None, "10G"),
        # A base image is made once, and basesize said again.
        ("10G", "20G", None, "20G"),
        ("10G", "5G", None, "10G"),
        ("10G", "10G", "20G", "20G"),
        ("10G", "20G", "30G", "30G"),
        ("10G", "20G", "10G", "10G"),
        ("10G", "20G", "15G", "15G"),
    ],
)
def test_how_large_a_layer_is(pool: FakePool, base: str, configured: str, asked: str | None, size: str) -> None:
    pool.images[BASE_IMAGE].size = options.parse_size(base)
    layers = new_life(pool, options.parse([f"ceph.basesize={configured}"]))
    wanted = options.parse_size(asked) if asked else None
    grown = layers.create("a", None, wanted)
    assert pool.images["docker_image_a"].size == layers.describe("a").size == options.parse_size(size)
    # Only then the file system in it is smaller.
    assert grown is (size != base)
    # A child begins anew: its own image holds only what it brings.
    layers.create("b", "a", None)
    default = max(options.parse_size(base), options.parse_size(configured))
    assert pool.images["docker_image_b"].size == default


def test_a_size_that_is_smaller_than_the_file_system(pool: FakePool, layers: Layers) -> None:
    with pytest.raises(LayerError, match=r"layer a: size 5G is smaller than 10G, .*; ask for at least that"):
        layers.create("a", None, 5 << 30)
    assert [*pool.images] == [BASE_IMAGE]


@pytest.mark.parametrize(("asked", "size"), [(None, 20), (20, 20), (30, 30)])
def test_a_container_is_as_large_as_its_init_layer(pool: FakePool, asked: int | None, size: int) -> None:
    """`docker run --storage-opt size=` says it to both."""
    layers = new_life(pool, SMALL)
    layers.create("c-init", None, 20 << 30)
    grown = layers.create("c", "c-init", asked << 30 if asked else None)
    assert pool.images["docker_image_c"].size == layers.describe("c").size == size << 30
    assert grown is (size > 20)


def test_a_container_that_shall_be_smaller_than_its_init_layer(pool: FakePool, layers: Layers) -> None:
    layers.create("c-init", None, 20 << 30)
    with pytest.raises(LayerError, match="size 15G is smaller than 20G"):
        layers.create("c", "c-init", 15 << 30)
    assert "docker_image_c" not in pool.images


def test_an_image_that_grows(pool: FakePool, layers: Layers) -> None:
    chain(layers, "a")
    layers.grow("a", 4 * BASE_SIZE)
    assert pool.images["docker_image_a"].size == layers.describe("a").size == 4 * BASE_SIZE


# -- a create that fails ---------------------------------------------------------------------------


STEPS = ["clone", "set_metadata", "resize"]


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("failure", [failed(rbdcli.RbdError, 5), timed_out()])
@pytest.mark.parametrize("step", [*STEPS, "deep_copy"])
def test_a_create_that_fails_leaves_no_image(
    pool: FakePool, layers: Layers, step: str, failure: CommandError, done: bool
) -> None:
    """What timed out may be done all the same; nobody was told of it."""
    layers.create("c-init", None, None)
    pool.fails[step] = [(failure, True) if done else failure]
    parent = "c-init" if step == "deep_copy" else None
    with pytest.raises(type(failure)) as raised:
        layers.create("c", parent, 2 * BASE_SIZE)
    assert raised.value is failure
    assert sorted(pool.images) == [BASE_IMAGE, "docker_image_c-init"]
    assert not layers.exists("c")
    layers.create("c", parent, 2 * BASE_SIZE)
    assert pool.images["docker_image_c"].size == 2 * BASE_SIZE


@pytest.mark.parametrize("step", ["set_metadata", "resize"])
def test_what_cannot_be_undone_is_said_in_the_log_and_not_instead_of_why(
    pool: FakePool, layers: Layers, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    """It is one short command: somebody waits for it."""
    failure = failed(rbdcli.RbdError, 28, "No space left on device")
    pool.fails[step], pool.fails["remove"] = [failure], [timed_out()]
    with pytest.raises(rbdcli.RbdError, match="No space left"):
        layers.create("a", None, 2 * BASE_SIZE)
    assert pool.named("remove") == ["docker_image_a"]
    assert not pool.named("remove_slowly")
    assert any("image docker_image_a is left behind" in record.message for record in caplog.records)


def test_half_an_image_can_be_removed_and_made_anew(pool: FakePool, layers: Layers) -> None:
    """A Create that was killed; Docker knows nothing of it."""
    pool.fails["set_metadata"], pool.fails["remove"] = [failed(rbdcli.RbdError, 5)], [timed_out()]
    with pytest.raises(rbdcli.RbdError):
        layers.create("a", None, None)
    again = new_life(pool)
    with pytest.raises(LayerError, match="layer a exists already"):
        again.create("a", None, None)
    again.check_owner("a", lease=0)
    again.check_owner_of_removed("a")
    again.remove("a")
    again.create("a", None, None)
    assert pool.images["docker_image_a"].record == Record(OWNER, ())


def test_what_failed_is_not_remembered(pool: FakePool, layers: Layers) -> None:
    """Neither whose it is, nor what is below it, nor that it stands on anything."""
    chain(layers, "a")
    pool.fails["resize"] = [failed(rbdcli.RbdError, 5)]
    with pytest.raises(rbdcli.RbdError):
        layers.create("b", "a", 2 * BASE_SIZE)
    assert layers.needing("a") == []
    pool.add_layer("b", "x", owner="another /home")
    with pytest.raises(LayerError, match="belongs to host another"):
        layers.check_owner("b", lease=float("inf"))
    assert layers.parents("b") == ("x",)


def test_a_layer_that_is_undone_stands_on_nothing(pool: FakePool, layers: Layers) -> None:
    chain(layers, "a", "b")
    assert layers.needing("a") == ["b"]
    layers.undo("b")
    assert layers.needing("a") == []
    assert "docker_image_b" not in pool.images
    # Made anew, by whomever, it stands on what it is made on.
    pool.add_layer("b", "x", size=SIZE)
    assert (layers.parents("b"), layers.describe("b").size) == (("x",), SIZE)


# -- who needs a layer -----------------------------------------------------------------------------


def test_who_stands_on_a_layer(pool: FakePool, layers: Layers) -> None:
    """Whoever made it, and however far above it is; a container stands on its image, and not on its init layer."""
    chain(layers, "a", "b", "c-init")
    layers.create("c", "c-init", None)
    pool.add_layer("theirs", "b", "a", owner="another /home")
    for known in (layers, new_life(pool)):
        assert known.needing("a") == ["b", "c", "c-init", "theirs"]
        assert known.needing("b") == ["c", "c-init", "theirs"]
        assert known.needing("c-init") == []


def test_what_we_make_is_known_to_stand_on_a_layer_at_once(pool: FakePool, layers: Layers) -> None:
    """The pool is asked for all of them only now and then."""
    chain(layers, "a")
    assert layers.needing("a") == []
    layers.create("b", "a", None)
    assert layers.needing("a") == ["b"]
    assert pool.calls.count(("list",)) == 1


def test_what_is_no_layer_stands_on_nothing(pool: FakePool, layers: Layers) -> None:
    """Base images, one that is being made, other prefixes, what is in the trash, what was never made to its end."""
    chain(layers, "a")
    stands = recorded(OWNER, "a")
    for name in (layers.scratch(), "other_image_b", "docker_image_more_b"):
        pool.add(name, metadata=stands)
    pool.add("docker_image_more_base_image")
    pool.add("docker_image_gone", metadata=stands)
    pool.trash("docker_image_gone")
    pool.add("docker_image_half", metadata={})
    assert layers.needing("a") == []


def test_a_pool_that_does_not_tell_who_stands_on_a_layer(pool: FakePool, layers: Layers) -> None:
    pool.add_layer("a")
    pool.add_layer("b", "a")
    for verb in ("list", "data", "rados"):
        pool.fails[verb] = [failed(rbdcli.RbdError, 110)]
        with pytest.raises(rbdcli.RbdError):
            layers.needing("a")
    assert layers.needing("a") == ["b"]


# -- whose a layer is --------------------------------------------------------------------------------


def test_whose_a_layer_is_is_asked_again_after_its_time(pool: FakePool, layers: Layers) -> None:
    chain(layers, "a")
    layers.check_owner("a", lease=60)
    assert not pool.named("metadata")
    pool.images["docker_image_a"].metadata.update(recorded("another /home"))
    layers.check_owner("a", lease=60)
    with pytest.raises(LayerError, match="layer a belongs to host another"):
        layers.check_owner("a", lease=0)


def test_who_asks_whose_it_is_learns_what_is_below_it(pool: FakePool) -> None:
    """One command for both."""
    pool.add_layer("c", "b", "a")
    layers = new_life(pool)
    layers.check_owner("c", lease=0)
    assert layers.parents("c") == ("b", "a")
    assert pool.named("metadata") == ["docker_image_c"]


def test_who_has_a_layer_is_said(pool: FakePool, layers: Layers) -> None:
    lock = rbdcli.Lock("auto 1", "client.5", "10.0.0.2:0/9")
    pool.add_layer("a", owner="another /its home", watchers=["10.0.0.2:0/9"], locks=[lock])
    said = layers.holder("a")
    for words in ("its owner is another /its home", "open at 10.0.0.2:0/9", "locked by client.5 at 10.0.0.2:0/9"):
        assert words in said
    pool.images["docker_image_a"].metadata.clear()
    assert "its owner is unknown" in layers.holder("a")


def test_a_copy_is_not_taken_for_one_that_was_taken_over(pool: FakePool, layers: Layers) -> None:
    """It has the metadata of what it is a copy of."""
    chain(layers, "c-init")
    pool.set_metadata("docker_image_c-init", TAKEN_KEY, "docker_image_c-init")
    layers.create("c", "c-init", None)
    assert pool.images["docker_image_c"].metadata[TAKEN_KEY] != "docker_image_c"


# -- layers of all hosts -----------------------------------------------------------------------------


def add_shared(pool: FakePool, layer: str, *parents: str, owner: str = "another /home") -> None:
    """A layer that a host has shared."""
    pool.add_layer(layer).metadata[KEY] = str(Record(Owner.parse(owner), parents, shared=True))


def test_a_layer_is_shared_for_good_and_stays_what_it_was(pool: FakePool, layers: Layers) -> None:
    chain(layers, "a", "b")
    assert not layers.is_shared("b")
    layers.share("b")
    assert layers.is_shared("b")
    assert pool.images["docker_image_b"].record == Record(OWNER, ("a",), shared=True)
    written = len(pool.named("set_header"))
    layers.share("b")
    assert len(pool.named("set_header")) == written


def test_only_a_whole_layer_of_our_own_is_shared(pool: FakePool, layers: Layers) -> None:
    pool.add("docker_image_half")
    with pytest.raises(LayerError, match="layer half was never made to its end"):
        layers.share("half")
    pool.add_layer("theirs", owner="another /home")
    with pytest.raises(LayerError, match="layer theirs belongs to host another"):
        layers.share("theirs")
    with pytest.raises(rbdcli.ImageMissing):
        layers.share("gone")
    assert not pool.named("set_header")
    assert not layers.is_shared("theirs")
    assert not layers.is_shared("half")


def test_a_shared_layer_that_is_to_go_is_ours_whoever_made_it(pool: FakePool, layers: Layers) -> None:
    add_shared(pool, "b", "a")
    layers.own("b")
    assert pool.images["docker_image_b"].record == Record(OWNER, ("a",))
    layers.check_owner_of_removed("b")


def test_nobody_owns_what_was_never_shared(pool: FakePool, layers: Layers) -> None:
    """Another host may have taken it home, or made it."""
    pool.add_layer("theirs", owner="another /home")
    pool.add("docker_image_half")
    for layer in ("theirs", "half"):
        layers.own(layer)
    assert pool.images["docker_image_theirs"].record.owner == Owner.parse("another /home")
    assert not pool.named("set_header")
    with pytest.raises(rbdcli.ImageMissing):
        layers.own("gone")


def test_whose_it_is_is_asked_anew_after_it_came_home(pool: FakePool, layers: Layers) -> None:
    add_shared(pool, "a")
    layers.check_owner("a", lease=60)
    layers.own("a")
    pool.images["docker_image_a"].metadata.update(recorded("another /home"))
    with pytest.raises(LayerError, match="layer a belongs to host another"):
        layers.check_owner("a", lease=60)


def test_a_shared_layer_is_used_and_built_upon_by_all_and_removed_by_none(pool: FakePool, layers: Layers) -> None:
    add_shared(pool, "theirs")
    add_shared(pool, "ours", owner=str(OWNER))
    for layer in ("theirs", "ours"):
        layers.check_owner(layer, lease=0)
        layers.create(f"on {layer}", layer, None)
        with pytest.raises(LayerError, match=f"layer {layer} is shared by all hosts"):
            layers.check_owner_of_removed(layer)


def test_what_is_mapped_of_a_shared_layer_may_be_another_homes(pool: FakePool, layers: Layers) -> None:
    chain(layers, "a")
    assert layers.is_abandoned("a")
    layers.share("a")
    assert not layers.is_abandoned("a")


# -- removal -------------------------------------------------------------------------------------


def test_an_image_is_deleted_where_it_is(pool: FakePool, layers: Layers) -> None:
    """A full pool does not let an image's metadata be asked for."""
    chain(layers, "a")
    pool.snapshot("docker_image_a", "backup")
    pool.calls.clear()
    layers.check_owner_of_removed("a")
    layers.remove("a")
    assert "docker_image_a" not in pool.images
    assert not pool.trashed_images
    assert not pool.named("metadata")


def test_a_removal_that_is_given_up_goes_on_with_the_next(pool: FakePool, layers: Layers) -> None:
    chain(layers, "a")
    pool.fails["remove_slowly"] = [CommandGivenUp(("rbd",), None, "given up")]
    with pytest.raises(CommandGivenUp):
        layers.remove("a")
    layers.remove("a")
    assert list(pool.images) == [BASE_IMAGE]


def test_what_is_gone_is_said(layers: Layers) -> None:
    with pytest.raises(rbdcli.ImageMissing):
        layers.remove("a")


def test_the_owner_of_what_is_removed_is_asked_for(pool: FakePool, layers: Layers) -> None:
    pool.add_layer("a", owner="another /home")
    with pytest.raises(LayerError, match="layer a belongs to host another"):
        layers.check_owner_of_removed("a")
    with pytest.raises(rbdcli.ImageMissing):
        layers.check_owner_of_removed("b")


def test_what_is_removed_is_forgotten_also_if_it_was_listed_until_it_had_gone(pool: FakePool, layers: Layers) -> None:
    chain(layers, "a", "b")
    removal = pool.remove_slowly

    def listed_meanwhile(name: str, give_up: Callable[[], bool]) -> None:
        assert new_life(pool).needing("a") == layers.needing("a") == ["b"]
        removal(name, give_up)

    object.__setattr__(pool, "remove_slowly", listed_meanwhile)
    layers.remove("b")
    assert layers.needing("a") == []


def test_content_is_deleted_until_it_is_enough(pool: FakePool, layers: Layers) -> None:
    pool.add("docker_image_a", used=500 << 18)
    looks = iter([False, False, True])
    layers.empty("a", lambda: next(looks))
    deleted = [words for name, *words in pool.calls if name == "rados"]
    names = [name for words in deleted for name in words[2:]]
    assert sorted(names) == [f"rbd_data.id2.{number:016x}" for number in range(200)]
    assert all(words[:2] == ["--force-full", "rm"] for words in deleted)


def test_content_that_an_operators_clones_may_need_stays(pool: FakePool, layers: Layers) -> None:
    chain(layers, "a")
    pool.images["docker_image_a"].used = 500 << 18
    pool.snapshot("docker_image_a", "backup")
    pool.calls.clear()
    layers.empty("a")
    assert not pool.named("rados")


# -- what others, and crashes, leave ----------------------------------------------------------------


def test_an_operator_s_snapshot_of_the_base_image_is_not_taken_for_ours(pool: FakePool, layers: Layers) -> None:
    """`rbd snap create` for a backup."""
    pool.images[BASE_IMAGE].snapshots = ["backup", "empty"]
    layers.create("a", None, None)
    assert pool.images["docker_image_a"].parent == rbdcli.Parent(BASE_IMAGE, "empty")
    assert pool.images["docker_image_a"].snapshots == []


def test_a_lost_snapshot_that_another_host_takes_at_the_same_time(pool: FakePool, layers: Layers) -> None:
    pool.fails["clone"] = [missing()]
    layers.create("a", None, None)
    assert pool.images[BASE_IMAGE].snapshots == ["empty"]
    assert pool.images["docker_image_a"].record == Record(OWNER, ())


def test_what_was_known_of_a_base_image_that_has_gone_is_forgotten(pool: FakePool, layers: Layers) -> None:
    """It may be made anew with another size."""
    layers.create("a", None, None)
    base = pool.images.pop(BASE_IMAGE)
    with pytest.raises(LayerError, match="does not exist any more"):
        layers.create("b", None, None)
    base.size = SIZE << 5
    pool.images[BASE_IMAGE] = base
    layers.create("b", None, None)
    assert pool.images["docker_image_b"].size == SIZE << 5
