"""mounted.py: counts, what a time-out leaves in doubt, removal, and what is learned after a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unit.fake_host import FakeHost
from unit.fakes import FakePool, failed, timed_out

import busy
import deadline
import mounted
import mounts
import options
import rbdcli
from command import CommandTimeout
from layers import Layers
from mounted import MountedLayers, Place


@pytest.fixture
def pool() -> FakePool:
    made = FakePool()
    for layer in "abc":
        made.add(f"docker_image_{layer}", metadata={"docker_graph_driver.owner": "somebody /home"})
    return made


@pytest.fixture
def host(pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    return FakeHost.in_place(pool, monkeypatch)


@pytest.fixture
def home(tmp_path: Path, host: FakeHost) -> MountedLayers:
    return new_life(tmp_path, host)


def new_life(root: Path, host: FakeHost) -> MountedLayers:
    """What a new process has before it has learned anything."""
    pool = host.pool.as_pool()
    return MountedLayers(pool, str(root), Layers(pool, options.DEFAULTS, "/home"), "xfs", ())


def get(home: MountedLayers, layer: str, *, write: bool = True, label: str = "") -> Place:
    return home.acquire(layer, Place.DOCKER, write=write, sealed=False, label=label)


# -- acquire and release -------------------------------------------------------------------------


def test_the_last_put_unmounts_and_it_stays_mapped_until_it_is_let_go(home: MountedLayers, host: FakeHost) -> None:
    get(home, "a")
    get(home, "a")
    assert home.release("a", Place.DOCKER) is False
    assert list(host.mounted) == [home.point("a", Place.DOCKER)]
    assert home.release("a", Place.DOCKER) is True
    assert host.mounted == {}
    assert home.device("a")
    home.let_go("a")
    assert host.pool.devices == {}
    assert not os.path.exists(os.path.dirname(home.point("a", Place.DOCKER)))


def test_our_own_work_shares_docker_s_mount_and_ends_it_not(home: MountedLayers, host: FakeHost) -> None:
    get(home, "a")
    assert home.acquire("a", Place.DRIVER, write=False, sealed=False) is Place.DOCKER
    assert home.release("a", Place.DOCKER) is False
    assert host.mounted


def test_a_get_that_fails_leaves_nothing(home: MountedLayers, host: FakeHost) -> None:
    host.fails["mount"] = [failed(rbdcli.RbdError, 32)]
    with pytest.raises(rbdcli.RbdError):
        get(home, "a")
    assert (host.mounted, host.pool.devices, home.device("a")) == ({}, {}, None)


@pytest.mark.parametrize("done", [True, False])
def test_an_unmount_that_timed_out_is_looked_at_before_the_next_step(
    home: MountedLayers, host: FakeHost, done: bool
) -> None:
    get(home, "a")
    host.fails["unmount"] = [(timed_out(), True) if done else timed_out()]
    with pytest.raises(CommandTimeout):
        home.release("a", Place.DOCKER)
    get(home, "a")
    assert list(host.mounted) == [home.point("a", Place.DOCKER)]
    assert home.release("a", Place.DOCKER) is True
    assert host.mounted == {}


# -- removal -------------------------------------------------------------------------------------


def test_a_removed_layer_is_unmounted_whatever_its_count(home: MountedLayers, host: FakeHost) -> None:
    get(home, "a")
    get(home, "a")
    home.discard("a")
    home.note_removed("a")
    home.let_go("a")
    assert (host.mounted, host.pool.devices) == ({}, {})
    assert home.is_removed("a")
    home.forget("a")
    assert not home.is_removed("a")


def test_one_that_a_container_holds_is_not_removed(home: MountedLayers, host: FakeHost) -> None:
    get(home, "a")
    host.held.add(str(home.device("a")))
    with pytest.raises(busy.LayerBusy, match="process 1"):
        home.discard("a")


def test_what_the_kernel_still_writes_is_nobody_s(home: MountedLayers, host: FakeHost) -> None:
    """It goes once the kernel is done, which the pool may prevent: Docker need not wait for that."""
    get(home, "a")
    device = str(home.device("a"))
    host.writing.add(device)
    home.discard("a")
    home.note_removed("a")
    assert home.is_written_back("a")
    with pytest.raises(busy.LayerBusy):
        home.let_go("a")
    host.writing.clear()
    home.let_go("a")
    assert host.pool.devices == {}


def test_a_device_that_is_another_image_s_by_now_is_left_alone(home: MountedLayers, host: FakeHost) -> None:
    """rbd-nbd was killed, and the name of its device given out again."""
    get(home, "a")
    home.release("a", Place.DOCKER)
    device = host.pool.devices.pop("docker_image_a")
    host.pool.devices["another"] = device
    host.held.add(device)
    home.let_go("a")
    assert home.device("a") is None
    assert host.pool.devices == {"another": device}


# -- after a crash -------------------------------------------------------------------------------


def test_a_new_life_knows_docker_s_mounts_and_ends_its_own(home: MountedLayers, host: FakeHost, tmp_path: Path) -> None:
    get(home, "a", label="system_u:object_r:x")
    home.acquire("b", Place.DRIVER, write=True, sealed=False)
    home.acquire("c", Place.DOCKER, write=True, sealed=False)
    home.note_removed("c")
    again = new_life(tmp_path, host)
    assert again.learn() == ["b"]
    assert again.is_mounted("a", Place.DOCKER)
    assert again.removed() == ["c"]
    for layer in "bc":
        again.let_go(layer)
    assert list(host.mounted) == [again.point("a", Place.DOCKER)]


def test_a_new_daemon_keeps_what_a_container_uses(home: MountedLayers, host: FakeHost, tmp_path: Path) -> None:
    get(home, "a")
    get(home, "b")
    host.held.add(str(home.device("a")))
    again = new_life(tmp_path, host)
    again.learn()
    assert again.settle() == ["b"]
    assert list(host.mounted) == [again.point("a", Place.DOCKER)]


def test_one_that_cannot_be_unmounted_keeps_no_other(home: MountedLayers, host: FakeHost, tmp_path: Path) -> None:
    get(home, "a")
    get(home, "b")
    again = new_life(tmp_path, host)
    again.learn()
    host.fails["unmount"] = [timed_out()]
    again.settle()
    assert list(host.mounted) == [again.point("a", Place.DOCKER)]


def test_what_cannot_be_unmapped_again_stays_known(home: MountedLayers, host: FakeHost) -> None:
    """And why it had to be is what is told."""
    host.fails["mount"] = [failed(rbdcli.RbdError, 32)]
    host.pool.fails["unmap"] = [timed_out()]
    with pytest.raises(rbdcli.RbdError):
        get(home, "a")
    device = host.pool.devices["docker_image_a"]
    assert home.device("a") == device
    get(home, "a")
    assert host.pool.devices == {"docker_image_a": device}


def test_a_second_mapping_of_a_layer_is_unmapped(home: MountedLayers, host: FakeHost, tmp_path: Path) -> None:
    """A command that timed out had mapped it all the same."""
    get(home, "a")
    device = str(home.device("a"))
    further = rbdcli.Mapping("docker_image_a", "/dev/further")
    mapped = [further, rbdcli.Mapping("docker_image_a", device)]
    unmapped: list[str] = []
    host.pool.__dict__["mappings"] = lambda: mapped
    host.pool.__dict__["unmap"] = lambda device, image: unmapped.append(device)
    again = new_life(tmp_path, host)
    again.learn()
    assert (again.device("a"), unmapped) == (device, ["/dev/further"])


def test_a_file_among_the_directories_keeps_nothing_from_being_learned(
    home: MountedLayers, host: FakeHost, tmp_path: Path
) -> None:
    get(home, "b")
    (tmp_path / "a").write_text("", encoding="ascii")
    again = new_life(tmp_path, host)
    again.learn()
    assert again.is_mounted("b", Place.DOCKER)


@pytest.mark.parametrize("kept", ["device", "mount"])
def test_one_that_hangs_keeps_no_other_from_being_learned(
    home: MountedLayers, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """What is known of it is known: it can be put, and removed."""
    get(home, "a")
    get(home, "b")
    device = host.pool.devices["docker_image_a"]
    if kept == "device":
        home.release("a", Place.DOCKER)
    monkeypatch.setattr(mounted, "LEARN_SECONDS", 0.1)
    in_use = host.in_use

    def hangs(asked: str) -> bool:
        if asked == device:
            raise deadline.Overdue(f"{asked}: no answer")
        return in_use(asked)

    monkeypatch.setattr(mounts, "in_use", hangs)
    again = new_life(tmp_path, host)
    again.learn()
    again.settle()
    assert again.device("a") == device
    monkeypatch.setattr(mounts, "in_use", in_use)
    again.release("a", Place.DOCKER)
    again.let_go("a")
    assert "docker_image_a" not in host.pool.devices


@pytest.mark.parametrize("removed", [False, True])
def test_a_mount_that_hung_in_the_kernel_comes_to_its_end_after_all(
    home: MountedLayers, host: FakeHost, tmp_path: Path, removed: bool
) -> None:
    """Of a driver that was killed: its mount holds the device, so that the next one takes it for a container's."""
    get(home, "a")
    home.release("a", Place.DOCKER)
    device = str(home.device("a"))
    host.writing.add(device)
    host.fails["mount"] = [timed_out()]
    again = new_life(tmp_path, host)
    again.learn()
    with pytest.raises(busy.LayerBusy):
        again.let_go("a")
    again._look_again("a", again._entries["a"])
    host.writing.clear()
    point = again.point("a", Place.DOCKER)
    host.mounted[point] = mounts.Mount(device, point, False, "")
    with pytest.raises(busy.LayerBusy):
        again.discard("a") if removed else again.let_go("a")
    again.discard("a") if removed else again.let_go("a")
    again.let_go("a")
    assert (host.mounted, host.pool.devices) == ({}, {})
