"""System calls on mounts and namespaces that Python 3.9 has no names for.

open_tree(2) and move_mount(2) take Linux 5.2, mount_setattr(2) takes 5.12. They have the same numbers on all machines.
"""

from __future__ import annotations

import ctypes
import os
import struct

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # asm-generic/unistd.h
_OPEN_TREE_CLONE = 1  # linux/mount.h, as the next four
_FROM_EMPTY_PATH, _TO_EMPTY_PATH = 0x04, 0x40
_ATTR_READ_ONLY, _ATTR_ID_MAP = 0x1, 0x100000
# attr_set, attr_clr, propagation, userns_fd
_ATTRIBUTES = struct.Struct("=QQQQ")
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_NO_AUTOMOUNT, _AT_EMPTY_PATH = -100, 0x100, 0x800, 0x1000  # linux/fcntl.h
_MS_REMOUNT, _MS_BIND, _MNT_DETACH = 0x20, 0x1000, 2  # mount(2), umount(2)
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000


class MountCalls:
    """The calls. All raise OSError, with the name of the call as file name."""

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None, use_errno=True)
        self._c.syscall.restype = ctypes.c_long

    def enter(self, namespace: int) -> None:
        """Move this process to another mount namespace."""
        self._check("setns", self._c.setns(namespace, _CLONE_NEWNS))

    def leave_users(self) -> None:
        """Move this process to a new user namespace, in which nobody has an id yet. It has one thread."""
        self._check("unshare", self._c.unshare(_CLONE_NEWUSER))

    def clone_mount(self, path: bytes) -> int:
        """Return a copy of the mount at `path` that is mounted nowhere yet. It ends with its file descriptor."""
        flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT
        return self._call("open_tree", _OPEN_TREE, _AT_FDCWD, path, flags)

    def map_ids(self, tree: int, users: int) -> None:
        """Let what `clone_mount` returned show owners as a user namespace maps them, and be read-only."""
        attributes = _ATTRIBUTES.pack(_ATTR_ID_MAP | _ATTR_READ_ONLY, 0, 0, users)
        self._call("mount_setattr", _MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes))

    def attach(self, tree: int, directory: int) -> None:
        """Mount at an open directory what `clone_mount` returned."""
        self._call("move_mount", _MOVE_MOUNT, tree, b"", directory, b"", _FROM_EMPTY_PATH | _TO_EMPTY_PATH)

    def clear_flags(self, tree: int) -> None:
        """Clear the flags of a mount (ro, nosuid). `docker run --read-only` gives the container's mount such flags."""
        os.fchdir(tree)
        self._check("mount", self._c.mount(None, b".", None, _MS_REMOUNT | _MS_BIND, None))

    def detach(self, tree: int) -> None:
        """Unmount what `attach` mounted."""
        os.fchdir(tree)
        self._check("umount2", self._c.umount2(b".", _MNT_DETACH))

    def _call(self, name: str, number: int, *arguments: int | bytes) -> int:
        words = [ctypes.c_long(word) if isinstance(word, int) else ctypes.c_char_p(word) for word in arguments]
        return self._check(name, self._c.syscall(ctypes.c_long(number), *words))

    def _check(self, name: str, result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), "", name)
        return result
