"""The unused part of an XFS's log, which each mount writes to, is given back to the pool.

Each writable mount of an XFS (with a log of version 2) clears 2 MiB of the log ahead of where it will write,
in records that say "nothing was written here in this cycle" (fs/xfs/xfs_log_recover.c, xlog_clear_stale_blocks).
In a clone that is 2 MiB of objects, which say the same as the zeros that were there: as long as the log has never
been written to its end, blocks of cycle 0 and zeros both mean "not written yet" (xlog_find_zeroed). A container that
does nothing stores little else.

This discards whole granules (the image's objects) that hold nothing but such records, of an XFS that is not mounted.
It leaves everything else as it is: a log that was written to its end, or that holds something unexpected there.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable

BLOCK = 512
# uapi/linux/fs.h, _IO(0x12, 119): a range of two 64-bit numbers, start and length in bytes.
BLKDISCARD = 0x1277
# XLOG_TOTAL_REC_SHIFT: 8 buffers of 256 KiB are cleared at once.
CLEARED = 2 << 20
_RECORD = b"\xfe\xed\xba\xbe"


def log_of(superblock: bytes) -> tuple[int, int]:
    """Return offset and length in bytes of the log, from the superblock (fs/xfs/libxfs/xfs_format.h, xfs_dsb).

    Raises ValueError if these bytes are no superblock, or if the log is on another device.
    """
    if superblock[:4] != b"XFSB":
        raise ValueError("no XFS superblock")
    (block_size,) = struct.unpack_from(">I", superblock, 4)
    (start,) = struct.unpack_from(">Q", superblock, 48)
    (group_blocks,) = struct.unpack_from(">I", superblock, 84)
    (length,) = struct.unpack_from(">I", superblock, 96)
    group_bits = superblock[124]
    if not start:
        raise ValueError("the log is on another device")
    # A block number is made of the number of an allocation group and the block's number in that group.
    group, block = start >> group_bits, start & ((1 << group_bits) - 1)
    return (group * group_blocks + block) * block_size, length * block_size


def cleared(read: Callable[[int, int], bytes], length: int) -> tuple[int, int]:
    """Return where the cleared blocks of a log of `length` bytes begin and end; both 0 if there are none to give back.

    `read(at, size)` reads the log. In its first cycle the blocks of cycle 1 end where the log was written last. XFS
    finds that block by the same search by halves (xlog_find_cycle_start).
    """
    if _cycle(read(0, BLOCK)) != 1 or _cycle(read(length - BLOCK, BLOCK)) != 0:
        return 0, 0
    written, unwritten = 0, length // BLOCK - 1
    while unwritten - written > 1:
        middle = (written + unwritten) // 2
        if _cycle(read(middle * BLOCK, BLOCK)) == 0:
            unwritten = middle
        else:
            written = middle
    begin = unwritten * BLOCK
    behind = read(begin, min(CLEARED, length - begin))
    blocks = [behind[at : at + BLOCK] for at in range(0, len(behind), BLOCK)]
    if any(_cycle(block) != 0 for block in blocks):
        return 0, 0
    records = [number for number, block in enumerate(blocks) if block.startswith(_RECORD)]
    return (begin, begin + (records[-1] + 1) * BLOCK) if records else (0, 0)


def _cycle(block: bytes) -> int:
    """Return the cycle of a block: its first word, or, in the header of a record, the word after the magic number."""
    (cycle,) = struct.unpack_from(">I", block, 4 if block.startswith(_RECORD) else 0)
    return int(cycle)


def give_back(device: str, granule: int) -> int:
    """Discard the cleared part of the log, in whole granules of `granule` bytes; return how many bytes that were.

    Raises OSError (EBUSY: the device is mounted), ValueError as `log_of` does.
    """
    # Exclusive: the log of a mounted file system is in use.
    file = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    try:
        start, length = log_of(os.pread(file, BLOCK, 0))
        begin, end = cleared(lambda at, size: os.pread(file, size, start + at), length)
        begin, end = -(-(start + begin) // granule) * granule, (start + end) // granule * granule
        if begin >= end:
            return 0
        fcntl.ioctl(file, BLKDISCARD, struct.pack("QQ", begin, end - begin))
        return end - begin
    finally:
        os.close(file)
