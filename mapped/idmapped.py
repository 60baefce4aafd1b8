"""Layers as a container in a user namespace sees them: their owners are those that its ids stand for on the host.

    HOME/idmapped/STACK/N    the layer N of a stack, counted from the nearest one, once more, with its owners mapped

These are mounts of the layers' own file systems, which have to be mounted as long. They are a stack's own, since each
container may have ids of its own. A client joins them by an overlay, as it does with others (handed_out.py); so it need
not know of ids. The kernel tells of a mount only that its owners are mapped, and not how.

A layer whose root directory belongs to the container's root on the host already stays as it is: it was made in such a
user namespace; or it is the copy with other owners that containerd makes of an image if it is not told of our
capability (client/snapshotter_opts_unix.go).

The overlay that a client has mounted has mounts of its own (fs/overlayfs/super.c, clone_private_mount). So these may go
before it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

import mounts
from archive.id_maps import Ranges, to_host
from host import command, deadline, user_namespace
from host.failure import Failure
from images import layer_state
from mapped import unmounting
from mapped.home import Home

log = logging.getLogger("idmapped")

# Where it is tried whether the kernel joins such mounts. No layer has a name for a number.
_JOINED = "joined"
_NAME = "ceph-idmapped"
# What a kernel or a file system answers that cannot do it, and one that may not.
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


class CannotMapIds(Failure):
    """Owners cannot be mapped on this host. The text is one line: why."""


class Ids(NamedTuple):
    """The ids of a container on the host."""

    uids: Ranges
    gids: Ranges

    def root(self) -> tuple[int, int]:
        """Return the owner (uid, gid) that root is on the host. Raises IdError if the container has no root."""
        return to_host(self.uids, 0, "user"), to_host(self.gids, 0, "group")


class IdMapped:
    """The mapped layers of one home. The caller holds the lock of a stack."""

    def __init__(self, home: Home) -> None:
        self._paths, self._timeout, self._options = home.paths, home.timeout, home.options.view_options
        self._joins = False

    def lower(self, stack: str, layers: Sequence[str]) -> list[str]:
        """Name the directories with what these layers of a stack brought, as `mount` mounts them.

        Nothing is there unless they are mounted: a client that comes too late is told, and has no empty container.
        """
        return [os.path.join(self._point(stack, at), layer_state.ROOT) for at in range(len(layers))]

    def mount(self, stack: str, layers: Sequence[str], ids: Ids) -> None:
        """Mount the layers of a stack with their owners mapped. Those that are mounted so stay.

        On failure some may be mounted. Raises CannotMapIds, mounts.MountError for a layer that is not mounted itself,
        LayerBusy, command.CommandError, deadline.Overdue, OSError.
        """
        missing = self._missing(stack, layers)
        if not missing:
            return
        lines = ["\n".join(" ".join(map(str, item)) for item in ranges) for ranges in ids]
        try:
            with user_namespace.opened(lines[0], lines[1], timeout=self._timeout) as users:
                self._mount(missing, users, ids.root())
        except command.CommandTimeout:
            raise
        except command.CommandError as error:
            raise CannotMapIds(f"this host makes no user namespace for its ids: {error}") from None
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            raise CannotMapIds(
                f"this host cannot map the owners of files ({error.filename}: {os.strerror(error.errno)}); it takes "
                "Linux 5.19, and root's rights"
            ) from None
        if not self._joins:
            self._check_joins(stack)
            self._joins = True

    def _missing(self, stack: str, layers: Sequence[str]) -> dict[str, str]:
        """Return the mount points of a stack at which nothing is mounted, with those of the layers."""
        table = mounts.visible(mounts.table())
        missing = {}
        for at, layer in enumerate(layers):
            source, point = self._paths.point(layer), self._point(stack, at)
            if source not in table:
                # Its directory would be shown as it is without the layer.
                raise mounts.MountError(f"{source} is not mounted")
            if point in table and table[point].device_number != table[source].device_number:
                unmounting.unmount(point, self._timeout)
            elif point in table:
                continue
            missing[point] = source
        return missing

    def _mount(self, points: dict[str, str], users: int, root: tuple[int, int]) -> None:
        def work() -> None:
            for point, source in points.items():
                found = os.stat(os.path.join(source, layer_state.ROOT))
                is_mapped = root != (0, 0) and (found.st_uid, found.st_gid) == root
                mounts.make_directory(point)
                mounts.clone(source, point, None if is_mapped else users)

        deadline.call(work, next(iter(points)), self._timeout)

    def _check_joins(self, stack: str) -> None:
        """Join a mapped layer with nothing. Linux before 5.19 refuses that, and its error says nothing of ids."""
        point, layer = os.path.join(self._paths.idmapped(stack), _JOINED), self._point(stack, 0)
        lower = [os.path.join(layer, name) for name in (layer_state.ROOT, layer_state.NONE)]
        mounts.make_directory(point)
        try:
            mounts.overlay(
                _NAME, point, lower, None, options=self._options, label="", directory="/", timeout=self._timeout
            )
        except command.CommandTimeout:
            raise
        except command.CommandError as error:
            raise CannotMapIds(
                f"this host cannot join layers whose owners are mapped: it takes Linux 5.19 ({error.reason})"
            ) from None
        unmounting.unmount(point, self._timeout)
        mounts.remove_point(point)

    def unmount(self, stack: str) -> None:
        """Unmount the mapped layers of a stack, if there are any. Raises LayerBusy, command.CommandTimeout, OSError."""
        top = self._paths.idmapped(stack)
        if not os.path.isdir(top):
            return
        points = mounts.below(top)
        try:
            if points:
                mounts.unmount(*points, timeout=self._timeout)
        except command.CommandTimeout:
            raise
        except command.CommandError:
            for point in mounts.below(top):
                unmounting.unmount(point, self._timeout)
        for name in os.listdir(top):
            mounts.remove_point(os.path.join(top, name))
        os.rmdir(top)

    def stacks(self) -> list[str]:
        """Name the stacks that have, or had, mapped layers. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(os.listdir(self._paths.all_idmapped))
        return []

    def _point(self, stack: str, at: int) -> str:
        return os.path.join(self._paths.idmapped(stack), str(at))
