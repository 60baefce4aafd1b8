"""Removes what an inspection has proven dead, and nothing else; safe beside a running driver, snapshotter or dockerd.

Each finding is looked at once more just before it goes. An image is deleted: Ceph refuses that while anybody has it
mapped writable, and where this host has it mapped read-only, it is kept. A device is unmapped if it is still that
image's: the kernel refuses that while it is in use. A directory is removed only if it is empty. The record of a
container that is gone is removed from Docker's layer store; a dockerd that runs has it in memory until its next start.
Images that drivers of this prefix have moved to the trash go at the end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import NamedTuple

import rbdcli
from host import command, deadline
from host.progress import Progress
from images.layers import Layers
from maintenance import inspection
from maintenance.knowledge import Database, DatabaseMissing


class Outcome(NamedTuple):
    """What became of a finding. `why` it was not removed, or how it went, is "" if there is nothing to say."""

    finding: inspection.Finding
    removed: bool
    why: str


def collect(
    found: Sequence[inspection.Finding],
    look: inspection.Inspection,
    layers: Layers,
    database: Database,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Remove what is dead of `found`, in that order. A finding that cannot be removed stays, and the others go on.

    Raises command.CommandError if the trash cannot be listed.
    """
    outcomes: list[Outcome] = []
    # A layer comes before the layers below it. If it is kept, these must be kept, too.
    needed: set[str] = set()
    progress = progress or Progress("")
    progress.begin("removing what is dead", len(found))
    for finding in found:
        if finding.dead and finding.id in needed:
            outcomes.append(Outcome(finding, False, "a layer that is kept stands on it"))
        elif finding.dead:
            outcomes.append(_remove(finding, look, layers, database))
        if not finding.dead or not outcomes[-1].removed:
            needed.update(finding.below)
        progress.advance()
    progress.begin("emptying the trash")
    layers.trash.empty()
    left = {item.image_id for item in layers.pool.trashed()}
    return [_still_there(item) if item.removed and item.finding.place in left else item for item in outcomes]


def _remove(finding: inspection.Finding, look: inspection.Inspection, layers: Layers, database: Database) -> Outcome:
    try:
        if not look.still_dead(finding):
            return Outcome(finding, False, "somebody has come to know or use it since")
        if finding.kind in (inspection.ORPHAN, inspection.HALF_MADE, inspection.SHARED):
            layers.delete(finding.place)
        elif finding.kind == inspection.STALE_RECORD:
            database.forget(finding.place)
        elif finding.kind == inspection.STALE_MAPPING:
            layers.pool.unmap(finding.place, layers.image(finding.id))
        elif finding.kind == inspection.STALE_DIRECTORY:
            _remove_directory(finding.place)
    except (FileNotFoundError, rbdcli.ImageMissing, rbdcli.NotMapped):
        return Outcome(finding, True, "it went by itself")
    except (OSError, command.CommandError, deadline.Overdue, DatabaseMissing) as error:
        return Outcome(finding, False, str(error))
    return Outcome(finding, True, "")


def _remove_directory(path: str) -> None:
    """Remove a layer's directory with its mount points. Raises OSError if anything is in it, or mounted."""
    for name in os.listdir(path):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(os.path.join(path, name))
    os.rmdir(path)


def _still_there(item: Outcome) -> Outcome:
    return item._replace(removed=False, why="it has clones, or somebody has it open")
