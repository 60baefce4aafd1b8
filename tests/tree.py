#!/usr/bin/env python3
"""Describes a tree of files, or the last layer of a saved image, as JSON lines that `diff` can compare.

    tree.py [--leave-out REGEX] [--since SECONDS] DIR     sorted by name; DIR itself is "/"
    tree.py --layer SAVED.tar                             in the order of the archive

A line holds everything but the inode's number: name (bytes that are not UTF-8 as surrogates), type, mode, owners,
modification time in nanoseconds as the file system has it, attributes (in hexadecimal), device number, size and hash of
the content, how many names a file has in the tree and which comes first. Sizes and link counts of directories
are the file system's own business. REGEX is looked for in names; what matches is not described, with all below it. A
time between SECONDS and the present is described as "now".
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import re
import stat
import tarfile
import time
from collections.abc import Iterator
from typing import IO, Any

_PIECE = 1 << 20
_WHITEOUT = ".wh."
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_ENTRY_TYPES = {
    tarfile.REGTYPE: "file",
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.DIRTYPE: "directory",
    tarfile.FIFOTYPE: "fifo",
}
_OF_XFS = {"trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT"}  # its own copies of system.posix_acl_*
Line = dict[str, Any]


def describe_tree(top: bytes, leave_out: str | None, since: float) -> Iterator[Line]:
    """The lines of a tree, sorted by name."""
    lines, linked = [], dict[int, list[Line]]()
    for path in [top, *sorted(_below(top, top, leave_out))]:
        line = _describe(path, _name(path, top), linked)
        if since <= line["mtime"] / 1e9 <= time.time():
            line["mtime"] = "now"
        lines.append(line)
    # Counted here: overlayfs goes on to count names of a lower layer's file that were removed.
    for same in linked.values():
        for line in same if len(same) > 1 else ():
            line["names"], line["first"] = len(same), same[0]["name"]
    yield from lines


def _name(path: bytes, top: bytes) -> str:
    return os.fsdecode(path[len(top) :]) or "/"


def _below(directory: bytes, top: bytes, leave_out: str | None) -> Iterator[bytes]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if leave_out is not None and re.search(leave_out, _name(entry.path, top)):
                continue
            yield entry.path
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, top, leave_out)


def _describe(path: bytes, name: str, linked: dict[int, list[Line]]) -> Line:
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    line: Line = {
        "name": name,
        "type": _TYPES[kind],
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "owner": [status.st_uid, status.st_gid],
        "mtime": status.st_mtime_ns,
    }
    names = set(os.listxattr(path, follow_symlinks=False)) - _OF_XFS
    if names:
        line["xattrs"] = {key: os.getxattr(path, key, follow_symlinks=False).hex() for key in sorted(names)}
    if kind == stat.S_IFREG:
        with open(path, "rb") as source:
            line["content"] = _content(source)
    elif kind == stat.S_IFLNK:
        line["to"] = os.fsdecode(os.readlink(path))
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        line["device"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
    if kind != stat.S_IFDIR and status.st_nlink > 1:
        linked.setdefault(status.st_ino, []).append(line)
    return line


def _content(source: IO[bytes]) -> list[Any]:
    """Size and SHA-256."""
    size, digest = 0, hashlib.sha256()
    while piece := source.read(_PIECE):
        size += len(piece)
        digest.update(piece)
    return [size, digest.hexdigest()]


def describe_layer(saved: str) -> Iterator[Line]:
    """The lines of the last layer of an image that `docker save` wrote. Whiteouts come without their time.

    The names of owners and the type bits of modes, which Docker wrote until 20.10, are left out.
    """
    with tarfile.open(saved) as image:
        manifest = image.extractfile("manifest.json")
        assert manifest
        layer = image.extractfile(json.load(manifest)[-1]["Layers"][-1])
        assert layer
        data = layer.read()
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        for member in archive:
            yield _describe_member(archive, member)


def _describe_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Line:
    line: Line = {
        "name": member.name + ("/" if member.isdir() else ""),
        "type": _ENTRY_TYPES[member.type],
        "mode": f"{stat.S_IMODE(member.mode):04o}",
        "owner": [member.uid, member.gid],
        "mtime": member.mtime,
        "size": member.size,
    }
    if member.islnk() or member.issym():
        line["to"] = member.linkname
    if member.ischr() or member.isblk():
        line["device"] = [member.devmajor, member.devminor]
    if member.isreg():
        content = archive.extractfile(member)
        assert content
        line["content"] = _content(content)
    records = {
        key: value.encode("utf-8", "surrogateescape").hex()
        for key, value in member.pax_headers.items()
        if key not in ("path", "linkpath")
    }
    if records:
        line["records"] = records
    if os.path.basename(member.name).startswith(_WHITEOUT):
        del line["mtime"]
        line.pop("records", None)
    return line


def main() -> None:
    """Read the command line and print the lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layer", action="store_true", help="PATH is an image that docker save wrote")
    parser.add_argument("--leave-out", metavar="REGEX", help="names that are not described")
    parser.add_argument("--since", type=float, metavar="SECONDS", default=math.inf, help="times that are `now`")
    parser.add_argument("path", metavar="PATH")
    arguments = parser.parse_args()
    lines = (
        describe_layer(arguments.path)
        if arguments.layer
        else describe_tree(os.fsencode(arguments.path.rstrip("/")), arguments.leave_out, arguments.since)
    )
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
