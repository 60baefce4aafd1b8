"""space.py: when a layer grows for its archive, how far, and what is said where it cannot."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from archive import transfer
from graph import space
from graph.space import Space
from host.command import CommandError

MIB = 1 << 20
FULL = transfer.ArchiveError("'f': No space left on device")


class Layer:
    """A mounted layer: its size, how much of it is taken, and inodes, so many for each MiB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int = 512 * MIB, inodes: int = 1 << 20) -> None:
        self.size, self.used, self.inodes = size, 0, inodes
        self.sizes: list[int] = []
        self.looks = 0
        self.fails: Exception | None = None
        monkeypatch.setattr(os, "statvfs", self.status)

    def status(self, _: str) -> SimpleNamespace:
        self.looks += 1
        free = self.size - self.used
        return SimpleNamespace(f_bavail=free // 4096, f_frsize=4096, f_favail=self.inodes * self.size // (512 * MIB))

    def grow(self, size: int) -> None:
        if self.fails:
            raise self.fails
        self.size = size
        self.sizes.append(size)

    def room(self) -> Space:
        return Space("/layer", self.size, self.grow, 5)

    def feed(self, room: Space, mebibytes: int, taken: float = 1) -> None:
        for _ in range(mebibytes):
            room.make(MIB)
            self.used += int(taken * MIB)
            assert self.used <= self.size


def test_what_fits_grows_nothing_and_is_seldom_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(monkeypatch, size=10 << 30)
    layer.feed(layer.room(), 4000)
    assert layer.sizes == []
    assert layer.looks < 20


@pytest.mark.parametrize("taken", [0, 1, 4.5, 8.5])
def test_there_is_always_room_for_what_comes_and_for_what_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch, taken: float
) -> None:
    layer = Layer(monkeypatch)
    on_its_way = 4
    room = layer.room()
    for number in range(1000):
        room.make(MIB)
        layer.used = int(max(0, number - on_its_way) * taken * MIB)
        assert layer.used + (on_its_way + 1) * taken * MIB <= layer.size
    assert layer.size <= 512 * MIB + 1000 * taken * MIB * 9 / 8 + room_spare()


def room_spare() -> int:
    return space.SPARE_BYTES + space.STEP


def test_it_grows_for_inodes_until_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(monkeypatch, inodes=10_000)
    layer.room().make(MIB)
    assert layer.sizes == [768 * MIB, 1024 * MIB]


def test_a_layer_that_cannot_grow_is_tried_once_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(monkeypatch)
    layer.used = layer.size
    layer.fails = CommandError(("rbd", "resize"), 30, "Read-only file system")
    room = layer.room()
    room.make(MIB)
    layer.fails = None
    room.make(MIB)
    assert layer.sizes == []
    assert str(room.explained(FULL)) == (
        "'f': No space left on device; its file system, 512M, is full and did not grow: rbd resize: Read-only file "
        "system; set a larger ceph.basesize"
    )
    other = transfer.ArchiveError("'f': a whiteout of nothing")
    assert room.explained(other) is other


def test_there_is_an_end_of_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(monkeypatch, size=space.LARGEST)
    layer.used = layer.size
    full = layer.room()
    full.make(MIB)
    assert layer.sizes == []
    assert "16T, is full and did not grow: a layer grows to 16T by itself" in str(full.explained(FULL))
