"""A layer's view that only another mount namespace still holds is shown again in ours.

A running container keeps the overlay that is its root in a mount namespace of its own, whatever becomes of ours
(`docker plugin disable --force`, a restart of dockerd with live-restore). A second overlay on the same upper directory
would be undefined behaviour (Documentation/filesystems/overlayfs.rst), so the container's own mount is taken. This
needs Linux 5.2.

Only a process of one thread may change the mount namespace (setns(2)):

    python3 elsewhere.py PID SOURCE DEVICE POINT

shows the overlay SOURCE, "major:minor" DEVICE, of the mount namespace of process PID at the directory POINT. The
process ends with status 3 if the overlay is not there (any more), with 1 and one line if it cannot be taken. While the
process is in a namespace that may be hostile, it reads its own mount table and opens the mount point, and nothing else:
neither a program nor a library.

An overlay that was unmounted lazily (umount -l, MNT_DETACH) is in no mount table. So it is not found, even if it is
in use.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import platform
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from collections.abc import Callable
from typing import NamedTuple

import mounts
from host import command, environment
from host.mount_calls import MountCalls
from mapped import holders

GONE = 3  # exit status
# A process may end while others of its mount namespace live. We look for another process so many times.
TRIES = 5
# ioctl_ns(2): _IO(0xb7, N), which has another form on some machines (asm/ioctl.h).
_IO = (0x2000B700 if platform.machine().startswith(("ppc", "mips", "sparc")) else 0xB700).__or__
_GET_USER_NAMESPACE, _GET_PARENT, _GET_OWNER = map(_IO, (1, 2, 4))


class Held(NamedTuple):
    """An overlay in another mount namespace: a process there, the mount point as it is seen there, "major:minor"."""

    pid: str
    point: str
    device_number: str


class _Gone(Exception):
    """The overlay or the process is not there any more."""


# -- what others hold ------------------------------------------------------------------------


def find(source: str) -> list[Held]:
    """Return who has an overlay mounted that is named `source`: one process of each mount namespace but ours.

    Bind mounts of its subdirectories do not count. A mount that somebody without our rights made under that name does
    not count. A process whose namespace we may not look at (without CAP_SYS_PTRACE) counts, even if it is in ours.
    """
    return _find(lambda item: _is_overlay(item, source))


def viewed_by(source: str) -> list[str]:
    """Say who has an overlay mounted that is named `source`, in our own mount namespace, too.

    The same mounts count as for `find`, and bind mounts of subdirectories: the overlay lives as long as they do.
    """

    def is_part(item: mounts.Mount) -> bool:
        return (item.type, item.source) == ("overlay", source)

    ours = [f"it is mounted at {item.point}" for item in mounts.table() if is_part(item)]
    return [*map(_say, _find(is_part)), *ours]


def _find(wanted: Callable[[mounts.Mount], bool]) -> list[Held]:
    held = holders.seen(wanted)
    return [Held(pid, item.point, item.device_number) for pid, item in held if _is_elsewhere(pid)]


def take(source: str, point: str, *, timeout: float) -> bool:
    """Show at the directory `point`, where nothing is mounted, an overlay that another mount namespace has.

    Return False if no other namespace has it. The new mount stays when the other namespace ends, and is writable unless
    the overlay itself is read-only. `timeout` is that of one command, in seconds. Raises command.CommandError if the
    overlay cannot be taken, or two overlays have that name; the error names the process that has it. Then nothing is
    mounted at `point`, but after a command.CommandTimeout it may be.
    """
    for _ in range(TRIES):
        held = find(source)
        if not held:
            return False
        if len({item.device_number for item in held}) > 1:
            text = "; ".join(_say(item) for item in held)
            raise _error(source, f"more than one overlay has that name: {text}")
        if _take_one_of(held, source, point, timeout):
            return True
    raise _error(source, f"{_say(held[0])}, but it was not there when it was to be shown at {point}")


def _take_one_of(held: list[Held], source: str, point: str, timeout: float) -> bool:
    """Take the first of these overlays that can be taken. Return False if none is there any more.

    Raises CommandError if some are there and none can be taken.
    """
    failed: command.CommandError | None = None
    for item in held:
        argv = environment.python(__file__, item.pid, source, item.device_number, point)
        try:
            status = command.run(argv, timeout=timeout, accept=(0, GONE)).status
        except command.CommandTimeout as error:
            raise type(error)(("take", source), None, f"{_say(item)}: {error.reason}") from None
        except command.CommandError as error:
            reason = f"{_say(item)}, but it cannot be shown at {point}: {error.reason}"
            failed = failed or command.CommandError(("take", source), error.status, reason)
            continue
        if status == 0:
            _check(item, source, point, timeout)
            return True
    if failed:
        raise failed
    return False


def _check(item: Held, source: str, point: str, timeout: float) -> None:
    """Look whether the whole overlay is mounted at `point`. If not, unmount what is there, and raise CommandError.

    It may be a directory of the overlay (_open_tree), if a process in the other namespace moved the mount meanwhile.
    """
    shown = mounts.at(point)
    if shown is None or not _is_overlay(shown, source) or shown.device_number != item.device_number:
        if shown is not None:
            mounts.unmount(point, timeout=timeout)
        raise _error(source, f"{_say(item)}, but something else was found there")


def _is_overlay(item: mounts.Mount, source: str) -> bool:
    return (item.type, item.source, item.root) == ("overlay", source, "/")


def _is_elsewhere(pid: str) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            return False
        with open(f"/proc/{pid}/ns/mnt", "rb", buffering=0) as namespace:
            return _is_trusted(namespace.fileno())
    except OSError:
        # The process has ended, or we may not look at it. Then `take` finds out.
        return True


def _is_trusted(namespace: int) -> bool:
    """Tell whether somebody with our rights made a mount namespace: in our user namespace, or in one for a container.

    Any user may make a user namespace with a mount namespace, and in it an overlay of any name. Raises OSError.
    """
    users = fcntl.ioctl(namespace, _GET_USER_NAMESPACE)
    try:
        ours = os.stat("/proc/self/ns/user")
        if os.path.samestat(os.fstat(users), ours):
            return True
        owner = array.array("I", [0])
        fcntl.ioctl(users, _GET_OWNER, owner)
        parent = fcntl.ioctl(users, _GET_PARENT)
        try:
            return os.path.samestat(os.fstat(parent), ours) and owner[0] == os.geteuid()
        finally:
            os.close(parent)
    finally:
        os.close(users)


def _say(item: Held) -> str:
    return f"{holders.process_name(item.pid)} has it mounted at {item.point}"


def _error(source: str, reason: str) -> command.CommandError:
    return command.CommandError(("take", source), None, reason)


# -- the process that goes there -------------------------------------------------------------


def _show(pid: str, source: str, number: str, point: str) -> None:
    """Show an overlay of the mount namespace of process `pid` in ours, at `point`. Raises OSError, _Gone."""
    kernel = MountCalls()
    target = os.open(point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # In the other namespace /proc may be anything. So these are opened before.
    process = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    ours = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise _Gone from None
    if not _is_trusted(theirs):
        # Another process has that pid by now.
        raise _Gone
    environment.load_nothing_more()
    kernel.enter(theirs)
    try:
        tree = _open_tree(kernel, process, source, number)
    finally:
        kernel.enter(ours)
    kernel.attach(tree, target)
    try:
        kernel.clear_flags(tree)
    except OSError:
        kernel.detach(tree)
        raise


def _open_tree(kernel: MountCalls, process: int, source: str, number: str) -> int:
    """Return a copy of an overlay's mount in this namespace, without the mounts in it. Raises OSError, _Gone."""

    def points() -> list[str]:
        listed = mounts.table_of(process)
        return [item.point for item in listed if _is_overlay(item, source) and item.device_number == number]

    failed = OSError(errno.EBUSY, "", "another mount lies over it")
    for point in points():
        try:
            tree = kernel.clone_mount(os.fsencode(point))
        except OSError as error:
            failed = error
            continue
        # The path may lead to something else by now.
        found = os.fstat(tree).st_dev
        if f"{os.major(found)}:{os.minor(found)}" == number:
            return tree
        os.close(tree)
    if points():
        raise failed
    raise _Gone


def main() -> int:
    """Read the command line, and show the overlay. Return the exit status."""
    try:
        _show(*sys.argv[1:])
    except _Gone:
        return GONE
    except OSError as error:
        old = "; it takes Linux 5.2" if error.errno == errno.ENOSYS else ""
        return environment.fail(f"{error.filename}: {os.strerror(error.errno or 0)}{old}")
    except Exception as error:  # a bug: Python's own report would open files by their names, maybe of the container
        return environment.fail(f"{type(error).__name__}: {error}")
    return 0


if __name__ == "__main__":
    os._exit(main())  # no clean-up that could look for a file
