"""What a layer brought, by its upper directory of overlayfs, is what a comparison of whole views finds.

The layers are directories of one XFS, stacked by overlayfs as the driver does it. What is asserted of a layer, by its
upper directory and by its view: the same changes, the same size, the same archive to the byte.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.archives import CHARDEV, apply, file, folder, hardlink, header, pax, picture, record

from archive import transfer
from archive.transfer import Kind

ADDED, MODIFIED, DELETED = Kind.ADDED, Kind.MODIFIED, Kind.DELETED
NS = 10**9
CAPABILITY = "security.capability"
CAPABILITY_OF_PING = bytes.fromhex("0100000200200000000000000000000000000000")
OVERLAY = "index=off,metacopy=off,redirect_dir=off,xino=on"
WHITEOUT = stat.S_IFCHR | 0o600

# -- layers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disk(session_directory: str) -> Iterator[Path]:
    """An XFS: what is on the machine's root may not do as an upper directory."""
    image, point = Path(session_directory, "overlays.img"), Path(session_directory, "overlays")
    point.mkdir()
    run("truncate", "--size", "400M", image)
    run("mkfs.xfs", "-q", "-K", image)
    run("mount", "-o", "loop,noatime", image, point)
    try:
        yield point
    finally:
        run("umount", point)
        point.rmdir()
        image.unlink()


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


class Layer:
    """A layer on others, mounted until another one is put on it."""

    def __init__(self, top: Path, parent: Layer | None) -> None:
        if parent is not None:
            parent.finish()
        self.parent = parent
        self._mounted = contextlib.ExitStack()
        self._top = top
        lower = parent.stack if parent is not None else [make(top / "none")]
        self.upper = make(top / "rootfs")
        self.stack: list[Path] = [self.upper, *lower]
        options = f"lowerdir={':'.join(map(str, lower))},{OVERLAY}"
        self.view = self._mount("view", f"{options},upperdir={self.upper},workdir={make(top / 'work')}")
        self.below = self._mount("below", f"{options},ro") if parent is not None else None

    def _mount(self, name: str, options: str) -> Path:
        point = make(self._top / name)
        run("mount", "-t", "overlay", "overlay", point, "-o", options)
        self._mounted.callback(run, "umount", point)
        return point

    def finish(self) -> None:
        """Unmount it."""
        self._mounted.close()

    def changes(self, *, own: bool = True) -> list[tuple[str, Kind]]:
        """What changed, found by what the layer brought or by its view."""
        return [(os.fsdecode(path), kind) for path, kind in transfer.changes(*self._trees(own), own=own)]

    def size(self, *, own: bool = True) -> int:
        """The size, found in either way."""
        return transfer.size(*self._trees(own), own=own)

    def diff(self, *, own: bool = True) -> bytes:
        """The archive, made in either way."""
        return b"".join(transfer.diff(*self._trees(own), own=own))

    def members(self) -> dict[str, tarfile.TarInfo]:
        """What is in the archive."""
        with tarfile.open(fileobj=io.BytesIO(self.diff()), errors="surrogateescape") as made:
            return {member.name: member for member in made}

    def _trees(self, own: bool) -> tuple[str, str | None]:
        return str(self.upper if own else self.view), str(self.below) if self.below is not None else None


def make(directory: Path) -> Path:
    directory.mkdir()
    return directory


class Layers:
    """The layers of a test."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._made: list[Layer] = []

    def on(self, parent: Layer | None = None) -> Layer:
        """Make a layer on a parent, which nobody changes any more."""
        self._made.append(Layer(make(self._top / str(len(self._made))), parent))
        return self._made[-1]

    def beside(self, layer: Layer) -> Layer:
        """Make a layer on what another one is on, which stays as it is."""
        self._made.append(Layer(make(self._top / str(len(self._made))), layer.parent))
        return self._made[-1]

    def finish(self) -> None:
        """Unmount all of them."""
        for layer in reversed(self._made):
            layer.finish()


@contextlib.contextmanager
def some_layers(disk: Path) -> Iterator[Layers]:
    top = tempfile.mkdtemp(dir=disk)
    made = Layers(Path(top))
    try:
        yield made
    finally:
        made.finish()
        shutil.rmtree(top)


@pytest.fixture
def layers(disk: Path) -> Iterator[Layers]:
    """No layers yet."""
    with some_layers(disk) as made:
        yield made


def write(path: Path, data: bytes = b"data", mtime: int = 1000) -> Path:
    """A file of a certain time, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (mtime, mtime))
    return path


