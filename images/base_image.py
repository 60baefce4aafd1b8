"""The base image of a pool: an empty file system and its snapshot, of which all layers are clones.

It is made under a name of this host and home and renamed when it is whole, under a lock of the cluster's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time

import mounts
import rbdcli
from cluster import rados_objects
from host import deadline
from images import layer_state
from images.layers import BASE_SNAPSHOT, OBJECT_SIZE, LayerError, Layers
from images.names import BASE
from images.options import Options

log = logging.getLogger("base_image")

FORMAT_KEY = "docker_graph_driver.format"
FORMAT, FIRST_FORMAT = "2", "1"
FS_KEY = "docker_graph_driver.fs"
# The lock lasts this much longer than the one command that runs under it may take.
BASE_LOCK_SECONDS = 10.0
LOCK_PAUSE = 0.2
LOCK = "rename"


class BaseImage:
    """The base image of one pool and prefix, as one home makes it."""

    def __init__(self, layers: Layers, options: Options, home: str) -> None:
        self._layers = layers
        self._pool = layers.pool
        self._options = options
        self._home = home
        self._name = layers.image(BASE)

    def ensure(self) -> None:
        """Make the base image unless the pool has it: an empty file system and its snapshot.

        It is made under a name of this host and home, and renamed when it is whole. So a crash, or a second host, never
        leaves half a base image under its name. A base image that has lost its snapshot gets it anew.
        Raises LayerError if the base image of the pool does not fit the options, or another host is making one for too
        long; command.CommandError; mounts.MountError; deadline.Overdue; OSError.
        """
        base, scratch = self._name, self._layers.scratch()
        # Left by our own crash. It goes even if another host has made a whole one since.
        self._remove_scratch(scratch)
        if self.is_there():
            if BASE_SNAPSHOT not in self._pool.snapshots(base):
                self._layers.mend_base()
        else:
            self._make_file_system(scratch)
            self._pool.set_metadata(scratch, FS_KEY, self._options.fs)
            self._pool.set_metadata(scratch, FORMAT_KEY, FORMAT)
            self._pool.snapshot(scratch, BASE_SNAPSHOT)
            self._name_base(scratch, base)

    def _name_base(self, scratch: str, base: str) -> None:
        """Give a whole base image its name, unless another host was faster: then delete it.

        If two `rbd rename` to one name run at the same moment, both succeed (librbd looks, then writes), and neither
        image is whole afterwards. So a lock lets one at a time. The lock of a host that died in between ends by itself;
        our own lock from before a crash is broken.
        """
        locked = self._lock(base)
        if not locked or self.is_there():
            log.info("another host made %s meanwhile", base)
            self._remove_scratch(scratch)
        else:
            self._pool.rename(scratch, base)
        if locked:
            rados_objects.unlock(self._pool, f"{base}.lock", LOCK)

    def _lock(self, base: str) -> bool:
        """Wait for the lock under which a base image gets its name; False if another host has named one meanwhile."""
        until = time.monotonic() + 2 * (self._pool.timeout + BASE_LOCK_SECONDS)
        holder, seconds = str(self._layers.owner()), self._pool.timeout + BASE_LOCK_SECONDS
        while not rados_objects.lock(self._pool, f"{base}.lock", LOCK, holder, seconds):
            if self.is_there():
                return False
            if time.monotonic() > until:
                raise LayerError(f"another host has been about to make {base} for too long; try again")
            time.sleep(LOCK_PAUSE)
        return True

    def is_there(self) -> bool:
        """Tell whether the pool has a base image. Changes nothing.

        Raises LayerError if it has one that does not fit the options, command.CommandError.
        """
        base = self._name
        try:
            data = self._pool.data(base)
        except rbdcli.ImageMissing:
            return False
        # Asked in a way that a full pool answers: Docker must be able to start on such a pool, to make room.
        found_format = rados_objects.metadata(self._pool, data.image_id, FORMAT_KEY)
        if found_format == FIRST_FORMAT:
            raise LayerError(
                f"image {base} in pool {self._pool.name} is of the first format, whose layers are chains of snapshots: "
                f"choose another ceph.imageprefix or pool, or go on with a driver of version 1"
            )
        if found_format != FORMAT:
            raise LayerError(
                f"image {base} in pool {self._pool.name} was not made by this driver ({FORMAT_KEY} is "
                f"{found_format or 'missing'}, expected {FORMAT}); choose another ceph.imageprefix or pool"
            )
        fs = rados_objects.metadata(self._pool, data.image_id, FS_KEY)
        if fs != self._options.fs:
            raise LayerError(
                f"ceph.fs={self._options.fs}, but {base} in pool {self._pool.name} holds {fs}; "
                f"use ceph.fs={fs} or another ceph.imageprefix"
            )
        self._check_data_pool(base, data.pool)
        return True

    def _check_data_pool(self, base: str, found: str) -> None:
        """Raise LayerError if the base image, and so all layers on it, have their content in another pool than asked.

        Another host may have chosen that pool, or it was a default of Ceph's configuration (rbd_default_data_pool).
        """
        if found != (self._options.objectpool or self._pool.name):
            asked = f"={self._options.objectpool}" if self._options.objectpool else " is not given"
            raise LayerError(
                f"ceph.objectpool{asked}, but {base} in pool {self._pool.name} has its content in pool {found}; "
                f"use ceph.objectpool={found} or another ceph.imageprefix"
            )

    def _make_file_system(self, image: str) -> None:
        features, size = rbdcli.features(self._options.devicetype), self._options.basesize
        self._pool.create(image, size, features, OBJECT_SIZE, self._options.objectpool)
        with contextlib.ExitStack() as undo:
            undo.callback(self._remove_scratch, image)
            device = self._pool.map(image, read_only=False)
            mounts.make(self._options.fs, device, self._options.mkfsarg, timeout=self._pool.timeout)
            self._make_root(device)
            self._pool.unmap(device, image)
            undo.pop_all()

    def _make_root(self, device: str) -> None:
        point = os.path.join(self._home, BASE)
        mounts.make_directory(point)
        fs, extra, timeout = self._options.fs, self._options.fs_options, self._pool.timeout
        mounts.mount(fs, device, point, extra, read_only=False, timeout=timeout)
        try:
            deadline.call(lambda: _make_directories(point), point, timeout)
        finally:
            mounts.unmount(point, timeout=timeout)
            os.rmdir(point)

    def _remove_scratch(self, image: str) -> None:
        """Unmount, unmap and delete a base image that never got its name, however far it was made."""
        point = os.path.join(self._home, BASE)
        if mounts.at(point):
            mounts.unmount(point, timeout=self._pool.timeout)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(point)
        for mapping in self._pool.mappings():
            if mapping.image == image:
                self._pool.unmap(mapping.device, image)
        with contextlib.suppress(rbdcli.ImageMissing):
            self._layers.delete(image)


def _make_directories(point: str) -> None:
    """Make the directories of each layer (layer_state.py). Its root, the `/` of containers, is readable for all."""
    for name in (layer_state.ROOT, layer_state.WORK, layer_state.NONE):
        os.mkdir(os.path.join(point, name))
    os.chmod(os.path.join(point, layer_state.ROOT), 0o755)  # noqa: S103 - see above
