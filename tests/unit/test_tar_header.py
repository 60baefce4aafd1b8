"""Headers that are written: Python's own tarfile, which shares nothing with us, reads what was meant."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.tar_format import DIRECTORY, FILE, NANOSECONDS, SYMLINK, TRAILER, Entry
from archive.tar_header import header, plain_header

NAMES = [b"a", b"d/" + b"n" * 200, b"/".join([b"p" * 50] * 4), "ü".encode(), b"\xff", b"n" * 100, b"n" * 101]


def read(data: bytes) -> tarfile.TarInfo:
    """What tarfile makes of the header of one entry."""
    with tarfile.open(fileobj=io.BytesIO(data + TRAILER), encoding="utf-8", errors="surrogateescape") as found:
        [member] = found.getmembers()
    return member


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_any_kind(name: bytes) -> None:
    assert read(header(Entry(name))).name.encode("utf-8", "surrogateescape") == name


@pytest.mark.parametrize("name", NAMES)
def test_the_target_of_a_symlink(name: bytes) -> None:
    member = read(header(Entry(b"link", SYMLINK, link=name)))
    assert member.issym()
    assert member.linkname.encode("utf-8", "surrogateescape") == name


@pytest.mark.parametrize("number", [0, 8**7 - 1, 8**7, 0xFFFFFFFE])
def test_ids_that_fit_and_that_do_not(number: int) -> None:
    entry = Entry(b"f")
    entry.uid, entry.gid = number, number // 2
    member = read(header(entry))
    assert (member.uid, member.gid) == (number, number // 2)


@pytest.mark.parametrize("seconds", [0, 1, 8**11 - 1, 8**11, -1])
def test_times(seconds: int) -> None:
    entry = Entry(b"d", DIRECTORY, mode=0o755)
    entry.mtime = seconds * NANOSECONDS + 999
    member = read(header(entry))
    assert (member.mtime, member.mode, member.isdir()) == (seconds, 0o755, True)


@given(
    st.binary(min_size=1, max_size=110).filter(lambda name: b"\0" not in name),
    st.integers(0, 8**7),
    st.integers(0, 8**11),
    st.integers(-1, 8**11),
)
def test_the_short_way_writes_the_same_or_nothing(name: bytes, uid: int, size: int, seconds: int) -> None:
    entry = Entry(name, FILE, mode=0o640, size=size)
    entry.uid, entry.mtime = uid, seconds * NANOSECONDS
    plain = plain_header(name, (0o640, uid, 0), size, seconds)
    assert plain in (None, header(entry))
    if name.isascii() and len(name) <= 100 and uid < 8**7 and size < 8**11 and 0 <= seconds < 8**11:
        assert plain is not None
