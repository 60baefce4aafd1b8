"""A data root as dockerd leaves it on the disk: what gc and check read of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Sequence

# A Bolt database of so many pages: its first two tell magic number, version, page size and that (bbolt, db.go).
PAGE, PAGES = 4096, 8
BOLT_META = struct.pack("=16xIII4x24xQ", 0xED0CDAED, 2, PAGE, PAGES).ljust(PAGE, b"\0")


class DockerTree:
    """Writes a Docker down that has nothing yet; then what it is told."""

    def __init__(self, root: str, driver: str) -> None:
        self.root, self._driver = root, driver
        store = os.path.join(root, "image", driver)
        self.layerdb = os.path.join(store, "layerdb")
        self.images = os.path.join(store, "imagedb", "content", "sha256")
        self.names = os.path.join(store, "repositories.json")
        self.containers = os.path.join(root, "containers")
        self.buildkit = os.path.join(root, "buildkit")
        for directory in (os.path.join(self.layerdb, "tmp"), self.images, self.containers, self.buildkit):
            os.makedirs(directory)
        self.caches()

    def layer(self, cache_id: str, parent: str = "") -> str:
        """A layer of an image on the one with the chain id `parent`; its own is returned."""
        diff = f"sha256:{hashlib.sha256(cache_id.encode()).hexdigest()}"
        chain = f"sha256:{hashlib.sha256(f'{parent} {diff}'.encode()).hexdigest()}" if parent else diff
        files = {"diff": diff, "cache-id": cache_id, "size": "3", **({"parent": parent} if parent else {})}
        # As Docker does, in one step.
        self._write(unfinished := os.path.join(self.layerdb, "tmp", cache_id), files)
        os.makedirs(os.path.join(self.layerdb, "sha256"), exist_ok=True)
        os.rename(unfinished, self.layer_directory(chain))
        return chain

    def layer_directory(self, chain: str) -> str:
        """Where the layer store keeps what it knows of a layer."""
        return os.path.join(self.layerdb, "sha256", chain.partition(":")[2])

    def image(self, name: str, *cache_ids: str) -> str:
        """An image of these layers, from the lowest on; its id is returned."""
        diffs = [f"sha256:{hashlib.sha256(cache_id.encode()).hexdigest()}" for cache_id in cache_ids]
        content = json.dumps({"rootfs": {"type": "layers", "diff_ids": diffs}})
        image = hashlib.sha256(content.encode()).hexdigest()
        self._write(self.images, {image: content})
        said = json.dumps({"Repositories": {name: {f"{name}:latest": f"sha256:{image}"}}})
        self._write(os.path.dirname(self.names), {"repositories.json": said})
        return image

    def container(self, name: str, layer: str, parent: str = "", age: float = 0) -> str:
        """A container, which was made `age` seconds ago, and its record in the layer store, which is returned."""
        self._write(os.path.join(self.containers, name), {"config.v2.json": json.dumps({"Driver": self._driver})})
        files = {"mount-id": layer, "init-id": f"{layer}-init", **({"parent": parent} if parent else {})}
        return self._record(name, files, age)

    def builders(self, name: str, layer: str, age: float = 0) -> str:
        """What Docker's own builder makes for a COPY."""
        return self._record(name, {"mount-id": layer}, age)

    def _record(self, name: str, files: dict[str, str], age: float) -> str:
        record = os.path.join(self.layerdb, "mounts", name)
        self._write(record, files)
        os.utime(record, (time.time() - age,) * 2)
        return record

    def removed(self, name: str) -> None:
        """What `docker rm --force` leaves of a container when it cannot reach the driver."""
        shutil.rmtree(os.path.join(self.containers, name))
        # It is removed after it was made, also where that is yet to come.
        record = os.path.join(self.layerdb, "mounts", name)
        made = os.stat(record).st_mtime if os.path.lexists(record) else 0.0
        os.utime(self.containers, (max(time.time(), made),) * 2)

    def caches(self, layers: Sequence[str] = ()) -> None:
        """Let BuildKit know these layers."""
        with open(os.path.join(self.buildkit, "snapshots.db"), "wb") as target:
            content = 2 * BOLT_META + b"\0".join(layer.encode() for layer in layers)
            target.write(content.ljust(PAGES * PAGE, b"\0"))

    def _write(self, directory: str, files: dict[str, str]) -> None:
        os.makedirs(directory, exist_ok=True)
        for name, text in files.items():
            with open(os.path.join(directory, name), "w", encoding="ascii") as target:
                target.write(text)
