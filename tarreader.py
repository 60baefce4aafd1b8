"""A tar read entry by entry from a file descriptor. Touches no file system.

Reading follows Go's archive/tar (`reader.go`, `strconv.go`), because moby reads layers with it: v7, ustar, star, GNU
and pax headers, GNU long names, the four sparse formats, base-256 numbers, and the broken GNU prefix that Go before 1.8
wrote and old registries still hold. One difference: old GNU sparse files are taken, which moby's unpacking refuses.
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Iterator

from tarformat import (
    BLOCK,
    DIRECTORY,
    FILE,
    HEADER_ONLY,
    MAX_SPECIAL,
    NANOSECONDS,
    PAX,
    PAX_GLOBAL,
    XATTR,
    ZEROS,
    ArchiveError,
    Entry,
    quote,
)

_OLD_FILE, _GNU_SPARSE, _GNU_LONG_NAME, _GNU_LONG_LINK = b"\0", b"S", b"L", b"K"
_ADLER = 65521  # the prime of an Adler-32
_USTAR_WITHOUT_EXTRAS = b"ustar\x0000" + bytes(64) + b"0000000\x000000000\0" + bytes(167)


class Input:
    """The archive as it comes in from a file descriptor, through one buffer that is never copied as a whole."""

    def __init__(self, fd: int, capacity: int = 1 << 20) -> None:
        self._fd = fd
        self._view = memoryview(bytearray(capacity))
        self._pos = self._end = 0

    def _fill(self) -> bool:
        """Append to the buffer what comes next, False at the end of the archive."""
        rest = bytes(self._view[self._pos : self._end])
        self._view[: len(rest)] = rest
        self._pos, self._end = 0, len(rest)
        got = os.readv(self._fd, [self._view[self._end :]])
        self._end += got
        return got > 0

    def take(self, count: int) -> memoryview:
        """The next `count` bytes, or what is left if the archive ends before; valid until the next call.

        `count` is at most the capacity of the buffer.
        """
        while self._end - self._pos < count and self._fill():
            pass
        start = self._pos
        self._pos = min(start + count, self._end)
        return self._view[start : self._pos]

    def pieces(self, count: int) -> Iterator[memoryview]:
        """The next `count` bytes piece by piece, each valid until the next is asked for; fewer if the archive ends."""
        while count:
            if self._pos == self._end and not self._fill():
                return
            piece = self._view[self._pos : min(self._end, self._pos + count)]
            self._pos += len(piece)
            count -= len(piece)
            yield piece

    def drain(self) -> None:
        """Read on to the end and forget it."""
        self._pos = self._end = 0
        while os.readv(self._fd, [self._view]):
            pass


@functools.lru_cache(maxsize=4096)
def _number(field: bytes) -> int:
    """A numeric field: octal text or base-256 (Go: parseNumeric). ValueError if it is neither."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError("number out of range")
        return value
    text = field.strip(b" \0").partition(b"\0")[0]
    if not text.strip(b"01234567"):  # int() takes signs, blanks and underscores as well
        return int(text or b"0", 8)
    raise ValueError("malformed number")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


@functools.lru_cache(maxsize=4096)
def _mode_and_owner(fields: bytes) -> tuple[int, int, int]:
    return _number(fields[:8]), _number(fields[8:16]), _number(fields[16:])


def _checksum_holds(block: bytes) -> bool:
    """Whether the checksum of a header is right: the sum of its bytes, with the checksum itself counted as blanks.

    The lower half of an Adler-32 is that sum modulo a prime, and zlib has it forty times faster than a loop.
    Some old programs added signed bytes; Go takes those too.
    """
    field = block[148:156]
    stored = _number(field)
    blanked = sum(field) - 8 * 0x20
    if ((zlib.adler32(block) & 0xFFFF) - 1 - blanked - stored) % _ADLER == 0 and stored < _ADLER:
        return True
    unsigned = sum(block) - blanked
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:])
    return stored in (unsigned, signed)


def _parse_header(block: bytes) -> Entry:
    """The entry that one header block describes by itself. ValueError if it is not a header."""
    if not _checksum_holds(block):
        raise ValueError("wrong checksum")
    entry = Entry(_text(block[:100]), block[156:157])
    entry.mode, entry.uid, entry.gid = _mode_and_owner(block[100:124])
    entry.size = _number(block[124:136])
    entry.mtime = _number(block[136:148]) * NANOSECONDS
    if entry.size < 0:
        raise ValueError("negative size")
    if entry.type != FILE:
        entry.link = _text(block[157:257])
    _parse_extras(entry, block[257:])
    return entry


def _parse_extras(entry: Entry, extras: bytes) -> None:
    """What newer formats have behind the fields of v7."""
    if extras == _USTAR_WITHOUT_EXTRAS or not extras.startswith(b"ustar"):
        return
    magic, major, minor, prefix = extras[:8], extras[72:80], extras[80:88], extras[88:243]
    if magic == b"ustar  \0":
        entry.name = _broken_go_prefix(prefix) + entry.name
    elif magic.startswith(b"ustar\0"):
        if extras[251:255] == b"tar\0":  # star: times at the end of the prefix
            prefix = prefix[:131]
        if prefix[0]:
            entry.name = _text(prefix) + b"/" + entry.name
    else:
        return
    entry.devmajor, entry.devminor = _number(major), _number(minor)


