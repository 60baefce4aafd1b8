"""Says why Linux or a file system does not take an entry of an archive, and what the user can do. Runs confined."""

from __future__ import annotations

import errno
import os

from archive.tar_format import FILE, LINK, SYMLINK, Entry, quote

NAME, PATH = 255, 4095  # bytes (linux/limits.h: NAME_MAX, PATH_MAX with its NUL)
XFS_LINK = 1023  # bytes of a symlink's target (fs/xfs/libxfs/xfs_format.h, XFS_SYMLINK_MAXLEN with its NUL)
ATTRIBUTE_NAME, ATTRIBUTE = 255, 1 << 16  # bytes (linux/limits.h: XATTR_NAME_MAX, XATTR_SIZE_MAX)
MAJORS, MINORS = 1 << 12, 1 << 20  # linux/kdev_t.h


def why(error: OSError, entry: Entry) -> str:
    """Say why an entry could not be created, given the error."""
    number = error.errno or 0
    words = ""
    if number == errno.ENAMETOOLONG:
        words = _too_long(entry)
    elif number == errno.EMLINK:
        words = f"{quote(entry.link)} has as many hard links as its file system takes (ext4 65000, XFS 2147483647)"
    elif number == errno.EFBIG and entry.type == FILE:
        words = f"a file of {entry.size} bytes, its file system takes less (ext4 16 TiB, XFS 8 EiB: ceph.fs)"
    return os.strerror(number) + (words and f": {words}")


def _too_long(entry: Entry) -> str:
    if entry.type == SYMLINK and len(entry.link) > XFS_LINK:
        words = f"a symlink to {len(entry.link)} bytes, XFS takes {XFS_LINK} and ext4 {PATH}"
        return words + ": shorten it" + (", or use ceph.fs=ext4" if len(entry.link) <= PATH else "")
    links = (entry.link,) if entry.type == LINK else ()
    for path in (entry.name, *links):
        longest = max(map(len, path.split(b"/")))
        if longest > NAME:
            return f"a name of {longest} bytes, no file system of Linux takes more than {NAME}: shorten it"
        if len(path.lstrip(b"/")) + 1 > PATH:
            return f"a path of {len(path)} bytes, Linux takes {PATH}: shorten it"
    return ""


def why_not_attribute(error: OSError, name: bytes, value: bytes) -> str:
    """Say why an attribute could not be set, given the error."""
    words = f"attribute {quote(name)} of {len(value)} bytes"
    if len(value) > ATTRIBUTE:
        return f"{words}, Linux takes {ATTRIBUTE}: leave it out"
    if not 0 < len(name) <= ATTRIBUTE_NAME:
        return f"{words}, a name of {len(name)} bytes, Linux takes 1 to {ATTRIBUTE_NAME}: leave it out"
    text = f"{words}: {os.strerror(error.errno or 0)}"
    status = os.statvfs("/")
    # XFS fails with ENOSPC too, but only if it has no room for even the largest attribute.
    if error.errno == errno.ENOSPC and status.f_bavail * status.f_bsize > 2 * ATTRIBUTE:
        most = status.f_bsize
        return f"{text}; ext4 takes {most} for all attributes of a file: leave it out, or use ceph.fs=xfs"
    return text
