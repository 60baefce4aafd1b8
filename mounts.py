"""File systems and mount points of this host: make, mount, grow, unmount, and whether a device is in use.

Programs used: mkfs.xfs or mkfs.ext4, mount, umount, xfs_growfs or e2fsck and resize2fs. The kernel's mount
table (/proc/self/mountinfo, proc(5)) is the only truth about what is mounted.

A layer's view is an overlay of directories in several file systems (Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from host import command, deadline, xfs_log
from host.failure import Failure
from host.mount_calls import MountCalls

log = logging.getLogger("mounts")

# nouuid: every clone of an image has the UUID of its base, and XFS mounts a UUID once (xfs(5)).
# noatime: reading a file must not write into a layer.
MOUNT_OPTIONS = {"xfs": ("nouuid", "noatime"), "ext4": ("noatime",)}
# These are not left to the kernel's build or its module's parameters. index, metacopy, redirect_dir: without them an
# upper directory tells by itself what changed (changes.py), and can be joined anywhere. xino: one device number for all
# files.
OVERLAY_OPTIONS = ("noatime", "index=off", "metacopy=off", "redirect_dir=off", "xino=on")
# Every directory on the way to a root must be searchable for a remapped container root (userns-remap).
DIRECTORY_MODE = 0o711
# -K / nodiscard: a new image is empty, and to discard it object by object would take seconds.
MKFS = {"xfs": ("mkfs.xfs", "-q", "-f", "-K"), "ext4": ("mkfs.ext4", "-q", "-F", "-E", "nodiscard")}
# The kernel tells at once whether a device is in use, unless it has to write out what is left in memory.
PROBE_SECONDS = 10.0
_SIZE_PAUSE = 0.02
_CAP_SYS_RESOURCE = 24  # capability.h
_OCTAL = re.compile(rb"\\([0-7]{3})")
_CONTEXT = re.compile(rb'(?:^|,)context="?([^"]+)"?')


class MountError(Failure):
    """Mounting, unmounting or growing is impossible. The text is one line that says why."""


class Mount(NamedTuple):
    """One line of the mount table: device number as "major:minor", mount point, read-only or not, SELinux label.

    `source` is the device, or a name that the caller of mount(2) chose where there is none. `root` is the directory of
    the file system that is shown: "/", unless it is a bind mount of another.
    """

    device_number: str
    point: str
    read_only: bool
    label: str
    type: str = ""
    source: str = ""
    root: str = "/"


def make(fs: str, device: str, arguments: Iterable[str], *, timeout: float) -> None:
    """Make a file system on a block device; what the device held is lost. Raises CommandError."""
    words = [word for argument in arguments for word in argument.split()]
    command.run((*MKFS[fs], *words, device), timeout=timeout)


def mount(fs: str, device: str, point: str, options: Iterable[str], *, read_only: bool, timeout: float) -> None:
    """Mount a device at the directory `point`. `options` come after ours, so they win. Raises CommandError."""
    words = ",".join((*MOUNT_OPTIONS[fs], "ro" if read_only else "rw", *options))
    command.run(("mount", "-t", fs, "-o", words, device, point), timeout=timeout)


def overlay(
    name: str,
    point: str,
    lower: Sequence[str],
    upper: tuple[str, str] | None,
    *,
    options: Sequence[str],
    label: str,
    directory: str,
    timeout: float,
) -> None:
    """Join directories at `point`: those of `lower`, the topmost first, below those of `upper` (upper, work).

    Without `upper` the view is read-only and needs two lower directories. Names are relative to `directory`: all
    options together must fit into a page of memory (mount(2)). `name` is the source in the mount table. `options` win
    over ours. `label` is the SELinux label of everything in the view. Raises CommandError.
    """
    chosen = {option.partition("=")[0]: option for option in (*OVERLAY_OPTIONS, *options)}
    directories = (f"lowerdir={':'.join(lower)}", *((f"upperdir={upper[0]}", f"workdir={upper[1]}") if upper else ()))
    # A label holds commas: they need quotes.
    context = (f'context="{label}"',) if label else ()
    words = ",".join(("rw" if upper else "ro", *chosen.values(), *directories, *context))
    command.run(("mount", "-t", "overlay", "-o", words, name, point), timeout=timeout, directory=directory)


def limit_retries(fs: str, device: str, seconds: float) -> None:
    """Let a mounted XFS give up after `seconds` on metadata that its device refuses to take, and shut down.

    By default it tries again for ever: then processes cannot be killed, and an unmount never ends
    (Documentation/admin-guide/xfs.rst, "Error handling"; moby's devicemapper does the same, pull request 26212).
    """
    if fs != "xfs":
        return
    for condition in ("EIO", "ENOSPC", "default"):
        path = f"/sys/fs/xfs/{os.path.basename(device)}/error/metadata/{condition}/retry_timeout_seconds"
        # A container may have /sys read-only, a kernel before 4.7 has no such file. It works without.
        with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as limit:
            limit.write(str(int(seconds)))


def remount(point: str, *, read_only: bool, timeout: float) -> None:
    """Turn a read-only mount of a writable device into a writable one, or back: then its log is clean.

    Raises CommandError: back to read-only, while a file is open to be written. An overlay on it does no harm.
    """
    command.run(("mount", "-o", f"remount,{'ro' if read_only else 'rw'}", point), timeout=timeout)


def make_directory(path: str) -> None:
    """Make a directory on the way to a layer's root, with those above it, or mend its mode. Raises OSError."""
    os.makedirs(path, mode=DIRECTORY_MODE, exist_ok=True)
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & DIRECTORY_MODE != DIRECTORY_MODE:
        # The directory was there, made under another umask.
        os.chmod(path, mode | DIRECTORY_MODE)


def clone(source: str, point: str, users: int | None) -> None:
    """Mount at the directory `point` what is mounted at `source`, without what is mounted inside of it.

    With an open user namespace `users` it is read-only, and an owner is shown as the one that it is outside of that.
    Raises OSError: mount_setattr with ENOSYS before Linux 5.12, and with EINVAL for a file system that cannot do this.
    On failure nothing is mounted.
    """
    kernel = MountCalls()
    with contextlib.ExitStack() as opened:
        tree = kernel.clone_mount(os.fsencode(source))
        opened.callback(os.close, tree)
        if users is not None:
            kernel.map_ids(tree, users)
        directory = os.open(point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, directory)
        kernel.attach(tree, directory)


def unmount(*points: str, timeout: float) -> None:
    """Unmount these mount points. Raises CommandError (exit 32) while something of this mount namespace uses one."""
    command.run(("umount", "--no-canonicalize", *points), timeout=timeout)


def remove_point(point: str) -> None:
    """Remove a mount point that was unmounted, and so drop the mount from every namespace that copied ours.

    Linux 3.18, "vfs: Lazily remove mounts on unlinked files and directories". Raises OSError.
    """
    try:
        os.rmdir(point)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # Another mount hides one here. In our own namespace that stays as long as the other.
        log.warning("%s stays: %s", point, error.strerror)


def probe(device: str) -> None:
    """Read from a device itself, past all that is in memory. Raises OSError if the device is gone."""
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as aligned:
            os.preadv(descriptor, [aligned], 0)
    finally:
        os.close(descriptor)


def grow_mounted(fs: str, device: str, point: str, *, timeout: float) -> None:
    """Let a mounted file system fill its device, which has grown. XFS grows only so. Raises CommandError."""
    command.run(("xfs_growfs", point) if fs == "xfs" else ("resize2fs", device), timeout=timeout)


def check_growing(fs: str) -> None:
    """Raise MountError if this process may not let a mounted file system grow (fs/ext4/resize.c, ext4_resize_begin)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        capabilities = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    if fs == "ext4" and not capabilities & 1 << _CAP_SYS_RESOURCE:
        raise MountError("a mounted ext4 grows only for a process that has CAP_SYS_RESOURCE")


def await_size(device: str, size: int, timeout: float) -> None:
    """Wait until a device has `size` bytes: the cluster tells the kernel. Raises MountError; OSError if it is gone."""
    until, path = time.monotonic() + deadline.left(timeout), f"/sys/class/block/{os.path.basename(device)}/size"
    while True:
        with open(path, encoding="ascii") as source:
            if int(source.read()) * 512 >= size:
                return
        if time.monotonic() > until:
            raise MountError(f"{device} did not get the size of its image within {timeout:g} s")
        time.sleep(_SIZE_PAUSE)


def grow_ext4(device: str, *, timeout: float) -> None:
    """Let an ext4 that is not mounted fill its device. Raises CommandError.

    A mounted ext4 needs CAP_SYS_RESOURCE for that (fs/ext4/resize.c, ext4_resize_begin), which a container may lack.
    """
    # resize2fs wants the file system checked, and its journal empty. Exit 1: something was corrected.
    command.run(("e2fsck", "-f", "-p", device), timeout=timeout, accept=(0, 1))
    command.run(("resize2fs", device), timeout=timeout)


def give_back_log(device: str, granule: int, *, timeout: float) -> None:
    """Discard the part of an unmounted XFS's log that its mount had cleared (xfs_log.py). `granule` is in bytes.

    Raises OSError, ValueError if the device holds no XFS, deadline.Overdue.
    """
    deadline.call(lambda: xfs_log.give_back(device, granule), device, timeout)


def table(pid: str = "self") -> list[Mount]:
    """Read a process's mount table, by default ours. Raises OSError if the process has ended."""
    return _read_table(f"/proc/{pid}/mountinfo")


def table_of(process: int) -> list[Mount]:
    """Read the mount table of a process whose directory in /proc is open as `process`. Raises OSError.

    For a caller that may not have a path to it: no path leads to /proc from every root directory.
    """
    return _read_table(os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process))


