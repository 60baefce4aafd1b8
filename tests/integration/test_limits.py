"""What a file system does not take of an archive, or of its size: told in words that name the limit and the way out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lab import StartPlugin
from plugin_client import Refused
from unit.archives import file, header, pax, symlink, tar

NewId = Callable[[], str]


def attribute(size: int) -> bytes:
    return pax({b"SCHILY.xattr.user.x": b"v" * size}) + file(b"f")


def target(size: int) -> bytes:
    return pax({b"linkpath": b"t" * size}) + symlink(b"s", b"x")


def sparse(size: int) -> bytes:
    """A file that is one hole."""
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"big"}
    records[b"GNU.sparse.realsize"] = b"%d" % size
    return pax(records) + header(b"x", size=512) + b"1\n%d\n0\n".ljust(512, b"\0") % size


FITS = {
    "xfs": [target(1023), attribute(65536), sparse(17 << 40)],
    "ext4": [target(1024), attribute(3900), sparse(15 << 40)],
}
UNFIT = {
    "xfs": [(target(1024), "symlink to 1024 bytes, XFS takes 1023 and ext4 4095: shorten it, or use ceph.fs=ext4")],
    "ext4": [
        (target(4096), "symlink to 4096 bytes, XFS takes 1023 and ext4 4095: shorten it"),
        (attribute(5000), "'user.x' of 5000 bytes, ext4 takes 4096 for all attributes of a file: .* use ceph.fs=xfs"),
        (sparse(17 << 40), rf"a file of {17 << 40} bytes, its file system takes less \(ext4 16 TiB"),
    ],
}


@pytest.mark.parametrize("fs", FITS)
def test_what_is_beyond_a_file_system_is_told_in_words(start_plugin: StartPlugin, new_id: NewId, fs: str) -> None:
    client = start_plugin(fs=fs, imageprefix=f"limits_{fs}").client
    for members in FITS[fs]:
        client.apply_diff(client.create(new_id()), tar(members))
    for members, words in UNFIT[fs]:
        layer = client.create(new_id())
        with pytest.raises(Refused, match=words):
            client.apply_diff(layer, tar(file(b"before"), members))
        client.remove(layer)
