#!/usr/bin/env python3
"""Changes a tree of the image `odd` (odd_images.py) in every way that a layer's archive has a rule for.

    odd_changes.py ROOT

All times that an archive would carry are set, so that the same changes on two file systems give the same archive.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys

from odd_images import NET_ADMIN, WHEN

REVISION_3 = b"\x01\0\0\x03\0\x20\0\0" + bytes(12) + b"\xe8\x03\0\0"  # with the user id of a namespace's root
OF_DOCKER = {"dev", "proc", "sys"}


def write(name: str, content: str = "changed\n", *, when: float = WHEN + 60, mode: int = 0o644) -> None:
    """Write a file of a certain time."""
    with open(name, "w", encoding="utf-8") as target:
        target.write(content)
    os.chmod(name, mode)
    os.utime(name, ns=(0, int(when * 10**9)))


def add() -> None:
    """New files of every type."""
    os.mkdir("added", 0o750)
    os.mkdir("added/empty")
    os.mkdir("added/directory")
    for name in (
        "file",
        "directory/file",
        "directory-beside",
        "directory.beside",
        "-dash",
        "new\nline",
        "\udcff\udcfe",
    ):
        write(f"added/{name}")
    write("added/" + "n" * 255, mode=0o4711)
    write("added/half-second", when=WHEN + 0.5)
    write("added/before-1970", when=-1.5)
    write("added/far", when=9_000_000_000)
    write("added/owned")
    os.chown("added/owned", 3_000_000_000, 70_000)
    os.setxattr("added/owned", "user.left-out", b"1")
    write("added/capable", mode=0o755)
    os.setxattr("added/capable", "security.capability", REVISION_3)
    os.symlink("file", "added/symlink")
    os.symlink("t" * 150, "added/long-symlink")
    os.mkfifo("added/fifo", 0o600)
    os.mknod("added/device", stat.S_IFBLK | 0o660, os.makedev(8, 300))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("added/socket")
    write("added/zz-linked")
    os.link("added/zz-linked", "added/aa-linked")
    os.link("added/zz-linked", "added/" + "l" * 120)
    os.link("links/target", "added/link-to-lower")
    with open("added/sparse", "wb") as target:
        target.seek(1_000_000)
        target.write(b"end")
    for name in ("symlink", "long-symlink", "fifo", "device", "sparse"):
        os.utime(f"added/{name}", (WHEN, WHEN), follow_symlinks=False)


def modify() -> None:
    """Old files in another way. A comment says what Docker must not see."""
    write("whiteouts/kept", "longer than before\n")
    write("times/nanoseconds", "")
    os.utime("times/epoch", (WHEN, WHEN))
    os.utime("times/accessed", ns=(0, (WHEN + 4) * 10**9))  # not: a whole second against the same with a fraction
    os.utime("times/more-digits", ns=(0, (WHEN + 3) * 10**9 + 5))  # another fraction
    before = os.stat("opaque/old").st_mtime_ns
    with open("opaque/old", "r+b") as target:  # not: as long and as old as before
        target.write(b"LOWER")
    os.utime("opaque/old", ns=(0, before))
    os.utime("times/directory", (WHEN, WHEN))  # not: a directory's time
    os.chmod("modes/d0000", 0o700)
    os.chmod("modes/0111", 0o4111)
    os.chown("owners", 1001, 1000)
    os.chown("owners/symlink", 9, 9, follow_symlinks=False)
    os.setxattr("replaced/directory", "user.old", b"2")  # not: only capabilities count
    os.setxattr("replaced/file", "security.capability", NET_ADMIN)
    os.removexattr("capabilities/lost", "security.capability")
    os.setxattr("capabilities/other", "security.capability", NET_ADMIN)
    os.unlink("devices/null")
    os.mknod("devices/null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.utime("devices/null", (WHEN, WHEN))
    os.unlink("through/chain")
    os.symlink("relative", "through/chain")
    os.utime("through/chain", (WHEN + 1, WHEN + 1), follow_symlinks=False)


def remove_and_replace() -> None:
    """What gets a whiteout, and what does not because something else is there."""
    os.unlink("names/gnu/\udcff\udcfe")
    os.unlink("names/gnu/new\nline")
    os.unlink("links/second")
    shutil.rmtree("names/pax")
    shutil.rmtree("xattrs")
    os.mkdir("xattrs")
    write("xattrs/user")
    os.unlink("spelled/dot")
    os.mkdir("spelled/dot")
    write("spelled/dot/file")
    shutil.rmtree("opaque/merged")
    write("opaque/merged")
    os.unlink("through/absolute")
    os.mkdir("through/absolute")
    shutil.rmtree("implied/by")
    os.symlink("later", "implied/by")
    os.utime("implied/by", (WHEN, WHEN), follow_symlinks=False)
    os.rename("after-global", "renamed")
    # A directory of a lower layer is not renamed in one step on overlayfs (EXDEV).
    subprocess.run(["mv", "replaced", "moved"], check=True)


def main() -> None:
    """Change the tree, then give every directory of it the same time: that alone is no change."""
    os.chdir(sys.argv[1])
    os.umask(0o022)
    add()
    modify()
    remove_and_replace()
    for top, directories, _ in os.walk("."):
        if top == ".":
            directories[:] = [name for name in directories if name not in OF_DOCKER]
        for name in directories:
            if not os.path.islink(os.path.join(top, name)):
                os.utime(os.path.join(top, name), (WHEN, WHEN))


if __name__ == "__main__":
    main()
