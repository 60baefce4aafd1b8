"""What holds for any two trees: a diff brings one to the other, says no more than is needed, and is always the same."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.archives import needs_root, picture

from archive import transfer
from archive.transfer import Kind

pytestmark = needs_root

# A tree is a dict of names; a node is a dict (a directory) with its mode under "", or a tuple of kind and attributes.
NAMES = st.sampled_from([b"a", b"a-b", b"a.c", b"b", b"\xff\xfe", b"n" * 120, "ü".encode(), b" ", b"wh.x"])
MODES = st.sampled_from([0o644, 0o600, 0o4755, 0o1777])
OWNERS = st.sampled_from([(0, 0), (5, 7), (3_000_000, 1)])
LEAVES = st.one_of(
    st.tuples(st.just("file"), MODES, OWNERS, st.sampled_from([b"", b"x", b"y", b"z" * 5000, b"w" * 70000])),
    st.tuples(st.just("symlink"), st.just(0o777), OWNERS, st.sampled_from([b"a", b"/etc/passwd", b"../b", b"l" * 150])),
    st.tuples(st.just("fifo"), MODES, OWNERS, st.just(b"")),
    st.tuples(st.just("chardev"), MODES, OWNERS, st.sampled_from([b"1", b"2"])),
    st.tuples(st.just("hardlink"), st.just(0o644), st.just((0, 0)), st.integers(0, 9)),
)
NODES = st.recursive(
    LEAVES,
    lambda below: st.tuples(st.just("dir"), MODES, OWNERS, st.dictionaries(NAMES, below, max_size=4)),
    max_leaves=14,
)
TREES = st.dictionaries(NAMES, NODES, max_size=5)
Node = tuple[str, int, tuple[int, int], Any]


def build(top: bytes, tree: dict[bytes, Node], files: list[bytes] | None = None) -> None:
    """Make a tree. A time depends on the content: a file of the same size and time is unchanged to moby."""
    files = [] if files is None else files
    for name, (kind, mode, owner, what) in tree.items():
        path = os.path.join(top, name)
        when = 1_000_000 + sum(what[:2]) + len(what) if isinstance(what, bytes) else 1_000_000
        if kind == "dir":
            os.mkdir(path)
            build(path, what, files)
        elif kind == "hardlink":
            if files:
                os.link(files[what % len(files)], path)
            continue
        elif kind == "file":
            with open(path, "wb") as out:
                out.write(what)
            files.append(path)
        elif kind == "symlink":
            os.symlink(what, path)
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            os.mknod(path, stat.S_IFCHR, os.makedev(1, int(what)))
        os.chown(path, *owner, follow_symlinks=False)
        if kind != "symlink":
            os.chmod(path, mode)
        os.utime(path, (when, when), follow_symlinks=False)


@contextlib.contextmanager
def two_trees(old: dict[bytes, Node], new: dict[bytes, Node]) -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory() as top:
        for name, tree in (("old", old), ("new", new)):
            (Path(top) / name).mkdir()
            build(os.fsencode(Path(top) / name), tree)
        yield Path(top) / "old", Path(top) / "new"


def contents(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """A picture without the times of directories, which a diff does not compare, and without the root."""
    found = picture(root)
    del found[b"."]
    return {name: (*look[:3], None, *look[4:]) if is_directory(look) else look for name, look in found.items()}


def expected(old: dict[bytes, tuple[Any, ...]], new: dict[bytes, tuple[Any, ...]]) -> set[tuple[bytes, Kind]]:
    """The changes, said another way: by pictures of whole trees."""
    changed = set()
    for name, look in new.items():
        if look != old.get(name):
            changed.add((name, Kind.MODIFIED if name in old else Kind.ADDED))
    for name in old.keys() - new.keys():
        above = os.path.dirname(name)
        if not above or (above in new and is_directory(new[above]) and is_directory(old[above])):
            changed.add((name, Kind.DELETED))
    for name, _ in list(changed):
        above = os.path.dirname(name)
        while above:
            if not {(above, kind) for kind in Kind} & changed:
                changed.add((above, Kind.MODIFIED))
            above = os.path.dirname(above)
    return {(b"/" + name, kind) for name, kind in changed}


def is_directory(look: tuple[Any, ...]) -> bool:
    return stat.S_ISDIR(int(look[0], 8))


EXAMPLES = int(os.environ.get("EXAMPLES", "10"))
RULES = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@RULES
@given(TREES, TREES)
def test_a_diff_brings_one_tree_to_the_other(old: dict[bytes, Node], new: dict[bytes, Node]) -> None:
    with two_trees(old, new) as (before, after):
        data = b"".join(transfer.diff(str(after), str(before)))
        copy = before.with_name("copy")
        copy.mkdir()
        build(os.fsencode(copy), old)
        size = transfer.apply(str(copy), io.BytesIO(data))
        assert contents(copy) == contents(after)
        assert size <= sum(look[4][0] for look in contents(after).values() if stat.S_ISREG(int(look[0], 8)))


@RULES
@given(TREES)
def test_a_diff_without_a_parent_makes_the_tree(tree: dict[bytes, Node]) -> None:
    with two_trees({}, tree) as (empty, after):
        transfer.apply(str(empty), io.BytesIO(b"".join(transfer.diff(str(after), None))))
        assert contents(empty) == contents(after)
        assert transfer.size(str(empty), None) == transfer.size(str(after), None)


@RULES
@given(TREES, TREES)
def test_changes_are_complete_and_minimal(old: dict[bytes, Node], new: dict[bytes, Node]) -> None:
    with two_trees(old, new) as (before, after):
        found = transfer.changes(str(after), str(before))
        assert [change.path for change in found] == sorted({change.path for change in found})
        assert set(found) == expected(contents(before), contents(after))


@RULES
@given(TREES, TREES)
def test_a_diff_is_the_same_every_time(old: dict[bytes, Node], new: dict[bytes, Node]) -> None:
    with two_trees(old, new) as (before, after):
        first = b"".join(transfer.diff(str(after), str(before)))
        assert first == b"".join(transfer.diff(str(after), str(before)))


@RULES
@given(st.binary(max_size=3000), st.integers(0, 4096), st.integers(0, 255), TREES)
def test_garbage_is_an_error_or_an_archive(noise: bytes, position: int, byte: int, tree: dict[bytes, Node]) -> None:
    """Nothing else than ArchiveError comes out, and its line is no report of a bug."""
    with two_trees({}, tree) as (target, source):
        data = bytearray(b"".join(transfer.diff(str(source), None)))
        data[position % len(data)] = byte
        for stream in (bytes(data), noise, bytes(data[: len(data) // 2]) + noise):
            try:
                transfer.apply(str(target), io.BytesIO(stream))
            except transfer.ArchiveError as error:
                assert ".py:" not in str(error)
