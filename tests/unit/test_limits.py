"""What no file system of Linux takes is told in words that name the limit."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from unit.archives import (
    BLOCKDEV,
    CHARDEV,
    LINK,
    apply,
    file,
    folder,
    hardlink,
    header,
    layer,
    long_name,
    needs_root,
    pax,
    symlink,
)

from archive import limits, transfer
from archive.tar_format import Entry

pytestmark = needs_root
__all__ = ["layer"]


BIG = 5_000_000_000


UNFIT = {
    "name": (
        pax({b"path": b"d/" + b"n" * 256}) + file(b"x"),
        "a name of 256 bytes, no file system of Linux takes more than 255",
    ),
    "name of a directory": (pax({b"path": b"n" * 300}) + folder(b"x"), "a name of 300 bytes"),
    "long name": (long_name(b"n" * 300) + file(b"n"), "a name of 300 bytes"),
    "name of a link": (long_name(b"t" * 256, b"K") + hardlink(b"m", b"t"), "a name of 256 bytes"),
    "path": (pax({b"path": b"/".join([b"p" * 200] * 21)}) + file(b"x"), "a path of 4220 bytes, Linux takes 4095"),
    "link": (pax({b"linkpath": b"t/" * 2500}) + symlink(b"s", b"x"), "a symlink to 5000 bytes, XFS takes 1023"),
    "owner": (pax({b"uid": b"%d" % BIG}) + file(b"f"), f"user id {BIG}, Linux takes 0 to 4294967294"),
    "group": (pax({b"gid": b"4294967295"}) + file(b"f"), "group id 4294967295, Linux takes 0 to 4294967294"),
    "device": (header(b"c", CHARDEV, major=4096, minor=1), "device number 4096:1, Linux takes 4095:1048575"),
    "minor": (header(b"c", BLOCKDEV, major=1, minor=1 << 20), "device number 1:1048576, Linux takes 4095:1048575"),
    "attribute": (
        pax({b"SCHILY.xattr.user.x": b"v" * 65537}) + file(b"f"),
        "'user.x' of 65537 bytes, Linux takes 65536",
    ),
    "name of an attribute": (pax({b"SCHILY.xattr.user." + b"n" * 251: b""}) + file(b"f"), "a name of 256 bytes, Linux"),
    "pax header": (header(b"p", b"x", size=2 << 20), "an extension header of 2097152 bytes, 1048576 are the most"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_limit_is_told_in_words(layer: Path, what: str) -> None:
    """What no file system of Linux takes: one short line that names the limit and the entry."""
    member, words = UNFIT[what]
    with pytest.raises(transfer.ArchiveError) as caught:
        apply(layer, file(b"before"), member)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_too_many_hard_links_are_told_in_words() -> None:
    words = limits.why(OSError(errno.EMLINK, ""), Entry(b"l", LINK, link=b"t"))
    assert words == "Too many links: 't' has as many hard links as its file system takes (ext4 65000, XFS 2147483647)"


@pytest.mark.parametrize(
    "member",
    [
        pax({b"path": b"n" * 255}) + file(b"x"),
        pax({b"path": b"/".join([b"p" * 200] * 20)}) + file(b"x"),
        pax({b"uid": b"4294967294", b"gid": b"4294967294"}) + file(b"f"),
        header(b"c", CHARDEV, major=4095, minor=(1 << 20) - 1),
    ],
)
def test_what_is_as_long_as_the_limit_is_taken(layer: Path, member: bytes) -> None:
    assert apply(layer, member) == 0
