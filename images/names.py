"""The names of images: `PREFIX_LAYER` for a layer, `PREFIX_base_image` for what all of them are clones of."""

from __future__ import annotations

import re
from collections.abc import Iterable

BASE = "base_image"
# The name of a base image, or of one that is being made. It tells the prefix.
_BASE_NAME = re.compile(rf"(.+)_{BASE}(?:\.[0-9a-f]{{12}})?")


class Names:
    """The names of one image prefix."""

    def __init__(self, prefix: str) -> None:
        self._ours = f"{prefix}_"

    def image(self, layer: str) -> str:
        """Return the image name of a layer."""
        return self._ours + layer

    def layer(self, image: str) -> str:
        """Return the layer of an image of this prefix."""
        return image[len(self._ours) :]

    def layers(self, images: Iterable[str]) -> list[str]:
        """Name the layers of images of this prefix. Base images, whole or half made, have none."""
        return [self.layer(name) for name in images if not name.startswith(self.image(BASE))]

    def begin(self, name: str) -> bool:
        """Tell whether a name begins as the images of this prefix do. It may still be of a longer prefix."""
        return name.startswith(self._ours)

    def ours(self, names: Iterable[str], existing: Iterable[str]) -> list[str]:
        """Return the names of this prefix. Where ours begins another prefix, the longest with a base image decides.

        `existing` are all images of the pool.
        """
        prefixes = (f"{found[1]}_" for name in existing if (found := _BASE_NAME.fullmatch(name)))
        longer = tuple(other for other in prefixes if other.startswith(self._ours) and other != self._ours)
        return [name for name in names if self.begin(name) and not name.startswith(longer)]
