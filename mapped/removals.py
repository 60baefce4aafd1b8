"""Notes on this host, `HOME/mnt/ID/removed`, of the layers that are removed for Docker and whose images have yet to go.

The end of this process loses no note. A power cut may lose some.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import mounts
from images.layers import LayerRefused
from mapped.paths import REMOVED, Paths


class Removals:
    """The layers that are noted as removed, in the order of their names. It decides what counts as removed."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._layers: set[str] = set()

    def learn(self) -> None:
        """Learn what was noted in an earlier life of this process. Raises OSError."""
        self._layers = {layer for layer in self._paths.layers() if os.path.isdir(self._note(layer))}

    def note(self, layer: str) -> None:
        """Note that a layer is removed. Raises OSError."""
        mounts.make_directory(self._note(layer))
        self._layers.add(layer)

    def forget(self, layer: str) -> None:
        """Take the note away: the image is gone. Raises OSError."""
        self._layers.discard(layer)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self._note(layer))
        self._paths.remove(layer)

    def refuse(self, layer: str) -> None:
        """Raise LayerError if a layer is removed: for all calls it does not exist.

        Callers ask this also before they take the layer's lock: the removal in the background may hold it for a while.
        """
        if layer in self._layers:
            raise LayerRefused(f"layer {layer} does not exist: it was removed")

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._layers))

    def __len__(self) -> int:
        return len(self._layers)

    def _note(self, layer: str) -> str:
        return os.path.join(self._paths.directory(layer), REMOVED)