def copy_up(path: Path) -> None:
    """Have a file brought up as it is, as whoever opens it for writing and writes nothing does."""
    os.close(os.open(path, os.O_WRONLY))


def assert_changes(layer: Layer, *expected: tuple[str, Kind]) -> None:
    """These are the changes of a layer, whichever way they are found, and so its size and its archive."""
    assert layer.changes() == list(expected)
    assert_same_both_ways(layer)


def assert_same_both_ways(layer: Layer) -> None:
    assert layer.changes() == layer.changes(own=False)
    assert layer.size() == layer.size(own=False)
    assert layer.diff() == layer.diff(own=False)


# -- one rule after the other -----------------------------------------------------------------------


@pytest.fixture
def layer(layers: Layers) -> Layer:
    """A layer on one that has something of everything."""
    lower = layers.on()
    plant(lower.view)
    return layers.on(lower)


def plant(top: Path) -> None:
    for name in ("d/f", "d/g", "d/e/h", "x/y/z", "alone"):
        write(top / name)
    os.link(write(top / "links/one"), top / "links/two")
    (top / "to-d").symlink_to("d")
    (top / "to-nowhere").symlink_to("nowhere")
    os.mkfifo(top / "fifo")
    os.setxattr(write(top / "capable"), CAPABILITY, CAPABILITY_OF_PING)


def test_nothing(layer: Layer) -> None:
    assert_changes(layer)
    assert layer.diff() == bytes(1024)


