"""views.py: layers joined with their parents, never two of them on one directory, whatever fails or hangs."""

from __future__ import annotations

import threading

import pytest
from unit.fake_host import FakeHost, refused
from unit.fakes import FakePool, failed, timed_out
from unit.layered import Life, acquire, again, nothing_left, release

import mounts
import rbdcli
from host import deadline
from host.command import CommandError, CommandTimeout
from images import layer_state
from mapped import overlays
from mapped.file_systems import LayerLost
from mapped.unmounting import LayerBusy
from mapped.view import Place

pytestmark = pytest.mark.usefixtures("stack")
DOCKER, DRIVER, BELOW = Place.DOCKER, Place.DRIVER, Place.BELOW


def test_who_is_at_work_with_a_parent_keeps_nobody_from_leaving_it(life: Life, host: FakeHost) -> None:
    """As long as the cluster is sick, that may be longer than a Put may take."""
    life.get("c")
    with life.locks.hold("a"), deadline.within(0.1):
        life.put("c")
    assert life.systems.users("a") == life.systems.users("b") == set()


# -- counts --------------------------------------------------------------------------------------


def test_the_last_put_unmounts_and_the_rest_goes_when_it_is_let_go(life: Life, host: FakeHost) -> None:
    life.get("c")
    life.get("c")
    assert len(host.overlays) == 1
    life.put("c")
    assert life.views.is_mounted("c", DOCKER)
    assert life.idle == []
    life.put("c")
    # All of it is in the cluster now, and stays mounted for the next.
    assert host.flushed == [life.paths.point("c")]
    assert sorted(host.mounted) == [life.paths.point(layer) for layer in "abc"]
    assert sorted(life.idle) == ["a", "b", "c"]
    life.unmap()
    assert nothing_left(life, host)


def test_release_of_what_was_never_mounted(life: Life, host: FakeHost) -> None:
    for place in Place:
        release(life, "c", place)
    life.get("c")
    release(life, "c", DRIVER)
    release(life, "c", BELOW)
    assert life.views.is_mounted("c", DOCKER)
    life.put("c")
    life.put("c")
    life.unmap()
    assert nothing_left(life, host)


def test_what_is_shared_is_mapped_once_and_goes_with_the_last(life: Life, host: FakeHost, pool: FakePool) -> None:
    life.get("c")
    life.get("other")
    maps = ["docker_image_a", "docker_image_b", "docker_image_c", "docker_image_other"]
    assert sorted(pool.named("map")) == maps
    assert life.systems.users("a") == {"c/docker", "other/docker"}
    life.put("c")
    life.unmap()
    assert sorted(life.devices.mapped()) == ["a", "b", "other"]
    assert life.systems.users("a") == {"other/docker"}
    life.put("other")
    life.unmap()
    assert nothing_left(life, host)


def test_docker_cannot_have_a_layer_while_an_archive_is_laid_down(life: Life, host: FakeHost) -> None:
    """Two views on the same directories would spoil both."""
    assert acquire(life, "c", DRIVER) is DRIVER
    with pytest.raises(LayerBusy, match="layer c: an archive is being laid down in it; try again"):
        life.get("c")
    assert [*host.views()] == [life.point("c", DRIVER)]
    release(life, "c", DRIVER)
    assert host.mounted[life.get("c")].read_only is False
    life.put("c")
    life.unmap()
    assert nothing_left(life, host)


def test_a_finished_layer_may_have_two_views(life: Life, host: FakeHost) -> None:
    acquire(life, "b", DRIVER, finished=True)
    life.get("b", finished=True)
    assert [*host.views()] == [life.point("b", DRIVER), life.point("b")]
    release(life, "b", DRIVER)
    assert life.systems.users("a") == {"b/docker"}
    life.put("b")
    life.unmap()
    assert nothing_left(life, host)


def test_our_own_work_uses_docker_s_mount_and_does_not_end_it(life: Life, host: FakeHost) -> None:
    life.get("c")
    assert acquire(life, "c", DRIVER) is DOCKER
    life.put("c")
    assert [*host.views()] == [life.point("c")]
    release(life, "c", DOCKER)
    assert host.views() == {}


