"""The archive of a Diff, rule by rule. "moby" is pkg/archive of v27.5.1: archive.go."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest
from unit.archives import Trees, children, needs_root, picture, trees, upper, whiteout, write

from archive import changes as comparison
from archive import pack, transfer
from archive.transfer import Kind

pytestmark = needs_root
__all__ = ["trees", "upper"]

NS = 10**9
ADDED = Kind.ADDED


CAPABILITY_2 = bytes.fromhex("0100000200200000000000000000000000000000")


CAPABILITY_3 = bytes.fromhex("0100000300200000000000000000000000000000e8030000")


def test_what_became_a_whiteout_since_it_was_found_is_gone(trees: Trees, upper: Path) -> None:
    """A container removes a device, a file, a directory between our look at the names and our look at the things."""
    for name in ("device", "file", "directory"):
        whiteout(upper / name)
    found = [(b"/device", ADDED, 0), (b"/file", ADDED, 1), (b"/directory", ADDED, 0), (b"/directory/f", ADDED, 1)]
    before = os.getcwd()
    root = os.open(upper, os.O_RDONLY)
    source, out = os.pipe()
    try:
        pack.pack(found, out, root, (), ())
        os.close(out)
        assert os.read(source, 1 << 16) == bytes(1024)
        assert comparison.total_size(root, found) == 0
    finally:
        os.close(source)
        os.close(root)
        os.chdir(before)


def test_the_archive_is_the_same_every_time(trees: Trees) -> None:
    """Issue 3; moby puts the current time into whiteouts, we put none."""
    write(trees.old / "gone")
    new = trees.clone()
    (new / "gone").unlink()
    for name in "zyxwv":
        write(new / name / name)
    first = b"".join(transfer.diff(str(new), str(trees.old)))
    assert first == b"".join(transfer.diff(str(new), str(trees.old)))
    assert trees.diff()[".wh.gone"].mtime == 0


def test_kinds_and_attributes(trees: Trees) -> None:
    """moby FileInfoHeader: whole seconds, names relative, directories with a slash, no names of users."""
    new = trees.clone()
    write(new / "f", b"data")
    (new / "f").chmod(0o4751)
    os.chown(new / "f", 5, 3_000_000)
    (new / "f").chmod(0o4751)
    os.utime(new / "f", ns=(5 * NS + 9, 5 * NS + 9))
    (new / "s").symlink_to("../away")
    os.mknod(new / "c", stat.S_IFCHR | 0o620, os.makedev(5, 70000))
    os.mkfifo(new / "p")
    (new / "d").mkdir()
    got = trees.diff()
    assert list(got) == ["c", "d", "f", "p", "s"]
    f = got["f"]
    assert (f.mode, f.uid, f.gid, f.size, f.mtime, f.uname) == (0o4751, 5, 3_000_000, 4, 5, "")
    assert (got["s"].type, got["s"].linkname) == (tarfile.SYMTYPE, "../away")
    assert (got["c"].type, got["c"].devmajor, got["c"].devminor) == (tarfile.CHRTYPE, 5, 70000)
    assert (got["p"].type, got["d"].type) == (tarfile.FIFOTYPE, tarfile.DIRTYPE)


def test_whiteouts(trees: Trees) -> None:
    """moby ExportChanges: an empty regular file .wh.NAME beside the name."""
    write(trees.old / "d/f")
    write(trees.old / "d/g")
    (trees.clone() / "d/f").unlink()
    member = trees.diff()["d/.wh.f"]
    assert (member.type, member.size, member.mode) == (tarfile.REGTYPE, 0, 0)


def test_hard_links_target_first(trees: Trees) -> None:
    """moby addTarFile: the first name of an inode in the archive has the data, the others link to it."""
    new = trees.clone()
    write(new / "z/first", b"data")
    os.link(new / "z/first", new / "a")
    os.link(new / "z/first", new / "m")
    got = trees.diff()
    assert [(name, got[name].type, got[name].linkname) for name in ("a", "m", "z/first")] == [
        ("a", tarfile.REGTYPE, ""),
        ("m", tarfile.LNKTYPE, "a"),
        ("z/first", tarfile.LNKTYPE, "a"),
    ]


def test_a_new_link_to_an_unchanged_file_has_the_data(trees: Trees) -> None:
    """moby addTarFile: the target must be in the same archive."""
    write(trees.old / "f", b"data")
    new = trees.clone()
    os.link(new / "f", new / "g")
    got = trees.diff()
    assert list(got) == ["g"]
    assert (got["g"].type, got["g"].size) == (tarfile.REGTYPE, 4)


@pytest.mark.parametrize(("value", "archived"), [(CAPABILITY_2, CAPABILITY_2), (CAPABILITY_3, CAPABILITY_2)])
def test_capabilities(trees: Trees, value: bytes, archived: bytes) -> None:
    """moby ReadSecurityXattrToTarHeader: this attribute alone, revision 3 as 2."""
    path = write(trees.clone() / "f")
    os.setxattr(path, "security.capability", value)
    os.setxattr(path, "user.x", b"1")
    data = b"".join(transfer.diff(str(trees.new), str(trees.old)))
    assert b"SCHILY.xattr.security.capability=" + archived + b"\n" in data
    assert b"user.x" not in data


def test_id_maps(trees: Trees) -> None:
    """moby addTarFile: IdentityMapping.ToContainer; PROTOCOL 8: an id outside is an error."""
    path = write(trees.clone() / "f")
    ids = transfer.IdMaps((transfer.IdRange(0, 1000, 10),), (transfer.IdRange(0, 2000, 10),))
    os.chown(path, 1003, 2004)
    with tarfile.open(fileobj=io.BytesIO(b"".join(transfer.diff(str(trees.new), str(trees.old), ids)))) as made:
        member = made.getmember("f")
    assert (member.uid, member.gid) == (3, 4)
    os.chown(path, 999, 2004)
    with pytest.raises(transfer.ArchiveError, match="'/f': user id 999 of the host is not mapped"):
        list(transfer.diff(str(trees.new), str(trees.old), ids))


@pytest.mark.parametrize(
    "name",
    [
        b"n" * 100,
        b"n" * 101,
        b"d" * 99 + b"/" + b"n" * 100,
        b"d" * 155 + b"/" + b"n" * 100,
        b"d" * 156 + b"/" + b"n" * 100,
        b"/".join([b"deep"] * 80),
        b"caf\xc3\xa9",
        b"caf\xe9\xff",
        b"d\xff" * 60 + b"/" + b"n" * 150,
        b"new\nline",
    ],
)
def test_names_survive_both_ways_and_gnu_tar_reads_them(trees: Trees, tmp_path: Path, name: bytes) -> None:
    """Issue 3: names that are long or not UTF-8; readable by GNU tar and by moby (archive/tar, the same format)."""
    path = os.path.join(os.fsencode(trees.clone()), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as out:
        out.write(b"data")
    os.symlink(name[-120:], path[:-1] + b"~")
    os.link(path, path[:-1] + b"^")
    data = b"".join(transfer.diff(str(trees.new), str(trees.old)))
    for program in (["tar", "-x"], ["apply"]):
        target = tmp_path / program[0]
        target.mkdir()
        if program == ["apply"]:
            transfer.apply(str(target), io.BytesIO(data))
        else:
            subprocess.run([*program, "-C", target], input=data, check=True, env={"LC_ALL": "C", "PATH": "/bin"})
        assert without_sub_seconds(target) == without_sub_seconds(trees.new)


def without_sub_seconds(root: Path) -> dict[bytes, tuple[object, ...]]:
    found = picture(root)
    del found[b"."]
    return {name: (*look[:3], look[3] // NS, *look[4:]) for name, look in found.items()}


@pytest.mark.parametrize("mtime", [-5, 0, 8**11 - 1, 8**11])
def test_odd_times(trees: Trees, mtime: int) -> None:
    os.utime(write(trees.clone() / "f"), (mtime, mtime))
    on_disk = int((trees.new / "f").stat().st_mtime)
    assert trees.diff()["f"].mtime == on_disk


def test_big_files_need_a_pax_size(trees: Trees) -> None:
    """Issue 3: files over 8 GiB (a sparse one; the archive is only looked at)."""
    with open(trees.clone() / "f", "wb") as out:
        out.truncate((8 << 30) + 1)
    with contextlib.closing(transfer.diff(str(trees.new), str(trees.old))) as pieces:
        first = next(pieces)
    assert tarfile.TarInfo.frombuf(first[:512], "utf-8", "strict").type == tarfile.XHDTYPE
    assert b" size=8589934593\n" in first[:1024]
    assert children() == []


def test_a_tree_that_changes_all_the_time(tmp_path: Path) -> None:
    """Issue 3: files that vanish, grow or become something else while a container runs (commit --pause=false)."""
    root = tmp_path / "live"
    outside = write(tmp_path / "outside/secret", b"SECRET" * 1000).parent
    for number in range(60):
        write(root / f"d{number % 6}/f{number}", b"x" * 300)
    stop = threading.Event()

    def disturb() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            name = root / f"d{number % 6}/f{number % 60}"
            with contextlib.suppress(OSError):
                if number % 5 == 0:
                    shutil.rmtree(name.parent, ignore_errors=True)
                    name.parent.symlink_to(outside)
                elif number % 5 == 1:
                    name.parent.unlink()
                elif number % 5 == 2:
                    name.unlink()
                    name.symlink_to(outside / "secret")
                else:
                    write(name, b"y" * (number % 70000))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(12):
            data = b"".join(transfer.diff(str(root), None))
            assert b"SECRET" not in data
            with tarfile.open(fileobj=io.BytesIO(data)) as made:
                for member in made:
                    if member.isreg():
                        assert len(made.extractfile(member).read()) == member.size  # type: ignore[union-attr]
    finally:
        stop.set()
        thread.join()


def test_a_file_that_shrinks_is_filled_up(trees: Trees) -> None:
    """GNU tar does the same; moby's archive breaks off. The file is more than pipes hold: it is being sent."""
    new = trees.clone()
    write(new / "a", b"x" * (12 << 20))
    write(new / "b", b"end")
    pieces = transfer.diff(str(new), None)
    data = next(pieces)
    os.truncate(new / "a", 5 << 20)
    data += b"".join(pieces)
    with tarfile.open(fileobj=io.BytesIO(data)) as made:
        assert [(member.name, member.size) for member in made] == [("a", 12 << 20), ("b", 3)]
        assert made.extractfile("a").read() == b"x" * (5 << 20) + bytes(7 << 20)  # type: ignore[union-attr]
        assert made.extractfile("b").read() == b"end"  # type: ignore[union-attr]
