"""What Docker itself knows of its layers, read from its data root without asking it.

- Its layer store keeps text files: `image/DRIVER/layerdb/sha256/CHAIN/cache-id` for a layer of an image,
  `mounts/CONTAINER/{mount-id,init-id}` for a container, `tmp/*/cache-id` while a layer is being registered
  (moby, layer/filestore.go).
- BuildKit keeps its own in Bolt databases, `buildkit/*.db`. Bolt stores keys and values as they are, each
  in one piece (bbolt, page.go): an id whose bytes are nowhere in these files is in none of them. The reverse
  proves nothing, since what was deleted stays in the file for a while.
"""

from __future__ import annotations

import contextlib
import glob
import mmap
import os
import re
from collections.abc import Collection

# What the layer store calls a container's layer: the container's id. BuildKit's names are shorter.
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")


class DatabaseMissing(Exception):
    """What Docker knows cannot be read: one line that says what is missing."""


class DockerDatabase:
    """The databases of one Docker daemon and storage driver; each method reads them anew."""

    def __init__(self, data_root: str, driver: str) -> None:
        self._layers = os.path.join(data_root, "image", driver, "layerdb")
        self._containers = os.path.join(data_root, "containers")
        self._buildkit = os.path.join(data_root, "buildkit")

    def named(self) -> dict[str, str]:
        """Return the layers that Docker's layer store names, each with what it is to Docker.

        Raises DatabaseMissing if there is no layer store: nothing can be concluded then. Raises OSError.
        """
        if not os.path.isdir(self._layers):
            raise DatabaseMissing(
                f"{self._layers} does not exist: Docker's data root is not here, or not mounted; name it by --data-root"
            )
        # An unfinished layer first: it is renamed to be a finished one.
        found: dict[str, str] = {}
        for place, what in (
            ("tmp/*/cache-id", "a layer being registered"),
            ("sha256/*/cache-id", "a layer of an image"),
        ):
            found |= dict.fromkeys(self._read(place).values(), what)
        for place in ("mount-id", "init-id"):
            of_containers = self._read(f"mounts/*/{place}").items()
            found |= {layer: f"of container {name[:12]}" for name, layer in of_containers if not self._is_gone(name)}
        return found

    def forgotten(self) -> dict[str, str]:
        """Return the layers of containers that are gone, each with the directory of the layer store's record of it.

        `docker rm --force` leaves them when it cannot reach the driver, although it says that all went well.
        """
        found: dict[str, str] = {}
        for place in ("mount-id", "init-id"):
            for name, layer in self._read(f"mounts/*/{place}").items():
                if self._is_gone(name):
                    found[layer] = os.path.join(self._layers, "mounts", name)
        return found

    def forget(self, record: str) -> None:
        """Remove a record that `forgotten` returned; it would keep the layers below it from going. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(record):
                # A dockerd that starts forgets it too.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(record, name))
            os.rmdir(record)

    def _is_gone(self, container: str) -> bool:
        """Tell whether a container has no directory any more, or not yet: it gets its layer first."""
        return (
            _CONTAINER_ID.fullmatch(container) is not None
            and os.path.isdir(self._containers)
            and not os.path.lexists(os.path.join(self._containers, container))
        )

    def mentioned(self, layers: Collection[str]) -> set[str]:
        """Return those of `layers` that BuildKit may know. Raises OSError if its databases cannot be read."""
        found: set[str] = set()
        for path in glob.glob(os.path.join(glob.escape(self._buildkit), "*.db")):
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as source:
                if os.fstat(source.fileno()).st_size:
                    with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
                        found |= {layer for layer in layers if content.find(layer.encode()) >= 0}
        return found

    def _read(self, place: str) -> dict[str, str]:
        """Read the files at a pattern: the name of a file's directory -> its text."""
        found: dict[str, str] = {}
        for path in glob.glob(os.path.join(glob.escape(self._layers), place)):
            # Docker may remove it while we look.
            with contextlib.suppress(FileNotFoundError), open(path, encoding="ascii") as source:
                found[os.path.basename(os.path.dirname(path))] = source.read().strip()
        return found
