"""protobuf.py: Google's package as a peer, in both directions, and octets that are no message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from google_messages import message_class
from hypothesis import given
from hypothesis import strategies as st

from wire import protobuf
from wire.protobuf import MalformedMessage, Message


@dataclass
class Inner(Message):
    seconds: int = protobuf.int64(1)
    nanos: int = protobuf.int32(2)


@dataclass
class Outer(Message):
    name: str = protobuf.string(1)
    data: bytes = protobuf.octets(2)
    flag: bool = protobuf.boolean(3)
    big: int = protobuf.int64(4)
    small: int = protobuf.int32(5)
    kind: int = protobuf.enum(6)
    at: Inner | None = protobuf.message(7, Inner)
    inners: list[Inner] = protobuf.messages(8, Inner)
    names: list[str] = protobuf.strings(9)
    labels: dict[str, str] = protobuf.string_map(10)
    numbers: list[int] = protobuf.int64s(2047)


PROTO = """
syntax = "proto3";
package wiretest;
enum Kind { ZERO = 0; ONE = 1; }
message Inner { int64 seconds = 1; int32 nanos = 2; }
message Outer {
  string name = 1; bytes data = 2; bool flag = 3; int64 big = 4; int32 small = 5; Kind kind = 6; Inner at = 7;
  repeated Inner inners = 8; repeated string names = 9; map<string, string> labels = 10; repeated int64 numbers = 2047;
}
"""
GOOGLES = message_class(PROTO, "wiretest.Outer")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
int64s, int32s = st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-(1 << 31), (1 << 31) - 1)
inners = st.builds(Inner, int64s, int32s)
outers = st.builds(
    Outer,
    texts,
    st.binary(max_size=20),
    st.booleans(),
    int64s,
    int32s,
    int32s,
    st.none() | inners,
    st.lists(inners, max_size=3),
    st.lists(texts, max_size=3),
    st.dictionaries(texts, texts, max_size=3),
    st.lists(int64s, max_size=3),
)


def as_ours(their: Any) -> Outer:
    return Outer(
        their.name,
        their.data,
        their.flag,
        their.big,
        their.small,
        their.kind,
        Inner(their.at.seconds, their.at.nanos) if their.HasField("at") else None,
        [Inner(one.seconds, one.nanos) for one in their.inners],
        list(their.names),
        dict(their.labels),
        list(their.numbers),
    )


@given(outers)
def test_a_message_goes_to_google_s_package_and_back(ours: Outer) -> None:
    their = GOOGLES.FromString(ours.encode())
    assert as_ours(their) == ours
    assert Outer.decode(their.SerializeToString()) == ours


@given(outers, outers)
def test_two_messages_one_after_the_other_are_one(one: Outer, other: Outer) -> None:
    """So says the encoding: the last value wins, lists are joined, and messages are merged."""
    both = one.encode() + other.encode()
    assert Outer.decode(both) == as_ours(GOOGLES.FromString(both))


@given(st.binary(max_size=60))
def test_octets_raise_one_error_or_are_what_google_s_package_reads(data: bytes) -> None:
    try:
        ours = Outer.decode(data)
    except MalformedMessage:
        return
    assert as_ours(GOOGLES.FromString(data)) == ours


def test_nothing_is_sent_of_defaults_and_an_empty_message_is() -> None:
    assert Outer().encode() == b""
    assert Outer(at=Inner()).encode() == b"\x3a\x00"
    assert Outer.decode(b"") == Outer()
    assert Outer.decode(b"\x3a\x00") == Outer(at=Inner())


def test_unknown_fields_are_skipped_of_each_wire_type() -> None:
    known = Outer(name="a").encode()
    for unknown in (
        "b80601",
        "b906" + "00" * 8,
        "ba0603616263",
        "bd0600000000",
        "bb060a0161bc06",
        "0801",
        "3d00000000",
    ):
        assert Outer.decode(bytes.fromhex(unknown) + known) == Outer(name="a"), unknown


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("0a", "within a number"),
        ("0a05616263", "within a field of 5 bytes"),
        ("0affffffff0f61", "within a field"),
        ("0affffffffffffffffff0161", "within a field"),
        ("80808080808080808080808001", "more than ten bytes"),
        ("00", "the number 0"),
        ("8080808010", "the number 536870912"),
        ("0e", "wire type 6"),
        ("0f", "wire type 7"),
        ("0b", "does not end"),
        ("0c", "has not begun"),
        ("0b14", "has not begun"),
        ("0b" * 101, "more than 100 groups"),
        ("0a02c328", "not UTF-8"),
        ("0a03eda080", "not UTF-8"),
        ("39" + "00" * 7, "within a field of 8 bytes"),
        ("52030a01ff", "not UTF-8"),
        ("3a0208", "ends within a field"),
        ("3a0108", "within a number"),
        ("fa7f0180", "within a number"),
    ],
)
def test_malformed(data: str, words: str) -> None:
    with pytest.raises(MalformedMessage, match=words):
        Outer.decode(bytes.fromhex(data))


def test_values_without_a_form_are_refused_with_the_name_of_their_field() -> None:
    for value, words in [
        (Outer(name="\udc80"), r"Outer\.name: a text cannot be UTF-8"),
        (Outer(labels={"a": "\ud800"}), r"Outer\.labels: _Entry\.value: a text cannot be UTF-8"),
        (Outer(small=1 << 31), r"Outer\.small: 2147483648 has more than 32 bits"),
        (Outer(at=Inner(seconds=-(1 << 63) - 1)), r"Outer\.at: Inner\.seconds: .* more than 64 bits"),
    ]:
        with pytest.raises(MalformedMessage, match=words):
            value.encode()


@pytest.mark.parametrize("of", ["fields that nobody knows", "labels", "numbers in one field"])
def test_too_many_fields_are_refused(of: str) -> None:
    """A few bytes each would be hundreds in memory."""
    many = protobuf.MOST_FIELDS + 1
    data = {
        "fields that nobody knows": b"\xf8\x07\x01" * many,
        "labels": Outer(labels={str(at): "" for at in range(many)}).encode(),
        "numbers in one field": GOOGLES(numbers=range(many)).SerializeToString(),
    }[of]
    with pytest.raises(MalformedMessage, match="more than 10000 fields"):
        Outer.decode(data)
