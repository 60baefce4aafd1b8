"""from_before.py: what an earlier life left on the host is learned, kept for who uses it, and let go of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unit.fake_host import FakeHost, refused
from unit.fakes import FakePool, timed_out
from unit.layered import Life, acquire, again, finish, leave, nothing_left, release, share, write

import mounts
from host import deadline
from host.command import CommandError
from images import layer_state
from images.layer_state import LayerState
from mapped import from_before
from mapped.unmounting import LayerBusy
from mapped.view import Place

pytestmark = pytest.mark.usefixtures("stack")
DOCKER, DRIVER, BELOW = Place.DOCKER, Place.DRIVER, Place.BELOW


# -- what is mapped and mounted --------------------------------------------------------------------


def test_a_new_life_finds_what_was_mapped_and_mounted(life: Life, host: FakeHost, pool: FakePool) -> None:
    share(life.systems, "a", "x")
    write(life.systems, "b", "x")
    share(life.systems, "c", "x")
    life.systems.release("c", "x")
    life.systems.unmount("c")
    again = Life(life.path, pool)
    assert again.learn() == ["a", "b", "c"]
    assert [again.devices.device(layer) for layer in "abc"] == [
        pool.devices[f"docker_image_{layer}"] for layer in "abc"
    ]
    assert [again.systems.is_mounted(layer) for layer in "abc"] == [True, True, False]
    again.unmap("a", "b", "c")
    assert nothing_left(again, host)


def test_a_mount_whose_device_has_gone_is_unmounted(life: Life, host: FakeHost, pool: FakePool) -> None:
    share(life.systems, "a", "x")
    host.die("a")
    host.fails["device_path"] = [mounts.MountError("block device is gone")]
    again = Life(life.path, pool)
    assert again.learn() == []
    assert nothing_left(again, host)


def test_a_file_among_the_directories_keeps_nothing_from_being_learned(life: Life, pool: FakePool) -> None:
    share(life.systems, "b", "x")
    (life.path / "mnt" / "a").write_text("", encoding="ascii")
    again = Life(life.path, pool)
    again.learn()
    assert again.systems.is_mounted("b")


@pytest.mark.parametrize("removed", [False, True])
def test_a_mount_that_hung_in_the_kernel_comes_to_its_end_after_all(
    life: Life, host: FakeHost, pool: FakePool, removed: bool
) -> None:
    """Of a driver that was killed: its mount holds the device, so that the next one takes it for a container's."""
    write(life.systems, "a")
    leave(life.systems, "a")
    device = str(life.devices.device("a"))
    host.writing.add(device)
    again = Life(life.path, pool)
    again.learn()
    with pytest.raises(LayerBusy):
        again.unmap("a")
    host.writing.clear()
    point = again.paths.point("a")
    os.makedirs(point)
    host.mount("xfs", device, point, (), read_only=False, timeout=1)
    if removed:
        again.views.discard("a")
        assert host.mounted == {}
    again.unmap("a")
    assert nothing_left(again, host)


# -- views -----------------------------------------------------------------------------------------


def test_a_new_life_knows_docker_s_views_and_ends_its_own(life: Life, host: FakeHost) -> None:
    """Nobody comes back for those of an earlier life of ours."""
    life.get("c", label="system_u:object_r:x")
    life.get("c")
    acquire(life, "other", DRIVER)
    life.views.acquire_own("b", finished=True)
    new = again(life)
    assert new.learn() == ["b", "other"]
    assert [new.views.is_mounted("c", place) for place in Place] == [True, False, False]
    assert new.views.is_writable("c")
    for layer in ("b", "other"):
        new.unmap(layer)
    assert [*host.views()] == [new.point("c")]
    # Counted from its note, for as long as it is there.
    assert [new.systems.users(layer) for layer in "abc"] == [{"c/docker"}] * 3
    new.unmap("a", "b")
    assert sorted(new.devices.mapped()) == ["a", "b", "c"]
    # One user, whatever it was.
    new.put("c")
    new.unmap()
    assert nothing_left(new, host)


def test_what_an_earlier_life_looked_at_goes(life: Life, host: FakeHost) -> None:
    """Docker's stays."""
    life.get("c")
    life.views.acquire_own("c", finished=False)
    new = again(life)
    assert new.learn() == ["c"]
    new.unmap("c")
    assert [*host.views()] == [new.point("c")]
    assert new.systems.users("a") == {"c/docker"}


def test_a_label_is_learned(life: Life) -> None:
    life.get("c", label="x")
    new = again(life)
    new.learn()
    assert acquire(new, "c", DRIVER) is DOCKER
    new.get("c", label="x")


