"""file_systems.py: each layer is mapped and mounted once for all, whatever fails, dies or takes too long."""

from __future__ import annotations

import threading

import pytest
from plugin_client import wait_until
from unit.fake_host import FakeHost, refused
from unit.fakes import FakePool, failed, timed_out
from unit.layered import Life, leave, nothing_left, share, write

import mounts
import rbdcli
from host import deadline
from host.command import CommandError, CommandTimeout
from images import layer_state
from images.layers import Layers
from mapped.devices import Devices
from mapped.file_systems import FileSystems, LayerLost
from mapped.paths import Paths
from mapped.unmounting import LayerBusy

# -- shared --------------------------------------------------------------------------------------


def test_a_finished_layer_is_mapped_once_and_read_only(
    devices: Devices, paths: Paths, systems: FileSystems, host: FakeHost, pool: FakePool
) -> None:
    share(systems, "a", "x")
    share(systems, "a", "y")
    share(systems, "a", "y")
    assert pool.named("map") == ["docker_image_a"]
    [mounted] = host.mounted.values()
    assert (mounted.point, mounted.read_only) == (paths.point("a"), True)
    assert mounts.is_read_only(mounted.source)
    assert systems.users("a") == {"x", "y"}
    assert [systems.release("a", user) for user in "xyy"] == [False, False, True]
    # It is wanted again soon.
    assert systems.is_mounted("a")
    assert devices.unused() == ["a"]
    share(systems, "a", "z")
    assert pool.named("map") == ["docker_image_a"]
    systems.unmap_unused("a")
    assert systems.is_mounted("a")
    systems.release("a", "z")
    systems.unmap_unused("a")
    assert (host.mounted, pool.devices) == ({}, {})


def test_one_that_is_not_finished_is_in_the_cluster_when_its_last_user_leaves_it(
    life: Life, host: FakeHost, pool: FakePool
) -> None:
    """It stays mounted for a while: dockerd gets each container twice to start it."""
    systems = life.systems
    write(systems, "a", "x")
    systems.acquire("a", "y", write=False, finished=False)
    assert not systems.release("a", "x")
    assert host.flushed == []
    assert systems.release("a", "y")
    assert host.flushed == [life.paths.point("a")]
    assert systems.is_mounted("a")
    write(systems, "a", "x")
    assert pool.named("map") == ["docker_image_a"]
    systems.release("a", "x")
    systems.unmap_unused("a")
    assert nothing_left(life, host)


def test_a_layer_that_somebody_writes_to_does_not_become_read_only_under_him(
    paths: Paths, systems: FileSystems, host: FakeHost
) -> None:
    """The kernel would do it under a view that is written to, too, and without a word."""
    write(systems, "a", "writer")
    share(systems, "a", "x")
    assert not host.mounted[paths.point("a")].read_only
    systems.release("a", "writer")
    share(systems, "a", "y")
    assert host.mounted[paths.point("a")].read_only


@pytest.mark.parametrize("done", [True, False])
def test_a_remount_that_timed_out_is_looked_at_before_the_next_step(
    paths: Paths, systems: FileSystems, host: FakeHost, done: bool
) -> None:
    systems.acquire("a", "x", write=False, finished=False)
    host.fails["remount"] = [(timed_out(), True) if done else timed_out()]
    with pytest.raises(CommandTimeout):
        write(systems, "a", "y")
    assert systems.users("a") == {"x"}
    write(systems, "a", "y")
    assert not host.mounted[paths.point("a")].read_only
    systems.release("a", "y")
    systems.release("a", "x")
    assert host.flushed == [paths.point("a")]


def test_an_image_that_is_to_be_copied_is_mounted_by_nobody(
    devices: Devices, systems: FileSystems, host: FakeHost
) -> None:
    """And one that is not mapped at all may be copied."""
    systems.quiesce("a")
    write(systems, "a")
    with pytest.raises(LayerBusy):
        systems.quiesce("a")
    systems.release("a", "me")
    host.writing.add(str(devices.device("a")))
    with pytest.raises(LayerBusy):
        systems.quiesce("a")
    host.writing.clear()
    systems.quiesce("a")
    assert host.mounted == {}
    assert devices.device("a")


