"""Reading an archive from a file descriptor: what is left unread is passed over, and where the archive ends is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from unit.archives import file, header, tar

from archive.tar_format import ArchiveError
from archive.tar_reader import Input, TarReader

Open = Callable[[bytes], TarReader]
LARGE = bytes(range(256)) * 1000


@pytest.fixture(params=["file", "pipe"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Open an archive of these bytes; from a pipe the kernel moves what it can."""
    descriptors: list[int] = []

    def start(data: bytes) -> TarReader:
        if request.param == "pipe":
            source, target = os.pipe()
            # More than fits would need another thread.
            assert os.write(target, data[: 60 << 10]) == min(len(data), 60 << 10)
            os.close(target)
        else:
            path = tmp_path / "archive"
            path.write_bytes(data)
            source = os.open(path, os.O_RDONLY)
        descriptors.append(source)
        return TarReader(Input(source, 1 << 12))

    yield start
    for descriptor in descriptors:
        os.close(descriptor)


def names(reader: TarReader) -> list[bytes]:
    """The names of all entries, whose data nobody reads."""
    found = []
    while (entry := reader.next_entry()) is not None:
        found.append(entry.name)
    return found


def test_what_nobody_reads_is_passed_over(opened: Open) -> None:
    reader = opened(tar(file(b"a", b"x" * 5000), file(b"b"), file(b"c", b"y" * 513)))
    assert names(reader) == [b"a", b"b", b"c"]
    assert reader.next_entry() is None


def test_the_data_of_an_entry_in_each_way(opened: Open, tmp_path: Path) -> None:
    data = LARGE[:20_000]
    reader = opened(tar(file(b"copied", data), file(b"pieces", data), file(b"whole", data[:1000])))
    assert reader.next_entry()
    target = os.open(tmp_path / "copied", os.O_WRONLY | os.O_CREAT)
    reader.copy_to(target)
    os.close(target)
    assert (tmp_path / "copied").read_bytes() == data
    assert reader.next_entry()
    assert b"".join(bytes(piece) for piece in reader.data()) == data
    assert reader.next_entry()
    assert reader.whole(most=999) is None
    found = reader.whole()
    assert found is not None
    assert bytes(found) == data[:1000]
    assert reader.next_entry() is None


def test_an_archive_that_ends_within_an_entry(opened: Open) -> None:
    reader = opened(file(b"first") + header(b"cut", size=4000) + bytes(1000))
    assert reader.next_entry()
    assert reader.next_entry()
    with pytest.raises(ArchiveError, match="'cut': the archive ends within this entry"):
        reader.next_entry()


def test_an_archive_that_ends_within_a_header(opened: Open) -> None:
    reader = opened(file(b"first") + header(b"cut")[:100])
    assert reader.next_entry()
    with pytest.raises(ArchiveError, match="ends within the header after 'first'"):
        reader.next_entry()


@pytest.mark.parametrize("end", [b"", bytes(512), bytes(1024)])
def test_an_archive_may_lack_its_end(opened: Open, end: bytes) -> None:
    assert names(opened(file(b"a") + end)) == [b"a"]


def test_one_block_of_zeros_is_no_end(opened: Open) -> None:
    reader = opened(file(b"a") + bytes(512) + file(b"b"))
    with pytest.raises(ArchiveError, match="after 'a': a block of zeros"):
        names(reader)
