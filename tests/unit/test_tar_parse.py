"""The bytes of headers and pax records, and what is none of them. What becomes of them is in test_untar.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.archives import header, record

from archive.tar_format import NANOSECONDS, Entry
from archive.tar_parse import merge_pax, parse_header, parse_number, parse_pax


@pytest.mark.parametrize(
    ("field", "number"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"\0" * 8, 0),
        (b"644\0junk", 0o644),
        (b"\x80" + (9 << 30).to_bytes(11, "big"), 9 << 30),
        (b"\xff" * 12, -1),
    ],
)
def test_numbers(field: bytes, number: int) -> None:
    assert parse_number(field) == number


@pytest.mark.parametrize(
    "field", [b"0x10\0\0\0\0", b"-1\0\0\0\0\0\0", b"8\0\0\0\0\0\0\0", b"1_0\0", b"\x80" + b"\xff" * 11]
)
def test_what_is_no_number(field: bytes) -> None:
    with pytest.raises(ValueError, match=r"malformed number|number out of range"):
        parse_number(field)


def test_a_header_is_understood_the_same_when_its_second_half_is_known() -> None:
    plain: dict[bytes, int] = {}
    for name in (b"first", b"second"):
        entry = parse_header(header(name, size=7, uid=3), plain)
        assert (entry.name, entry.size, entry.uid, entry.mtime % NANOSECONDS) == (name, 7, 3, 0)
    assert len(plain) == 1


@pytest.mark.parametrize("known", [False, True])
def test_a_wrong_checksum(known: bool) -> None:
    plain: dict[bytes, int] = {}
    if known:
        parse_header(header(b"f"), plain)
    with pytest.raises(ValueError, match="wrong checksum"):
        parse_header(header(b"f", checksum=b"000001\0 "), plain)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.binary(max_size=40)), max_size=4))
def test_pax_records_come_back(pairs: list[tuple[bytes, bytes]]) -> None:
    pairs = [(key.translate(None, b"\0=") or b"k", value) for key, value in pairs]
    names = (b"path", b"linkpath", b"uname", b"gname")
    pairs = [(key, value.translate(None, b"\0") if key in names else value) for key, value in pairs]
    assert parse_pax(b"".join(record(key, value) for key, value in pairs)) == pairs


@pytest.mark.parametrize(
    "data",
    [b"x", b"9 a=b", b"6 a=b\nx", b"5 ab\n", b"-6 a=b\n", b"99999999999 a=b\n", b"2 \n", record(b"path", b"a\0b")],
)
def test_what_is_no_pax_record(data: bytes) -> None:
    with pytest.raises(ValueError, match="pax"):
        parse_pax(data)


def test_a_record_without_a_value_overrides_nothing_but_an_attribute() -> None:
    entry = Entry(b"header's")
    merge_pax(entry, [(b"path", b""), (b"uid", b""), (b"SCHILY.xattr.user.x", b"")])
    assert (entry.name, entry.uid, entry.xattrs) == (b"header's", 0, {b"user.x": b""})


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [(b"1.5", 1_500_000_000), (b"-1.5", -1_500_000_000), (b"1.0000000019", 1_000_000_001), (b"-0.5", -500_000_000)],
)
def test_times_of_pax(text: bytes, nanoseconds: int) -> None:
    entry = Entry(b"f")
    merge_pax(entry, [(b"mtime", text)])
    assert entry.mtime == nanoseconds