def test_a_layer_that_is_just_being_finished_is_not_got_as_a_finished_one(life: Life, host: FakeHost) -> None:
    """Its archive is in the cluster, and its view is not let go yet: it would be read-only under that."""
    acquire(life, "c", DRIVER)
    life.systems.set_finished("c")
    with pytest.raises(LayerBusy, match="layer c: an archive is being laid down in it; try again"):
        life.get("c", finished=True)
    release(life, "c", DRIVER)
    assert host.mounted[life.get("c", finished=True)].read_only


def test_a_view_that_nobody_uses_any_more_is_in_nobody_s_way(life: Life, host: FakeHost) -> None:
    """One view has one label."""
    acquire(life, "c", DRIVER)
    host.fails["unmount"] = [refused("target is busy")] * 2
    with pytest.raises(LayerBusy):
        release(life, "c", DRIVER)
    life.get("c", label="x")
    assert [*host.views()] == [life.point("c")]
    assert host.mounted[life.point("c")].label == "x"
    life.put("c")
    life.unmap()
    assert nothing_left(life, host)


def test_parents_are_mapped_side_by_side(life: Life, pool: FakePool) -> None:
    """A map waits for the cluster, and a deep image is many."""
    together, mapping = threading.Barrier(3, timeout=300), pool.map

    def map_together(image: str, *, read_only: bool, exclusive: bool) -> str:
        together.wait()
        return mapping(image, read_only=read_only, exclusive=exclusive)

    object.__setattr__(pool, "map", map_together)
    life.get("c")
    assert len(pool.devices) == 3


# -- what fails ----------------------------------------------------------------------------------


def fail(life: Life, host: FakeHost, monkeypatch: pytest.MonkeyPatch, step: str, failure: Exception) -> None:
    """Let the next Get of c fail at a step."""
    if step == "overlay":
        host.fails[step] = [failure]
    elif step.startswith(("map ", "mount ")):
        verb, layer = step.split()
        target = life.pool if verb == "map" else mounts
        work = getattr(target, verb)

        def fails(*words: object, **options: object) -> object:
            if f"docker_image_{layer}" in words or life.pool.devices.get(f"docker_image_{layer}") in words:
                raise failure
            return work(*words, **options)

        if verb == "map":
            object.__setattr__(target, verb, fails)
        else:
            monkeypatch.setattr(target, verb, fails)
    else:

        def raises(*_: object) -> None:
            raise failure

        module, name = step.split(".")
        monkeypatch.setattr({"layer_state": layer_state, "overlays": overlays}[module], name, raises)


STEPS = [
    "map c",
    "map b",
    "map a",
    "mount c",
    "mount b",
    "layer_state.write",
    "layer_state.read",
    "overlays._prepare",
    "overlay",
]


@pytest.mark.parametrize("place", [DOCKER, BELOW])
@pytest.mark.parametrize("step", STEPS)
def test_a_get_that_fails_leaves_nothing(life: Life, host: FakeHost, step: str, place: Place) -> None:
    failure = failed(rbdcli.RbdError, 5)
    with pytest.MonkeyPatch.context() as patch:
        fail(life, host, patch, step, failure)
        with pytest.raises(CommandError) as raised:
            acquire(life, "c", place)
    assert raised.value is failure
    assert host.views() == {}
    assert {user for layer in life.devices.mapped() for user in life.systems.users(layer)} == set()
    # What was mapped is told to be idle, so that it goes.
    life.unmap()
    assert nothing_left(life, host)


def test_a_layer_that_is_not_there(life: Life, host: FakeHost) -> None:
    with pytest.raises(rbdcli.ImageMissing):
        life.get("missing")
    assert nothing_left(life, host)


def test_a_parent_that_is_not_there_any_more_is_named(life: Life, host: FakeHost, pool: FakePool) -> None:
    del pool.images["docker_image_a"]
    with pytest.raises(LayerLost) as raised:
        life.get("c")
    said = str(raised.value)
    assert said.startswith("layer c cannot be mounted: what is below it, layer a, does not exist any more (no image")
    assert said.endswith("docker_image_a); remove it")
    life.unmap()
    assert nothing_left(life, host)


def test_a_parent_that_another_host_has_mapped_writable_does_not_keep_us(life: Life, pool: FakePool) -> None:
    """A finished layer is mapped read-only, which takes no lock."""
    locked = pool.map

    def refuses(image: str, *, read_only: bool, exclusive: bool) -> str:
        if not read_only and image == "docker_image_b":
            raise failed(rbdcli.ImageLocked, 30)
        return locked(image, read_only=read_only, exclusive=exclusive)

    object.__setattr__(pool, "map", refuses)
    life.get("c")


