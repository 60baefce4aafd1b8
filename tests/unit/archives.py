"""Archives made by hand, byte by byte, and pictures of trees: what the tests of the archive room share.

Nothing here uses the code under test: a header is put together from its fields, so that a test can get any of them
wrong.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from needs import needs, requires

from archive import transfer
from archive.transfer import Kind

needs_root = needs(os.geteuid() == 0, "root: chroot, chown and device nodes")

FILE, LINK, SYMLINK, CHARDEV, BLOCKDEV, DIR, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
WHEN = 1_500_000_000


def header(
    name: bytes,
    kind: bytes = FILE,
    *,
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = WHEN,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    major: int | bytes = 0,
    minor: int | bytes = 0,
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One header block; a field given as bytes goes in as it is."""

    def number(value: int | bytes, width: int) -> bytes:
        return value.ljust(width, b"\0") if isinstance(value, bytes) else b"%0*o\0" % (width - 1, value)

    front = name.ljust(100, b"\0") + number(mode, 8) + number(uid, 8) + number(gid, 8)
    front += number(size, 12) + number(mtime, 12)
    back = kind + link.ljust(100, b"\0") + magic.ljust(8, b"\0") + bytes(64) + number(major, 8) + number(minor, 8)
    back += prefix.ljust(167, b"\0")
    assert len(front) == 148
    assert len(back) == 356
    summed = b"%06o\0 " % (sum(front) + sum(back) + 8 * 32)
    return front + (checksum if checksum is not None else summed) + back


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes = b"", **fields: Any) -> bytes:
    return header(name, FILE, size=len(data), **fields) + padded(data)


def folder(name: bytes, **fields: Any) -> bytes:
    return header(name, DIR, **{"mode": 0o755, **fields})


def symlink(name: bytes, target: bytes, **fields: Any) -> bytes:
    return header(name, SYMLINK, link=target, mode=0o777, **fields)


def hardlink(name: bytes, target: bytes, **fields: Any) -> bytes:
    return header(name, LINK, link=target, **fields)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def pax(records: Mapping[bytes, bytes] | bytes, kind: bytes = b"x") -> bytes:
    data = records if isinstance(records, bytes) else b"".join(record(key, value) for key, value in records.items())
    return header(b"PaxHeaders/x", kind, size=len(data)) + padded(data)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    data = name + b"\0"
    return header(b"././@LongLink", kind, size=len(data), magic=b"ustar  \0") + padded(data)


def tar(*members: bytes) -> bytes:
    return b"".join(members) + bytes(1024)


def apply(root: Path | str, *members: bytes, **options: Any) -> int:
    """Apply an archive of these members, ended by its two blocks of zeros."""
    return transfer.apply(str(root), io.BytesIO(tar(*members)), **options)


def picture(root: Path | str, *, times: bool = True) -> dict[bytes, tuple[Any, ...]]:
    """Everything that a tree holds, the root itself included as b"."."""
    top = os.fsencode(root)
    found: dict[bytes, tuple[Any, ...]] = {b".": _look(top, times)}
    for directory, names, others in os.walk(top):
        for name in names + others:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, top)] = _look(path, times)
    return found


def _look(path: bytes, times: bool) -> tuple[Any, ...]:
    status = os.lstat(path)
    what: Any = None
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as source:
            what = (status.st_size, hashlib.sha1(source.read()).hexdigest())
    elif stat.S_ISLNK(status.st_mode):
        what = os.readlink(path)
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        what = (os.major(status.st_rdev), os.minor(status.st_rdev))
    names = os.listxattr(path, follow_symlinks=False)
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    when = status.st_mtime_ns if times else None
    return (oct(status.st_mode), status.st_uid, status.st_gid, when, what, xattrs)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """An empty directory that plays the mounted layer."""
    root = tmp_path / "layer"
    root.mkdir()
    return root


EXTRACTORS = {"bsdtar": 0, "python": 1 << 30}  # plain files that archive.apply lays down before it asks for a bsdtar

# For what has nothing to do with plain files, once is enough.
either_extractor = pytest.mark.parametrize("extractor", ["bsdtar"], indirect=True)


@pytest.fixture(params=EXTRACTORS)
def extractor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who lays down plain files: bsdtar each of them that it can, or untar.py all of them."""
    name: str = request.param
    requires(name != "bsdtar" or shutil.which(name) is not None, "bsdtar (libarchive-tools)")
    monkeypatch.setattr(transfer, "PATIENCE", EXTRACTORS[name])
    return name


def children() -> list[int]:
    """The processes that this one has started and that are not reaped."""
    while True:
        try:
            tasks = [Path(f"/proc/self/task/{task}/children") for task in os.listdir("/proc/self/task")]
            return [int(pid) for task in tasks for pid in task.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that was joined a moment ago: its children, if any, are another thread's now


def peak_memory(pid: int) -> int:
    """The most memory a running process has ever had, in bytes; 0 if it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


class Trees:
    """A layer and the parent it was cloned from: cp keeps times and owners, as a clone does."""

    def __init__(self, top: Path) -> None:
        self.old, self.new = top / "old", top / "new"
        self.old.mkdir()

    def clone(self) -> Path:
        subprocess.run(["cp", "-a", self.old, self.new], check=True)
        return self.new

    def changes(self) -> list[tuple[str, Kind]]:
        return [(os.fsdecode(path), kind) for path, kind in transfer.changes(str(self.new), str(self.old))]

    def tar(self) -> tarfile.TarFile:
        data = b"".join(transfer.diff(str(self.new), str(self.old)))
        return tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape")

    def diff(self) -> dict[str, tarfile.TarInfo]:
        with self.tar() as found:
            return {member.name: member for member in found}


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path)


def write(path: Path, data: bytes = b"data", mtime: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (mtime, mtime))
    return path


def whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))


@pytest.fixture
def upper(trees: Trees) -> Path:
    """An empty one, on a parent that has something."""
    for name in ("d/f", "d/e/g", "x"):
        write(trees.old / name)
    trees.new.mkdir()
    return trees.new


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bsdtar for the very first file."""
    monkeypatch.setattr(transfer, "PATIENCE", 0)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bsdtar of our own, still to be written, that comes first on PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    path = directory / "bsdtar"
    path.touch(0o755)
    return path


MANY = [file(b"d/f%d" % number, b"x" * 3000) for number in range(300)]  # more than bsdtar can have done at once
