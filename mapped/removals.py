"""Which layers Docker was told are removed, whose images have yet to go: noted on this host, as `HOME/mnt/ID/removed`.

The notes are as good as this host's memory: a power cut may lose one, the end of this process does not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import mounts
from images.layers import LayerError
from mapped.paths import REMOVED, Paths


class Removals:
    """The layers that are noted as removed, in the order of their names."""

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
        """Raise LayerError if a layer is removed: it does not exist for any call.

        Asked before the layer's lock is taken, too: its removal in the background may hold that for a while.
        """
        if layer in self._layers:
            raise LayerError(f"layer {layer} does not exist: it was removed")

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._layers))

    def __len__(self) -> int:
        return len(self._layers)

    def _note(self, layer: str) -> str:
        return os.path.join(self._paths.directory(layer), REMOVED)
