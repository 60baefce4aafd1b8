"""mounts.py: the kernel's mount table as proc(5) writes it, and the command lines of mount and its kin."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unit.fakes import FakePool

import mounts
from images.options import DEFAULTS
from mapped.home import Home
from mounts import Mount

TABLE = b"""\
22 28 0:20 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
28 0 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
90 28 252:0 / /home/mnt/abc/docker rw,noatime shared:50 master:1 - xfs /dev/rbd0 rw,nouuid,attr2,inode64
91 28 252:1 / /home/mnt/def/docker ro,noatime - xfs /dev/rbd1 ro,nouuid
92 28 252:2 / /home/mnt/gh\\040i\\134j\\012k/docker rw - xfs /dev/rbd2 ro,nouuid
93 28 252:3 /rootfs /mnt/\\303\\251/\\377 rw - xfs /dev/rbd3 rw,context="system_u:object_r:file_t:s0:c1,c2",nouuid
94 28 252:3 / /home/mnt/lab\\040el rw - xfs /dev/rbd3 rw,context=system_u:object_r:container_file_t:s0
95 90 252:4 / /home/mnt/abc/docker ro - xfs /dev/rbd4 rw,rootcontext="a:b"
96 28 0:99 / /fuse rw,relatime - fuse.some-thing server:/ex\\040port rw,user_id=0
97 28 0:98 / /hash\\043tag rw - tmpfs tmpfs rw
98 28 0:97 / /view rw - overlay docker_image_a\\040b\\043c rw,lowerdir=l/A:none,upperdir=u,workdir=w
99 28 0:97 /etc\\040x /etc rw shared:3 - overlay docker_image_a\\040b\\043c rw,lowerdir=l/A:none,upperdir=u,workdir=w
100 28 0:96 / /nothing rw - tmpfs  rw
"""


@pytest.fixture
def table(tmp_path: Path) -> list[Mount]:
    path = tmp_path / "mountinfo"
    path.write_bytes(TABLE)
    return mounts._read_table(str(path))


def test_every_line_is_read(table: list[Mount]) -> None:
    assert [item.device_number for item in table[:4]] == ["0:20", "254:1", "252:0", "252:1"]
    assert len(table) == 13


def test_optional_fields_come_in_any_number(table: list[Mount]) -> None:
    assert table[2] == Mount("252:0", "/home/mnt/abc/docker", False, "", "xfs", "/dev/rbd0", "/")


def test_read_only_is_the_mount_or_the_file_system(table: list[Mount]) -> None:
    assert [item.read_only for item in table] == [False] * 3 + [True] * 2 + [False] * 2 + [True] + [False] * 5


def test_octal_escapes(table: list[Mount]) -> None:
    assert table[4].point == "/home/mnt/gh i\\j\nk/docker"
    assert os.fsencode(table[5].point) == b"/mnt/\xc3\xa9/\xff"
    assert table[9].point == "/hash#tag"


def test_what_is_mounted_and_which_directory_of_it(table: list[Mount]) -> None:
    assert [(item.type, item.source, item.root) for item in table[7:]] == [
        ("xfs", "/dev/rbd4", "/"),
        ("fuse.some-thing", "server:/ex port", "/"),
        ("tmpfs", "tmpfs", "/"),
        ("overlay", "docker_image_a b#c", "/"),
        ("overlay", "docker_image_a b#c", "/etc x"),
        ("tmpfs", "", "/"),
    ]
    assert table[5].root == "/rootfs"


def test_the_label_is_that_of_context_alone(table: list[Mount]) -> None:
    assert table[5].label == "system_u:object_r:file_t:s0:c1,c2"
    assert table[6].label == "system_u:object_r:container_file_t:s0"
    assert table[7].label == ""


def test_the_last_of_several_mounts_at_a_point_counts(table: list[Mount], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "table", lambda: table)
    found = mounts.at("/home/mnt/abc/docker")
    assert found is not None
    assert found.device_number == "252:4"
    assert mounts.at("/home/mnt/abc") is None


def test_a_mount_point_with_white_space_that_the_kernel_does_not_escape(tmp_path: Path) -> None:
    """fs/proc_namespace.c mangles blank, tab, newline, backslash and hash; form feeds and the like stay as they are."""
    path = tmp_path / "mountinfo"
    path.write_bytes(b"90 28 252:0 / /a\x0cb\x0bc rw,noatime shared:50 - xfs /dev/rbd0 rw,nouuid\n")
    assert mounts._read_table(str(path)) == [Mount("252:0", "/a\fb\vc", False, "", "xfs", "/dev/rbd0", "/")]


def test_what_is_hidden_is_not_to_be_seen() -> None:
    """dockerd mounts its data root on itself; what lay there before has its line in the table all the same."""

    def mount(number: str, point: str) -> Mount:
        return Mount(number, point, False, "")

    found = [
        # Mounted by an initramfs, and moved.
        mount("0", "/dev/shm"),
        mount("1", "/"),
        mount("2", "/data/mnt/a"),
        mount("3", "/data/mnt/b"),
        mount("4", "/data"),
        mount("5", "/data/mnt/b"),
        mount("6", "/data/mnt/c"),
        mount("7", "/data/mnt/c"),
        mount("8", "/data/mnt/cc"),
        mount("9", "/data/m"),
    ]
    seen = mounts.visible(found)
    assert {point: item.device_number for point, item in seen.items()} == {
        "/dev/shm": "0",
        "/": "1",
        "/data": "4",
        "/data/mnt/b": "5",
        "/data/mnt/c": "7",
        "/data/mnt/cc": "8",
        "/data/m": "9",
    }


def test_this_machine_s_own_table() -> None:
    assert any(item.point == "/" for item in mounts.table())


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fakes of every program that mounts.py runs; each line is one call."""
    for name in ("mount", "umount", "mkfs.xfs", "mkfs.ext4", "xfs_growfs", "resize2fs"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/calls\n', encoding="ascii")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "calls"


def lines(calls: Path) -> list[str]:
    return calls.read_text(encoding="utf-8").splitlines()


def test_the_options_of_a_mount(calls: Path) -> None:
    mounts.mount("xfs", "/dev/rbd0", "/m", ("logbsize=32k", "relatime"), read_only=False, timeout=20)
    mounts.mount("ext4", "/dev/rbd0", "/m", (), read_only=True, timeout=20)
    assert lines(calls) == [
        "mount -t xfs -o nouuid,noatime,rw,logbsize=32k,relatime /dev/rbd0 /m",
        "mount -t ext4 -o noatime,ro /dev/rbd0 /m",
    ]


def say_where(calls: Path) -> None:
    """Let `mount` tell its working directory, too."""
    script = f'#!/bin/sh\nprintf "%s: mount" "$(pwd -P)" >>{calls}\nprintf " %s" "$@" >>{calls}\necho >>{calls}\n'
    (calls.parent / "mount").write_text(script, encoding="ascii")


OURS = "noatime,index=off,metacopy=off,redirect_dir=off,xino=on"


def test_the_options_of_a_view(calls: Path, tmp_path: Path) -> None:
    """Its directories are named from where the links are."""
    say_where(calls)
    where = {"directory": str(tmp_path), "timeout": 20.0}
    upper = ("../mnt/a/layer/rootfs", "../mnt/a/layer/work")
    mounts.overlay("image_a", "/m", ["x", "y", "../mnt/a/layer/none"], upper, options=(), label="", **where)  # type: ignore[arg-type]
    mounts.overlay("image_a", "/m", ["x", "y"], None, options=(), label="", **where)  # type: ignore[arg-type]
    here = f"{tmp_path.resolve()}: mount -t overlay -o"
    assert lines(calls) == [
        f"{here} rw,{OURS},lowerdir=x:y:../mnt/a/layer/none,upperdir={upper[0]},workdir={upper[1]} image_a /m",
        f"{here} ro,{OURS},lowerdir=x:y image_a /m",
    ]


def test_what_a_user_chose_for_views_wins_and_a_label_is_quoted(calls: Path, tmp_path: Path) -> None:
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    mounts.overlay(
        "image_a", "/m", ["x", "y"], None, options=("xino=off",), label=label, directory=str(tmp_path), timeout=20
    )
    chosen = OURS.replace("xino=on", "xino=off")
    assert lines(calls) == [f'mount -t overlay -o ro,{chosen},lowerdir=x:y,context="{label}" image_a /m']


def test_the_options_of_the_deepest_view_fit_into_a_page(calls: Path, tmp_path: Path) -> None:
    """mount(2) takes no more. Docker stacks 125 layers; a container's init layer is in its own."""
    pool = FakePool().as_pool()
    paths = Home("/home", DEFAULTS, pool).paths
    layer = 64 * "f"
    lower = [f"../mnt/{layer}/layer/init", *(paths.short(f"{at:064x}") for at in range(125))]
    upper = (f"../mnt/{layer}/layer/rootfs", f"../mnt/{layer}/layer/work")
    label = "system_u:object_r:container_file_t:s0:c1022,c1023"
    mounts.overlay(
        "image",
        "/m",
        lower,
        upper,
        options=("xino=off", "nodiratime"),
        label=label,
        directory=str(tmp_path),
        timeout=20,
    )
    [line] = lines(calls)
    assert len(set(lower)) == 126
    assert len(line.split()[4]) < os.sysconf("SC_PAGE_SIZE") - len("seclabel,")


def test_mount_points_are_shown_again_and_change_their_access(calls: Path) -> None:
    mounts.remount("/a", read_only=True, timeout=20)
    mounts.remount("/a", read_only=False, timeout=20)
    mounts.unmount("/a", timeout=20)
    assert lines(calls) == [
        "mount -o remount,ro /a",
        "mount -o remount,rw /a",
        "umount --no-canonicalize /a",
    ]


def test_making_a_file_system_splits_the_user_s_arguments(calls: Path) -> None:
    mounts.make("xfs", "/dev/rbd0", ("-m reflink=0", "-i size=1024"), timeout=20)
    mounts.make("ext4", "/dev/rbd0", (), timeout=20)
    assert lines(calls) == [
        "mkfs.xfs -q -f -K -m reflink=0 -i size=1024 /dev/rbd0",
        "mkfs.ext4 -q -F -E nodiscard /dev/rbd0",
    ]


def test_a_device_that_is_gone() -> None:
    with pytest.raises(mounts.MountError, match="block device 4095:1048575 is gone"):
        mounts.device_path("4095:1048575")
    assert not mounts.in_use("/dev/surely-not-there")