def test_without_a_parent_everything_is_added(layers: Layers) -> None:
    lowest = layers.on()
    write(lowest.view / "d/f")
    (lowest.view / "s").symlink_to("d")
    os.mknod(lowest.view / "c", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert_changes(lowest, ("/c", ADDED), ("/d", ADDED), ("/d/f", ADDED), ("/s", ADDED))


def test_an_added_directory(layer: Layer) -> None:
    write(layer.view / "new/a/b")
    assert_changes(layer, ("/new", ADDED), ("/new/a", ADDED), ("/new/a/b", ADDED))


def test_a_modified_file(layer: Layer) -> None:
    write(layer.view / "d/e/h", b"longer than before")
    assert_changes(layer, ("/d", MODIFIED), ("/d/e", MODIFIED), ("/d/e/h", MODIFIED))


def test_a_removed_file(layer: Layer) -> None:
    (layer.view / "d/f").unlink()
    (layer.view / "to-d").unlink()
    assert_changes(layer, ("/d", MODIFIED), ("/d/f", DELETED), ("/to-d", DELETED))
    assert list(layer.members()) == ["d", "d/.wh.f", ".wh.to-d"]


def test_a_removed_directory(layer: Layer) -> None:
    shutil.rmtree(layer.view / "d")
    assert_changes(layer, ("/d", DELETED))


def test_what_was_added_and_is_gone_again(layer: Layer) -> None:
    write(layer.view / "d/new").unlink()
    write(layer.view / "new/f")
    shutil.rmtree(layer.view / "new")
    assert_changes(layer)


def test_a_whiteout_of_nothing(layers: Layers) -> None:
    """A crash, or another kernel, could leave one. It is planted while nobody has it mounted."""
    lowest = layers.on()
    write(lowest.view / "d/f")
    middle = layers.on(lowest)
    write(middle.view / "d/g")
    write(middle.view / "new/f")
    middle.finish()
    for name in ("d/gone", "new/gone", "gone"):
        os.mknod(middle.upper / name, WHITEOUT, os.makedev(0, 0))
    found = transfer.changes(str(middle.upper), str(lowest.upper), own=True)
    assert found == [(b"/d", MODIFIED), (b"/d/g", ADDED), (b"/new", ADDED), (b"/new/f", ADDED)]
    everything = transfer.changes(str(middle.upper), None, own=True)
    assert [path for path, _ in everything] == [b"/d", b"/d/g", b"/new", b"/new/f"]


def test_a_name_that_the_parent_has_removed(layers: Layers, layer: Layer) -> None:
    (layer.view / "d/f").unlink()
    shutil.rmtree(layer.view / "x")
    upper = layers.on(layer)
    assert_changes(upper)
    write(upper.view / "d/f")
    write(upper.view / "x/new")
    assert_changes(upper, ("/d", MODIFIED), ("/d/f", ADDED), ("/x", ADDED), ("/x/new", ADDED))


@pytest.mark.parametrize("name", ["d/f", "capable", "links/one"])
def test_a_file_that_was_copied_up_and_is_equal(layer: Layer, name: str) -> None:
    copy_up(layer.view / name)
    assert (layer.upper / name).exists()
    assert_changes(layer)


def test_a_directory_that_was_copied_up_and_is_equal(layer: Layer) -> None:
    """Docker compares neither size nor time of a directory."""
    os.utime(layer.view / "d/e", (1, 1))
    assert (layer.upper / "d/e").exists()
    assert_changes(layer)


def test_equal_content_in_a_new_inode(layer: Layer) -> None:
    (layer.view / "d/f").unlink()
    write(layer.view / "d/f")
    assert_changes(layer)


@pytest.mark.parametrize(("lower", "upper", "same"), [(5 * NS, 5 * NS + 1, True), (5 * NS + 7, 5 * NS + 8, False)])
def test_times_of_the_same_second(layers: Layers, lower: int, upper: int, same: bool) -> None:
    below = layers.on()
    os.utime(write(below.view / "f"), ns=(lower, lower))
    above = layers.on(below)
    os.utime(above.view / "f", ns=(upper, upper))
    assert_changes(above, *([] if same else [("/f", MODIFIED)]))


def test_mode_and_owner_alone(layer: Layer) -> None:
    (layer.view / "d").chmod(0o700)
    (layer.view / "x/y/z").chmod(0o4755)
    os.chown(layer.view / "to-nowhere", 5, 5, follow_symlinks=False)
    os.chown(layer.view / "fifo", 5, 5)
    assert_changes(
        layer,
        ("/d", MODIFIED), ("/fifo", MODIFIED), ("/to-nowhere", MODIFIED),
        ("/x", MODIFIED), ("/x/y", MODIFIED), ("/x/y/z", MODIFIED),
    )  # fmt: skip


def test_capabilities_alone(layer: Layer) -> None:
    os.setxattr(layer.view / "d/f", CAPABILITY, CAPABILITY_OF_PING)
    os.removexattr(layer.view / "capable", CAPABILITY)
    os.setxattr(layer.view / "alone", "user.x", b"no change for Docker")
    assert_changes(layer, ("/capable", MODIFIED), ("/d", MODIFIED), ("/d/f", MODIFIED))


def test_a_directory_that_was_removed_and_made_anew(layer: Layer) -> None:
    """It is opaque: what it has not is gone, what is as it was is none of the changes."""
    shutil.rmtree(layer.view / "d")
    (layer.view / "d").mkdir()
    write(layer.view / "d/f")
    write(layer.view / "d/new")
    assert os.getxattr(layer.upper / "d", "trusted.overlay.opaque") == b"y"
    assert_changes(layer, ("/d", MODIFIED), ("/d/e", DELETED), ("/d/g", DELETED), ("/d/new", ADDED))


def test_directories_in_an_opaque_directory(layer: Layer) -> None:
    """They bear no mark, and hide what is below all the same."""
    shutil.rmtree(layer.view / "x")
    (layer.view / "x/y").mkdir(parents=True)
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(layer.upper / "x/y", "trusted.overlay.opaque")
    assert_changes(layer, ("/x", MODIFIED), ("/x/y", MODIFIED), ("/x/y/z", DELETED))


def test_an_opaque_directory_that_is_as_it_was(layer: Layer) -> None:
    shutil.rmtree(layer.view / "x")
    write(layer.view / "x/y/z")
    assert_changes(layer)


def test_a_directory_that_was_moved_over_a_removed_one(layer: Layer) -> None:
    shutil.rmtree(layer.view / "d")
    write(layer.view / "moved/e/new")
    os.rename(layer.view / "moved", layer.view / "d")
    assert_changes(
        layer,
        ("/d", MODIFIED), ("/d/e", MODIFIED), ("/d/e/h", DELETED), ("/d/e/new", ADDED),
        ("/d/f", DELETED), ("/d/g", DELETED),
    )  # fmt: skip


def test_a_file_becomes_a_directory_and_the_other_way(layer: Layer) -> None:
    """What is in the new directory is added; what was in the old one is not mentioned."""
    (layer.view / "alone").unlink()
    write(layer.view / "alone/f")
    shutil.rmtree(layer.view / "x")
    write(layer.view / "x")
    (layer.view / "to-d").unlink()
    write(layer.view / "to-d/f")
    assert_changes(
        layer,
        ("/alone", MODIFIED), ("/alone/f", ADDED), ("/to-d", MODIFIED), ("/to-d/f", ADDED), ("/x", MODIFIED),
    )  # fmt: skip


def test_a_renamed_file(layer: Layer) -> None:
    os.rename(layer.view / "d/f", layer.view / "x/f")
    os.rename(layer.view / "d/g", layer.view / "alone")
    assert_changes(
        layer, ("/d", MODIFIED), ("/d/f", DELETED), ("/d/g", DELETED), ("/x", MODIFIED), ("/x/f", ADDED)
    )  # /alone is as long and as old as it was


def test_hard_links(layer: Layer) -> None:
    """To a file of a lower layer, which has several names itself, and among new files."""
    os.link(layer.view / "d/f", layer.view / "d/linked")
    os.link(layer.view / "links/one", layer.view / "links/three")
    os.link(write(layer.view / "a-new"), layer.view / "b-new")
    assert_changes(
        layer,
        ("/a-new", ADDED), ("/b-new", ADDED), ("/d", MODIFIED), ("/d/linked", ADDED),
        ("/links", MODIFIED), ("/links/three", ADDED),
    )  # fmt: skip
    members = layer.members()
    assert (members["b-new"].type, members["b-new"].linkname) == (tarfile.LNKTYPE, "a-new")
    assert (members["d/linked"].type, members["d/linked"].size) == (tarfile.REGTYPE, 4)
    assert layer.size() == 4 + 4 + 4


def test_one_name_of_a_file_that_has_several(layer: Layer) -> None:
    """Overlayfs breaks the link (index=off): the other name stays what it was."""
    write(layer.view / "links/one", b"longer than before")
    assert_changes(layer, ("/links", MODIFIED), ("/links/one", MODIFIED))


def test_nothing_of_overlayfs_comes_out(layer: Layer) -> None:
    """Neither the attributes nor the whiteouts: of a layer that has both, and capabilities beside them."""
    shutil.rmtree(layer.view / "d")
    (layer.view / "d").mkdir(mode=0o700)
    (layer.view / "alone").unlink()
    copy_up(layer.view / "links/one")
    (layer.view / "capable").chmod(0o755)
    data = layer.diff()
    assert b"overlay" not in data
    assert b"security.capability" in data
    assert not [member for member in layer.members().values() if member.isdev()]


def test_other_attributes_of_a_merged_root(layer: Layer) -> None:
    layer.view.chmod(0o700)
    assert_changes(layer)


# -- any layers ---------------------------------------------------------------------------------------

NAMES = ["a", "a-b", "a.c", "b", "ü", "\udcff\udcfe", "n" * 120]
CONTENTS = [b"", b"x", b"data", b"z" * 5000, b"w" * 70000]


def is_directory(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def is_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def new_file(path: Path, number: int) -> None:
    path.write_bytes(CONTENTS[number % len(CONTENTS)])


def make_file(_: Path, target: Path, number: int) -> None:
    if not os.path.lexists(target):
        new_file(target, number)


def make_directory(_: Path, target: Path, number: int) -> None:
    target.mkdir(mode=(0o755, 0o700)[number % 2])


def make_symlink(_: Path, target: Path, number: int) -> None:
    target.symlink_to(NAMES[number % len(NAMES)])


def make_fifo(_: Path, target: Path, number: int) -> None:
    os.mkfifo(target)


def make_device(_: Path, target: Path, number: int) -> None:
    os.mknod(target, (stat.S_IFCHR, stat.S_IFBLK)[number % 2] | 0o600, os.makedev(number % 3, 1))


def make_socket(_: Path, target: Path, number: int) -> None:
    os.mknod(target, stat.S_IFSOCK | 0o600)


def overwrite(path: Path, _: Path, number: int) -> None:
    if is_file(path):
        new_file(path, number)


def truncate(path: Path, _: Path, number: int) -> None:
    if is_file(path):
        os.truncate(path, number)


def bring_up(path: Path, _: Path, number: int) -> None:
    if is_file(path):
        copy_up(path)


def same_again(path: Path, _: Path, number: int) -> None:
    """Another inode with the same content and the same attributes but capabilities."""
    if is_file(path):
        data, status = path.read_bytes(), path.lstat()
        path.unlink()
        restore(path, data, status)


def restore(path: Path, data: bytes, status: os.stat_result) -> None:
    path.write_bytes(data)
    os.chown(path, status.st_uid, status.st_gid)
    path.chmod(stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def unlink(path: Path, _: Path, number: int) -> None:
    path.unlink()


def rename(path: Path, target: Path, number: int) -> None:
    os.rename(path, target)


def link(path: Path, target: Path, number: int) -> None:
    os.link(path, target, follow_symlinks=False)


def become_directory(path: Path, _: Path, number: int) -> None:
    path.unlink()
    path.mkdir()
    new_file(path / NAMES[number % len(NAMES)], number)


def become_symlink(path: Path, _: Path, number: int) -> None:
    path.unlink()
    path.symlink_to("a")


def set_capability(path: Path, _: Path, number: int) -> None:
    if is_file(path):
        os.setxattr(path, CAPABILITY, CAPABILITY_OF_PING)


def remove_capability(path: Path, _: Path, number: int) -> None:
    if is_file(path) and CAPABILITY in os.listxattr(path):
        os.removexattr(path, CAPABILITY)


def set_attribute(path: Path, _: Path, number: int) -> None:
    if is_file(path) or is_directory(path):
        os.setxattr(path, "user.x", b"%d" % number)


def chmod(path: Path, _: Path, number: int) -> None:
    if not path.is_symlink():
        path.chmod((0o600, 0o755, 0o4711, 0o1777)[number % 4])


def chown(path: Path, _: Path, number: int) -> None:
    os.chown(path, number % 3, 0, follow_symlinks=False)


def touch(path: Path, _: Path, number: int) -> None:
    when = 10**9 + number % 3 * NS // 2
    os.utime(path, ns=(when, when), follow_symlinks=False)


def remove_directory(path: Path, _: Path, number: int) -> None:
    shutil.rmtree(path)


def make_anew(path: Path, _: Path, number: int) -> None:
    """A directory, with one of its files as it was and one directory of the same name."""
    entries = sorted(path.iterdir())
    files = [(entry, entry.read_bytes(), entry.lstat()) for entry in entries if is_file(entry)][:1]
    below = [entry for entry in entries if is_directory(entry)][:1]
    shutil.rmtree(path)
    path.mkdir()
    for entry, data, status in files:
        restore(entry, data, status)
    for entry in below:
        entry.mkdir()


def directory_becomes_file(path: Path, _: Path, number: int) -> None:
    shutil.rmtree(path)
    new_file(path, number)


# What to do with a thing, and with a place for a new one and a number.
Way = Callable[[Path, Path, int], None]
NEW: list[Way] = [make_file, make_directory, make_symlink, make_fifo, make_device]
OF_ANY: list[Way] = [chmod, chown, touch, set_attribute]
OF_FILES: list[Way] = [
    overwrite, truncate, bring_up, same_again, unlink, rename, link, become_directory, become_symlink,
    set_capability, remove_capability,
]  # fmt: skip
OF_DIRECTORIES: list[Way] = [remove_directory, make_anew, make_anew, directory_becomes_file, rename]
# What cannot be done in a place is left undone: a directory of a lower layer cannot be renamed, nor one into itself.
NOT_THERE = (errno.EXDEV, errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EINVAL)


class Move(NamedTuple):
    """A way to change a tree; the numbers and the name choose where."""

    way: tuple[str, Way]  # and of what
    place: int
    number: int
    name: str


def moves(*new: Way) -> st.SearchStrategy[list[Move]]:
    """Some moves; `new`: the ways to make a new thing."""
    ways = [("any", way) for way in (*NEW, *new, *OF_ANY)]
    ways += [("files", way) for way in OF_FILES] + [("directories", way) for way in OF_DIRECTORIES]
    numbers = st.integers(0, 40)
    move = st.builds(Move, st.sampled_from(ways), numbers, numbers, st.sampled_from(NAMES))
    return st.lists(move, max_size=14)


def change(top: Path, todo: list[Move]) -> None:
    """Change a tree."""
    for (of, way), place, number, name in todo:
        directories: list[Path] = []
        files: list[Path] = []
        for above, below, names in os.walk(top):
            for path in (Path(above, each) for each in sorted(below + names)):
                (directories if is_directory(path) else files).append(path)
        chosen = {"files": files, "directories": directories, "any": directories + files}[of]
        places = [top, *directories]
        if chosen:
            try:
                way(chosen[place % len(chosen)], places[number % len(places)] / name, number)
            except OSError as error:
                if error.errno not in NOT_THERE:
                    raise


@contextlib.contextmanager
def changed_layers(disk: Path, todo: list[list[Move]]) -> Iterator[tuple[Layers, list[Layer]]]:
    """Layers on one that has something of everything, each changed in some ways."""
    with some_layers(disk) as made:
        stack = [made.on()]
        plant(stack[0].view)
        for some in todo:
            stack.append(made.on(stack[-1]))
            change(stack[-1].view, some)
        yield made, stack


EXAMPLES = int(os.environ.get("EXAMPLES", "20"))
RULES = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@RULES
@given(st.lists(moves(make_socket), min_size=2, max_size=3))
def test_both_ways_find_the_same_in_any_layer(disk: Path, todo: list[list[Move]]) -> None:
    with changed_layers(disk, todo) as (_, stack):
        assert_same_both_ways(stack[-1])


@RULES
@given(moves(make_socket))
def test_both_ways_find_the_same_in_the_lowest_layer(disk: Path, todo: list[Move]) -> None:
    with some_layers(disk) as layers:
        lowest = layers.on()
        plant(lowest.view)
        change(lowest.view, todo)
        assert_same_both_ways(lowest)


@RULES
@given(st.lists(moves(), min_size=2, max_size=3))
def test_an_archive_makes_the_same_layer_elsewhere(disk: Path, todo: list[list[Move]]) -> None:
    """Sockets apart, which no archive has. To Docker, files are the same that are as long, and as old to the second."""
    with changed_layers(disk, todo) as (layers, stack):
        first = stack[-1]
        found = [path for path, kind in first.changes() if kind != DELETED]
        second = layers.beside(first)
        transfer.apply(str(second.view), io.BytesIO(first.diff()))
        assert transfer.changes(str(second.view), str(first.view)) == []
        assert looks(second.view, found) == looks(first.view, found)
        assert_same_both_ways(second)


def looks(view: Path, paths: list[str]) -> dict[bytes, tuple[Any, ...]]:
    """What an archive tells of some paths."""
    whole = picture(view)
    told = {}
    for path in paths:
        mode, user, group, when, what, attributes = whole[os.fsencode(path[1:])]
        capability = attributes.get(CAPABILITY)
        told[os.fsencode(path)] = mode, user, group, when // NS, what, capability
    return told


# -- what an archive could tell overlayfs -----------------------------------------------------------

OF_OVERLAYFS = [
    (b"opaque", b"y"), (b"opaque", b"x"), (b"redirect", b"/x"), (b"redirect", b"x"), (b"metacopy", b""),
    (b"origin", b"\0\xfb\x1d\0"), (b"impure", b"y"), (b"whiteout", b""), (b"whiteout", b"y"),
    (b"overlay.opaque", b"y"), (b"unheard-of", b"1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), OF_OVERLAYFS)
def test_attributes_of_overlayfs_in_an_archive_say_nothing(layer: Layer, name: bytes, value: bytes) -> None:
    """Not of a directory of a lower layer, nor of a new one, a file, a symlink, another name of a file."""
    before = picture(layer.view / "d", times=False)
    attribute = pax(record(b"SCHILY.xattr.trusted.overlay." + name, value))
    other = pax(record(b"LIBARCHIVE.xattr.trusted.overlay." + name, value))  # in base64, to who reads it
    for said in (attribute, other):
        apply(
            layer.view,
            said, folder(b"d"), said, folder(b"new"), said, file(b"new/f", b"x"), said, file(b"alone", b"changed"),
            said, hardlink(b"linked", b"alone"), said, folder(b"links"),
        )  # fmt: skip
    # What the kernel keeps there itself: where something came from, that there are such things in a directory, and that
    # a new directory has nothing below.
    kept = {"new": {"opaque"}, "d": {"origin"}, "links": {"origin"}, "alone": {"origin"}, "linked": {"origin"}}
    for path in layer.upper.rglob("*"):
        attributes = {key for key in os.listxattr(path, follow_symlinks=False) if key.startswith("trusted.overlay.")}
        allowed = {f"trusted.overlay.{key}" for key in kept.get(path.name, ())}
        assert attributes <= {"trusted.overlay.impure", *allowed}, path
    assert picture(layer.view / "d", times=False) == before
    assert_changes(
        layer,
        ("/alone", MODIFIED), ("/linked", ADDED), ("/new", ADDED), ("/new/f", ADDED),
    )  # fmt: skip


def test_whiteouts_of_overlayfs_in_an_archive_remove_nothing(layer: Layer) -> None:
    before = picture(layer.view, times=False)
    names = (b"alone", b"d", b"d/f", b"new", b"to-d", b"to-d/g", b"new-directory/f")
    apply(layer.view, *(header(name, CHARDEV) for name in names), hardlink(b"linked", b"new"))
    assert picture(layer.view, times=False) == before
    assert_changes(layer)


# -- a layer in use ---------------------------------------------------------------------------------


def test_a_layer_that_changes_all_the_time(layers: Layers) -> None:
    """What its container removes meanwhile becomes a whiteout under our eyes: it is gone, and never a device."""
    lower = layers.on()
    for number in range(60):
        write(lower.view / f"d{number % 6}/f{number}", b"x" * 300)
    layer = layers.on(lower)
    stop = threading.Event()

    def disturb() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            name = layer.view / f"d{number % 6}/f{number % 60}"
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                if number % 7 == 0:
                    shutil.rmtree(name.parent, ignore_errors=True)
                elif number % 3 == 0:
                    name.unlink()
                elif number % 3 == 1:
                    os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(1, 3))
                else:
                    write(name, b"y" * (number % 70000))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(12):
            with tarfile.open(fileobj=io.BytesIO(layer.diff())) as made:
                for member in made:
                    assert not member.isdev() or member.devmajor == 1
            layer.changes()
            layer.size()
    finally:
        stop.set()
        thread.join()
    assert_same_both_ways(layer)
