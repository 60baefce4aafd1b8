"""Unmounts what others may still hold: waits until it is free, or says who holds it."""

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

# Other processes may hold a device for moments after its last mount went: udev and blkid probing
# it, containers being started that copied the mount table (mount_namespaces(7)).
BUSY_SECONDS = 10.0
BUSY_PAUSE = 0.02
# A container that ended may hold its device for moments more, before a Put tells that it still runs.
LIVE_SECONDS = 1.0


class LayerBusy(Failure):
    """A layer cannot be unmounted or unmapped: one line that names who holds it."""


class Doubtful(Protocol):
    """What is mounted, as far as it is known."""

    doubtful: bool


@contextlib.contextmanager
def doubting(item: Doubtful) -> Iterator[None]:
    """Mount or unmount in the `with` block: what runs into its deadline may have been done, or be done later."""
    try:
        yield
    except command.CommandTimeout:
        item.doubtful = True
        raise


def unmount(point: str, timeout: float) -> None:
    """Unmount `point`, and what is mounted inside of it; what is not mounted is fine. Raises LayerBusy."""
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
    said = holders.of_mount(point)
    raise LayerBusy(f"{point} cannot be unmounted: {error}{said and '; '}{said}")


def remount(point: str, *, read_only: bool, timeout: float) -> None:
    """Turn a mount read-only or writable. A file that was removed may be open for moments more. Raises CommandError."""
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
    """End what dockerd has mounted inside of a layer (moby, daemon/archive.go: volumes, resolv.conf), and left there.

    It does so for each `docker cp` and puts the layer after it; killed in between it never comes back for them.
    """
    for inner in mounts.below(point):
        log.warning("unmounting %s, left behind in a layer", inner)
        try:
            mounts.unmount(inner, timeout=timeout)
        except command.CommandTimeout:
            raise
        except command.CommandError as error:
            # Then the layer stays mounted too, and that is what the caller is told.
            log.warning("%s", error)


def stays_in_use(device: str, seconds: float = BUSY_SECONDS) -> bool:
    """Tell whether something holds a device for all of that time."""
    return all(mounts.in_use(device) for _ in until_free(seconds))


def is_mounted_anywhere(device: str) -> bool:
    """Tell whether any process sees a device mounted; if none does, and it is in use, the kernel is at work with it."""
    try:
        return bool(holders.mounted_by(mounts.device_number(device)))
    except OSError:
        # The device is gone.
        return False


def until_free(seconds: float = BUSY_SECONDS) -> Iterator[None]:
    """Yield at growing intervals until so many seconds have passed."""
    end, pause = time.monotonic() + deadline.left(seconds), BUSY_PAUSE
    while True:
        yield
        if time.monotonic() > end:
            return
        time.sleep(pause)
        pause = min(2 * pause, 1.0)
