"""devices.py: an image is mapped once and unmapped when nobody holds its device, whatever takes too long."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unit.fake_host import FakeHost, FakeOverlay, refused
from unit.fakes import FakePool, failed, timed_out
from unit.layered import Life, leave, nothing_left, write

import mounts
import rbdcli
from cluster.owner import Owner
from host.command import CommandError, CommandTimeout
from mapped import former_maps
from mapped.devices import Devices
from mapped.file_systems import FileSystems
from mapped.paths import Paths
from mapped.unmounting import LayerBusy

# -- mapped and unmapped ---------------------------------------------------------------------------


def test_what_cannot_be_unmapped_again_stays_known(
    devices: Devices, systems: FileSystems, host: FakeHost, pool: FakePool
) -> None:
    """And why it had to be is what is told."""
    host.fails["mount"] = [refused()]
    pool.fails["unmap"] = [timed_out()]
    with pytest.raises(CommandError, match="wrong fs type"):
        write(systems, "a")
    device = pool.devices["docker_image_a"]
    assert devices.device("a") == device
    write(systems, "a")
    assert pool.devices == {"docker_image_a": device}


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("finished", [True, False])
def test_a_map_that_timed_out_is_ended_whether_it_was_done(
    life: Life, host: FakeHost, pool: FakePool, done: bool, finished: bool
) -> None:
    pool.fails["map"] = [(timed_out(), True) if done else timed_out()]
    with pytest.raises(CommandTimeout):
        life.systems.acquire("a", "x", write=not finished, finished=finished)
    assert nothing_left(life, host)


def test_a_map_of_which_nothing_is_known_leaves_the_directory_by_which_the_next_start_finds_it(
    life: Life, pool: FakePool, host: FakeHost
) -> None:
    pool.fails["map"] = [(timed_out(), True)]
    pool.fails["mappings"] = [timed_out()]
    with pytest.raises(CommandTimeout):
        write(life.systems, "a")
    assert life.paths.layers() == ["a"]
    again = Life(life.path, pool)
    assert again.learn() == ["a"]
    again.unmap("a")
    assert nothing_left(again, host)


def test_a_map_that_hangs_from_before_is_undone_when_it_has_come_to_its_end(
    life: Life, host: FakeHost, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.makedirs(life.paths.directory("a"))
    hanging = {"docker_image_a"}
    monkeypatch.setattr(former_maps, "end_maps", lambda *_: hanging)
    monkeypatch.setattr(former_maps, "maps", lambda *_: hanging)
    assert life.learn() == ["a"]
    with pytest.raises(LayerBusy, match="layer a: a command that maps it hangs"):
        life.unmap("a")
    hanging.clear()
    pool.map("docker_image_a", read_only=False)
    life.unmap("a")
    assert nothing_left(life, host)
    assert life.devices.unused() == []


def test_a_second_mapping_of_a_layer_is_unmapped(life: Life, pool: FakePool) -> None:
    """A command that timed out had mapped it all the same."""
    write(life.systems, "a")
    device = str(life.devices.device("a"))
    mapped = [rbdcli.Mapping("docker_image_a", "/dev/further"), rbdcli.Mapping("docker_image_a", device)]
    unmapped: list[str] = []
    pool.__dict__["mappings"] = lambda: mapped
    pool.__dict__["unmap"] = lambda device, image: unmapped.append(device)
    again = Life(life.path, pool)
    again.learn()
    assert (again.devices.device("a"), unmapped) == (device, ["/dev/further"])


# -- whose it is -----------------------------------------------------------------------------------


def test_a_device_that_is_another_image_s_by_now_is_left_alone(
    devices: Devices, systems: FileSystems, host: FakeHost, pool: FakePool
) -> None:
    """rbd-nbd was killed, and the name of its device given out again."""
    write(systems, "a")
    leave(systems, "a")
    device = pool.devices.pop("docker_image_a")
    pool.devices["another"] = device
    host.held.add(device)
    systems.unmap_unused("a")
    assert devices.device("a") is None
    assert pool.devices == {"another": device}


@pytest.mark.parametrize("held", [True, False])
def test_what_a_home_that_is_gone_has_mapped_is_taken(
    devices: Devices, systems: FileSystems, host: FakeHost, pool: FakePool, held: bool
) -> None:
    """A managed plugin was removed and made anew. A container of its time may run."""
    former = pool.map("docker_image_a", read_only=False)
    if held:
        host.held.add(former)
        with pytest.raises(LayerBusy, match="process 1"):
            write(systems, "a")
        # It is not ours, and ends without us.
        assert devices.device("a") is None
    else:
        write(systems, "a")
        assert devices.device("a") == pool.devices["docker_image_a"] != former


def test_what_another_driver_of_this_host_has_mapped_is_not(
    devices: Devices, systems: FileSystems, pool: FakePool, tmp_path: Path
) -> None:
    """Its home is there, and so is the driver, even while it has just mapped and not mounted it yet."""
    theirs = tmp_path / "theirs"
    (theirs / "mnt" / "d").mkdir(parents=True)
    pool.add_layer("d", owner=Owner.here(str(theirs)))
    device = pool.map("docker_image_d", read_only=False)
    with pytest.raises(rbdcli.ImageLocked):
        write(systems, "d")
    assert pool.devices == {"docker_image_d": device}
    assert devices.device("d") is None


def test_what_another_host_has_mapped_is_not(systems: FileSystems, pool: FakePool) -> None:
    pool.fails["map"] = [failed(rbdcli.ImageLocked, 30)]
    with pytest.raises(rbdcli.ImageLocked):
        write(systems, "a")


# -- who has it ------------------------------------------------------------------------------------


def test_a_device_that_somebody_else_uses_is_not_mounted_writable(
    devices: Devices, systems: FileSystems, host: FakeHost
) -> None:
    """A container may have its view: a second one on the same directories would spoil both."""
    write(systems, "a")
    leave(systems, "a")
    host.held.add(str(devices.device("a")))
    with pytest.raises(LayerBusy, match=r"layer a: /dev/fake\d+ cannot be unmapped: process 1 \(sh\) has it mounted"):
        write(systems, "a")
    assert host.mounted == {}
    host.held.clear()
    write(systems, "a")


def test_what_the_kernel_still_writes_is_nobody_s(devices: Devices, systems: FileSystems, host: FakeHost) -> None:
    write(systems, "a")
    leave(systems, "a")
    host.writing.add(str(devices.device("a")))
    assert devices.is_written_back("a")
    assert not devices.is_held("a")
    devices.refuse_if_held("a")
    with pytest.raises(LayerBusy):
        systems.unmap_unused("a")
    host.writing.clear()
    systems.unmap_unused("a")
    assert devices.device("a") is None


def test_to_what_is_finished_nothing_is_written_back(devices: Devices, systems: FileSystems, host: FakeHost) -> None:
    """Somebody whom we do not see reads it: a container's view has it below."""
    systems.acquire("a", "me", write=False, finished=True)
    leave(systems, "a")
    host.writing.add(str(devices.device("a")))
    assert devices.is_in_use("a")
    assert not devices.is_written_back("a")


