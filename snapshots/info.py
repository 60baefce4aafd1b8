"""What is known of a snapshot: what containerd is told of it, and what only we know; and how its labels change."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from snapshots.errors import InvalidArgument

_ONE_LABEL = "labels."
# The name of the image, at all snapshots of an image that a kubelet has pulled (containerd, pkg/snapshotters).
IMAGE_LABEL = "containerd.io/snapshot/cri.image-ref"


class Kind(enum.IntEnum):
    """The kind of a snapshot, with the numbers of the protocol (api/services/snapshots/v1/snapshots.proto)."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


class State(enum.IntEnum):
    """How far a snapshot has come. What is not THERE when we start is what a crash left.

    PREPARING   its layer may exist, or part of it; nobody was told of it; its key is in use
    THERE       its layer exists
    COMMITTING  it is still the active snapshot that it was; the name that it is to have is in use too
    REMOVING    its layer may still exist; it has no key and no parent any more
    """

    PREPARING = 1
    THERE = 2
    COMMITTING = 3
    REMOVING = 4


class Info(NamedTuple):
    """What containerd is told of a snapshot. Times are nanoseconds since 1970. A parent of "" is none."""

    name: str
    parent: str
    kind: Kind
    created: int
    updated: int
    labels: dict[str, str]


class Usage(NamedTuple):
    """What a snapshot takes for itself, without its parents: bytes, and inodes."""

    size: int
    inodes: int


NOTHING = Usage(0, 0)


class Snapshot(NamedTuple):
    """A snapshot with all that we know of it. `info.name` is "" if it is being removed.

    `layer` is its id: letters and digits, fit for a path and for the name of an image.
    `image` is the layer of the pool that holds its data: `layer`, another host's, or "" for a view, which has none.
    `chain` is the chain id under which other hosts may find it, or "". `shared` tells whether they can already.
    `usage` is as it was stored, 0 until then. `empty` is what its file system took before anything was written to it.
    `target` is the name that it is to have if it is being committed.
    """

    info: Info
    layer: str
    state: State
    usage: Usage
    target: str
    image: str
    chain: str
    shared: bool
    empty: Usage


def stored_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels without those of an empty value: such a one is none (metadata/boltutil/helpers.go writeMap)."""
    return {key: value for key, value in labels.items() if value}


def changed_labels(old: Mapping[str, str], new: Mapping[str, str], mask: Sequence[str]) -> dict[str, str]:
    """Return what an Update makes of the labels `old`, if it brings `new` (snapshots/storage/bolt.go UpdateInfo).

    Without a mask, or for the path `labels`, the new ones take the place of all. `labels.KEY` sets the one label KEY;
    the rest of the path is the key, whatever dots are in it. A label whose new value is empty or absent goes. Raises
    InvalidArgument for any other path: nothing else of a snapshot changes.
    """
    labels = dict(old if mask else new)
    for path in mask:
        if path == "labels":
            labels = dict(new)
        elif path.startswith(_ONE_LABEL):
            key = path[len(_ONE_LABEL) :]
            labels[key] = new.get(key, "")
        else:
            raise InvalidArgument(f"cannot update the field {path!r} of a snapshot: only labels and labels.KEY change")
    return stored_labels(labels)
