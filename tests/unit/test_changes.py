"""Changes and DiffSize, rule by rule. "moby" is pkg/archive of v27.5.1: changes*.go."""

from __future__ import annotations

import io
import os
import shutil
import socket
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from unit.archives import Trees, needs_root, trees, upper, whiteout, write

from archive import changes as comparison
from archive import transfer
from archive.transfer import Change, Kind

pytestmark = needs_root
__all__ = ["trees", "upper"]

NS = 10**9
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
ADDED, MODIFIED, DELETED = Kind.ADDED, Kind.MODIFIED, Kind.DELETED


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
        os.setxattr(path, "security.capability", CAPABILITY)
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


def brought(trees: Trees) -> list[tuple[str, Kind]]:
    found = transfer.changes(str(trees.new), str(trees.old), own=True)
    return [(os.fsdecode(path), kind) for path, kind in found]


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


# -- a layer in use -------------------------------------------------------------------------------------------


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
