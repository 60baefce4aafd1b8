"""The processes that work on a layer's files, seen from the server: what is passed on, and that none is left."""

from __future__ import annotations

import io
import logging
import re
import time
from pathlib import Path

import pytest
from unit.archives import (
    MANY,
    Trees,
    at_once,
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
from host import deadline, metrics, served

pytestmark = needs_root
__all__ = ["at_once", "layer", "trees"]
log = logging.getLogger("test_transfer")


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


class Slowly(io.BytesIO):
    """An archive whose sender takes its time."""

    def read(self, size: int | None = -1, /) -> bytes:
        time.sleep(0.1)
        return super().read(size)


def counted(name: str) -> dict[str, int]:
    """How often processes of this name were counted, by how they ended."""
    found = re.findall(
        rf'^docker_graph_driver_commands_total{{command="{name}",exit="(\w+)"}} (\d+)$', metrics.text({}), re.MULTILINE
    )
    return {end: int(count) for end, count in found}


def more(name: str, before: dict[str, int]) -> dict[str, int]:
    """What was counted since."""
    return {end: count - before.get(end, 0) for end, count in counted(name).items() if count != before.get(end, 0)}


@pytest.mark.usefixtures("at_once")
def test_an_archive_is_time_of_its_request(
    layer: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request with an archive is the slowest of all: its processes are commands as others are."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(served, "SLOW_SECONDS", 0.1)
    before = counted("archive untar"), counted("bsdtar")
    with served.request() as request:
        assert transfer.apply(str(layer), Slowly(tar(*MANY))) == 900_000
        request.end(log, logging.DEBUG, "ApplyDiff", "ApplyDiff a", "")
    slow = caplog.messages[-1]
    assert re.fullmatch(
        r"slow: ApplyDiff a took \S+ s: commands \S+ s \(archive untar 1 in \S+ s, bsdtar 1 in \S+ s\), "
        r"the rest \S+ s",
        slow,
    )
    assert (more("archive untar", before[0]), more("bsdtar", before[1])) == ({"0": 1}, {"0": 1})
    lines = [record.message for record in caplog.records if (record.name, record.levelname) == ("command", "DEBUG")]
    assert sorted(re.sub(r".*(confined.py untar|/bsdtar) .* -> (\S+) in \d+ ms", r"\1 \2", line) for line in lines) == [
        "/bsdtar 0",
        "confined.py untar 0",
    ]


def test_how_the_processes_of_an_archive_ended_is_counted(
    trees: Trees, layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(trees.clone() / "big", b"x" * (20 << 20))
    walked, packed, laid = counted("archive walk"), counted("archive pack"), counted("archive untar")
    list(transfer.diff(str(trees.new), None))
    assert (more("archive walk", walked), more("archive pack", packed)) == ({"0": 1}, {"0": 1})
    packed = counted("archive pack")
    pieces = transfer.diff(str(trees.new), None)
    next(pieces)
    pieces.close()
    assert more("archive pack", packed) == {"given_up": 1}
    with pytest.raises(transfer.ArchiveError):
        transfer.apply(str(layer), io.BytesIO(tar(hardlink(b"x", b"nowhere"))))
    assert more("archive untar", laid) == {"1": 1}
    laid = counted("archive untar")

    def overdue(*_: object) -> None:
        raise deadline.Overdue("it hangs")

    monkeypatch.setattr(transfer, "_write_all", overdue)
    with pytest.raises(deadline.Overdue):
        transfer.apply(str(layer), io.BytesIO(tar(*MANY)))
    assert more("archive untar", laid) == {"timeout": 1}
