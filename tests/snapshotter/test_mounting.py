"""mounting.py: what it makes of options, and that it tells when a mount cannot be made."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from client import Mount
from mounting import Call, MountFailed, calls, compacted, is_mount_point, mount_all, mounted, unmount_all


def overlay(*options: str) -> Mount:
    return Mount("overlay", "overlay", "", options)


def test_words_that_are_flags_and_others() -> None:
    assert calls(Mount("ext4", "/dev/x", "", ("rw", "noatime", "discard"))) == [Call("/dev/x", "ext4", 1024, "discard")]
    assert calls(Mount("xfs", "/dev/x", "", ("ro", "rw", "nouuid"))) == [Call("/dev/x", "xfs", 0, "nouuid")]


def test_a_read_only_bind_mount_takes_two_calls() -> None:
    assert calls(Mount("bind", "/a", "", ("rbind", "rw"))) == [Call("/a", "bind", 4096 | 16384, "")]
    first, second = calls(Mount("bind", "/a", "", ("ro", "rbind")))
    assert first == Call("/a", "bind", 1 | 4096 | 16384, "")
    assert second == Call("", "", 1 | 32 | 4096 | 16384, "")


def test_long_options_are_called_from_where_all_layers_are() -> None:
    layers = [f"/var/lib/some/where/{at}/fs" for at in range(200)]
    mount = overlay("index=off", f"lowerdir={':'.join(layers)}")
    [call] = calls(mount)
    assert call.directory == "/var/lib/some/where"
    assert call.data == "index=off,lowerdir=" + ":".join(f"{at}/fs" for at in range(200))
    [short] = calls(overlay(f"lowerdir={':'.join(layers[:2])}"))
    assert short.directory == ""


@pytest.mark.parametrize("layers", ["/a", "/a:/b", "a/b:c/d"])
def test_layers_that_share_nothing_stay(layers: str) -> None:
    assert compacted((f"lowerdir={layers}", "x")) == ((f"lowerdir={layers}", "x"), "")


def test_options_of_more_than_a_page_are_refused() -> None:
    with pytest.raises(MountFailed, match="options of"):
        calls(overlay(f"lowerdir={':'.join(f'/{at}/fs' for at in range(1000))}"))


def test_mounts_are_made_and_taken_back(tmp_path: Path) -> None:
    """Bind mounts, a read-only one over the other, and an overlay whose layers are found from their directory."""
    place, source = tmp_path / "place", tmp_path / "source"
    layers = [tmp_path / "layers" / f"{at:0100}" for at in range(40)]
    for directory in (place, source, *layers):
        directory.mkdir(parents=True)
        (directory / directory.name).touch()
    bind = [Mount("bind", str(source), "", ("rbind", "rw")), Mount("bind", str(source), "", ("rbind", "ro"))]
    with mounted(bind, str(place)), pytest.raises(OSError, match="Read-only") as caught:
        (place / "file").touch()
    assert caught.value.errno == errno.EROFS
    with mounted([overlay(f"lowerdir={':'.join(map(str, layers))}")], str(place)):
        assert len(os.listdir(place)) == 40
    assert os.listdir(place) == ["place"]


def test_what_cannot_be_mounted_or_unmounted_is_told(tmp_path: Path) -> None:
    """And what was mounted before it is taken back."""
    bind = Mount("bind", str(tmp_path), "", ("rbind",))
    with pytest.raises(MountFailed, match="No such file"):
        mount_all([bind, Mount("bind", "/no/such/directory", "", ("rbind",))], str(tmp_path))
    assert not is_mount_point(str(tmp_path))
    mount_all([bind], str(tmp_path))
    with open(tmp_path / "held", "w", encoding="ascii"), pytest.raises(MountFailed, match="busy"):
        unmount_all(str(tmp_path))
    unmount_all(str(tmp_path))
    assert not is_mount_point(str(tmp_path))
