"""What each host was told of: its snapshots of layers that other hosts made, should its own database be lost.

The uses (uses.py) name the layers only, and one layer may stand for several snapshots of a host. Here each snapshot has
one key in an omap: "OWNER SNAPSHOT", where OWNER is the digest of its host, and SNAPSHOT its id there. The value is
written once and never changes but for the labels. Nothing is decided by it as long as the host has its database.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import NamedTuple

import rbdcli
from cluster import rados_objects
from cluster.owner import Owner

log = logging.getLogger("told")


class Note(NamedTuple):
    """A snapshot that a host was told of: its layer in the pool, the chain id, and what the host noted of it."""

    image: str
    chain: str
    snapshot: Mapping[str, object]


class Told:
    """The notes of one owner. Each method raises command.CommandError if Ceph fails or does not answer."""

    def __init__(self, pool: rbdcli.Pool, prefix: str, owner: Owner) -> None:
        self._pool, self._name, self._owner = pool, f"{prefix}_told", owner

    def names(self) -> set[str]:
        """Return the ids of the snapshots that are noted."""
        keys = (key.partition(" ") for key in rados_objects.omap_keys(self._pool, self._name))
        return {snapshot for owner, _, snapshot in keys if owner == self._owner.digest}

    def all(self) -> dict[str, Note]:
        """Return what is noted, by the ids of the snapshots. What cannot be read is logged and left out."""
        found: dict[str, Note] = {}
        for key, value in rados_objects.omap(self._pool, self._name).items():
            owner, _, snapshot = key.partition(" ")
            if owner != self._owner.digest:
                continue
            try:
                fields = json.loads(value)
                found[snapshot] = Note(str(fields["layer"]), str(fields["chain"]), dict(fields["snapshot"]))
            except (ValueError, TypeError, LookupError, RecursionError):
                log.warning("%r is %r, which no driver of this version wrote; it is left as it is", key, value[:80])
        return found

    def write(self, snapshot: str, note: Note) -> None:
        """Note a snapshot, or note it anew."""
        fields = {"owner": str(self._owner), "layer": note.image, "chain": note.chain, "snapshot": dict(note.snapshot)}
        rados_objects.set_omap(self._pool, self._name, self._key(snapshot), json.dumps(fields))

    def forget(self, snapshot: str) -> None:
        """Forget a snapshot that is removed."""
        rados_objects.remove_omap(self._pool, self._name, self._key(snapshot))

    def forget_owner(self, owner: Owner) -> None:
        """Forget all that another host was told of. The caller knows that it does not live."""
        for key in rados_objects.omap_keys(self._pool, self._name):
            if key.partition(" ")[0] == owner.digest:
                rados_objects.remove_omap(self._pool, self._name, key)

    def _key(self, snapshot: str) -> str:
        return f"{self._owner.digest} {snapshot}"