def test_what_a_new_life_has_learned_it_goes_on_with(life: Life, host: FakeHost, pool: FakePool) -> None:
    """Nothing is mapped or joined a second time."""
    life.get("c")
    mapped = len(pool.named("map"))
    new = again(life)
    new.learn()
    new.get("c")
    acquire(new, "c", DRIVER)
    new.get("other")
    assert len(pool.named("map")) == mapped + 1
    assert len(host.overlays) == 2
    for layer in ("c", "c", "c", "other"):
        new.put(layer)
    new.unmap()
    assert nothing_left(new, host)


def test_a_finished_layer_is_known_as_one(life: Life, host: FakeHost) -> None:
    """So there is nothing to be written out when it is put."""
    life.get("c")
    with life.locks.hold("c"):
        layer_state.finish(life.paths.point("c"), LayerState("c", ("b", "a")), 60)
    new = again(life)
    new.learn()
    new.put("c")
    assert host.flushed == []


@pytest.mark.parametrize("lost", ["another's", "empty", "none"])
def test_a_view_without_a_note_of_its_layer_is_there_all_the_same(life: Life, host: FakeHost, lost: str) -> None:
    """It can be put, and removed; what is below it is not known to be needed, and not let go while it is used."""
    life.get("c")
    path = Path(life.paths.point("c"), layer_state.NAME)
    if lost == "another's":
        layer_state.write(str(path.parent), LayerState("x", ()), 60)
    elif lost == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    new = again(life)
    left = new.learn()
    for layer in left:
        if layer != "c":
            with pytest.raises(LayerBusy):
                new.unmap(layer)
    assert new.views.is_mounted("c", DOCKER)
    new.put("c")
    new.unmap("a", "b", "c")
    assert nothing_left(new, host)


