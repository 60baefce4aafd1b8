"""Unmounts what others may still hold: waits until it is free, or tells who holds it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Protocol

import mounts
from host import command, deadline
from host.failure import Failure
from mapped import holders

log = logging.getLogger("unmounting")

# Other processes may hold a device for moments after its last unmount: udev and blkid probe it, and a container that is
# just starting has copied the mount table (mount_namespaces(7)).
BUSY_SECONDS = 10.0
BUSY_PAUSE = 0.02
# A container that has ended may hold its device for so long. After that it counts as a container that runs.
LIVE_SECONDS = 1.0


class LayerBusy(Failure):
    """A layer cannot be unmounted, unmapped or mounted now. The text is one line: who holds it, or why.

    It is no refusal: what was asked for is right, and somebody on this host is in the way, whom an operator may have to
    find. One that is busy for a moment does not make an alert: that takes a share of all requests.
    """


class Doubtful(Protocol):
    """Something of which it may be in doubt whether it is mounted."""

    doubtful: bool


@contextlib.contextmanager
def doubting(item: Doubtful) -> Iterator[None]:
    """Mount or unmount in the `with` block. After a timeout `item` is doubtful: it may be done later all the same."""
    try:
        yield
    except command.CommandTimeout:
        item.doubtful = True
        raise


def unmount(point: str, timeout: float) -> None:
    """Unmount the mount point `point`, and what is mounted inside of it. Do nothing if it is not mounted.

    Waits while it is busy, for BUSY_SECONDS at the most. Raises LayerBusy then, command.CommandTimeout.
    """
    error: command.CommandError | None = None
    for _ in until_free():
        try:
            return mounts.unmount(point, timeout=timeout)
        except command.CommandTimeout:
            raise
        except command.CommandError as failed:
            error = failed
            if mounts.at(point) is None:
                return None
            _unmount_below(point, timeout)
    text = holders.of_mount(point)
    raise LayerBusy(f"{point} cannot be unmounted: {error}{text and '; '}{text}")


def remount(point: str, *, read_only: bool, timeout: float) -> None:
    """Make a mount read-only or writable. Raises command.CommandError if that fails for LIVE_SECONDS.

    It may fail for moments, while a file is open that was removed.
    """
    error: command.CommandError | None = None
    for _ in until_free(LIVE_SECONDS):
        try:
            return mounts.remount(point, read_only=read_only, timeout=timeout)
        except command.CommandTimeout:
            raise
        except command.CommandError as failed:
            error = failed
    assert error
    raise error


def _unmount_below(point: str, timeout: float) -> None:
    """Unmount what dockerd has mounted inside of a layer (moby, daemon/archive.go: volumes, resolv.conf), and left.

    dockerd mounts this for each `docker cp`, and puts the layer after it. If it is killed in between, it never unmounts
    this.
    """
    for inner in mounts.below(point):
        log.warning("unmounting %s, left behind in a layer", inner)
        try:
            mounts.unmount(inner, timeout=timeout)
        except command.CommandTimeout:
            raise
        except command.CommandError as error:
            # Then the layer stays mounted too, and the caller is told that.
            log.warning("%s", error)


def stays_in_use(device: str, seconds: float = BUSY_SECONDS) -> bool:
    """Tell whether something holds a device for all of `seconds`. Return early if not."""
    return all(mounts.in_use(device) for _ in until_free(seconds))


def is_mounted_anywhere(device: str) -> bool:
    """Tell whether any process has a device mounted. If none has, and it is in use, the kernel is at work with it."""
    try:
        return bool(holders.mounted_by(mounts.device_number(device)))
    except OSError:
        # The device is gone.
        return False


def until_free(seconds: float = BUSY_SECONDS) -> Iterator[None]:
    """Yield at growing intervals until `seconds` have passed, or the request must end (deadline.py)."""
    end, pause = time.monotonic() + deadline.left(seconds), BUSY_PAUSE
    while True:
        yield
        if time.monotonic() > end:
            return
        time.sleep(pause)
        pause = min(2 * pause, 1.0)
