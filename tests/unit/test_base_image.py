"""base_image.py: one whole base image, whatever became of it; in a pool in memory."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest
from unit.fake_host import FakeHost, refused
from unit.fakes import BASE_IMAGE, FakePool, failed, timed_out

import rbdcli
from host import command
from images import options
from images.base_image import FORMAT, FORMAT_KEY, FS_KEY, BaseImage
from images.layers import LayerError, Layers
from images.record import KEY

WHOLE = {FORMAT_KEY: FORMAT, FS_KEY: "xfs"}


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def layers(pool: FakePool) -> Layers:
    return Layers(pool.as_pool(), options.DEFAULTS, "/home")


def ensure(layers: Layers, home: str = "/nonexistent") -> None:
    BaseImage(layers, options.DEFAULTS, home).ensure()


# -- made ----------------------------------------------------------------------------------------


def test_it_is_made_with_the_directories_of_a_layer(
    pool: FakePool, layers: Layers, host: FakeHost, tmp_path: Path
) -> None:
    ensure(layers, str(tmp_path / "home"))
    image = pool.images[BASE_IMAGE]
    assert (image.metadata, image.snapshots, image.size) == (WHOLE, ["empty"], options.DEFAULTS.basesize)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in pool.files(BASE_IMAGE).iterdir()}
    assert sorted(modes) == ["none", "rootfs", "work"]
    # The root of every image that inherits nothing.
    assert modes["rootfs"] == 0o755
    assert (host.mounted, pool.devices) == ({}, {})
    assert [path.name for path in (tmp_path / "home").iterdir()] == []
    layers.create("a", None, None)
    assert KEY not in image.metadata


def test_it_is_mounted_without_the_options_of_views(
    pool: FakePool, host: FakeHost, layers: Layers, tmp_path: Path
) -> None:
    """No file system knows them."""
    said = options.parse(["ceph.mountopt=xino=off", "ceph.mountopt=logbsize=256k"])
    BaseImage(layers, said, str(tmp_path)).ensure()
    assert host.options == ["logbsize=256k"]


@pytest.mark.parametrize("step", ["make", "mount", "unmount", "snapshot", "set_metadata", "map", "unmap", "rename"])
def test_one_that_is_not_made_to_its_end_leaves_nothing_and_is_made_the_next_time(
    pool: FakePool, layers: Layers, host: FakeHost, tmp_path: Path, step: str
) -> None:
    home = str(tmp_path / "home")
    of_host = step in ("make", "mount", "unmount")
    (host.fails if of_host else pool.fails)[step] = [refused() if of_host else failed(rbdcli.RbdError, 5)]
    with pytest.raises(command.CommandError):
        ensure(layers, home)
    assert BASE_IMAGE not in pool.images
    ensure(layers, home)
    assert [*pool.images] == [BASE_IMAGE]
    assert pool.images[BASE_IMAGE].metadata == WHOLE
    assert (host.mounted, pool.devices) == ({}, {})


def test_what_a_crash_left_of_it_is_removed_first(
    pool: FakePool, layers: Layers, host: FakeHost, tmp_path: Path
) -> None:
    """Killed with the file system mounted, and another host has made the base image since."""
    scratch = layers.scratch()
    pool.add(scratch, snapshots=["empty"])
    device = pool.map(scratch, read_only=False)
    point = tmp_path / "base_image"
    point.mkdir()
    host.mount("xfs", device, str(point), (), read_only=False, timeout=1)
    pool.add_base()
    ensure(layers, str(tmp_path))
    assert [*pool.images] == [BASE_IMAGE]
    assert (host.mounted, pool.devices, point.exists()) == ({}, {}, False)


def test_another_host_was_faster(pool: FakePool, layers: Layers, host: FakeHost, tmp_path: Path) -> None:
    made: list[str] = []
    snapshot = pool.snapshot

    def meanwhile(image: str, name: str) -> None:
        snapshot(image, name)
        made.append(pool.add_base().image_id)

    object.__setattr__(pool, "snapshot", meanwhile)
    ensure(layers, str(tmp_path))
    assert [*pool.images] == [BASE_IMAGE]
    assert [pool.images[BASE_IMAGE].image_id] == made


# -- there already -------------------------------------------------------------------------------


def test_one_that_is_whole_stays_as_it_is(pool: FakePool, layers: Layers) -> None:
    pool.add_base()
    ensure(layers)
    assert not pool.named("snapshot")


def test_a_snapshot_that_has_gone_is_taken_anew(
    pool: FakePool, layers: Layers, caplog: pytest.LogCaptureFixture
) -> None:
    """`rbd snap purge`: nobody has written to the base image since it was made."""
    pool.add_base(snapshots=[])
    with caplog.at_level(logging.WARNING):
        ensure(layers)
    assert pool.images[BASE_IMAGE].snapshots == ["empty"]
    [record] = caplog.records
    assert f"{BASE_IMAGE} has lost its snapshot empty" in record.message
    layers.create("a", None, None)


def test_another_snapshot_is_not_taken_for_it(pool: FakePool, layers: Layers) -> None:
    pool.add_base(snapshots=["backup"])
    ensure(layers)
    assert pool.images[BASE_IMAGE].snapshots == ["backup", "empty"]


def test_a_snapshot_that_goes_while_the_driver_runs(
    pool: FakePool, layers: Layers, caplog: pytest.LogCaptureFixture
) -> None:
    pool.add_base()
    layers.create("a", None, None)
    pool.images[BASE_IMAGE].snapshots.clear()
    with caplog.at_level(logging.WARNING):
        layers.create("b", None, None)
    assert pool.images["docker_image_b"].parent == rbdcli.Parent(BASE_IMAGE, "empty")
    assert pool.images[BASE_IMAGE].snapshots == ["empty"]
    assert [record.message for record in caplog.records if "has lost its snapshot" in record.message]


def test_a_base_image_that_goes_while_the_driver_runs(pool: FakePool, layers: Layers) -> None:
    pool.add_base()
    layers.create("a", None, None)
    del pool.images[BASE_IMAGE]
    with pytest.raises(LayerError, match=f"layer b: image {BASE_IMAGE} does not exist .*restart dockerd"):
        layers.create("b", None, None)
    # Asked for anew, it is not there either.
    with pytest.raises(LayerError, match=f"image {BASE_IMAGE} does not exist .*restart dockerd"):
        layers.create("b", None, None)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, f"{FORMAT_KEY} is missing, expected 2"),
        ({**WHOLE, FORMAT_KEY: "3"}, f"{FORMAT_KEY} is 3, expected 2"),
        ({**WHOLE, FS_KEY: "ext4"}, "holds ext4; use ceph.fs=ext4 or"),
    ],
)
def test_one_that_does_not_fit(pool: FakePool, layers: Layers, metadata: dict[str, str], said: str) -> None:
    pool.add_base(metadata=metadata)
    with pytest.raises(LayerError, match=said):
        ensure(layers)
    # A full pool does not answer it.
    assert not pool.named("metadata")


def test_one_of_the_first_format_is_refused_in_a_line_that_says_what_to_do(pool: FakePool, layers: Layers) -> None:
    pool.add_base(metadata={**WHOLE, FORMAT_KEY: "1"}, snapshots=["depth0"])
    with pytest.raises(LayerError) as raised:
        ensure(layers)
    said = str(raised.value)
    assert f"image {BASE_IMAGE} in pool pool is of the first format" in said
    assert "choose another ceph.imageprefix or pool, or go on with a driver of version 1" in said
    assert "\n" not in said
    assert pool.images[BASE_IMAGE].snapshots == ["depth0"]


def test_one_whose_content_lies_in_another_pool(pool: FakePool, layers: Layers) -> None:
    pool.add_base(data_pool="objects")
    with pytest.raises(LayerError, match=r"has its content in pool objects; use ceph\.objectpool=objects or"):
        ensure(layers)


def test_who_is_about_to_name_one_is_waited_for(
    pool: FakePool, layers: Layers, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two renames to one name both succeed, and neither image is whole afterwards."""
    lock = (f"{BASE_IMAGE}.lock", "rename")
    pool.objects.attributes[lock[0]] = {}
    pool.objects.locks[lock] = {"client.9": "another /home"}
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        pool.objects.locks[lock].clear()

    monkeypatch.setattr("images.base_image.time.sleep", wait)
    ensure(layers, str(tmp_path))
    assert waits
    assert pool.images[BASE_IMAGE].metadata == WHOLE
    assert pool.objects.locks[lock] == {}


def test_a_rename_that_timed_out_was_done_or_is_done_the_next_time(
    pool: FakePool, layers: Layers, host: FakeHost, tmp_path: Path
) -> None:
    for done in (True, False):
        pool.images.clear()
        pool.fails["rename"] = [(timed_out(), True) if done else timed_out()]
        with pytest.raises(command.CommandTimeout):
            ensure(layers, str(tmp_path))
        ensure(layers, str(tmp_path))
        assert [*pool.images] == [BASE_IMAGE]
