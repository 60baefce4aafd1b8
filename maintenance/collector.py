"""Removes what an inspection has proven dead, and nothing else; safe beside a running driver and dockerd.

Each thing is looked at once more just before it goes. An image is deleted, which Ceph refuses while anybody has it
mapped writable; where this host has it mapped read-only, it is kept. A device is unmapped if it is still that image's,
which the kernel refuses while it is in use. A directory is removed only if it is empty. What Docker's layer store keeps
of a container that is gone is taken from it: a dockerd that runs has it in memory until its next start. What drivers of
this prefix have moved to the trash goes at the end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import NamedTuple

import rbdcli
from host import command, deadline
from images.layers import Layers
from maintenance import inspection
from maintenance.docker_database import DatabaseMissing, DockerDatabase


class Outcome(NamedTuple):
    """What became of a finding: removed, or why not."""

    finding: inspection.Finding
    removed: bool
    why: str


def collect(
    found: Sequence[inspection.Finding], look: inspection.Inspection, layers: Layers, docker: DockerDatabase
) -> list[Outcome]:
    """Remove what is dead of `found`. One that cannot be removed does not keep the others; it is left as it was."""
    outcomes: list[Outcome] = []
    # What stands on others comes before them: what of it is kept keeps those, too.
    needed: set[str] = set()
    for finding in found:
        if finding.dead and finding.id in needed:
            outcomes.append(Outcome(finding, False, "a layer that is kept stands on it"))
        elif finding.dead:
            outcomes.append(_remove(finding, look, layers, docker))
        if not finding.dead or not outcomes[-1].removed:
            needed.update(finding.below)
    layers.reap()
    left = {item.image_id for item in layers.pool.trashed()}
    return [_still_there(item) if item.removed and item.finding.place in left else item for item in outcomes]


def _remove(
    finding: inspection.Finding, look: inspection.Inspection, layers: Layers, docker: DockerDatabase
) -> Outcome:
    try:
        if not look.still_dead(finding):
            return Outcome(finding, False, "somebody has come to know or use it since")
        if finding.kind in (inspection.ORPHAN, inspection.HALF_MADE):
            layers.delete(finding.place)
        elif finding.kind == inspection.STALE_RECORD:
            docker.forget(finding.place)
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