def test_what_is_finished_and_hangs_at_its_end_is_written_back(
    devices: Devices, systems: FileSystems, host: FakeHost
) -> None:
    """The pool was full a moment later. No view has it below: its file system is being ended."""
    write(systems, "a")
    systems.set_finished("a")
    systems.release("a", "me")
    host.fails["unmount"] = [(timed_out(), True)]
    with pytest.raises(CommandTimeout):
        systems.unmap_unused("a")
    host.writing.add(str(devices.device("a")))
    with pytest.raises(LayerBusy):
        systems.unmap_unused("a")
    assert devices.is_written_back("a")


def test_a_view_that_a_container_has_holds_its_layer(
    devices: Devices, paths: Paths, systems: FileSystems, host: FakeHost
) -> None:
    """Nobody sees the device itself mounted."""
    write(systems, "a")
    leave(systems, "a")
    host.writing.add(str(devices.device("a")))
    view = paths.source("a")
    host.elsewhere[view] = mounts.Mount("0:1", "/", False, "", "overlay", view)
    host.overlays["0:1"] = FakeOverlay((), (), None, (), "", set())
    assert devices.is_held("a")
    for refuse in (devices.refuse_if_held, devices.refuse_if_viewed):
        with pytest.raises(LayerBusy, match="process 1"):
            refuse("a")
        refuse("b")
    assert not devices.is_held("b")
    # One that has just ended may hold it for a moment more.
    host.ending = [view]
    devices.refuse_if_viewed("a")