def visible(found: Sequence[Mount]) -> dict[str, Mount]:
    """Return the mounts of a table that can be seen, by mount point: a later mount at, or above, a point hides others.

    dockerd mounts its data root on itself when it starts, and so hides what is mounted below it.
    """
    seen: dict[str, Mount] = {}
    for item in reversed(found):
        if item.point not in seen and not any(above in seen for above in _above(item.point)):
            seen[item.point] = item
    return seen


def _above(point: str) -> Iterator[str]:
    # Not the root: a path begins at the root that this process got, whatever was mounted over it later.
    while (point := os.path.dirname(point)) != "/":
        yield point


def at(point: str) -> Mount | None:
    """Return the mount that is to be seen at `point`, None if there is none."""
    return visible(table()).get(point)


def below(point: str) -> list[str]:
    """Return the mount points inside of the tree at `point`, in the order in which they can be unmounted."""
    return [item.point for item in reversed(table()) if item.point.startswith(f"{point}/")]


def device_number(device: str) -> str:
    """Return "major:minor" of a block device, as the mount table writes it. Raises OSError."""
    number = os.stat(device).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def device_path(number: str) -> str:
    """Return the node of a block device, from "major:minor". Raises MountError if the kernel has no such device."""
    try:
        return "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{number}"))
    except OSError as error:
        raise MountError(f"block device {number} is gone: {error.strerror}") from None


