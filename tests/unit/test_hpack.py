"""hpack.py and huffman.py: the examples of RFC 7541, the `hpack` package as a peer, and blocks that attack."""

from __future__ import annotations

import contextlib
import time

import needs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import huffman
from wire.hpack import LIST_SIZE, TABLE_SIZE, BadBlock, Decoder, Field, encode, read_number, write_number

try:
    import hpack as peer
    from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
except ImportError:
    needs.requires(False, "hpack")

# -- RFC 7541 appendix C -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "bits", "octets"), [(10, 5, "0a"), (1337, 5, "1f9a0a"), (42, 8, "2a"), (30, 5, "1e"), (31, 5, "1f00")]
)
def test_numbers(number: int, bits: int, octets: str) -> None:
    data = bytes.fromhex(octets)
    assert write_number(number, bits, 0) == data
    assert read_number(data, 0, bits) == (number, len(data))


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", (b"custom-key", b"custom-header")),
        ("040c2f73616d706c652f70617468", (b":path", b"/sample/path")),
        ("100870617373776f726406736563726574", (b"password", b"secret")),
        ("82", (b":method", b"GET")),
    ],
)
def test_fields_of_each_form(block: str, field: Field) -> None:
    assert Decoder().decode(bytes.fromhex(block)) == ([field], True)


FIRST = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]
SECOND = [*FIRST, (b"cache-control", b"no-cache")]
THIRD = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":path", b"/index.html"),
    (b":authority", b"www.example.com"),
    (b"custom-key", b"custom-value"),
]


@pytest.mark.parametrize(
    "blocks",
    [
        (
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ),
        (
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ),
    ],
    ids=["C.3, literal", "C.4, Huffman"],
)
def test_requests_one_after_another(blocks: tuple[str, ...]) -> None:
    decoder = Decoder()
    assert [decoder.decode(bytes.fromhex(block)).fields for block in blocks] == [FIRST, SECOND, THIRD]


COOKIE = b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
DATES = b"Mon, 21 Oct 2013 20:13:21 GMT", b"Mon, 21 Oct 2013 20:13:22 GMT"


def answer(status: bytes, date: bytes, *more: Field) -> list[Field]:
    return [
        (b":status", status),
        (b"cache-control", b"private"),
        (b"date", date),
        (b"location", b"https://www.example.com"),
        *more,
    ]


@pytest.mark.parametrize(
    "blocks",
    [
        (
            "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
            "6e1768747470733a2f2f7777772e6578616d706c652e636f6d",
            "4803333037c1c0bf",
            "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738"
            "666f6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b20"
            "76657273696f6e3d31",
        ),
        (
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
            "4883640effc1c0bf",
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af"
            "27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
        ),
    ],
    ids=["C.5, literal", "C.6, Huffman"],
)
def test_entries_are_evicted_from_a_small_table(blocks: tuple[str, ...]) -> None:
    decoder = Decoder(table_size=256)
    assert [decoder.decode(bytes.fromhex(block)).fields for block in blocks] == [
        answer(b"302", DATES[0]),
        answer(b"307", DATES[0]),
        answer(b"200", DATES[1], (b"content-encoding", b"gzip"), (b"set-cookie", COOKIE)),
    ]


# -- the package as a peer ---------------------------------------------------------------------------

names = st.one_of(
    st.sampled_from([b":path", b"te", b"user-agent", b"cookie", b"grpc-timeout"]), st.binary(min_size=1, max_size=20)
)
lists = st.lists(st.tuples(names, st.binary(max_size=80)), max_size=12)


@given(st.lists(lists, max_size=6), st.booleans(), st.lists(st.integers(0, TABLE_SIZE), max_size=2))
def test_what_the_package_writes_is_read(requests: list[list[Field]], huffman: bool, sizes: list[int]) -> None:
    writer, reader = peer.Encoder(), Decoder()
    for size in sizes:
        writer.header_table_size = size
    for fields in requests:
        assert reader.decode(writer.encode(fields, huffman=huffman)) == (fields, True)


@given(st.lists(lists, max_size=4), st.sampled_from([0, 100, 4096]))
def test_what_is_written_is_read_by_the_package(answers: list[list[Field]], table: int) -> None:
    reader = peer.Decoder()
    reader.max_allowed_table_size = table
    for fields in answers:
        assert [(bytes(name), bytes(value)) for name, value in reader.decode(encode(fields), raw=True)] == fields


def test_the_table_of_codes_is_that_of_the_rfc() -> None:
    for octet in range(256):
        code, bits = REQUEST_CODES[octet], REQUEST_CODES_LENGTH[octet]
        padded = (code << 32 - bits | (1 << 32 - bits) - 1).to_bytes(4, "big")[: (bits + 7) // 8]
        assert huffman.decode(padded) == bytes([octet])


@given(st.binary(max_size=200))
def test_octets_that_are_no_block_raise_one_error(data: bytes) -> None:
    with contextlib.suppress(BadBlock):
        Decoder().decode(data)


# -- blocks that attack ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("80", "index 0 is in no table"),
        ("be", "index 62 is in no table"),
        ("7f00", "index 63 is in no table"),
        ("ff", "ends within a number"),
        ("ffffffffff7f", "larger than"),
        ("ffffffffffffffffffffffff", "larger than"),
        ("ff8080808080808000", "larger than"),
        ("04", "ends within a field"),
        ("0405", "ends within a string"),
        ("007fffffffff07", "larger than"),
        ("3fe21f", "a table of 4097 bytes is wanted"),
        ("8220", "a table is resized within"),
        ("0481ff", "not padded"),
        ("0482ffff", "not padded"),
        ("048100", "not padded"),
        ("0484ffffffff", "holds the end"),
    ],
)
def test_malformed(block: str, words: str) -> None:
    with pytest.raises(BadBlock, match=words):
        Decoder().decode(bytes.fromhex(block))


def test_a_list_that_is_too_large_is_cut_and_its_table_kept() -> None:
    """A block of 20 KB that stands for 80 MB: an entry that fills the table, and its index again and again."""
    decoder = Decoder()
    value = b"x" * (TABLE_SIZE - 32 - 1)
    began = time.monotonic()
    fields, whole = decoder.decode(b"\x40\x01a" + write_number(len(value), 7, 0) + value + b"\xbe" * 20_000)
    assert not whole
    assert sum(len(name) + len(value) + 32 for name, value in fields) <= LIST_SIZE
    assert decoder.decode(b"\xbe") == ([(b"a", value)], True)
    assert time.monotonic() - began < 5


def test_a_field_larger_than_the_table_empties_it() -> None:
    decoder = Decoder(table_size=64)
    decoder.decode(b"\x40\x01a\x01b")
    assert decoder.decode(b"\xbe").fields == [(b"a", b"b")]
    decoder.decode(b"\x40\x01a" + write_number(100, 7, 0) + bytes(100))
    with pytest.raises(BadBlock):
        decoder.decode(b"\xbe")
