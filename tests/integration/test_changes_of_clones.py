"""What changed between two XFS, one a clone of the other, is what a comparison of every file finds."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

import changes
import inodes

ROUNDS = 60
CAPABILITY_OF_PING = bytes.fromhex("0100000200200000000000000000000000000000")


class Trees(NamedTuple):
    """The roots of two mounted file systems."""

    before: str
    after: str


@pytest.fixture
def trees(session_directory: str) -> Iterator[Trees]:
    """A tree, mounted read-only, and a clone of it."""
    directory = os.path.join(session_directory, "clones")
    base, clone = (os.path.join(directory, name) for name in ("base", "clone"))
    with contextlib.ExitStack() as undo:
        os.mkdir(directory)
        undo.callback(shutil.rmtree, directory)
        for point in (base, clone):
            os.mkdir(point)
        _run("truncate", "--size", "400M", f"{base}.img")
        _run("mkfs.xfs", "-q", "-K", f"{base}.img")
        _run("mount", "-o", "loop,noatime", f"{base}.img", base)
        _plant(base, random.Random("tree"))
        _run("umount", base)
        _run("cp", "--sparse=always", f"{base}.img", f"{clone}.img")
        for point, access in ((base, "ro"), (clone, "rw")):
            _run("mount", "-o", f"loop,nouuid,noatime,{access}", f"{point}.img", point)
            undo.callback(_run, "umount", "--recursive", point)
        yield Trees(base, clone)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def _plant(top: str, chance: random.Random) -> None:
    places = [top]
    for number in range(150):
        place = os.path.join(chance.choice(places), f"d{number}")
        os.mkdir(place)
        places.append(place)
    for number in range(1500):
        path = os.path.join(chance.choice(places), f"f{number}")
        with open(path, "wb") as target:
            target.write(chance.randbytes(chance.randrange(300)))
        os.utime(path, (1, chance.randrange(10**9)))


def compare(trees: Trees) -> tuple[list[changes.Found], list[changes.Found]]:
    """What is found with the help of the inodes, and without."""
    here = os.getcwd()
    roots = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (trees.after, trees.before)]
    try:
        helped = list(changes.walk(*roots))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inodes, "changed", lambda *_: None)
            return helped, list(changes.walk(*roots))
    finally:
        os.chdir(here)
        for root in roots:
            os.close(root)


class Hand:
    """Changes something somewhere in a tree, in one of many ways."""

    def __init__(self, top: str, chance: random.Random) -> None:
        self._top = top
        self._chance = chance
        self._number = 0

    def move(self) -> str:
        """Do one; what it was."""
        ways: list[Callable[[], None]] = [
            self._write, self._overwrite, self._attributes, self._same_again, self._unlink, self._rename, self._link,
            self._symlink, self._capability, self._rename_directory, self._make_directory, self._remove_directory,
            self._become_file, self._exchange,
        ]  # fmt: skip
        way = self._chance.choice(ways)
        way()
        return way.__name__

    def _all(self) -> list[list[str]]:
        """Directories and files."""
        directories, files = [self._top], []
        for place, below, names in os.walk(self._top):
            directories += [os.path.join(place, name) for name in below]
            files += [os.path.join(place, name) for name in names]
        return [[path for path in paths if not os.path.islink(path)] for paths in (directories, files)]

    def _directory(self) -> str:
        return self._chance.choice(self._all()[0])

    def _file(self) -> str:
        return self._chance.choice(self._all()[1])

    def _new(self) -> str:
        self._number += 1
        return os.path.join(self._directory(), f"new{self._number}")

    def _write(self) -> None:
        with open(self._new(), "w", encoding="ascii") as target:
            target.write("new")

    def _overwrite(self) -> None:
        with open(self._file(), "r+b") as target:
            target.write(b"over")

    def _attributes(self) -> None:
        path = self._file()
        os.chmod(path, self._chance.choice((0o600, 0o4755)))
        os.chown(path, self._chance.randrange(3), 0)

    def _same_again(self) -> None:
        """Another inode, and nothing that Docker would call a change."""
        path = self._file()
        status = os.stat(path)
        shutil.copy2(path, f"{path}.tmp")
        os.chown(f"{path}.tmp", status.st_uid, status.st_gid)
        os.rename(f"{path}.tmp", path)

    def _unlink(self) -> None:
        os.unlink(self._file())

    def _rename(self) -> None:
        os.rename(self._file(), self._new())

    def _exchange(self) -> None:
        os.rename(self._file(), self._file())

    def _link(self) -> None:
        os.link(self._file(), self._new())

    def _symlink(self) -> None:
        path = self._file()
        os.unlink(path)
        os.symlink("elsewhere", path)

    def _capability(self) -> None:
        os.setxattr(self._file(), changes.CAPABILITY, CAPABILITY_OF_PING)

    def _rename_directory(self) -> None:
        with contextlib.suppress(OSError):  # into itself, or the top
            os.rename(self._directory(), self._new())

    def _make_directory(self) -> None:
        os.mkdir(self._new())

    def _remove_directory(self) -> None:
        if (path := self._directory()) != self._top:
            shutil.rmtree(path)
            if self._chance.random() < 0.5:
                os.mkdir(path)

    def _become_file(self) -> None:
        if (path := self._directory()) != self._top:
            shutil.rmtree(path)
            os.mknod(path)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_is_found_with_the_inodes_and_without(trees: Trees, seed: int) -> None:
    assert compare(trees) == ([], [])
    hand = Hand(trees.after, random.Random(seed))
    done = []
    for _ in range(ROUNDS):
        done.append(hand.move())
        helped, plain = compare(trees)
        assert helped == plain, done


def test_only_what_may_have_changed_is_looked_at(trees: Trees, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    listing = changes._list

    def counted(directory: int) -> dict[bytes, os.stat_result]:
        looked.append(directory)
        return listing(directory)

    monkeypatch.setattr(changes, "_list", counted)
    deepest = max((place for place, _, names in os.walk(trees.after) if names), key=lambda place: place.count("/"))
    name = next(name for name in os.listdir(deepest) if name.startswith("f"))
    with open(os.path.join(deepest, name), "a", encoding="ascii") as target:
        target.write("x")
    helped, plain = compare(trees)
    assert helped == plain
    assert [path for path, _, _ in helped] == _ways_to(os.path.join(deepest, name)[len(trees.after) :])
    # One directory with the inodes, in both trees; then every one in both.
    every = len([*os.walk(trees.before)])
    assert len(looked) == 2 + 2 * every


def _ways_to(path: str) -> list[bytes]:
    names = path.split("/")
    return [os.fsencode("/".join(names[: count + 1])) for count in range(1, len(names))]


def test_what_is_mounted_in_a_layer_is_compared_whole(trees: Trees) -> None:
    """dockerd mounts volumes in a container's layer while it copies out of it."""
    place = next(os.path.join(trees.after, name) for name in os.listdir(trees.after) if name.startswith("d"))
    _run("mount", "-t", "tmpfs", "tmpfs", place)
    with open(os.path.join(place, "of the volume"), "w", encoding="ascii"):
        helped, plain = compare(trees)
    assert helped == plain
    assert (os.fsencode(f"/{os.path.basename(place)}/of the volume"), changes.ADDED, changes.FILE) in helped
