"""The directories and links that stand for a home's layers on this host.

    HOME/mnt/ID/           the image may be mapped: made before it is mapped, and removed after it is unmapped
    HOME/mnt/ID/layer      the mount point of the layer's own file system
    HOME/mnt/ID/removed    Docker was told that the layer is removed, and its image has yet to go
    HOME/l/SHORT           a link to HOME/mnt/ID/layer/rootfs, what the layer brought
    HOME/empty             an empty directory, for a client that is to read nothing
    HOME/idmapped/STACK    what a stack of layers is for a user namespace (idmapped.py)

So the host alone tells what a crash left. The name of a link has a few letters only: mount(2) takes one page of
options, and a view has up to 127 directories.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os

import mounts
from images import layer_state

POINT = "layer"
REMOVED = "removed"
# The letters of a link's name: so many letters of base 32 tell 2^65 layers apart.
SHORT = 13


class Paths:
    """The paths of one home. `images`: what the names of its images begin with, with the pool before it."""

    def __init__(self, home: str, images: str) -> None:
        self.home = home
        self.root = os.path.join(home, "mnt")
        self.links = os.path.join(home, "l")
        self.empty = os.path.join(home, "empty")
        self.all_idmapped = os.path.join(home, "idmapped")
        self._images = images

    def make_home(self) -> None:
        """Make the directories of the home. Raises OSError."""
        for path in (self.home, self.root, self.links):
            mounts.make_directory(path)

    def directory(self, layer: str) -> str:
        """Return the directory of all that is mounted of a layer."""
        return os.path.join(self.root, layer)

    def point(self, layer: str) -> str:
        """Return the mount point of a layer's own file system, mounted or not."""
        return os.path.join(self.root, layer, POINT)

    def idmapped(self, stack: str) -> str:
        """Return the directory of the layers of a stack whose owners are mapped, whether there are any or not."""
        return os.path.join(self.all_idmapped, stack)

    def inside(self, layer: str, name: str) -> str:
        """Name a directory of a layer's own file system, as seen from the directory of the links."""
        return os.path.join("..", os.path.basename(self.root), layer, POINT, name)

    def layers(self) -> list[str]:
        """Name the layers that have a directory on this host. Raises OSError."""
        return sorted(os.listdir(self.root))

    def short(self, layer: str) -> str:
        """Return the name of a layer's link."""
        return base64.b32encode(hashlib.sha256(f"{self._images}{layer}".encode()).digest())[:SHORT].decode().lower()

    def source(self, layer: str) -> str:
        """Return the name of a layer's view in mount tables and `df`: the same on each host, another for each layer."""
        return f"ceph-{self.short(layer)}"

    def link(self, layer: str) -> None:
        """Make the link of a layer. Raises OSError, and mounts.MountError if another layer has that link."""
        mounts.make_directory(self.links)
        target = self.inside(layer, layer_state.ROOT)
        path = os.path.join(self.links, self.short(layer))
        with contextlib.suppress(FileExistsError):
            os.symlink(target, path)
        if os.readlink(path) != target:
            raise mounts.MountError(f"{path} is the link of another layer than {layer}")

    def remove(self, layer: str) -> None:
        """Remove the link and the directory of a layer that is not mapped any more.

        A note that the layer was removed stays (removals.py), and so does its directory then. Raises OSError.
        """
        top = self.directory(layer)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.links, self.short(layer)))
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(top)
            for name in names:
                if name != REMOVED:
                    os.rmdir(os.path.join(top, name))
            if REMOVED not in names:
                os.rmdir(top)

    def remove_stale_links(self) -> None:
        """Remove the links of layers that have no directory on this host any more. Raises OSError."""
        shorts = {self.short(layer) for layer in self.layers()}
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.links):
                if name not in shorts:
                    os.unlink(os.path.join(self.links, name))
