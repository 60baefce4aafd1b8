"""What mounting an XFS writes into the unused part of its log, given back to the pool.

Each writable mount of an XFS (with a log of version 2) clears 2 MiB of the log ahead of where it will write,
in records that say "nothing was written here in this cycle" (fs/xfs/xfs_log_recover.c, xlog_clear_stale_blocks).
In a clone that is 2 MiB of objects which say the same as the zeros that were there: as long as the log has never
been written to its end, blocks of cycle 0 and zeros both mean "not written yet" (xlog_find_zeroed). For a
container that does nothing it is most of what it stores.

Discarded are, of an XFS that is not mounted, whole granules (bytes; the image's objects) that hold nothing but such
records. Everything else is left as it is: a log that was written to its end, or that holds something unexpected there.
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

    Raises ValueError if it is none, or if its log is elsewhere.
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
    # A block number is that of its allocation group, and its place in there.
    group, block = start >> group_bits, start & ((1 << group_bits) - 1)
    return (group * group_blocks + block) * block_size, length * block_size


def cleared(read: Callable[[int, int], bytes], length: int) -> tuple[int, int]:
    """Return where the cleared blocks of a log of `length` bytes begin and end; both 0 if there are none to give back.

    `read(at, size)` reads the log. In its first cycle the blocks of cycle 1 end where it was written last; up to
    there and no further XFS itself searches by halves (xlog_find_cycle_start).
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
    """The first word of each block is its cycle; in a record's header its magic number comes before it."""
    (cycle,) = struct.unpack_from(">I", block, 4 if block.startswith(_RECORD) else 0)
    return int(cycle)


def give_back(device: str, granule: int) -> int:
    """Discard the granules of the cleared part; return how many bytes. Raises OSError (EBUSY: mounted), ValueError."""
    # Exclusive: of a mounted file system the log is alive.
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
