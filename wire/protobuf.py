"""Messages of Protocol Buffers, proto3 (protobuf.dev/programming-guides/encoding): dataclasses with numbered fields.

    @dataclass
    class Mount(Message):
        type: str = string(1)
        options: list[str] = strings(4)

A field that was not sent has its default, and a default is not sent. Unknown fields are skipped. A known field of
another wire type is an unknown one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from host.failure import Failure

_Made = TypeVar("_Made", bound="Message")
_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
_LARGEST_FIELD = (1 << 29) - 1
_DEEPEST_GROUP = 100
# So many fields may be in one message, and so many numbers in one field: a snapshot has some dozens of labels. 16 MiB
# of tiny fields would keep us busy for a minute, and take a gigabyte.
MOST_FIELDS = 10_000
_NUMBER = "protobuf"


class MalformedMessage(Failure):
    """Octets are no message of this type, or a value has no form in one."""


class _Kind(NamedTuple):
    """How one value of a field stands on the wire: as a varint (int), or as octets."""

    wire: int
    read: Callable[[Any], Any]
    write: Callable[[Any], Any]


class _Field(NamedTuple):
    number: int
    kind: _Kind
    # A list of values, or a map of strings.
    many: bool = False
    maps: bool = False
    # A message: what comes in several pieces is one (encoding, "Last One Wins").
    merges: bool = False


@dataclasses.dataclass
class Message:
    """The base of all messages. Two messages are equal if their fields are."""

    @classmethod
    def decode(cls: type[_Made], data: bytes) -> _Made:
        """Return the message that these octets are. Raises MalformedMessage."""
        made = cls()
        by_number = {field.number: (name, field) for name, field in _fields(cls)}
        pieces: dict[str, list[bytes]] = {}
        for number, wire, value in _split(bytes(data)):
            name, field = by_number.get(number, ("", None))
            if field is None or not _fits(field, wire):
                continue
            if field.merges:
                pieces.setdefault(name, []).append(value)
            else:
                _store(made, name, field, wire, value)
        for name, found in pieces.items():
            setattr(made, name, dict(_fields(cls))[name].kind.read(b"".join(found)))
        return made

    def encode(self) -> bytes:
        """Return the octets of the message. Raises MalformedMessage for a value that has no form there."""
        out = bytearray()
        for name, field in _fields(type(self)):
            value = getattr(self, name)
            if field.maps:
                value = [_Entry(*pair) for pair in value.items()]
            for one in value if field.many else [value] if _is_sent(value) else []:
                _write(out, field, one, f"{type(self).__name__}.{name}")
        return bytes(out)


_KNOWN: dict[type[Message], tuple[tuple[str, _Field], ...]] = {}


# -- fields ------------------------------------------------------------------------------------------
# They return what a dataclass takes for a default; so their type is that of the field.


def string(number: int) -> str:
    """Declare a text."""
    return _declare(_Field(number, _TEXT), "")  # type: ignore[no-any-return]


def strings(number: int) -> list[str]:
    """Declare a list of texts."""
    return _declare(_Field(number, _TEXT, many=True), list)  # type: ignore[no-any-return]


def octets(number: int) -> bytes:
    """Declare a field of type bytes."""
    return _declare(_Field(number, _OCTETS), b"")  # type: ignore[no-any-return]


def boolean(number: int) -> bool:
    """Declare a field of type bool."""
    return _declare(_Field(number, _BOOL), False)  # type: ignore[no-any-return]


def int64(number: int) -> int:
    """Declare a signed number of 64 bits."""
    return _declare(_Field(number, _integer(64)), 0)  # type: ignore[no-any-return]


def int64s(number: int) -> list[int]:
    """Declare a list of signed numbers of 64 bits."""
    return _declare(_Field(number, _integer(64), many=True), list)  # type: ignore[no-any-return]


def int32(number: int) -> int:
    """Declare a signed number of 32 bits."""
    return _declare(_Field(number, _integer(32)), 0)  # type: ignore[no-any-return]


def enum(number: int) -> int:
    """Declare a number of an enum. Any number of 32 bits may come: enums of proto3 are open."""
    return _declare(_Field(number, _integer(32)), 0)  # type: ignore[no-any-return]


def message(number: int, made: type[_Made]) -> _Made | None:
    """Declare a message in a message; None if there is none."""
    return _declare(_Field(number, _embedded(made), merges=True), None)  # type: ignore[no-any-return]


def messages(number: int, made: type[_Made]) -> list[_Made]:
    """Declare a list of messages."""
    return _declare(_Field(number, _embedded(made), many=True), list)  # type: ignore[no-any-return]


def string_map(number: int) -> dict[str, str]:
    """Declare a map of texts to texts."""
    return _declare(_Field(number, _embedded(_Entry), many=True, maps=True), dict)  # type: ignore[no-any-return]


def _declare(field: _Field, default: Any) -> Any:
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={_NUMBER: field})
    return dataclasses.field(default=default, metadata={_NUMBER: field})


def _fields(made: type[Message]) -> tuple[tuple[str, _Field], ...]:
    """Return the fields of a type with their names. They are kept, because each message asks for them."""
    found = _KNOWN.get(made)
    if found is None:
        found = tuple((field.name, field.metadata[_NUMBER]) for field in dataclasses.fields(made))
        _KNOWN[made] = found
    return found


# -- values ------------------------------------------------------------------------------------------


def _read_text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage(f"a text is not UTF-8: {value[:40]!r}") from error


def _write_text(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise MalformedMessage(f"a text cannot be UTF-8: {value[:40]!r}") from error


def _integer(bits: int) -> _Kind:
    """Return the kind of signed numbers. Negative ones have 64 bits on the wire, also those of 32."""
    half = 1 << bits - 1

    def write(value: int) -> int:
        if not -half <= value < half:
            raise MalformedMessage(f"{value} has more than {bits} bits")
        return value & (1 << 64) - 1

    return _Kind(_VARINT, lambda value: (value + half) % (2 * half) - half, write)


def _embedded(made: type[Message]) -> _Kind:
    return _Kind(_BYTES, made.decode, lambda value: value.encode())


_TEXT = _Kind(_BYTES, _read_text, _write_text)
_OCTETS = _Kind(_BYTES, bytes, bytes)
_BOOL = _Kind(_VARINT, bool, int)


@dataclasses.dataclass
class _Entry(Message):
    key: str = string(1)
    value: str = string(2)


# -- octets ------------------------------------------------------------------------------------------


def _is_sent(value: Any) -> bool:
    """Tell whether a value is none of the defaults. An empty message is sent: it is not the same as no message."""
    return isinstance(value, Message) or bool(value)


def _fits(field: _Field, wire: int) -> bool:
    """Tell whether a value of this wire type is one of the field's. A list of numbers may come packed into octets."""
    return wire == field.kind.wire or (field.many and wire == _BYTES)


