"""HPACK, the form of HTTP/2's header fields (RFC 7541): a whole decoder, and an encoder that keeps no table."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from host.failure import Failure
from wire import huffman

Field = tuple[bytes, bytes]

# What a peer may use before it has seen our SETTINGS, and what we leave it at (RFC 9113 section 6.5.2).
TABLE_SIZE = 4096
# The names and values of one list, with FIELD_COST for each field. It is for the memory of one request.
LIST_SIZE = 16384
# What a field costs beyond its octets, in a table and in a list (RFC 7541 section 4.1, RFC 9113 section 6.5.2).
FIELD_COST = 32
# The largest number that a block may name: an index, a size or a length of a string. It is far above what we allow.
_LARGEST_NUMBER = (1 << 31) - 1

# RFC 7541 appendix A, from index 1 on.
_STATIC: tuple[Field, ...] = tuple(
    (name, value)
    for name, _, value in (
        line.partition(b" ")
        for line in (
            b":authority|:method GET|:method POST|:path /|:path /index.html|:scheme http|:scheme https|:status 200|"
            b":status 204|:status 206|:status 304|:status 400|:status 404|:status 500|accept-charset|"
            b"accept-encoding gzip, deflate|accept-language|accept-ranges|accept|access-control-allow-origin|age|allow|"
            b"authorization|cache-control|content-disposition|content-encoding|content-language|content-length|"
            b"content-location|content-range|content-type|cookie|date|etag|expect|expires|from|host|if-match|"
            b"if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|link|location|max-forwards|"
            b"proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after|server|set-cookie|"
            b"strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"
        ).split(b"|")
    )
)
_STATIC_INDEX = {field: index for index, field in reversed(list(enumerate(_STATIC, 1)))}
_STATIC_NAME = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC, 1)))}


class BadBlock(Failure):
    """A header block is malformed. The two tables may differ from now on: the connection must end with
    COMPRESSION_ERROR (RFC 9113 section 4.3)."""


class HeaderList(NamedTuple):
    """What a block held. If it was larger than the limit, `whole` is False, and the last fields are missing."""

    fields: list[Field]
    whole: bool


class Decoder:
    """The table of one connection, in the direction of its requests."""

    def __init__(self, table_size: int = TABLE_SIZE, list_size: int = LIST_SIZE) -> None:
        self._list_size = list_size
        self._most = table_size
        self._limit = table_size
        # The newest entry is first, as it is numbered (RFC 7541 section 2.3.3).
        self._table: deque[Field] = deque()
        self._size = 0

    def decode(self, block: bytes) -> HeaderList:
        """Return the fields of one whole block. Raises BadBlock.

        A list that is too large is read to its end even so, because it changes the table for the blocks after it.
        """
        fields: list[Field] = []
        size, at, begun = 0, 0, False
        while at < len(block):
            first = block[at]
            if first & 0xE0 == 0x20:
                if begun:
                    raise BadBlock("a table is resized within a header block (RFC 7541 section 4.2)")
                limit, at = read_number(block, at, 5)
                self._resize(limit)
                continue
            begun = True
            field, at = self._field(block, at, first)
            size += _cost(field)
            if size <= self._list_size:
                fields.append(field)
        return HeaderList(fields, size <= self._list_size)

    def _field(self, block: bytes, at: int, first: int) -> tuple[Field, int]:
        """Return the field at this place, and the place after it (RFC 7541 section 6)."""
        if first & 0x80:
            index, at = read_number(block, at, 7)
            return self._entry(index), at
        keeps = first & 0xC0 == 0x40
        index, at = read_number(block, at, 6 if keeps else 4)
        if index:
            name = self._entry(index)[0]
        else:
            name, at = _read_string(block, at)
        value, at = _read_string(block, at)
        if keeps:
            self._add((name, value))
        return (name, value), at

    def _entry(self, index: int) -> Field:
        if 1 <= index <= len(_STATIC):
            return _STATIC[index - 1]
        if 1 <= index - len(_STATIC) <= len(self._table):
            return self._table[index - len(_STATIC) - 1]
        raise BadBlock(f"index {index} is in no table (RFC 7541 section 2.3.3)")

    def _add(self, field: Field) -> None:
        """Put a field first. A field that is larger than the table empties it (RFC 7541 section 4.4)."""
        cost = _cost(field)
        self._evict(self._limit - cost)
        if cost <= self._limit:
            self._table.appendleft(field)
            self._size += cost

    def _resize(self, limit: int) -> None:
        if limit > self._most:
            raise BadBlock(f"a table of {limit} bytes is wanted, {self._most} are allowed (RFC 7541 section 6.3)")
        self._limit = limit
        self._evict(limit)

    def _evict(self, most: int) -> None:
        while self._table and self._size > most:
            self._size -= _cost(self._table.pop())


def encode(fields: Iterable[Field]) -> bytes:
    """Return a block that changes no table: each field is an index of the static table, or literal.

    The block starts with a table size of 0. So the encoder needs no memory, and a peer that allows less than it did
    before has its answer (RFC 7541 section 4.2).
    """
    out = bytearray(b"\x20")
    for name, value in fields:
        index = _STATIC_INDEX.get((name, value))
        if index:
            out += write_number(index, 7, 0x80)
            continue
        index = _STATIC_NAME.get(name, 0)
        out += write_number(index, 4, 0x00)
        if not index:
            out += write_number(len(name), 7, 0x00) + name
        out += write_number(len(value), 7, 0x00) + value
    return bytes(out)


def read_number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Return the number whose first `bits` bits end the octet `at`, and the place after it (RFC 7541 section 5.1).

    Raises BadBlock if the block ends before, or the number is larger than any that makes sense.
    """
    full = (1 << bits) - 1
    if at >= len(block):
        raise BadBlock("a header block ends within a field")
    number = block[at] & full
    at += 1
    if number < full:
        return number, at
    for shift in range(0, 35, 7):
        if at >= len(block):
            raise BadBlock("a header block ends within a number")
        number += (block[at] & 0x7F) << shift
        at += 1
        if number > _LARGEST_NUMBER:
            break
        if not block[at - 1] & 0x80:
            return number, at
    raise BadBlock(f"a number in a header block is larger than {_LARGEST_NUMBER}")


def write_number(number: int, bits: int, mark: int) -> bytes:
    """Return a number in `bits` bits below `mark`, and in more octets if it needs them (RFC 7541 section 5.1)."""
    full = (1 << bits) - 1
    if number < full:
        return bytes((mark | number,))
    out = bytearray((mark | full,))
    number -= full
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_string(block: bytes, at: int) -> tuple[bytes, int]:
    """Return the string at this place, and the place after it (RFC 7541 section 5.2)."""
    coded = at < len(block) and block[at] & 0x80
    length, at = read_number(block, at, 7)
    if length > len(block) - at:
        raise BadBlock("a header block ends within a string")
    data = bytes(block[at : at + length])
    at += length
    if not coded:
        return data, at
    try:
        return huffman.decode(data), at
    except huffman.BadHuffman as error:
        raise BadBlock(str(error)) from error


def _cost(field: Field) -> int:
    return len(field[0]) + len(field[1]) + FIELD_COST
