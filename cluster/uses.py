"""Which hosts use which layers of the pool that all hosts share.

One object has it all. Each life of a driver, from its start to its end, has one key in its omap and writes the whole of
it each time: one command notes any number of uses. Nobody else writes that key, so nothing of it is lost. A new life
goes on with the uses of the lives before it, and removes their keys. If two drivers of one owner should live at once,
each has a key of its own, and both count.

A use that has ended stays there with the time when it ended, until the layer is gone: so it is known how long nobody
has used a layer. These are times of the clocks of several hosts. They are right if the clocks differ by less than the
time that a layer is kept after its last use; if not, a layer goes early or late, but never one that is used.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import rbdcli
from cluster import rados_objects
from cluster.owner import Owner

log = logging.getLogger("uses")

# In the place of the time when a use ended.
_USED = 0.0


@dataclass
class Seen:
    """The uses of all hosts, as they were read.

    `users`: the owners that use a layer. `ended`: when the last use of a layer ended. `unreadable`: a line for each
    key that cannot be read: what its owner uses is not known then, so nothing may be deleted.
    """

    users: dict[str, set[Owner]] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    owners: set[Owner] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)

    def add(self, owner: Owner, uses: Mapping[str, float]) -> None:
        """Add what one life of an owner uses."""
        self.owners.add(owner)
        for layer, ended in uses.items():
            if ended == _USED:
                self.users.setdefault(layer, set()).add(owner)
            else:
                self.ended[layer] = max(ended, self.ended.get(layer, 0.0))


class Uses:
    """The uses of one owner, and a look at those of all. The caller lets one thread in at a time.

    Every method raises command.CommandError if Ceph fails or does not answer. What it was to write is kept then, and
    written with the next change. `beside`: this is not the driver, which may live: its uses are left to it.
    """

    def __init__(self, pool: rbdcli.Pool, prefix: str, owner: Owner, *, beside: bool = False) -> None:
        self._pool = pool
        self._name = f"{prefix}_uses"
        self._owner = owner
        self._key = f"{owner.digest} {uuid.uuid4().hex[:12]}"
        self._own: dict[str, float] = {}
        # What was there before a use that may be taken back.
        self._before: dict[str, float] = {}
        self._is_loaded = beside
        self._is_written = True

    def has(self, layer: str) -> bool:
        """Tell whether this host uses a layer. It may not be written yet."""
        return self._own.get(layer) == _USED

    def own(self) -> set[str]:
        """Name the layers that this host uses, those of its earlier lives among them."""
        self.load()
        return {layer for layer in self._own if self.has(layer)}

    def note(self, layers: Iterable[str]) -> None:
        """Write that this host uses some layers. After a failure they count as used on this host."""
        self.load()
        for layer in layers:
            if not self.has(layer):
                if layer in self._own:
                    self._before[layer] = self._own[layer]
                self._own[layer] = _USED
                self._is_written = False
        self.write()

    def take_back(self, layers: Iterable[str]) -> None:
        """Forget uses that came to nothing, as if they had never been. This is written with the next change."""
        for layer in layers:
            if self.has(layer):
                del self._own[layer]
                if layer in self._before:
                    self._own[layer] = self._before.pop(layer)
                self._is_written = False

    def end(self, layers: Iterable[str]) -> None:
        """Write that this host uses some layers no more. In a full pool that hangs, but is known to this process."""
        self.load()
        for layer in layers:
            if self.has(layer):
                self._own[layer] = time.time()
                self._before.pop(layer, None)
                self._is_written = False
        self.write()

    def forget(self, layers: Collection[str]) -> None:
        """Forget when this host used layers that have gone. This is written with the next change."""
        for layer in layers:
            if layer in self._own and not self.has(layer):
                del self._own[layer]
                self._is_written = False

    def ended(self) -> set[str]:
        """Name the layers of which this host remembers when it used them last."""
        return {layer for layer, ended in self._own.items() if ended != _USED}

    def write(self) -> None:
        """Write what is not written yet."""
        if not self._is_written:
            rados_objects.set_omap(self._pool, self._name, self._key, _written(self._owner, self._own))
            self._is_written = True

    def load(self) -> None:
        """Go on with the uses of this owner's earlier lives. Call it once nobody else lives under our name (claim.py).

        After a failure nothing is lost, and the next call tries again.
        """
        if self._is_loaded:
            return
        earlier: list[str] = []
        for key, value in rados_objects.omap(self._pool, self._name).items():
            if key.partition(" ")[0] != self._owner.digest or key == self._key:
                continue
            try:
                _, uses = _read(key, value)
            except ValueError as error:
                log.warning("%s; it is left as it is", error)
                continue
            earlier.append(key)
            for layer, ended in uses.items():
                known = self._own.get(layer, ended)
                self._own[layer] = _USED if _USED in (known, ended) else max(known, ended)
        self._is_written = not earlier
        self.write()
        for key in earlier:
            rados_objects.remove_omap(self._pool, self._name, key)
        self._is_loaded = True

    # -- of all hosts ------------------------------------------------------------------------

    def all(self) -> Seen:
        """Read what all hosts use. What this life has not been able to write yet counts."""
        seen = Seen()
        for key, value in rados_objects.omap(self._pool, self._name).items():
            if key == self._key:
                continue
            try:
                seen.add(*_read(key, value))
            except ValueError as error:
                gone = f"if that host is gone: rados rmomapkey {self._name} '{key}'"
                seen.unreadable.append(f"{error}; {gone}")
        if self._own:
            seen.add(self._owner, self._own)
        return seen

    def forget_owner(self, owner: Owner) -> None:
        """Remove all that is known of another owner's uses. The caller knows that it does not live."""
        for key in rados_objects.omap_keys(self._pool, self._name):
            if key.partition(" ")[0] == owner.digest and key != self._key:
                rados_objects.remove_omap(self._pool, self._name, key)


def _written(owner: Owner, uses: Mapping[str, float]) -> str:
    rounded = {layer: int(ended) for layer, ended in sorted(uses.items())}
    return json.dumps({"owner": str(owner), "uses": rounded}, separators=(",", ":"))


def _read(key: str, value: str) -> tuple[Owner, dict[str, float]]:
    """Read what `_written` wrote. Raises ValueError, which says it in one line."""
    try:
        fields = json.loads(value)
        owner = Owner.parse(str(fields["owner"]))
        if key.partition(" ")[0] != owner.digest:
            raise ValueError
        return owner, {str(layer): max(0.0, float(ended)) for layer, ended in dict(fields["uses"]).items()}
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        what = f"the uses of a host, {key[:80]!r}, are {value[:80]!r}, which no driver of this version wrote"
        raise ValueError(what) from None
