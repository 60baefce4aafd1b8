"""xfs_log.py: which part of a log it gives back, and which it leaves alone."""

from __future__ import annotations

import os
import struct

import pytest

from host import xfs_log

BLOCK = xfs_log.BLOCK
LENGTH = 8 << 20
CLEARED = struct.pack(">4sI", b"\xfe\xed\xba\xbe", 0).ljust(BLOCK, b"\0")
RECORD = struct.pack(">4sI", b"\xfe\xed\xba\xbe", 1).ljust(BLOCK, b"r")
DATA = struct.pack(">I", 1).ljust(BLOCK, b"d")


def found(log: bytes) -> tuple[int, int]:
    """What is given back of a log that ends in zeros."""
    log = log.ljust(LENGTH, b"\0")
    return xfs_log.cleared(lambda at, size: log[at : at + size], LENGTH)


@pytest.mark.parametrize("written", [1, 2, 7, 1000])
def test_what_a_mount_cleared_is_found(written: int) -> None:
    log = RECORD + DATA * (written - 1) + CLEARED * 4096
    assert found(log) == (written * BLOCK, (written + 4096) * BLOCK)


def test_a_second_mount_clears_from_where_the_log_is_by_then() -> None:
    """Zeros where something was given back before, then what is left of the first clearing."""
    assert found(RECORD + CLEARED * 400 + bytes(3000 * BLOCK) + CLEARED * 60) == (BLOCK, 3461 * BLOCK)


@pytest.mark.parametrize(
    "log",
    [
        pytest.param(RECORD + DATA * 5, id="nothing was cleared"),
        pytest.param(bytes(100 * BLOCK), id="nothing was ever written"),
        pytest.param(RECORD + CLEARED * 100 + DATA + CLEARED * 100, id="something was written behind"),
        pytest.param((RECORD + DATA).ljust(LENGTH - BLOCK, b"\0") + CLEARED.replace(b"\0", b"\1"), id="second cycle"),
        pytest.param(CLEARED * 10, id="no record at the start"),
        pytest.param(RECORD.replace(struct.pack(">I", 1), struct.pack(">I", 2), 1) + CLEARED * 9, id="cycle 2"),
    ],
)
def test_a_log_that_is_not_in_its_first_cycle_is_left_alone(log: bytes) -> None:
    assert found(log) == (0, 0)


def test_where_the_log_is_stands_in_the_superblock() -> None:
    # As mkfs.xfs writes it for 10 GiB: group 2 of 655360 blocks, block 6 of it.
    superblock = bytearray(BLOCK)
    struct.pack_into(">4sI", superblock, 0, b"XFSB", 4096)
    struct.pack_into(">Q", superblock, 48, 2097158)
    struct.pack_into(">I", superblock, 84, 655360)
    struct.pack_into(">I", superblock, 96, 16384)
    superblock[124] = 20
    assert xfs_log.log_of(bytes(superblock)) == ((2 * 655360 + 6) * 4096, 64 << 20)


@pytest.mark.parametrize("content", [b"", b"ext4".ljust(4096, b"\0"), b"XFSB".ljust(512, b"\0")])
def test_what_is_no_xfs_is_left_alone(tmp_path: os.PathLike[str], content: bytes) -> None:
    path = os.path.join(tmp_path, "image")
    with open(path, "wb") as target:
        target.write(content)
    with pytest.raises(ValueError, match=r"superblock|another device"):
        xfs_log.give_back(path, 1 << 18)
    with open(path, "rb") as source:
        assert source.read() == content
