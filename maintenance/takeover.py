"""Takes over the layers of a host that died, when an operator asks for it, and never from one that lives.

A host answers while its driver watches its object (`liveness.py`), or while anybody has one of its images
open. The cluster drops a watch 30 s after its client died. So a host that does not answer was silent for that long.
Then, in this order:

1. each client that still holds a lock on one of its images is put on the cluster's blocklist: if the host comes
   back, the cluster refuses what it had not written yet,
2. the locks are broken,
3. each image gets this host and home as its owner. A driver asks for the owner before it maps, so a host that
   comes back leaves the layers alone.
4. the host's uses of shared layers are forgotten. The shared layers that it made belong to all hosts, and stay as they
   are, or go by their own rules (cluster/shared_layers.py).

A snapshotter's own layers are of use only with its snapshots.db. If its root was brought here, under the same path,
that is ours now: what it names is used by us from then on, shared layers too. Otherwise nobody can use these layers:
they are ours, and gc finds them (snapshots_database.py).

No step is ever undone, and the owner comes last: after a failure or a crash in the middle, the same call made again
goes on where it ended.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import rbdcli
from cluster import claim, rados_objects
from cluster.owner import Owner, parse_host
from cluster.shared_layers import SharedLayers
from cluster.told import Told
from host.failure import Failure
from host.progress import Progress
from images.layers import TAKEN_KEY, LayerError, Layers
from images.names import BASE
from images.record import KEY, Record
from maintenance.snapshots_database import LAYER_ID

# Rook and csi-addons fence for so long (5 years). No other client ever uses an address with its nonce.
BLOCKLIST_SECONDS = 157_784_760
_AT_ONCE = 8
Answer = TypeVar("Answer")


class Refused(Failure):
    """The takeover is refused. The text is one line that says why."""


class Takeover:
    """The takeover of one host's layers: all of them, or those of one home ("": all homes).

    `host` is its name, or "NAME/MACHINE" with its machine-id. Several machines may have one name, and we may have it,
    too: the name alone stands for all of them but ours.
    """

    def __init__(self, layers: Layers, prefix: str, host: str, home: str, say: Callable[[str], None]) -> None:
        self._layers = layers
        self._pool = layers.pool
        self._prefix = prefix
        self._host = host
        self._name, self._machine = parse_host(host)
        self._home = home
        self._say = say

    def run(self, named: Collection[str] | None = None, progress: Progress | None = None) -> int:
        """Take over and return the number of images. The same call goes on after a failure.

        `named`: the layers that our snapshotter's database names; None if we are Docker's.

        Raises Refused, command.CommandError. Refused: nothing was taken, but a client may be on the blocklist.
        """
        progress = progress or Progress("")
        progress.begin("reading whose the layers of the pool are")
        ours = self._layers.owner()
        records = self._records()
        owners = {image: record.owner for image, record in records.items() if not record.shared}
        theirs = {image: owner for image, owner in owners.items() if self._is_theirs(owner)}
        whose = Owner(self._name, self._machine, self._home)
        if self._is_here(whose) and (self._machine or not theirs):
            raise Refused(f"{self._host} is this very host")
        shared = SharedLayers(self._pool, self._prefix, ours, beside=True)
        users = {owner for owner in shared.uses().owners if self._is_theirs(owner)}
        homes = {*theirs.values(), *users} or self._homes(whose)
        if not theirs:
            hosts = sorted({owner.seen_from(ours) for owner in owners.values()})
            self._say(f"no layer of {self._host} is in this pool; there are layers of: {', '.join(hosts) or 'nobody'}")
        progress.begin(f"looking whether {self._host} lives")
        locks = self._locks_of_the_dead(theirs, homes)
        self._fence({lock.address for held in locks.values() for lock in held})
        progress.begin("taking layers", len(theirs))
        for image in theirs:
            self._take(image, records[image], locks.get(image, ()))
            progress.advance()
        progress.begin("forgetting what they used")
        self._remove_scratch(homes)
        self._say_who_can_use(theirs, named)
        for owner in homes:
            self._forget_uses(shared, owner, named or ())
            claim.forget(self._pool, self._prefix, owner)
        return len(theirs)

    def _records(self) -> dict[str, Record]:
        base = self._layers.image(BASE)
        names = [name for name in self._layers.images() if not name.startswith(base)]
        found = _each(self._record, names)
        return {image: record for image, record in found.items() if record}

    def _record(self, image: str) -> Record | None:
        """Return an image's record; None if it has none, or it cannot be read: then the image is left alone."""
        try:
            return self._layers.record(self._layers.layer(image))
        except LayerError as error:
            self._say(f"left alone: {error}")
            return None

    def _homes(self, named: Owner) -> set[Owner]:
        """Return the owners that a host without layers may have had; none unless the operator named its home."""
        if not self._home:
            return set()
        known = [] if self._machine else claim.machines(self._pool, self._prefix, named)
        return {named, *(owner for owner in known if not self._is_here(owner))}

    def _is_theirs(self, owner: Owner) -> bool:
        if self._home and owner.home != self._home:
            return False
        return owner.host == self._name and self._machine in ("", owner.machine) and not self._is_here(owner)

    def _is_here(self, owner: Owner) -> bool:
        """Tell whether an owner is this host under its present name; a former name may be that of a clone."""
        ours = self._layers.owner()
        return owner.host == ours.host and owner.is_same_host(ours)

    def _locks_of_the_dead(
        self, theirs: Mapping[str, Owner], homes: Iterable[Owner]
    ) -> dict[str, Sequence[rbdcli.Lock]]:
        """Return the locks of the images, if nobody is alive and no lock is newer than that look. Raises Refused.

        A host that maps or unmaps an image meanwhile lives. This very host may do both, and has one address for all
        that it has mapped.
        """
        before = _each(self._pool.locks, theirs)
        self._refuse_if_alive(theirs, homes)
        after = _each(self._pool.locks, theirs)
        for image, locks in after.items():
            if new := set(locks).difference(before.get(image, ())):
                opened = ", ".join(sorted(lock.address for lock in new))
                raise Refused(f"{self._host} lives: {image} has just been opened at {opened}; end it first")
        return after

    def _refuse_if_alive(self, theirs: Mapping[str, Owner], homes: Iterable[Owner]) -> None:
        hint = "end it first; a host that died is known to be dead after 30 s"
        for owner in homes:
            for name in self._objects(owner):
                if addresses := rados_objects.watching(self._pool, name):
                    raise Refused(f"{self._host} lives: its driver answers from {', '.join(addresses)}; {hint}")
        for image, addresses in _each(self._pool.watchers, theirs).items():
            if addresses:
                if theirs[image].is_same_host(self._layers.owner()):
                    hint = "that is a former name of this host: stop the containers that use it first"
                raise Refused(f"{self._host} lives: {image} is open at {', '.join(addresses)}; {hint}")

    def _objects(self, owner: Owner) -> set[str]:
        """Name the objects that the driver of an owner may watch: it may know its machine-id by now, or not yet."""
        known = [owner] if owner.machine else claim.machines(self._pool, self._prefix, owner)
        ours = self._layers.owner()
        return {item.object(self._prefix) for item in (owner, owner.by_name, *known)} - {ours.object(self._prefix)}

    def _fence(self, addresses: Iterable[str]) -> None:
        for address in sorted(addresses):
            try:
                self._pool.blocklist(address, BLOCKLIST_SECONDS)
            except rbdcli.RbdError as error:
                if error.status not in (errno.EACCES, errno.EPERM):
                    raise
                client = self._pool.client
                raise Refused(
                    f"client.{client} may not blocklist {address}, without which its locks cannot be broken safely; "
                    f"let it: ceph auth caps client.{client} mon 'profile rbd' ..., or give --default ceph.client=admin"
                ) from None
            self._say(f"fenced {address}")

    def _take(self, image: str, record: Record, locks: Iterable[rbdcli.Lock]) -> None:
        """Make an image ours, unless it has gone meanwhile."""
        try:
            for lock in locks:
                self._break(image, lock)
            self._pool.set_metadata(image, TAKEN_KEY, image)
            self._pool.set_metadata(image, KEY, str(replace(record, owner=self._layers.owner())))
            self._say(f"took {image}")
        except rbdcli.ImageMissing:
            self._say(f"{image} is gone")

    def _say_who_can_use(self, images: Iterable[str], named: Collection[str] | None) -> None:
        """Say what becomes of the layers that were a snapshotter's own."""
        layers = [layer for layer in map(self._layers.layer, images) if LAYER_ID.fullmatch(layer)]
        lost = len([layer for layer in layers if layer not in (named or ())])
        if layers and named is None:
            self._say(f"{lost} of them are a snapshotter's, which Docker cannot use: rbd rm removes them")
        elif lost:
            self._say(f"{lost} of them are of no snapshot here: nobody can use them, and gc --root removes them")

    def _forget_uses(self, shared: SharedLayers, owner: Owner, named: Collection[str]) -> None:
        used = [layer for layer, users in shared.uses().users.items() if owner in users]
        shared.forget_host(owner, named)
        Told(self._pool, self._prefix, self._layers.owner()).forget_owner(owner)
        if used:
            needed = len([layer for layer in used if layer in named])
            what = f"{len(used)} shared layers, of which snapshots here need {needed}"
            self._say(f"forgot that {owner.host} {owner.home} used {what}")

    def _break(self, image: str, lock: rbdcli.Lock) -> None:
        """Break a lock, unless it has gone by itself. Raises rbdcli.ImageMissing if the image has gone."""
        try:
            self._pool.break_lock(image, lock)
        except rbdcli.ImageMissing:
            if lock in self._pool.locks(image):
                raise
            return
        self._say(f"broke the lock of {lock.locker} ({lock.address}) on {image}")

    def _remove_scratch(self, homes: Iterable[Owner]) -> None:
        """Delete the base images that the host never made to their end."""
        for owner in homes:
            try:
                self._layers.delete(self._layers.scratch(owner))
            except rbdcli.ImageMissing:
                continue
            self._say(f"removed {self._layers.scratch(owner)}")


def _each(ask: Callable[[str], Answer], images: Iterable[str]) -> dict[str, Answer]:
    """Ask something about many images at once. An image that has gone meanwhile is left out."""

    def answer(image: str) -> list[tuple[str, Answer]]:
        try:
            return [(image, ask(image))]
        except rbdcli.ImageMissing:
            return []

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return dict(pair for pairs in threads.map(answer, images) for pair in pairs)