def test_a_dead_device_of_a_shared_parent_is_named_and_mended_after_its_last_user(
    life: Life, host: FakeHost, pool: FakePool
) -> None:
    life.get("c")
    dead = host.die("a")
    for layer in ("other", "c"):
        with pytest.raises(LayerLost) as raised:
            life.get(layer)
        said = str(raised.value)
        assert f"layer a: its device {dead} is gone" in said
        assert "stop what uses it (c): " in said
    assert life.systems.users("a") == {"c/docker"}
    assert [*host.views()] == [life.point("c")]
    life.put("c")
    life.get("other")
    assert life.devices.device("a") == pool.devices["docker_image_a"] != dead


# -- what takes too long -----------------------------------------------------------------------------


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("place", [DOCKER, BELOW])
def test_a_mount_that_timed_out_is_ended_whether_it_was_done(
    life: Life, host: FakeHost, done: bool, place: Place
) -> None:
    host.fails["overlay"] = [(timed_out(), True) if done else timed_out()]
    with pytest.raises(CommandTimeout):
        acquire(life, "c", place)
    acquire(life, "c", place)
    assert [*host.views()] == [life.point("c", place)]
    release(life, "c", place)
    life.unmap()
    assert nothing_left(life, host)


@pytest.mark.parametrize("then", ["get", "discard", "let go"])
def test_a_mount_that_timed_out_and_could_not_be_ended_is_looked_at_before_the_next_step(
    life: Life, host: FakeHost, then: str
) -> None:
    """Nobody was told of it, and it is there."""
    host.fails["overlay"] = [(timed_out(), True)]
    host.fails["unmount"] = [timed_out()]
    with pytest.raises(CommandTimeout):
        life.get("c")
    assert [*host.views()] == [life.point("c")]
    if then == "get":
        life.get("c")
        assert [*host.views()] == [life.point("c")]
        life.put("c")
    elif then == "discard":
        life.views.discard("c")
    life.unmap("c")
    life.unmap()
    assert nothing_left(life, host)


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("then", ["get", "put", "let go", "discard"])
@pytest.mark.parametrize("place", [DOCKER, BELOW])
def test_an_unmount_that_timed_out_is_looked_at_before_the_next_step(
    life: Life, host: FakeHost, done: bool, then: str, place: Place
) -> None:
    acquire(life, "c", place)
    host.fails["unmount"] = [(timed_out(), True) if done else timed_out()]
    with pytest.raises(CommandTimeout):
        release(life, "c", place)
    if then == "get":
        acquire(life, "c", place)
        assert [*host.views()] == [life.point("c", place)]
    if then in ("get", "put"):
        release(life, "c", place)
        # What was written is in the cluster with the last user.
        assert host.flushed[-1:] == [life.paths.point("c")]
    if then == "discard":
        life.views.discard("c")
    life.unmap("c")
    assert host.views() == {}
    life.unmap()
    assert nothing_left(life, host)


def test_a_view_that_somebody_uses_is_unmounted_by_the_next_release(life: Life, host: FakeHost) -> None:
    life.get("c")
    host.fails["unmount"] = [refused("target is busy")] * 2
    with pytest.raises(LayerBusy, match=r"docker cannot be unmounted: .*process 1 \(sh\)"):
        life.put("c")
    assert life.systems.users("a") == {"c/docker"}
    # It is tried again in the background, too.
    assert life.idle == ["c"]
    life.put("c")
    life.unmap()
    assert nothing_left(life, host)


def test_a_layer_that_others_are_at_work_with_can_be_left(life: Life, host: FakeHost) -> None:
    """For longer than a Put may take, as long as the cluster is sick."""
    life.get("c")
    with life.locks.hold("c"):
        life.views.uncount("c", DOCKER)
        life.views.uncount("c", BELOW)
    life.views.uncount("other", DOCKER)
    life.unmap("c", "b", "a")
    assert nothing_left(life, host)


def test_what_stays_mounted_keeps_nobody_from_looking_at_what_is_below(life: Life, host: FakeHost) -> None:
    """`docker diff` of a container that has ended, and in whose root somebody has his working directory."""
    life.get("c")
    host.fails["unmount"] = [refused("target is busy")] * 2
    with pytest.raises(LayerBusy):
        life.put("c")
    host.fails["unmount"] = [refused("target is busy")] * 2
    acquire(life, "c", BELOW)
    assert host.fails["unmount"] != []


