"""The programs that the driver starts: what each one is for, when it is needed, and which package has it.

This is the one list of them. preconditions.py reads it. Where it cannot be read (Dockerfile, plugin/closure.py, the
READMEs, tests/packages), tests/unit/test_programs.py compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# When a program is needed. Else `when` is the storage option that needs it.
ALWAYS = "always"
# The driver uses it where it is, and does without it where it is not.
IF_THERE = "if there"
# Another program of the list starts it. All systems have it, but the small one of the managed plugin must get it.
WITHIN = "within"


class Program(NamedTuple):
    """A program: its name, the name of its package in Debian, and when the driver needs it."""

    name: str
    package: str
    when: str


PROGRAMS = (
    Program("rbd", "ceph-common", ALWAYS),  # images: made, mapped, removed
    Program("rados", "ceph-common", ALWAYS),  # who owns an image, and whether that host lives
    Program("mount", "mount", ALWAYS),  # layers and views
    Program("umount", "mount", ALWAYS),
    Program("mkfs.xfs", "xfsprogs", "ceph.fs=xfs"),  # the base image
    Program("xfs_growfs", "xfsprogs", "ceph.fs=xfs"),  # a layer that becomes larger than its file system
    Program("mkfs.ext4", "e2fsprogs", "ceph.fs=ext4"),
    Program("e2fsck", "e2fsprogs", "ceph.fs=ext4"),  # resize2fs asks for it if the file system is not mounted
    Program("resize2fs", "e2fsprogs", "ceph.fs=ext4"),
    # `rbd device` starts it; the driver itself does not look for it.
    Program("rbd-nbd", "rbd-nbd", "ceph.devicetype=nbd"),
    Program("bsdtar", "libarchive-tools", IF_THERE),  # large layers are laid down faster with it
    # The cluster's health and free space. It is a program of Python's and imports Ceph's bindings, which some hosts and
    # minimal containers do not have.
    Program("ceph", "ceph-common", IF_THERE),
    # `rbd trash mv` runs it to read its own default for --expires-at, "now" (Ceph, include/utime.h).
    Program("/bin/date", "coreutils", WITHIN),
)


def needed(option: str) -> Iterator[Program]:
    """Yield the programs without which nothing works: those that are always needed, and those of a storage option."""
    return (program for program in PROGRAMS if program.when in (ALWAYS, option))
