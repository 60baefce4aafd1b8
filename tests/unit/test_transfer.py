"""The processes that work on a layer's files, seen from the server: what is passed on, and that none is left."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from unit.archives import (
    Trees,
    children,
    hardlink,
    header,
    layer,
    needs_root,
    peak_memory,
    picture,
    tar,
    trees,
    write,
)

from archive import transfer

pytestmark = needs_root
__all__ = ["layer", "trees"]


def test_a_failing_stream_is_passed_on_and_nothing_stays(layer: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError("client went away")

    with pytest.raises(ConnectionResetError):
        transfer.apply(str(layer), Broken())
    assert children() == []


def test_an_error_leaves_no_process_and_does_not_drain(layer: Path) -> None:
    """Interface: the caller drains."""
    stream = io.BytesIO(tar(hardlink(b"x", b"nowhere")) + bytes(64 << 20))
    with pytest.raises(transfer.ArchiveError):
        transfer.apply(str(layer), stream)
    assert children() == []
    assert stream.read(1) != b""


def test_unpacking_needs_little_memory(layer: Path) -> None:
    """Issue 3: memory stays flat, whatever the size."""
    size = 200 << 20
    peaks: list[int] = []

    class Long:
        pieces = iter([header(b"f", size=size)] + [bytes(1 << 20)] * 200)

        def read(self, _size: int, /) -> bytes:
            peaks.extend(peak_memory(pid) for pid in children())
            return next(self.pieces, b"")

    assert transfer.apply(str(layer), Long()) == size
    assert (layer / "f").stat().st_size == size
    assert max(peaks) < 32 << 20


def test_neither_tree_is_written_to(trees: Trees) -> None:
    """Issue 3: the parent is never written to."""
    write(trees.old / "d/f")
    write(trees.clone() / "d/g")
    before = picture(trees.old), picture(trees.new)
    transfer.changes(str(trees.new), str(trees.old))
    list(transfer.diff(str(trees.new), str(trees.old)))
    assert (picture(trees.old), picture(trees.new)) == before


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
