"""Makes the database of a root anew that was lost: the pool has notes of its snapshots (snapshots/note.py).

Made anew is what belongs to this host and root under its present name: the layers that it made and has a note of; of
those that all hosts share, what this host uses; and what it was told of. Views are lost: nothing of them is in the
pool. So is what a crash left half made: an image without a record.

A note may be a few seconds old. A layer on which another one stands was committed, and that one's note has its name. A
snapshot that was removed a moment ago, or whose Prepare was never answered, comes back: containerd does not know it,
and its collector removes it.

What contradicts is left out, and logged. Nothing is deleted here: check shows such a layer, and gc removes it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import rbdcli
from cluster.shared_layers import SharedLayers
from cluster.told import Note, Told
from images.layers import LayerError, Layers
from images.record import Record
from snapshots import note
from snapshots.info import Kind, Snapshot
from snapshotter import chains

log = logging.getLogger("rebuilding")

_AT_ONCE = 8


@dataclass
class Plan:
    """What a store is made anew of.

    `snapshots`: each after its parent. `unnoted`: the layers of which the pool has an old note. `problems`: why a layer
    is left out, one line for each.
    """

    snapshots: list[Snapshot] = field(default_factory=list)
    unnoted: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def find(layers: Layers, shared: SharedLayers, told: Told, removed: Container[str]) -> Plan:
    """Ask the pool what this host had. The name of this host is claimed. Layers in `removed` are about to go.

    Raises command.CommandError, deadline.Overdue.
    """
    used = shared.own()
    entries = {entry.layer: entry.chain for entry in shared.all() if not entry.deleting}
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        records = dict(pair for pair in threads.map(lambda layer: _ours(layers, layer), layers.all()) if pair)
    ours = {
        layer: record
        for layer, record in records.items()
        if layer not in removed and (layer in used or not record.shared)
    }
    return plan(ours, {name: each for name, each in told.all().items() if each.image in used}, entries)


def _ours(layers: Layers, layer: str) -> tuple[str, Record] | None:
    """Return a layer with its record, if this host made it for a snapshot.

    A clone of a machine has its machine-id, but another name: that alone makes no layer ours (cluster/owner.py).
    """
    owner = layers.owner()
    with contextlib.suppress(rbdcli.ImageMissing):
        try:
            record = layers.record(layer)
        except LayerError as error:
            log.warning("%s", error)
            return None
        if record and record.snapshot and record.owner.host == owner.host and record.owner.is_same(owner):
            return layer, record
    return None


def plan(ours: Mapping[str, Record], told: Mapping[str, Note], entries: Mapping[str, str]) -> Plan:
    """Decide what a store is made anew of: own layers with their records, what was told, and the chains of the pool."""
    made = Plan()
    found: list[Snapshot] = []
    for layer, record in ours.items():
        with _problem(made, layer):
            found.append(_own(layer, record, entries))
    for layer, each in told.items():
        with _problem(made, layer):
            found.append(note.read(layer, each.snapshot, image=each.image, chain=each.chain))
    # A parent is older than its children, but for a clock that was set back.
    found.sort(key=lambda snapshot: (snapshot.info.created, snapshot.layer))
    found = _without_doubles(_committed(found, ours, made), made)
    _place(found, ours, made)
    return made


@contextlib.contextmanager
def _problem(made: Plan, layer: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        made.problems.append(f"layer {layer} is left out: {error}")


def _own(layer: str, record: Record, entries: Mapping[str, str]) -> Snapshot:
    snapshot = note.read(layer, record.snapshot)
    if not record.shared:
        return snapshot
    # What is shared and not listed was about to be offered.
    chain = entries.get(layer) or snapshot.info.labels.get(chains.REF_LABEL, "")
    if not chain:
        raise ValueError("all hosts share it, and it is not known for which chain of layers it stands")
    return snapshot._replace(chain=chain, shared=layer in entries)


def _committed(found: Sequence[Snapshot], ours: Mapping[str, Record], made: Plan) -> list[Snapshot]:
    """Take those for committed on which others stand, though their notes are of before."""
    names: dict[str, str] = {}
    for snapshot in found:
        if snapshot.layer in ours and ours[snapshot.layer].parents:
            names.setdefault(ours[snapshot.layer].parents[0], snapshot.info.parent)
    taken: list[Snapshot] = []
    for snapshot in found:
        name = names.get(snapshot.layer)
        if name and snapshot.info.kind is Kind.ACTIVE:
            made.unnoted.add(snapshot.layer)
            taken.append(snapshot._replace(info=snapshot.info._replace(name=name, kind=Kind.COMMITTED)))
        else:
            taken.append(snapshot)
    return taken


def _without_doubles(found: Sequence[Snapshot], made: Plan) -> list[Snapshot]:
    """Keep the newest snapshot of each key."""
    newest = {snapshot.info.name: snapshot for snapshot in found}
    for snapshot in found:
        other = newest[snapshot.info.name]
        if other is not snapshot:
            why = f"it is snapshot {snapshot.info.name!r}, and so is {other.layer}, which is newer"
            made.problems.append(f"layer {snapshot.layer} is left out: {why}")
    return list(newest.values())


def _place(found: Sequence[Snapshot], ours: Mapping[str, Record], made: Plan) -> None:
    """Put each snapshot after its parent. One that stands on nothing, or on another layer than it says, is left out."""
    stacks: dict[str, tuple[str, ...]] = {"": ()}
    waiting = sorted(found, key=lambda snapshot: snapshot.info.created)
    while waiting:
        left: list[Snapshot] = []
        for snapshot in waiting:
            name, parent, layer = snapshot.info.name, snapshot.info.parent, snapshot.layer
            if parent not in stacks:
                left.append(snapshot)
            elif layer in ours and ours[layer].parents != stacks[parent]:
                why = f"snapshot {name!r} stands on other layers than its parent {parent!r} is made of"
                made.problems.append(f"layer {layer} is left out: {why}")
            else:
                made.snapshots.append(snapshot)
                if snapshot.info.kind is Kind.COMMITTED:
                    stacks[name] = (snapshot.image, *stacks[parent])
        if len(left) == len(waiting):
            break
        waiting = left
    else:
        return
    for snapshot in waiting:
        why = f"the parent {snapshot.info.parent!r} of snapshot {snapshot.info.name!r} is not there"
        made.problems.append(f"layer {snapshot.layer} is left out: {why}")