@pytest.mark.parametrize("kept", ["device", "mount"])
def test_one_that_hangs_keeps_no_other_from_being_learned(
    life: Life, host: FakeHost, pool: FakePool, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """What is known of it is known: it can be put, and removed."""
    life.get("other")
    life.get("c")
    device = pool.devices["docker_image_other"]
    if kept == "device":
        life.put("other")
    monkeypatch.setattr(from_before, "LEARN_SECONDS", 0.1)
    in_use, read = host.in_use, layer_state.read

    def hangs(asked: str) -> bool:
        if asked == device:
            raise deadline.Overdue(f"{asked}: no answer")
        return in_use(asked)

    def hangs_too(directory: str, seconds: float) -> LayerState | None:
        if directory == life.paths.point("other"):
            raise deadline.Overdue(f"{directory}: no answer")
        return read(directory, seconds)

    monkeypatch.setattr(mounts, "in_use", hangs)
    monkeypatch.setattr(layer_state, "read", hangs_too)
    new = again(life)
    new.learn()
    assert new.views.is_mounted("c", DOCKER)
    new.settle()
    assert new.devices.device("other") == device
    monkeypatch.setattr(mounts, "in_use", in_use)
    new.put("other")
    new.put("c")
    new.unmap("other", "c", "b", "a")
    assert nothing_left(new, host)


def test_what_is_hidden_by_a_mount_above_it_is_not_there(life: Life, host: FakeHost) -> None:
    """dockerd mounts its data root on itself; what was mounted just before cannot be reached any more."""
    life.get("c")
    host.hide()
    later = again(life)
    later.learn()
    assert not any(later.views.is_mounted("c", place) for place in Place)
    assert not any(later.systems.is_mounted(layer) for layer in ("a", "b", "c"))
    assert later.devices.device("c") is not None
    # Nobody can unmap it, and everybody can have it.
    with pytest.raises(LayerBusy):
        later.unmap("a")
    acquire(later, "b", DOCKER, finished=True)
    release(later, "b", DOCKER)


# -- what only a container has ---------------------------------------------------------------------


def test_a_view_that_only_a_container_has_is_taken_from_it(life: Life, host: FakeHost) -> None:
    """`docker plugin disable --force`: our mount namespace has ended, and the containers have their own."""
    host.run_container(life.get("c", label="x"))
    host.end_namespace()
    new = again(life)
    assert new.learn() == []
    assert [*host.views()] == [new.point("c")]
    assert len(host.overlays) == 1
    assert new.views.is_writable("c")
    # What it is joined of is mounted again, for what is to come.
    assert sorted(host.systems()) == [new.paths.point(layer) for layer in "abc"]
    assert [new.systems.users(layer) for layer in "abc"] == [{"c/docker"}] * 3
    new.get("other")
    assert acquire(new, "c", DRIVER) is DOCKER
    release(new, "c", DOCKER)
    # It ends, and Docker puts it.
    host.elsewhere.clear()
    new.put("c")
    new.put("other")
    new.unmap()
    assert nothing_left(new, host)


def test_a_finished_view_that_only_a_container_has_is_taken_as_it_is(life: Life, host: FakeHost) -> None:
    """`docker cp`, and a device that was mapped writable before the layer was finished."""
    life.get("c")
    life.put("c")
    finish(life.pool, "c", "b", "a")
    host.run_container(life.get("c", finished=True))
    host.end_namespace()
    new = again(life)
    new.learn()
    assert [*host.views()] == [new.point("c")]
    assert not new.views.is_writable("c")
    assert new.systems.users("c") == {"c/docker"}


def test_what_a_container_has_and_cannot_be_taken_is_not_mounted_beside_it(life: Life, host: FakeHost) -> None:
    """Linux before 5.2."""
    host.run_container(life.get("c"))
    host.end_namespace()
    new = again(life)
    host.fails["take"] = [CommandError(("take",), 1, "open_tree: Function not implemented; it takes Linux 5.2")]
    new.learn()
    with pytest.raises(LayerBusy, match=r"layer c: .*process 1 \(sh\)"):
        new.get("c")
    with pytest.raises(LayerBusy):
        new.views.discard("c")
    assert host.views() == {}
    host.elsewhere.clear()
    new.get("c")


@pytest.mark.parametrize("done", [True, False])
def test_what_took_too_long_to_be_taken_is_looked_at_before_the_next_step(
    life: Life, host: FakeHost, done: bool
) -> None:
    host.run_container(life.get("c"))
    host.end_namespace()
    new = again(life)
    host.fails["take"] = [(timed_out(), True) if done else timed_out()]
    new.learn()
    host.elsewhere.clear()
    new.get("c")
    new.put("c")
    new.unmap()
    assert nothing_left(new, host)


def test_one_that_is_removed_is_not_taken(life: Life, host: FakeHost) -> None:
    host.run_container(life.get("c"))
    host.end_namespace()
    new = again(life)
    new.removals.note("c")
    assert "c" not in new.learn()
    assert host.views() == {}


# -- a daemon has started anew ---------------------------------------------------------------------


def test_a_new_daemon_keeps_what_a_container_uses(life: Life, host: FakeHost) -> None:
    host.run_container(life.get("c"))
    life.get("other")
    new = again(life)
    new.learn()
    assert new.settle() == ["other"]
    assert [*host.views()] == [new.point("c")]
    assert [new.systems.users(layer) for layer in "abc"] == [{"c/docker"}] * 3
    new.get("c")
    new.put("c")
    assert [*host.views()] == [new.point("c")]


def test_a_new_daemon_keeps_what_is_used_in_our_own_namespace(life: Life, host: FakeHost) -> None:
    life.get("c")
    new = again(life)
    new.learn()
    host.fails["unmount"] = [refused("target is busy")] * 2
    assert new.settle() == []
    assert [*host.views()] == [new.point("c")]
    new.put("c")
    new.unmap()
    assert nothing_left(new, host)


def test_one_that_cannot_be_unmounted_keeps_no_other(life: Life, host: FakeHost) -> None:
    life.get("c")
    life.get("other")
    new = again(life)
    new.learn()
    host.fails["unmount"] = [timed_out()]
    assert new.settle() == ["other"]
    assert [*host.views()] == [new.point("c")]
    new.put("c")
    new.unmap()
    assert nothing_left(new, host)


@pytest.mark.parametrize("name", ["tmp/buildkit-mount123", "buildkit/executor/z1/rootfs"])
def test_what_a_builder_left_behind_is_unmounted(life: Life, host: FakeHost, name: str) -> None:
    """It was killed with the former daemon; what is mounted elsewhere by such a name is not its."""
    point = life.get("c")
    left, theirs = f"/var/lib/docker/{name}", f"/mnt/{name}"
    host.mounted[left] = host.mounted[point]._replace(point=left)
    host.mounted[theirs] = mounts.Mount("8:1", theirs, False, "", "xfs", "/dev/sda1")
    with pytest.MonkeyPatch.context() as patch:
        # Where a builder mounts is no directory of ours.
        patch.setattr(os, "unlink", lambda path: None)
        new = again(life)
        new.learn()
        new.settle()
    assert left not in host.mounted
    assert theirs in host.mounted
