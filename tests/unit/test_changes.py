"""Diff, Changes and DiffSize, rule by rule. "moby" is pkg/archive of v27.5.1: changes*.go, archive.go."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import stat
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest
from unit.archives import children, needs_root, peak_memory, picture

from archive import changes as comparison
from archive import pack, transfer
from archive.transfer import Change, Kind

pytestmark = needs_root

NS = 10**9
CAPABILITY_2 = bytes.fromhex("0100000200200000000000000000000000000000")
CAPABILITY_3 = bytes.fromhex("0100000300200000000000000000000000000000e8030000")
ADDED, MODIFIED, DELETED = Kind.ADDED, Kind.MODIFIED, Kind.DELETED


class Trees:
    """A layer and the parent it was cloned from: cp keeps times and owners, as a clone does."""

    def __init__(self, top: Path) -> None:
        self.old, self.new = top / "old", top / "new"
        self.old.mkdir()

    def clone(self) -> Path:
        subprocess.run(["cp", "-a", self.old, self.new], check=True)
        return self.new

    def changes(self) -> list[tuple[str, Kind]]:
        return [(os.fsdecode(path), kind) for path, kind in transfer.changes(str(self.new), str(self.old))]

    def tar(self) -> tarfile.TarFile:
        data = b"".join(transfer.diff(str(self.new), str(self.old)))
        return tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape")

    def diff(self) -> dict[str, tarfile.TarInfo]:
        with self.tar() as found:
            return {member.name: member for member in found}


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path)


def write(path: Path, data: bytes = b"data", mtime: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (mtime, mtime))
    return path


# -- what counts as a change ---------------------------------------------------------------------


def test_equal_trees(trees: Trees) -> None:
    write(trees.old / "d/f")
    trees.clone()
    assert trees.changes() == []
    assert b"".join(transfer.diff(str(trees.new), str(trees.old))) == bytes(1024)
    assert transfer.size(str(trees.new), str(trees.old)) == 0


@pytest.mark.parametrize("what", ["content", "mode", "uid", "gid", "mtime", "capability", "type"])
def test_a_file_is_modified(trees: Trees, what: str) -> None:
    """moby statDifferent: mode (with the type), uid, gid, rdev, size, mtime; addChanges: capability."""
    write(trees.old / "d/f")
    path = trees.clone() / "d/f"
    if what == "content":
        write(path, b"longer than before")
    elif what == "mode":
        path.chmod(0o4755)
    elif what == "uid":
        os.chown(path, 5, -1)
    elif what == "gid":
        os.chown(path, -1, 5)
    elif what == "mtime":
        os.utime(path, (1001, 1001))
    elif what == "capability":
        os.setxattr(path, "security.capability", CAPABILITY_2)
    else:
        path.unlink()
        path.symlink_to("data")
    assert trees.changes() == [("/d", MODIFIED), ("/d/f", MODIFIED)]


def test_same_size_and_time_is_unchanged(trees: Trees) -> None:
    """moby statDifferent looks at no content, inode or ctime."""
    write(trees.old / "f", b"aaaa")
    write(trees.clone() / "f", b"bbbb")
    assert trees.changes() == []


def test_user_xattrs_are_no_change(trees: Trees) -> None:
    """moby addChanges compares security.capability alone."""
    path = write(trees.old / "f")
    trees.clone()
    os.setxattr(path, "user.x", b"1")
    assert trees.changes() == []


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [(5, 5, True), (5 * NS, 5 * NS + 1, True), (5 * NS + 7, 5 * NS, True), (5 * NS + 7, 5 * NS + 8, False)],
)
def test_mtimes_of_the_same_second(trees: Trees, old: int, new: int, same: bool) -> None:
    """moby sameFsTime: equal, or the same second and one without nanoseconds, as archives have them."""
    os.utime(write(trees.old / "f"), ns=(old, old))
    os.utime(trees.clone() / "f", ns=(new, new))
    assert (trees.changes() == []) == same


def test_device_numbers(trees: Trees) -> None:
    """moby statDifferent: rdev."""
    os.mknod(trees.old / "c", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mkdir(trees.new)
    os.mknod(trees.new / "c", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    os.utime(trees.old / "c", (5, 5))
    os.utime(trees.new / "c", (5, 5))
    assert trees.changes() == [("/c", MODIFIED)]


def test_directories_by_mode_and_owner_only(trees: Trees) -> None:
    """moby statDifferent: neither size nor mtime of a directory."""
    for name in ("time", "mode", "owner"):
        (trees.old / name).mkdir()
    new = trees.clone()
    os.utime(new / "time", (1, 1))
    (new / "mode").chmod(0o711)
    os.chown(new / "owner", 1, 1)
    assert trees.changes() == [("/mode", MODIFIED), ("/owner", MODIFIED)]


def test_the_root_is_never_listed(trees: Trees) -> None:
    """moby addChanges: path "/" is left out."""
    trees.clone().chmod(0o700)
    assert trees.changes() == []
    write(trees.new / "f")
    assert trees.changes() == [("/f", ADDED)]


def test_a_directory_comes_before_its_changes(trees: Trees) -> None:
    """moby addChanges: a directory with changes is modified itself; ExportChanges: sorted by path."""
    for name in ("a/b/c", "a/b/gone", "a-b/x", "z"):
        write(trees.old / name)
    new = trees.clone()
    write(new / "a/b/c", b"changed")
    write(new / "a-b/new")
    (new / "a/b/gone").unlink()
    assert trees.changes() == [
        ("/a", MODIFIED),
        ("/a-b", MODIFIED),
        ("/a-b/new", ADDED),
        ("/a/b", MODIFIED),
        ("/a/b/c", MODIFIED),
        ("/a/b/gone", DELETED),
    ]


def test_a_removed_directory_is_one_change(trees: Trees) -> None:
    """moby addChanges: a deletion is recursive."""
    write(trees.old / "d/e/f")
    shutil.rmtree(trees.clone() / "d")
    assert trees.changes() == [("/d", DELETED)]
    assert list(trees.diff()) == [".wh.d"]


def test_an_added_directory_is_listed_in_full(trees: Trees) -> None:
    write(trees.clone() / "d/e/f")
    assert trees.changes() == [("/d", ADDED), ("/d/e", ADDED), ("/d/e/f", ADDED)]


def test_directory_to_file_and_back(trees: Trees) -> None:
    """moby addChanges: modified, no whiteout; what was in the directory is not mentioned, what is in it is added."""
    write(trees.old / "d/f")
    write(trees.old / "g")
    new = trees.clone()
    shutil.rmtree(new / "d")
    write(new / "d")
    (new / "g").unlink()
    write(new / "g/h")
    assert trees.changes() == [("/d", MODIFIED), ("/g", MODIFIED), ("/g/h", ADDED)]


def test_without_a_parent_everything_is_added(trees: Trees) -> None:
    """PROTOCOL 5: parent "" is everything, all of kind 1; in the order of whole paths, where "-" is before "/"."""
    for name in ("a/x", "a-b/y", "a.c", "b"):
        write(trees.old / name)
    found = transfer.changes(str(trees.old), None)
    paths = [b"/a", b"/a-b", b"/a-b/y", b"/a.c", b"/a/x", b"/b"]
    assert found == [Change(path, ADDED) for path in paths]
    with tarfile.open(fileobj=io.BytesIO(b"".join(transfer.diff(str(trees.old), None)))) as made:
        assert [member.name for member in made] == [path.decode()[1:] for path in paths]


def test_sockets_are_listed_and_not_archived(trees: Trees) -> None:
    """moby addTarFile: archive/tar knows no sockets; ChangesDirs does."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(trees.clone() / "sock"))
    assert trees.changes() == [("/sock", ADDED)]
    assert trees.diff() == {}


