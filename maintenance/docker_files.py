"""Where Docker keeps what it knows of its layers in its data root, and what stands there; docker_database.py says more.

Docker may be at work: what has gone when it is read was not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re

# The ids of containers, and those of images and layers, which are the sha256 of their content. BuildKit's are shorter.
ID = re.compile(r"[0-9a-f]{64}")


class Paths:
    """The paths of the databases of a Docker with one storage driver; `driver` is its name for that."""

    def __init__(self, root: str, driver: str) -> None:
        self.root, self.driver = root, driver
        store = os.path.join(root, "image", driver)
        self.layers = os.path.join(store, "layerdb")
        self.images = os.path.join(store, "imagedb", "content", "sha256")
        self.names = os.path.join(store, "repositories.json")
        self.containers = os.path.join(root, "containers")
        self.buildkit = os.path.join(root, "buildkit")


def diffs_of(image: str, content: bytes) -> list[str]:
    """Return the diff ids in an image's configuration. Raises ValueError, AttributeError, TypeError if it is none."""
    if hashlib.sha256(content).hexdigest() != image:
        raise ValueError
    return [str(diff) for diff in (json.loads(content).get("rootfs") or {}).get("diff_ids") or ()]


def chain_id(parent: str | None, diff: str) -> str:
    """Return the chain id of a layer (OCI image specification, config.md, "Layer ChainID")."""
    return f"sha256:{hashlib.sha256(f'{parent} {diff}'.encode()).hexdigest()}" if parent else diff


def listed(directory: str) -> list[str]:
    """Name what a directory holds. If it does not exist, it is empty: Docker makes some with their first content."""
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def content_of(path: str) -> bytes | None:
    """Read a file; None if it does not exist. Raises OSError."""
    try:
        with open(path, "rb") as source:
            return source.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def text_of(path: str) -> str | None:
    """Read a file of one line; None if it does not exist. Raises OSError."""
    content = content_of(path)
    return None if content is None else content.decode("ascii", "replace").strip()
