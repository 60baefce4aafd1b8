"""The images of a prefix in the pool's trash: what a removal left there goes, what an operator moved there stays.

`rbd rm` leaves an image in the trash whose deletion was cut short, and one that has clones until the last of them goes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import rbdcli
from host import command
from images.names import Names

log = logging.getLogger("trash")

# How an image came to the trash that was removed: by an `rbd rm` that was cut short, or because it had clones (Ceph,
# librbd/Types.h). What an operator moved there has another source.
REMOVED_SOURCES = ("REMOVING", "USER_PARENT")


def never() -> bool:
    """Give up never."""
    return False


class Trash:
    """The trash of one pool and image prefix."""

    def __init__(self, pool: rbdcli.Pool, names: Names) -> None:
        self._pool, self._names = pool, names

    def images(self) -> list[rbdcli.Trashed]:
        """Return the images in the trash that have our prefix, whoever moved them there."""
        found = [item for item in self._pool.trashed() if self._names.begin(item.name)]
        ours = set(self._names.ours({item.name for item in found}, self._pool.list() if found else ()))
        return [item for item in found if item.name in ours]

    def removed(self) -> list[rbdcli.Trashed]:
        """Return the images that were removed. Every driver of this prefix may delete them."""
        return [item for item in self.images() if item.source in REMOVED_SOURCES]

    def delete(self, image_id: str, give_up: Callable[[], bool] = never) -> bool:
        """Delete an image in the trash and its snapshots. Tell whether it is gone: an image with clones waits for them.

        Raises rbdcli.RbdError if somebody is at work with it, or it was put there until a date; command.CommandGivenUp
        after `give_up`.
        """
        try:
            self._pool.remove_trashed(image_id, give_up)
        except rbdcli.ImageHasChildren:
            return self._pool.remove_snapshots_of_trashed(image_id) > 0 and self.delete(image_id, give_up)
        except rbdcli.ImageMissing:
            pass
        return True

    def empty(self) -> None:
        """Delete the removed images that can be deleted now. A failure is logged."""
        # A parent can go only after its children. So look again as long as an image went.
        while sum(self._try_to_delete(item.image_id) for item in self.removed()):
            pass

    def _try_to_delete(self, image_id: str) -> bool:
        try:
            return self.delete(image_id)
        except command.CommandError as error:
            log.info("%s stays in the trash for now: %s", image_id, error)
            return False
