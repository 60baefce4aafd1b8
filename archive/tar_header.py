"""Makes the headers of a tar as Go's archive/tar does. Touches no file system.

The bytes are those of Go's `Writer` for a header of FormatPAX, which moby's Diff asks for: a ustar header if the entry
fits, and a pax header in front of it if not. Only a negative time differs: Go leaves a sign in an octal field, and GNU
tar complains about that.
"""

from __future__ import annotations

import zlib

from archive.tar_format import BLOCK, FILE, NANOSECONDS, PAX, XATTR, Entry

_LIMIT_8, _LIMIT_12 = 8**7, 8**11  # what fields of 8 and 12 bytes hold in octal, with a NUL at their end
_MAGIC = b"ustar\x0000"
_NO_NAMES = bytes(64)  # of user and group: layers have their ids only
_PLAIN_BACK = FILE + bytes(100) + _MAGIC + _NO_NAMES + b"0000000\x000000000\0" + bytes(167)
_PLAIN_SUM = sum(_PLAIN_BACK) + 8 * 0x20


class _Owners(dict[tuple[int, int, int], "bytes | None"]):
    """A cache of the fields of mode, user and group; None if one is too big. Most of them repeat."""

    def __missing__(self, key: tuple[int, int, int]) -> bytes | None:
        mode, uid, gid = key
        fits = uid < _LIMIT_8 and gid < _LIMIT_8
        if len(self) == 4096:
            self.clear()
        self[key] = value = b"%07o\0%07o\0%07o\0" % (mode, uid, gid) if fits else None
        return value


_OWNERS = _Owners()


def plain_header(name: bytes, owner: tuple[int, int, int], size: int, seconds: int) -> bytes | None:
    """Return what `header` returns for a plain file, at a fraction of the cost; None if it needs `header`.

    `owner` is mode, user and group; a time is in seconds.
    """
    fields = _OWNERS[owner]
    if fields is None or len(name) > 100 or not name.isascii() or size >= _LIMIT_12 or not 0 <= seconds < _LIMIT_12:
        return None
    front = b"%s%s%011o\0%011o\0" % (name.ljust(100, b"\0"), fields, size, seconds)
    return b"%s%06o\0 %s" % (front, (zlib.adler32(front) & 0xFFFF) - 1 + _PLAIN_SUM, _PLAIN_BACK)


def header(entry: Entry) -> bytes:
    """Return the header of an entry, with a pax header in front of it if ustar cannot hold it. Times lose fractions."""
    records = _records(entry)
    split = _split(entry.name)
    if not entry.name.isascii() or (len(entry.name) > 100 and (split is None or records)):
        records[b"path"] = entry.name
    prefix, name = b"", entry.name
    if not records and split is not None:
        prefix, name = split
    block = _sealed(
        _text(name, 100)
        + _octal(entry.mode, 8)
        + _octal(entry.uid, 8)
        + _octal(entry.gid, 8)
        + _octal(entry.size, 12)
        + _octal(entry.mtime // NANOSECONDS, 12),
        entry.type,
        _text(entry.link, 100) + _MAGIC + _NO_NAMES + _octal(entry.devmajor, 8) + _octal(entry.devminor, 8),
        prefix,
    )
    return _pax_header(entry.name, records) + block if records else block


def _records(entry: Entry) -> dict[bytes, bytes]:
    """Return the pax records that an entry needs, without that of its path."""
    records = {XATTR + key: value for key, value in entry.xattrs.items()}
    if len(entry.link) > 100 or not entry.link.isascii():
        records[b"linkpath"] = entry.link
    for key, value, limit in (
        (b"uid", entry.uid, _LIMIT_8),
        (b"gid", entry.gid, _LIMIT_8),
        (b"size", entry.size, _LIMIT_12),
        (b"mtime", entry.mtime // NANOSECONDS, _LIMIT_12),
    ):
        if not 0 <= value < limit:
            records[key] = b"%d" % value
    return records


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """Return a long name as ustar's prefix and name (Go: splitUSTARPath); None if that is not possible."""
    if len(name) <= 100 or not name.isascii():
        return None
    slash = name.rfind(b"/", 0, min(156, len(name) - name.endswith(b"/")))
    if slash <= 0 or not 0 < len(name) - slash - 1 <= 100:
        return None
    return name[:slash], name[slash + 1 :]


def _pax_header(path: bytes, records: dict[bytes, bytes]) -> bytes:
    """Return a pax header and its data, the `records`, sorted by their keys."""
    data = b""
    for key in sorted(records):
        length = len(key) + len(records[key]) + 3
        length += len(str(length + len(str(length))))
        data += b"%d %s=%s\n" % (length, key, records[key])
    directory, _, base = path.rpartition(b"/")
    name = _ascii(b"/".join(part for part in (directory, b"PaxHeaders.0", base) if part))[:100].rstrip(b"/")
    front = _text(name, 100) + _octal(0, 8) * 3 + _octal(len(data), 12) + _octal(0, 12)
    return _sealed(front, PAX, bytes(100) + _MAGIC, b"") + data + bytes(-len(data) % BLOCK)


def _sealed(front: bytes, kind: bytes, back: bytes, prefix: bytes) -> bytes:
    """Return a header block: `front`, which stands before the checksum, the checksum, and what stands behind it."""
    block = (b"%s        %s%s" % (front, kind, back.ljust(188, b"\0") + prefix)).ljust(BLOCK, b"\0")
    # The lower half of an Adler-32 is one more than the sum of the bytes, if that is below 65521. It always is, since a
    # header is ASCII. This takes a fortieth of the time of sum().
    return b"%s%06o\0 %s" % (block[:148], (zlib.adler32(block) & 0xFFFF) - 1, block[156:])


def _octal(value: int, width: int) -> bytes:
    """Return a number as a field; a field of NULs if it does not fit: then a pax record has it."""
    return b"%0*o\0" % (width - 1, value) if 0 <= value < 8 ** (width - 1) else bytes(width)


def _ascii(name: bytes) -> bytes:
    return name if name.isascii() else bytes(byte for byte in name if byte < 0x80)


def _text(name: bytes, width: int) -> bytes:
    """Return a name as a field; a name that was cut does not end in a slash (Go: formatString)."""
    text = _ascii(name)
    if len(text) > width and text[width - 1 : width] == b"/":
        text = text[:width].rstrip(b"/")
    return text[:width].ljust(width, b"\0")