def test_what_is_still_being_written_out_is_not_unmounted(
    devices: Devices, systems: FileSystems, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is our own thread that has it open, and hangs in the kernel; it is unmounted once that has come to its end."""
    answer, ended = threading.Event(), threading.Event()

    def hangs(directory: str) -> None:
        assert answer.wait(300)
        ended.set()

    monkeypatch.setattr(layer_state, "flush", hangs)
    monkeypatch.setattr(deadline, "GRACE_SECONDS", 0.1)
    write(systems, "a")
    with deadline.within(0.1), pytest.raises(deadline.Overdue):
        systems.release("a", "me")
    with pytest.raises(deadline.Overdue, match="layer a: the cluster has not taken yet what was written to it"):
        systems.unmap_unused("a")
    assert host.mounted
    answer.set()
    assert ended.wait(300)
    wait_until(lambda: not getattr(devices.get("a"), "flushing", True), "it is written out")
    systems.unmap_unused("a")
    assert host.mounted == {}


def test_what_nobody_wants_is_not_written_out(life: Life, host: FakeHost) -> None:
    write(life.systems, "a", "x")
    assert life.systems.release("a", "x", flush=False)
    assert host.flushed == []


def test_what_is_not_written_out_in_time_is_told_and_the_rest_goes(life: Life, host: FakeHost) -> None:
    write(life.systems, "a", "x")
    host.fails["flush"] = [deadline.Overdue("no answer")]
    with pytest.raises(deadline.Overdue):
        life.systems.release("a", "x")
    life.systems.unmap_unused("a")
    assert nothing_left(life, host)


def test_a_device_that_takes_nothing_is_unmounted_and_may_be_mapped_anew(
    life: Life, host: FakeHost, pool: FakePool, caplog: pytest.LogCaptureFixture
) -> None:
    """rbd-nbd was killed: what was not written out is lost, whatever is done."""
    write(life.systems, "a", "x")
    dead = host.die("a")
    host.fails["flush"] = [OSError(5, "Input/output error")]
    assert life.systems.release("a", "x")
    assert host.mounted == {}
    assert f"its device {dead} takes nothing: [Errno 5] Input/output error" in caplog.text
    write(life.systems, "a", "x")
    assert life.devices.device("a") == pool.devices["docker_image_a"] != dead


def test_who_only_looks_does_not_write(paths: Paths, systems: FileSystems, host: FakeHost, pool: FakePool) -> None:
    systems.acquire("a", "x", write=False, finished=False)
    assert host.mounted[paths.point("a")].read_only
    # It may be written to by the next.
    assert not mounts.is_read_only(pool.devices["docker_image_a"])
    write(systems, "a", "y")
    assert not host.mounted[paths.point("a")].read_only


def test_one_that_is_finished_while_it_is_mounted_becomes_read_only_for_the_next(
    paths: Paths, systems: FileSystems, host: FakeHost, pool: FakePool
) -> None:
    """Its mapping stays: the next layer of a load stands on it."""
    write(systems, "a", "archive")
    systems.set_finished("a")
    assert systems.release("a", "archive")
    assert systems.is_mounted("a")
    share(systems, "a", "x")
    assert host.mounted[paths.point("a")].read_only
    assert pool.named("map") == ["docker_image_a"]


def test_one_that_is_made_writable_at_last(paths: Paths, systems: FileSystems, host: FakeHost) -> None:
    systems.acquire("a", "x", write=False, finished=False)
    systems.make_writable("a")
    systems.make_writable("a")
    assert not host.mounted[paths.point("a")].read_only


def test_what_grows_is_mapped_so_that_it_can(systems: FileSystems, pool: FakePool, host: FakeHost) -> None:
    """A mapping from before that is exclusive does not do, unless somebody uses it."""
    log: list[bool] = []
    mapping = pool.map

    def seen(image: str, *, read_only: bool, exclusive: bool) -> str:
        log.append(exclusive)
        return mapping(image, read_only=read_only, exclusive=exclusive)

    object.__setattr__(pool, "map", seen)
    for layer, stays_mounted in (("a", False), ("b", True)):
        log.clear()
        write(systems, layer)
        systems.release(layer, "me")
        if not stays_mounted:
            systems.unmount(layer)
        systems.acquire(layer, "archive", write=True, finished=False, growing=True)
        assert log == [True, False]
    systems.acquire("a", "x", write=True, finished=False)
    assert log == [True, False]


# -- what fails ----------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("step", ["map", "mount", "link"])
def test_what_fails_leaves_nothing(
    life: Life, host: FakeHost, pool: FakePool, monkeypatch: pytest.MonkeyPatch, step: str, finished: bool
) -> None:
    failure: Exception = failed(rbdcli.RbdError, 5)
    if step == "map":
        pool.fails["map"] = [failure]
    elif step == "mount":
        # A finished layer is tried once more, writable.
        failure = refused()
        host.fails["mount"] = [refused()] * finished + [failure]
    else:

        def fails(*_: object) -> None:
            raise failure

        monkeypatch.setattr(life.paths, "link", fails)
    with pytest.raises(CommandError) as raised:
        life.systems.acquire("a", "x", write=not finished, finished=finished)
    assert raised.value is failure
    assert nothing_left(life, host)


def test_an_image_that_is_not_there(life: Life, host: FakeHost) -> None:
    with pytest.raises(rbdcli.ImageMissing):
        share(life.systems, "missing", "x")
    assert nothing_left(life, host)


def test_release_of_what_was_never_mounted(systems: FileSystems, host: FakeHost) -> None:
    assert not systems.release("a", "x")
    systems.unmap_unused("a")
    systems.unmount("a")
    systems.set_finished("a")
    share(systems, "a", "x")
    # By somebody else who has none: it is not his.
    assert not systems.release("a", "y")
    assert systems.users("a") == {"x"}
    assert systems.release("a", "x")
    assert systems.release("a", "x")


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("finished", [True, False])
def test_a_mount_that_timed_out_is_ended_whether_it_was_done(
    life: Life, host: FakeHost, done: bool, finished: bool
) -> None:
    """A finished layer is not mapped writable for that: nothing was said of its log."""
    host.fails["mount"] = [(timed_out(), True) if done else timed_out()]
    with pytest.raises(CommandTimeout):
        life.systems.acquire("a", "x", write=not finished, finished=finished)
    life.systems.acquire("a", "x", write=not finished, finished=finished)
    assert list(host.mounted) == [life.paths.point("a")]
    life.systems.release("a", "x")
    life.systems.unmap_unused("a")
    assert nothing_left(life, host)


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("then", ["acquire", "release", "let_go"])
def test_an_unmount_that_timed_out_is_looked_at_before_the_next_step(
    life: Life, host: FakeHost, done: bool, then: str
) -> None:
    write(life.systems, "a", "x")
    life.systems.release("a", "x")
    host.fails["unmount"] = [(timed_out(), True) if done else timed_out()]
    with pytest.raises(CommandTimeout):
        life.systems.unmount("a")
    if then == "acquire":
        write(life.systems, "a", "x")
        assert list(host.mounted) == [life.paths.point("a")]
        assert life.systems.is_mounted("a")
    if then != "let_go":
        life.systems.release("a", "x")
    life.systems.unmap_unused("a")
    assert nothing_left(life, host)


def test_what_somebody_has_is_unmounted_by_the_next_try(life: Life, host: FakeHost) -> None:
    write(life.systems, "a", "x")
    life.systems.release("a", "x")
    host.fails["unmount"] = [refused("target is busy")] * 2
    with pytest.raises(LayerBusy, match=r"cannot be unmounted: .*target is busy.*; process 1 \(sh\)"):
        life.systems.unmap_unused("a")
    assert life.systems.is_mounted("a")
    life.systems.unmap_unused("a")
    assert nothing_left(life, host)


# -- devices that die, logs that are dirty -------------------------------------------------------------


def test_a_dead_device_of_a_shared_layer_is_named_and_mended_when_its_last_user_has_gone(
    devices: Devices, systems: FileSystems, host: FakeHost, pool: FakePool
) -> None:
    share(systems, "a", "c1/docker")
    share(systems, "a", "c2/docker")
    dead = host.die("a")
    share(systems, "b", "c1/docker")
    with pytest.raises(LayerLost) as raised:
        systems.check_alive("b", "a", "missing")
    said = str(raised.value)
    assert f"layer a: its device {dead} is gone" in said
    assert "stop what uses it (c1, c2): the next start maps it anew" in said
    for user in ("c1/docker", "c2/docker"):
        systems.release("a", user)
    share(systems, "a", "c3/docker")
    assert devices.device("a") == pool.devices["docker_image_a"] != dead
    systems.check_alive("a", "b")


def test_a_dead_device_that_nobody_uses_is_unmounted_and_forgotten(life: Life, host: FakeHost) -> None:
    share(life.systems, "a", "x")
    life.systems.release("a", "x")
    host.die("a")
    life.systems.unmap_unused("a")
    assert nothing_left(life, host)


def test_a_device_that_died_while_it_was_mounted_nowhere(
    devices: Devices, systems: FileSystems, host: FakeHost, pool: FakePool
) -> None:
    write(systems, "a")
    leave(systems, "a")
    dead = host.die("a")
    write(systems, "a")
    assert devices.device("a") == pool.devices["docker_image_a"] != dead


def test_a_finished_layer_with_a_dirty_log_is_mapped_writable_to_be_mended(
    devices: Devices, systems: FileSystems, host: FakeHost, pool: FakePool, caplog: pytest.LogCaptureFixture
) -> None:
    """The power went after it was finished, and before it was unmounted."""
    host.dirty = {"docker_image_a"}
    share(systems, "a", "x")
    [mounted] = host.mounted.values()
    assert (mounted.read_only, mounts.is_read_only(mounted.source), host.dirty) == (True, False, set())
    assert pool.named("map") == ["docker_image_a"] * 2
    assert "layer a is mapped writable, to be mended" in caplog.text
    systems.release("a", "x")
    systems.unmap_unused("a")
    share(systems, "a", "x")
    assert mounts.is_read_only(str(devices.device("a")))


def test_a_finished_layer_that_somebody_else_uses_is_shared_with_him(
    devices: Devices, systems: FileSystems, host: FakeHost
) -> None:
    share(systems, "a", "x")
    systems.release("a", "x")
    systems.unmount("a")
    host.held.add(str(devices.device("a")))
    share(systems, "a", "x")
    systems.release("a", "x")
    with pytest.raises(LayerBusy, match="process 1"):
        systems.unmap_unused("a")
    assert devices.device("a")


# -- growing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
def test_a_new_layer_fills_its_image_and_is_unmapped_again(life: Life, host: FakeHost, pool: FakePool, fs: str) -> None:
    life.systems._fs = fs
    life.systems.grow("a")
    assert len(host.grown) == 1
    assert nothing_left(life, host)


@pytest.mark.parametrize("step", ["mount", "grow_mounted", "unmount"])
def test_one_that_cannot_grow_leaves_nothing(life: Life, host: FakeHost, step: str) -> None:
    host.fails[step] = [refused("no")] * (2 if step == "unmount" else 1)
    with pytest.raises((CommandError, LayerBusy)):
        life.systems.grow("a")
    life.systems.unmap_unused("a")
    assert nothing_left(life, host)


def test_a_mounted_layer_grows_after_its_image(
    devices: Devices, systems: FileSystems, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(mounts, "check_growing", steps.append)
    monkeypatch.setattr(mounts, "await_size", lambda device, size, timeout: steps.append(f"{device} {size}"))
    systems.acquire("a", "archive", write=True, finished=False, growing=True)
    device = str(devices.device("a"))
    monkeypatch.setattr(Layers, "grow", lambda self, layer, size: steps.append(f"resize {layer} {size}"))
    systems.grow_mounted("a", 7)
    assert (steps, host.grown) == (["xfs", "resize a 7", f"{device} 7"], [device])


# -- the log of a file system ------------------------------------------------------------------------


def test_what_mounting_stored_is_given_back_once(
    devices: Devices, systems: FileSystems, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of a device that takes no writes, and not while it is mounted."""
    given: list[str] = []
    monkeypatch.setattr(mounts, "give_back_log", lambda device, granule, timeout: given.append(device))
    write(systems, "a")
    systems.tidy("a")
    assert given == []
    leave(systems, "a")
    systems.tidy("a")
    systems.tidy("a")
    assert given == [devices.device("a")]
    systems.acquire("a", "x", write=False, finished=False)
    leave(systems, "a", "x")
    systems.tidy("a")
    assert len(given) == 1
    write(systems, "a")
    leave(systems, "a")
    systems.unmap_unused("a")
    assert len(given) == 2
    share(systems, "b", "x")
    systems.release("b", "x")
    systems.unmap_unused("b")
    assert len(given) == 2


def test_a_log_that_cannot_be_given_back_keeps_nobody(
    life: Life, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise deadline.Overdue("no answer")

    monkeypatch.setattr(mounts, "give_back_log", fails)
    write(life.systems, "a")
    leave(life.systems, "a")
    life.systems.unmap_unused("a")
    assert nothing_left(life, host)