def _broken_go_prefix(prefix: bytes) -> bytes:
    """The directory that Go before 1.8 put where GNU tar keeps two times (Go: readHeader, issue 12594), or nothing."""
    try:
        for field in (prefix[:12], prefix[12:24]):
            if field[0]:
                _number(field)
    except ValueError:
        text = _text(prefix)
        return text + b"/" if text.isascii() else b""
    return b""


def _parse_pax(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records of a pax header, in order (Go: parsePAXRecord). ValueError if one is malformed."""
    records = []
    pos = 0
    while pos < len(data):
        blank = data.find(b" ", pos)
        digits = data[pos:blank]
        if blank < 0 or not digits.isdigit():
            raise ValueError("malformed pax record")
        end = pos + int(digits)
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if not equals or end > len(data) or data[end - 1 : end] != b"\n" or end - 1 <= blank or b"\0" in key:
            raise ValueError("malformed pax record")
        if key in (b"path", b"linkpath", b"uname", b"gname") and b"\0" in value:
            raise ValueError("NUL in a pax name")
        records.append((key, value))
        pos = end
    return records


def _decimal(text: bytes) -> int:
    digits = text[1:] if text[:1] in (b"-", b"+") else text
    if not digits.isdigit() or len(digits) > 19:
        raise ValueError("malformed number")
    return int(text)


def _pax_time(text: bytes) -> int:
    """Nanoseconds of a pax time, digits beyond them cut off (Go: parsePAXTime)."""
    seconds, _, fraction = text.partition(b".")
    if fraction and not fraction.isdigit():
        raise ValueError("malformed time")
    part = int(fraction[:9].ljust(9, b"0"))
    return _decimal(seconds) * NANOSECONDS + (-part if seconds.startswith(b"-") else part)


def _merge_pax(entry: Entry, records: list[tuple[bytes, bytes]]) -> None:
    """Let the pax records override what the header says; an empty value overrides nothing (Go: mergePAX)."""
    xattrs: dict[bytes, bytes] = {}
    for key, value in records:
        if not value:
            continue
        if key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"uid":
            entry.uid = _decimal(value)
        elif key == b"gid":
            entry.gid = _decimal(value)
        elif key == b"size":
            entry.size = _decimal(value)
        elif key == b"mtime":
            entry.mtime = _pax_time(value)
        elif key == b"atime":
            entry.atime = _pax_time(value)
        elif key.startswith(XATTR):
            xattrs[key[len(XATTR) :]] = value
    if entry.size < 0:
        raise ValueError("negative size")
    if xattrs:
        entry.xattrs = xattrs


class TarReader:
    """The entries of an archive, one after the other: `next_entry`, then its data, then the next."""

    def __init__(self, source: Input) -> None:
        self._source = source
        self._name = b""
        self._left = 0  # bytes of the current entry that nobody has read
        self._padding = 0

    def next_entry(self) -> Entry | None:
        """The next entry, None at the end. What nobody has read of the entry before is skipped.

        Raises ArchiveError if the archive is malformed or ends within an entry. An archive may end without its two
        blocks of zeros, and with one of them only (Go: readHeader).
        """
        if self._left:
            for _ in self.data():
                pass
        if self._padding:
            self._source.take(self._padding)  # it is no error if this is missing (Go: skipUnread)
            self._padding = 0
        try:
            return self._next()
        except ValueError as error:
            raise ArchiveError(f"invalid tar header after {quote(self._name)}: {error}") from error

    def whole(self, most: int = 1 << 16) -> memoryview | None:
        """All stored bytes of the current entry, valid until the next call; None if they are more than `most`."""
        if self._left > most:
            return None
        view = self._source.take(self._left)
        self._left -= len(view)
        self._complete()
        return view

    def data(self) -> Iterator[memoryview]:
        """The stored bytes of the current entry, in pieces that are valid until the next is asked for."""
        for piece in self._source.pieces(self._left):
            self._left -= len(piece)
            yield piece
        self._complete()

    def _complete(self) -> None:
        if self._left:
            raise ArchiveError(f"{quote(self._name)}: the archive ends within this entry")

    def _block(self) -> bytes:
        block = bytes(self._source.take(BLOCK))
        if 0 < len(block) < BLOCK:
            raise ArchiveError(f"the archive ends within the header after {quote(self._name)}")
        return block

    def _special(self, size: int) -> bytes:
        """The data of a long name or pax header."""
        if size > MAX_SPECIAL:
            raise ValueError(f"an extension header of {size} bytes")
        self._left = size
        data = b"".join(bytes(piece) for piece in self.data())
        self._source.take(-size % BLOCK)
        return data

    def _next(self) -> Entry | None:
        pax: list[tuple[bytes, bytes]] = []
        long_name = long_link = b""
        while True:
            block = self._block()
            if not block or block == ZEROS:
                self._end(block)
                return None
            entry = _parse_header(block)
            if entry.type == PAX:
                pax = _parse_pax(self._special(entry.size))
            elif entry.type == PAX_GLOBAL:  # moby ignores these
                _parse_pax(self._special(entry.size))
                pax, long_name, long_link = [], b"", b""
            elif entry.type == _GNU_LONG_NAME:
                long_name = _text(self._special(entry.size))
            elif entry.type == _GNU_LONG_LINK:
                long_link = _text(self._special(entry.size))
            else:
                if pax:
                    _merge_pax(entry, pax)
                if long_name:
                    entry.name = long_name
                if long_link:
                    entry.link = long_link
                self._name = entry.name
                self._settle(entry, block, pax)
                return entry

    def _end(self, block: bytes) -> None:
        """Make sure that a block of zeros ends the archive: nothing or a second one follows."""
        if block and self._block() not in (b"", ZEROS):
            raise ValueError("a block of zeros before it")

    def _settle(self, entry: Entry, block: bytes, pax: list[tuple[bytes, bytes]]) -> None:
        """Decide the type of an entry and what follows it in the archive."""
        if entry.type == _OLD_FILE:  # archives older than ustar tell a directory by its name
            entry.type = DIRECTORY if entry.name.endswith(b"/") else FILE
        self._left = 0 if entry.type in HEADER_ONLY else entry.size
        self._padding = -self._left % BLOCK
        if entry.type == _GNU_SPARSE:
            entry.type = FILE
            entry.size, entry.sparse = _number(block[483:495]), self._old_sparse_map(block)
        elif entry.type == FILE and pax:
            self._pax_sparse(entry, pax)
        if entry.sparse is not None:
            _check_sparse(entry, self._left)

    def _old_sparse_map(self, block: bytes) -> list[tuple[int, int]]:
        """The map of an old GNU sparse file: four entries in its header, 21 in each block that follows it."""
        sparse: list[tuple[int, int]] = []
        area, more = block[386:482], block[482]
        while True:
            for pos in range(0, len(area) - 23, 24):
                if area[pos] == 0:  # an empty field ends the map
                    break
                sparse.append((_number(area[pos : pos + 12]), _number(area[pos + 12 : pos + 24])))
            if not more:
                return sparse
            if len(sparse) * 24 > MAX_SPECIAL:
                raise ValueError("a sparse map too long")
            block = self._block()
            if not block:
                raise ArchiveError(f"{quote(self._name)}: the archive ends within its sparse map")
            area, more = block[:504], block[504]

    def _pax_sparse(self, entry: Entry, pax: list[tuple[bytes, bytes]]) -> None:
        """Apply the GNU.sparse records (Go: readGNUSparsePAXHeaders): formats 0.0, 0.1 and 1.0."""
        records = {key[11:]: value for key, value in pax if key.startswith(b"GNU.sparse.")}
        if not records:
            return
        version = records.get(b"major"), records.get(b"minor")
        if version == (b"1", b"0"):
            entry.sparse = self._sparse_map_in_data(entry)
        elif version in ((None, None), (b"0", b"0"), (b"0", b"1")) and (b"map" in records or b"numblocks" in records):
            flat = [_decimal(text) for text in records.get(b"map", b"").split(b",") if text]
            flat += [_decimal(value) for key, value in pax if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")]
            entry.sparse = list(zip(flat[::2], flat[1::2]))
            if len(flat) % 2 or len(entry.sparse) != _decimal(records.get(b"numblocks", b"%d" % len(entry.sparse))):
                raise ValueError("malformed sparse map")
        else:
            return
        entry.name = self._name = records.get(b"name") or entry.name
        entry.size = _decimal(records.get(b"realsize") or records.get(b"size") or b"%d" % entry.size)

    def _sparse_map_in_data(self, entry: Entry) -> list[tuple[int, int]]:
        """The map of format 1.0: decimal lines at the start of the data, up to a full block."""
        text = b""
        wanted = 1
        while text.count(b"\n") < wanted:
            if self._left < BLOCK or len(text) > MAX_SPECIAL:
                raise ValueError("malformed sparse map")
            block = self._block()
            self._left -= len(block)
            text += block
            if wanted == 1 and b"\n" in text:
                wanted = 1 + 2 * _decimal(text.partition(b"\n")[0])
        flat = [_decimal(line) for line in text.split(b"\n")[1:wanted]]
        return list(zip(flat[::2], flat[1::2]))


def _check_sparse(entry: Entry, stored: int) -> None:
    """ValueError unless the map of a sparse file is in order, within the file, and as long as the data."""
    end = 0
    for offset, length in entry.sparse or ():
        if offset < end or length < 0:
            raise ValueError("sparse map out of order")
        end = offset + length
    if end > entry.size or sum(length for _, length in entry.sparse or ()) != stored:
        raise ValueError("sparse map does not fit the file")