def _store(made: Message, name: str, field: _Field, wire: int, value: Any) -> None:
    if not field.many:
        setattr(made, name, field.kind.read(value))
    elif field.maps:
        entry = field.kind.read(value)
        getattr(made, name)[entry.key] = entry.value
    elif wire == field.kind.wire:
        getattr(made, name).append(field.kind.read(value))
    else:
        at = 0
        while at < len(value):
            one, at = _read_varint(value, at)
            getattr(made, name).append(field.kind.read(one))
            _check_number(len(getattr(made, name)))


def _write(out: bytearray, field: _Field, value: Any, where: str) -> None:
    try:
        data = field.kind.write(value)
    except MalformedMessage as error:
        raise MalformedMessage(f"{where}: {error}") from error
    _write_varint(out, field.number << 3 | field.kind.wire)
    if field.kind.wire == _BYTES:
        _write_varint(out, len(data))
        out += data
    else:
        _write_varint(out, data)


def _split(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yield number, wire type and value of each field. Those of groups, which proto3 has not, are skipped."""
    at = found = 0
    groups: list[int] = []
    while at < len(data):
        found += 1
        _check_number(found)
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 1 <= number <= _LARGEST_FIELD:
            raise MalformedMessage(f"a field has the number {number}")
        if wire == _GROUP:
            groups.append(number)
            if len(groups) > _DEEPEST_GROUP:
                raise MalformedMessage(f"more than {_DEEPEST_GROUP} groups within each other")
        elif wire == _GROUP_END:
            if not groups or groups.pop() != number:
                raise MalformedMessage(f"group {number} ends and has not begun")
        else:
            value, at = _read_value(data, at, wire)
            if not groups:
                yield number, wire, value
    if groups:
        raise MalformedMessage(f"group {groups[-1]} does not end")


def _check_number(fields: int) -> None:
    if fields > MOST_FIELDS:
        raise MalformedMessage(f"a message has more than {MOST_FIELDS} fields")


def _read_value(data: bytes, at: int, wire: int) -> tuple[Any, int]:
    if wire == _VARINT:
        return _read_varint(data, at)
    if wire == _BYTES:
        size, at = _read_varint(data, at)
    elif wire in (_FIXED64, _FIXED32):
        size = 8 if wire == _FIXED64 else 4
    else:
        raise MalformedMessage(f"a field has the wire type {wire}")
    if size > len(data) - at:
        raise MalformedMessage(f"the message ends within a field of {size} bytes")
    return data[at : at + size], at + size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at this place, modulo 2 to the 64th, and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise MalformedMessage("the message ends within a number")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (1 << 64) - 1, at
    raise MalformedMessage("a number has more than ten bytes")


def _write_varint(out: bytearray, number: int) -> None:
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