def test_a_layer_that_cannot_be_written_out_after_its_view_has_gone(life: Life, host: FakeHost) -> None:
    """What is below it is free, and it is told that it may not be in the cluster."""
    life.get("c")
    host.fails["flush"] = [deadline.Overdue("no answer")]
    with pytest.raises(deadline.Overdue):
        life.put("c")
    assert [life.systems.users(layer) for layer in "abc"] == [set()] * 3
    assert {*life.idle} == {"a", "b", "c"}
    life.put("c")
    life.unmap()
    assert nothing_left(life, host)


# -- removal -------------------------------------------------------------------------------------


def test_a_removed_layer_is_unmounted_whatever_its_counts(life: Life, host: FakeHost) -> None:
    """BuildKit removes what it never put."""
    life.get("c")
    life.get("c")
    life.views.acquire_own("c", finished=False)
    life.views.discard("c")
    assert host.views() == {}
    life.unmap()
    assert nothing_left(life, host)


def test_what_is_removed_is_not_written_out(life: Life, host: FakeHost) -> None:
    """Nobody wants it any more, and a full pool does not take it."""
    life.get("c")
    life.views.discard("c")
    assert host.flushed == []


def test_one_that_was_never_mounted(life: Life, host: FakeHost) -> None:
    life.views.discard("c")
    life.unmap("c")
    assert nothing_left(life, host)


def test_one_that_a_container_holds_is_not_removed(life: Life, host: FakeHost) -> None:
    host.run_container(life.get("c"))
    with pytest.raises(LayerBusy, match=r"layer c: .*process 1 \(sh\)"):
        life.views.discard("c")
    host.elsewhere.clear()
    life.views.discard("c")
    life.unmap()
    assert nothing_left(life, host)


@pytest.mark.parametrize("hangs", [1, 2])
def test_an_unmount_that_hangs_keeps_the_removal_until_the_kernel_is_done(
    life: Life, host: FakeHost, hangs: int
) -> None:
    """Of its views at any place; each of them is tried."""
    life.get("c")
    life.views.acquire_own("c", finished=False)
    host.fails["unmount"] = [timed_out()] * hangs
    with pytest.raises(CommandTimeout):
        life.views.discard("c")
    assert len(host.views()) == hangs
    life.unmap("c")
    life.unmap()
    assert nothing_left(life, host)


def test_what_the_kernel_still_writes_is_nobody_s(life: Life, host: FakeHost) -> None:
    """It goes once the kernel is done, which the pool may prevent: Docker need not wait for that."""
    life.get("c")
    host.writing.add(str(life.devices.device("c")))
    life.views.discard("c")
    with pytest.raises(LayerBusy):
        life.unmap("c")
    host.writing.clear()
    life.unmap("c")
    assert life.devices.device("c") is None


# -- what a container has ------------------------------------------------------------------------


def test_a_put_that_is_sent_twice_does_not_end_a_running_container_s_mount(life: Life, host: FakeHost) -> None:
    """Its answer was lost in the crash of the former life, and the count of the new one is a guess."""
    host.run_container(life.get("c"))
    new = again(life)
    new.learn()
    new.put("c")
    assert [*host.views()] == [new.point("c")]
    assert len(host.overlays) == 1
    assert [new.systems.users(layer) for layer in "abc"] == [{"c/docker"}] * 3
    host.elsewhere.clear()
    new.put("c")
    new.unmap()
    assert nothing_left(new, host)


@pytest.mark.parametrize("looked_at", [True, False])
def test_a_put_of_what_docker_got_in_this_life_ends_its_mount(life: Life, host: FakeHost, looked_at: bool) -> None:
    """Whoever has it: Docker knows. But it is not mounted a second time beside it."""
    view = host.run_container(life.get("c"))
    life.put("c")
    assert host.views() == {}
    if looked_at:
        life.views.acquire_own("c", finished=False)
    for place in (DOCKER, DRIVER):
        with pytest.raises(LayerBusy, match=r"layer c: .*process 1 \(sh\) has it mounted"):
            acquire(life, "c", place)
    del host.elsewhere[view]
    life.get("c")
    life.put("c")
    if looked_at:
        release(life, "c", BELOW)
    life.unmap()
    assert nothing_left(life, host)
