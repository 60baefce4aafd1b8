"""Parses the bytes of tar headers, as Go's archive/tar does (`reader.go`, `strconv.go`).

Every function but `text_of` raises ValueError, with a text for the user, if the bytes are malformed.
"""

from __future__ import annotations

import zlib

from archive.tar_format import FILE, NANOSECONDS, XATTR, Entry


class _Numbers(dict[bytes, int]):
    """A cache of numeric fields and their numbers. Most of them repeat."""

    def __missing__(self, field: bytes) -> int:
        if len(self) == 4096:
            self.clear()
        self[field] = value = parse_number(field)
        return value


_NUMBERS = _Numbers()


def parse_number(field: bytes) -> int:
    """Return the number of a field: octal text or base-256 (Go: parseNumeric)."""
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


def text_of(field: bytes) -> bytes:
    """Return the text of a field: what stands before the first NUL."""
    return field.partition(b"\0")[0]


def _check_sum(block: bytes) -> None:
    """Raise ValueError unless the checksum of a header is the sum of its bytes, with blanks in place of the checksum.

    Some old programs added signed bytes; Go takes their headers, too.
    """
    stored = parse_number(block[148:156])
    summed = block[:148] + b"        " + block[156:]
    if stored not in (sum(summed), sum(byte - 256 if byte > 127 else byte for byte in summed)):
        raise ValueError("wrong checksum")


def parse_header(block: bytes, plain: dict[bytes, int]) -> Entry:
    """Return the entry that one header block describes by itself.

    `plain` is a cache of second halves that say nothing but "a file", and their share of the checksum: most headers of
    an archive have the same second half. The lower half of the Adler-32 of a first half is the sum of its bytes and
    one; zlib computes it forty times faster than a loop.
    """
    back = block[156:]
    share = plain.get(back, -1)
    entry = Entry(block[:100].partition(b"\0")[0])
    if share < 0 or b"%06o\0 " % ((zlib.adler32(block[:148]) & 0xFFFF) + share) != block[148:156]:
        _check_sum(block)
        entry.type = block[156:157]
        entry.link = text_of(block[157:257])
        if not _parse_extras(entry, block[257:]) and entry.type == FILE and len(plain) < 64:
            plain[back] = sum(back) + 8 * 0x20 - 1
    number = _NUMBERS
    entry.mode, entry.uid, entry.gid = number[block[100:108]], number[block[108:116]], number[block[116:124]]
    entry.size = number[block[124:136]]
    entry.mtime = number[block[136:148]] * NANOSECONDS
    if entry.size < 0:
        raise ValueError("negative size")
    return entry


def _parse_extras(entry: Entry, extras: bytes) -> bool:
    """Apply the fields that newer formats have behind those of v7; True if there is a prefix."""
    magic, major, minor, prefix = extras[:8], extras[72:80], extras[80:88], extras[88:243]
    if magic == b"ustar  \0":
        prefix = _broken_go_prefix(prefix)
    elif magic[:6] != b"ustar\0":
        return False
    elif extras[251:255] == b"tar\0":  # star: times at the end of the prefix
        prefix = prefix[:131]
    entry.devmajor, entry.devminor = _NUMBERS[major], _NUMBERS[minor]
    prefix = text_of(prefix)
    if prefix:
        entry.name = prefix + b"/" + entry.name
    return bool(prefix)


def _broken_go_prefix(prefix: bytes) -> bytes:
    """Return the prefix that Go before 1.8 wrote where GNU tar has two times (Go: readHeader, issue 12594), or b""."""
    try:
        for field in (prefix[:12], prefix[12:24]):
            if field[0]:
                parse_number(field)
    except ValueError:
        return prefix if text_of(prefix).isascii() else b""
    return b""


def parse_pax(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the records of a pax header, in order (Go: parsePAXRecord)."""
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


def parse_decimal(text: bytes) -> int:
    """Return the number of a decimal text, with or without a sign."""
    digits = text[1:] if text[:1] in (b"-", b"+") else text
    if not digits.isdigit() or len(digits) > 19:
        raise ValueError("malformed number")
    return int(text)


def _pax_time(text: bytes) -> int:
    """Return the nanoseconds of a pax time; further digits are cut off (Go: parsePAXTime)."""
    seconds, _, fraction = text.partition(b".")
    if fraction and not fraction.isdigit():
        raise ValueError("malformed time")
    part = int(fraction[:9].ljust(9, b"0"))
    return parse_decimal(seconds) * NANOSECONDS + (-part if seconds.startswith(b"-") else part)


def merge_pax(entry: Entry, records: list[tuple[bytes, bytes]]) -> None:
    """Let the pax records override the fields of the header (Go: mergePAX).

    An empty value overrides nothing, but an attribute may be empty (moby: createTarFile).
    """
    xattrs: dict[bytes, bytes] = {}
    for key, value in records:
        if key.startswith(XATTR):
            xattrs[key[len(XATTR) :]] = value
        if not value:
            continue
        if key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"uid":
            entry.uid = parse_decimal(value)
        elif key == b"gid":
            entry.gid = parse_decimal(value)
        elif key == b"size":
            entry.size = parse_decimal(value)
        elif key == b"mtime":
            entry.mtime = _pax_time(value)
        elif key == b"atime":
            entry.atime = _pax_time(value)
    if entry.size < 0:
        raise ValueError("negative size")
    if xattrs:
        entry.xattrs = xattrs
