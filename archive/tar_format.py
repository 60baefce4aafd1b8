"""The entries of an archive, and the constants that reading and writing share. Touches no file system.

Names are bytes everywhere: Linux knows no encoding of names, and layers hold all sorts of them.
"""

from __future__ import annotations

from host.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK = 512
ZEROS = bytes(BLOCK)
TRAILER = ZEROS * 2

FILE, LINK, SYMLINK, CHARDEV, BLOCKDEV, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
HEADER_ONLY = frozenset((LINK, SYMLINK, CHARDEV, BLOCKDEV, DIRECTORY, FIFO))  # no data follows, whatever the size says
PAX, PAX_GLOBAL = b"x", b"g"

XATTR = b"SCHILY.xattr."  # followed by the name of the attribute: the key of a pax record
NANOSECONDS = 10**9
_QUOTED = 100  # bytes from each end of a long name that are shown
MAX_SPECIAL = 1 << 20  # Go's maxSpecialFileSize: no long name or pax header is bigger


class ArchiveError(Failure):
    """An archive cannot be read, applied or made. The text is one line and names the entry."""


def quote(name: bytes) -> str:
    """Return a name from an archive in quotes, on one printable line; the middle of a very long name is left out."""
    if len(name) > 2 * _QUOTED:
        name = name[:_QUOTED] + b"..." + name[-_QUOTED:]
    return ascii(name)[1:]


class Entry:
    """One entry of an archive, with every extension header already applied to it.

    Most fields of most entries have the values below, which cost nothing as long as they are the class's.
    """

    uid = gid = 0
    devmajor = devminor = 0
    mtime = 0  # nanoseconds
    atime: int | None = None  # nanoseconds, None if the archive does not say
    sparse: list[tuple[int, int]] | None = None  # (offset, length) of the data, None if all of it is data
    xattrs: Mapping[bytes, bytes] = {}

    def __init__(self, name: bytes, kind: bytes = FILE, *, mode: int = 0o644, size: int = 0, link: bytes = b"") -> None:
        self.name = name
        self.type = kind
        self.mode = mode
        self.size = size  # of the file, in bytes, holes included: what moby adds up
        self.link = link