def test_deeper_than_pythons_recursion(trees: Trees) -> None:
    """moby compares as deep as a path may be long (PATH_MAX)."""
    path = os.fspath(trees.clone())
    for _ in range(1500):
        path += "/d"
        os.mkdir(path)
    assert len(trees.changes()) == 1500
    assert len(trees.diff()) == 1500
    subprocess.run(["rm", "-r", trees.new], check=True)  # pytest could not


# -- an upper directory of overlayfs ---------------------------------------------------------------------
# Made by hand, with what no kernel here would make; real ones: tests/integration/test_changes_of_overlays.py.


def whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))


def brought(trees: Trees) -> list[tuple[str, Kind]]:
    found = transfer.changes(str(trees.new), str(trees.old), own=True)
    return [(os.fsdecode(path), kind) for path, kind in found]


@pytest.fixture
def upper(trees: Trees) -> Path:
    """An empty one, on a parent that has something."""
    for name in ("d/f", "d/e/g", "x"):
        write(trees.old / name)
    trees.new.mkdir()
    return trees.new


def test_names_that_a_layer_did_not_bring_are_as_they_were(trees: Trees, upper: Path) -> None:
    assert brought(trees) == []
    write(upper / "d/new")
    write(upper / "d/f")
    assert brought(trees) == [("/d", MODIFIED), ("/d/new", ADDED)]


