"""The note of a snapshot in the pool: what a snapshotter's database is made anew of, should it be lost.

The note of a snapshot with a layer of this host stands in that layer's record (images/record.py), and so costs Prepare
nothing. That of a snapshot that this host was told of stands beside the uses (cluster/told.py). A view has none: it has
nothing in the pool, and containerd makes another one.

A note is read by people, too, and is JSON. It must fit on a command line: what is too long is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from snapshots.info import NOTHING, Info, Kind, Snapshot, State, Usage

# Of one label containerd takes 4096 bytes at the most (labels/validate.go), and of a key any number.
LABELS_LENGTH, KEY_LENGTH = 32 << 10, 4 << 10
_KINDS = {"active": Kind.ACTIVE, "committed": Kind.COMMITTED}


def written(snapshot: Snapshot) -> dict[str, object]:
    """Return the note of a snapshot, which is no view. {} if its key is too long: it cannot be made anew then.

    Long labels are left out if all of them together are too long.
    """
    info, (size, inodes) = snapshot.info, snapshot.usage
    if max(len(info.name), len(info.parent)) > KEY_LENGTH:
        return {}
    note: dict[str, object] = {"key": info.name, "kind": info.kind.name.lower()}
    if info.parent:
        note["parent"] = info.parent
    if info.labels:
        note["labels"] = _bounded(info.labels)
    note["created"] = info.created
    if info.updated != info.created:
        note["updated"] = info.updated
    if info.kind is Kind.COMMITTED:
        note |= {"size": size, "inodes": inodes}
    return note


def read(layer: str, note: Mapping[str, object], *, image: str = "", chain: str = "") -> Snapshot:
    """Return the snapshot of a note; with `image` and `chain` one that this host was told of. Raises ValueError."""
    try:
        key, kind = note["key"], _KINDS[str(note["kind"])]
        created = _count(note["created"])
        updated, usage = (
            _count(note.get("updated", created)),
            Usage(_count(note.get("size")), _count(note.get("inodes"))),
        )
        labels = note.get("labels", {})
        if not isinstance(key, str) or not key or not isinstance(labels, Mapping):
            raise ValueError
        labels = {str(name): str(value) for name, value in labels.items()}
        info = Info(key, str(note.get("parent", "")), kind, created, updated, labels)
    except (ValueError, TypeError, LookupError, OverflowError):
        raise ValueError(f"the note of {layer} is {str(note)[:80]!r}, which no driver of this version wrote") from None
    return Snapshot(info, layer, State.THERE, usage, "", image or layer, chain, shared=bool(chain), empty=NOTHING)


def _bounded(labels: Mapping[str, str]) -> dict[str, str]:
    """Return as many labels as fit, the shortest first."""
    kept: dict[str, str] = {}
    left = LABELS_LENGTH
    for key, value in sorted(labels.items(), key=lambda item: len(item[0]) + len(item[1])):
        left -= len(json.dumps({key: value}))
        if left < 0:
            break
        kept[key] = value
    return kept


def _count(value: object) -> int:
    """Read a number that is not below zero, and fits the database. Raises ValueError."""
    if value is None:
        return 0
    if not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError
    return value