def is_read_only(device: str) -> bool:
    """Tell whether a block device takes no writes. Raises OSError if there is no such device."""
    with open(f"/sys/class/block/{os.path.basename(device)}/ro", encoding="ascii") as source:
        return source.read().strip() == "1"


def merge_writes(device: str) -> None:
    """Let the kernel join writes that lie side by side, by an I/O scheduler. Where that cannot be set, do nothing.

    A layer is many small files, each written back by a request of its own: with an I/O scheduler a sixth as many
    reach the cluster, in a third of the time. Devices of the cluster have none by default.
    """
    # A container may have /sys read-only; the device may have schedulers by other names. It works without.
    with (
        contextlib.suppress(OSError),
        open(f"/sys/class/block/{os.path.basename(device)}/queue/scheduler", "w", encoding="ascii") as scheduler,
    ):
        scheduler.write("mq-deadline")


def in_use(device: str) -> bool:
    """Tell whether a block device is mounted in any mount namespace, or claimed by another driver.

    An exclusive open of a block device fails while a file system has it (open(2), O_EXCL without O_CREAT). Raises
    OSError, and deadline.Overdue: the close writes out what is left in memory.
    """

    def probe() -> None:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))

    try:
        deadline.call(probe, device, PROBE_SECONDS)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            return False
        raise
    return False


def _read_table(file: str | int) -> list[Mount]:
    with open(file, "rb") as source:
        return [_parse(line) for line in source]


def _parse(line: bytes) -> Mount:
    """Read proc(5) mountinfo: id, parent, major:minor, root, mount point, options ... - type, source, super options."""
    # Fields end at blanks only: the kernel does not escape form feeds and the like within them.
    words = line.rstrip(b"\n").split(b" ")
    kind, source, super_options = words[words.index(b"-") + 1 :][:3]
    read_only = b"ro" in words[5].split(b",") or b"ro" in super_options.split(b",")
    label = _CONTEXT.search(super_options)
    return Mount(
        words[2].decode(),
        _unescape(words[4]),
        read_only,
        os.fsdecode(label[1]) if label else "",
        type=_unescape(kind),
        source=_unescape(source),
        root=_unescape(words[3]),
    )


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))