def test_a_whiteout_says_what_is_gone(trees: Trees, upper: Path) -> None:
    """If there is anything; it is nothing itself, not even in a new directory or without a parent."""
    for name in ("d/f", "d/never", "x", "never", "new/never", "new/e/never"):
        whiteout(upper / name)
    assert brought(trees) == [
        ("/d", MODIFIED),
        ("/d/f", DELETED),
        ("/new", ADDED),
        ("/new/e", ADDED),
        ("/x", DELETED),
    ]
    assert transfer.changes(str(upper), None, own=True) == [(path, ADDED) for path in (b"/d", b"/new", b"/new/e")]
    data = b"".join(transfer.diff(str(upper), None, own=True))
    with tarfile.open(fileobj=io.BytesIO(data)) as made:
        assert made.getnames() == ["d", "new", "new/e"]


@pytest.mark.parametrize(("mark", "opaque"), [(b"y", True), (b"x", False), (b"", False)])
def test_only_one_mark_makes_a_directory_opaque(trees: Trees, upper: Path, mark: bytes, opaque: bool) -> None:
    """Documentation/filesystems/overlayfs.rst: "x" is for a directory in which whiteouts are attributes."""
    write(upper / "d/e/new")
    os.setxattr(upper / "d", "trusted.overlay.opaque", mark)
    gone = [("/d/e/g", DELETED), ("/d/e/new", ADDED), ("/d/f", DELETED)]
    expected = gone if opaque else [("/d/e/new", ADDED)]
    assert brought(trees) == [("/d", MODIFIED), ("/d/e", MODIFIED), *expected]
    data = b"".join(transfer.diff(str(upper), str(trees.old), own=True))
    assert b"overlay" not in data


def test_the_root_is_never_opaque(trees: Trees, upper: Path) -> None:
    """The kernel does not ask there either."""
    os.setxattr(upper, "trusted.overlay.opaque", b"y")
    assert brought(trees) == []


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


# -- sizes --------------------------------------------------------------------------------------------


def test_size(trees: Trees) -> None:
    """moby ChangesSize: lstat sizes of what is added or modified, a symlink's too, hard links once, directories not."""
    write(trees.old / "gone", b"12345")
    write(trees.old / "same", b"12345")
    new = trees.clone()
    (new / "gone").unlink()
    write(new / "d/a", b"123")
    os.link(new / "d/a", new / "d/b")
    (new / "s").symlink_to("four")
    assert transfer.size(str(new), str(trees.old)) == 3 + 4


# -- the archive -------------------------------------------------------------------------------------------


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


# -- a layer in use -------------------------------------------------------------------------------------------


def test_neither_tree_is_written_to(trees: Trees) -> None:
    """Issue 3: the parent is never written to."""
    write(trees.old / "d/f")
    write(trees.clone() / "d/g")
    before = picture(trees.old), picture(trees.new)
    transfer.changes(str(trees.new), str(trees.old))
    list(transfer.diff(str(trees.new), str(trees.old)))
    assert (picture(trees.old), picture(trees.new)) == before


def test_a_directory_that_has_become_a_symlink_is_gone(tmp_path: Path) -> None:
    """What a running container can do between our look at a directory and our opening it."""
    (tmp_path / "tree/a").mkdir(parents=True)
    (tmp_path / "outside/b").mkdir(parents=True)
    (tmp_path / "tree/link").symlink_to(tmp_path / "outside")
    before = os.getcwd()
    root = os.open(tmp_path / "tree", os.O_RDONLY)
    try:
        directory = comparison.Directory(root)
        assert not directory.enter(b"/link")
        assert not directory.enter(b"/link/b")
        assert directory.enter(b"/a")
        assert os.getcwd() == str(tmp_path / "tree/a")
    finally:
        os.close(root)
        os.chdir(before)


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


@pytest.mark.parametrize("read", [0, 1])
def test_closing_the_generator_ends_everything(trees: Trees, read: int) -> None:
    """Interface: no process is left."""
    write(trees.clone() / "big", b"x" * (20 << 20))
    pieces = transfer.diff(str(trees.new), None)
    for _ in range(read):
        next(pieces)
    pieces.close()
    assert children() == []


def test_a_missing_root_is_an_error_at_the_first_piece(tmp_path: Path) -> None:
    """PROTOCOL 4: an error can only be told before the first byte."""
    with pytest.raises(transfer.ArchiveError, match="No such file or directory"):
        next(transfer.diff(str(tmp_path / "nowhere"), None))
    with pytest.raises(transfer.ArchiveError, match="No such file or directory"):
        transfer.changes(str(tmp_path), str(tmp_path / "nowhere"))
    assert children() == []


def test_packing_needs_little_memory(trees: Trees) -> None:
    """Issue 3: memory stays flat, whatever the size."""
    with open(trees.clone() / "f", "wb") as out:
        out.truncate(300 << 20)
    peaks = []
    for number, _ in enumerate(transfer.diff(str(trees.new), None)):
        if number % 50 == 0:
            peaks += [peak_memory(pid) for pid in children()]
    assert max(peaks) < 32 << 20
