"""What is known of one layer's views: for whom each is mounted, how many users it has, and what it is joined of."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Place(enum.Enum):
    """For whom a view is mounted; the value is the name of its mount point."""

    DOCKER = "docker"
    DRIVER = "driver"
    BELOW = "below"


# The view itself, and not only what is below the layer.
WHOLE = (Place.DOCKER, Place.DRIVER)


@dataclass
class View:
    """`counts` has a key for each place where the layer is mounted (0: nobody's, still mounted).

    `writable`: not of a finished layer.
    `doubtful`: a mount or unmount ran into its deadline, and may have been done later all the same.
    `guessed`: its count for Docker is not known but one, since it was found mounted at a start.
    `parents`: the layers that it is joined with. `bottom`: there is nothing below it. `parent`: what Docker calls that.
    """

    writable: bool = False
    doubtful: bool = False
    guessed: bool = False
    bottom: bool = False
    label: str = ""
    parents: tuple[str, ...] = ()
    parent: str = ""
    counts: dict[Place, int] = field(default_factory=dict)

    def whole(self) -> Place | None:
        """Return a place where the view itself is mounted."""
        return next((place for place in WHOLE if place in self.counts), None)


def user_of(layer: str, place: Place) -> str:
    """Name the user that a layer's view is of all that it is joined of."""
    return f"{layer}/{place.value}"
