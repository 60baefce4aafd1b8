"""What is known of one layer's views: for whom each is mounted, how many users it has, and what is joined in it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple


class Place(enum.Enum):
    """For whom a view is mounted. The value is the name of its mount point.

    DOCKER: for Docker. DRIVER: for an archive, or for a comparison. BELOW: only what is below the layer.
    """

    DOCKER = "docker"
    DRIVER = "driver"
    BELOW = "below"


# The places that show the layer itself, and not only what is below it.
WHOLE = (Place.DOCKER, Place.DRIVER)


@dataclass
class View:
    """What is known of the views of one layer.

    `writable`: the layer is not finished, and its view is writable.
    `doubtful`: a mount or unmount ran into its deadline, and may be done later all the same.
    `guessed`: its count for Docker is a guess, one: it was found mounted at a start.
    `bottom`: there is nothing below the layer.
    `label`: the SELinux label of the view.
    `parents`: the layers that it is joined with, nearest first.
    `parent`: the layer that Docker made it on, "" for none.
    `counts`: the number of users for each place where it is mounted (0: it is mounted and has no user).
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
        """Return a place where the layer itself is shown, and not only what is below; None if there is none."""
        return next((place for place in WHOLE if place in self.counts), None)


class Own(NamedTuple):
    """What a layer itself brought, to be read.

    `root`: the directory of what it brought. `below`: the mount point of all that is below it; None if that is nothing.
    `parent`: the layer that Docker made it on, "" for none.
    """

    root: str
    below: str | None
    parent: str


def user_of(layer: str, place: Place) -> str:
    """Name the user that the view of `layer` for `place` is, of each layer that is joined in it."""
    return f"{layer}/{place.value}"
