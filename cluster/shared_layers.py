"""The layers of a pool that all hosts share: which one stands for a chain of layers, and when it may be deleted.

One object lists the layers (chain_entry.py), another one who uses them (uses.py). What is safe, and why: a layer that a
host was told of is never deleted before that host has released it.

- A host writes that it uses a layer, and then reads that the layer is still listed. Only then it says so.
- Who deletes a layer takes it off the list, and then reads that nobody uses it. Only then the layer goes.
- Ceph does one operation on an object after the other. So if both do this at once, one sees the other at least; if both
  see each other, the layer is neither told of nor deleted.
- A layer's name never comes back, and nobody puts a layer back on the list but a host that was told of it and uses it:
  as long as it does, nobody can have come to the end of deleting it. So a host that stops in the middle, for however
  long, does no harm when it goes on. Nothing here waits for a host that has died.

The uses of a host hold for all that is below: who uses a layer uses what it stands on. So layers are asked for and
offered from the bottom up, and released from the top down, as containerd does.

What is remembered here of the list is a hint: which layer to note as used. If the hint is old, that costs time only. A
hit notes the layers above the one that was asked for as well: the next questions are likely to be for these, and cost
no command. A miss costs none either while the hint is fresh, for LISTED_SECONDS.

Two hosts may offer a chain at the same time. A lock of the list, named like the chain, lets one of them be first. It
ends by itself. If its holder is slower than that, two layers are listed for the chain, and everybody takes the one that
was offered first; the other one stays for those who use it.

In a full pool, nothing can be written to an omap, not even to remove a key (seen on 16.2.15: `--force-full` counts for
`rados rm` alone). Nobody can be told of a layer then, and none is taken off the list but by `make_room`, which removes
the list as a whole.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence

import rbdcli
from cluster import rados_objects
from cluster.chain_entry import DIGITS, Entry, check_chain
from cluster.owner import Owner
from cluster.uses import Seen, Uses
from host import command, deadline

log = logging.getLogger("shared layers")

# Seconds for which a miss is believed.
LISTED_SECONDS = 2.0
# So many layers above one that was asked for are used ahead, each for so long if nobody asks for it.
AHEAD, AHEAD_SECONDS = 128, 300.0
# A lock for an offer ends after so long. Others wait for it less long, and may offer again later.
LOCK_SECONDS, OFFER_SECONDS, PAUSE_SECONDS = 60.0, 10.0, 0.2
# So many new entries are read one by one; with more, it is faster to read all.
_FEW = 3
# A clock that is ahead by more than that is wrong.
_FUTURE_SECONDS = 86400.0
# How often a find begins anew, because what stood for the chain was just replaced.
_TRIES = 3


class SharedLayers:
    """The shared layers of one pool and image prefix, as one owner uses them. Threads may call it at the same time.

    The owner has its name for itself (claim.py); or this is a command `beside` its driver, which may live. Every method
    but `problems` raises command.CommandError if Ceph fails or does not answer, and deadline.Overdue if other threads
    keep it waiting; it can be called again then. What it had noted as used stays so, until `release` or `tidy`: that
    keeps layers, and endangers none.
    """

    def __init__(self, pool: rbdcli.Pool, prefix: str, owner: Owner, *, beside: bool = False) -> None:
        self._pool, self._owner = pool, owner
        self._name = f"{prefix}_chains"
        self._watched = f"{prefix}_host."
        self._uses = Uses(pool, prefix, owner, beside=beside)
        self._lock = threading.Lock()
        # The list as it was read last, by key. A line of text in the place of an entry says why it cannot be read.
        self._listed: dict[str, Entry | str] = {}
        self._listed_at = float("-inf")
        self._standing: dict[str, Entry] = {}
        # The layers that we were told of, by layer and by chain, and when those end that nobody asked for.
        self._told: dict[str, Entry] = {}
        self._told_of: dict[str, Entry] = {}
        self._ahead: dict[str, float] = {}

    # -- who needs a layer -------------------------------------------------------------------

    def find(self, chain: str) -> Entry | None:
        """Return the layer that stands for a chain; this host uses it from then on. None: there is none.

        All below it is used, too. Raises ValueError for what is no chain id.
        """
        check_chain(chain)
        with self._alone():
            if chain not in self._told_of and time.monotonic() - self._listed_at > LISTED_SECONDS:
                self._list()
            for _ in range(_TRIES):
                entry = self._told_of.get(chain) or self._standing.get(chain)
                if entry is None:
                    break
                if entry.layer in self._told or self._take(entry):
                    self._ask_for(entry)
                    return entry
        return None

    def use(self, layers: Collection[str]) -> None:
        """Use layers of this host that are about to be shared: from then on nobody takes them for forgotten."""
        with self._alone():
            self._uses.note(layers)

    def offer(self, chain: str, layer: str, parent: Entry | None, *, size: int, inodes: int) -> Entry | None:
        """Offer a finished layer of this host to all hosts, standing on `parent`, which `find` or `offer` returned.

        Return what stands for the chain now: the layer, or that of a host that was first, on the same parent; this host
        uses it. None: the parent is shared no more, what stands is on another one, or somebody else is about to offer;
        it may be tried again later. In any case this host uses its own layer until it releases it. After a failure the
        layer may be listed: so only `begin_delete` tells whether it may go. Raises ValueError.
        """
        below, above = (parent.layer, parent.chain) if parent else ("", "")
        entry = Entry(chain, layer, above, below, self._owner, int(time.time()), size, inodes)
        with self._alone():
            self._uses.note([layer])
            if not self._lock_chain(chain):
                return None
            try:
                return self._offer(entry)
            finally:
                # If this fails, the lock ends by itself.
                with contextlib.suppress(command.CommandError):
                    rados_objects.unlock(self._pool, self._name, chain)

    def release(self, layers: Collection[str]) -> None:
        """End the use of layers, all by one command: those that stand on others before these, or at the same time.

        If that fails, as in a full pool, it is noted in this process, and written with the next change.
        """
        with self._alone():
            for layer in layers:
                self._forget(layer)
            self._uses.end(layers)

    def own(self) -> set[str]:
        """Name the layers that this host uses, also from before its start: what it needs no more is to be released."""
        with self._alone():
            return self._uses.own()

    def remember(self, entry: Entry) -> None:
        """Learn what this host was told of in an earlier life. If the list has lost it, `tidy` lists it again."""
        with self._alone():
            if self._uses.has(entry.layer):
                self._tell(entry)

    def tidy(self) -> None:
        """End the uses that nobody asked for, write what could not be written, and list again what was lost.

        For the background, every few minutes. A layer is lost to the list if its deletion was begun in the moment in
        which this host came to use it, or by `make_room`.
        """
        with self._alone():
            now = time.monotonic()
            for layer in [layer for layer, end in self._ahead.items() if end < now]:
                self._forget(layer)
                self._uses.take_back([layer])
            self._list()
            self._uses.forget(self._uses.ended() - {entry.layer for entry in self._entries()})
            self._uses.write()
            for entry in list(self._told.values()):
                if entry.key not in self._listed and entry.chain not in self._standing:
                    rados_objects.set_omap(self._pool, self._name, entry.key, str(entry))
                    self._unmark(entry.layer)
                    self._list()

    # -- who deletes layers ------------------------------------------------------------------

    def unused(self, older_than: float) -> list[Entry]:
        """Return the layers that nobody has used for some seconds, each before what is below it, the oldest first.

        Those of which a deletion was begun come at once, unless who began it lives. None while the uses of any host
        cannot be read. A layer counts from when it was offered, if nobody says that its use ended later.
        """
        with self._alone():
            seen = self._uses.all()
            self._list()
            if seen.unreadable:
                log.warning("no shared layer is deleted: %s", seen.unreadable[0])
                return []
            return self._ordered(seen, time.time() - older_than)

    def begin_delete(self, entry: Entry) -> bool:
        """Take a layer off the list, for good if nobody uses it: tell whether its image may be deleted now.

        False: somebody uses it, or another layer stands on it; then it is as before, unless that began in this very
        moment: then it is listed again by `tidy` of that host. If the caller dies, or this fails, `unused` names the
        layer again, to every host.
        """
        with self._alone():
            if self._is_needed(entry):
                return False
            mark = entry.deleted_by(self._owner)
            rados_objects.set_omap(self._pool, self._name, mark.key, str(mark))
            rados_objects.remove_omap(self._pool, self._name, entry.standing().key)
            return not self._is_needed(entry)

    def end_delete(self, entry: Entry) -> None:
        """Forget a layer after `begin_delete`, now that its image has gone."""
        with self._alone():
            self._list()
            self._unmark(entry.layer)
            self._uses.forget([entry.layer])

    def make_room(self) -> list[Entry]:
        """In a full pool: remove the list, and return what nobody uses, as `unused(0)` does. These may be deleted.

        The layers that are used are listed again by `tidy` of their hosts, once the pool takes writes again. Until
        then they are found by nobody new. Nothing is removed while any entry, or the uses of any host, cannot be read.
        """
        with self._alone():
            self._list()
            entries = list(self._entries())
            if self._problems() or self._uses.all().unreadable:
                return []
            rados_objects.delete(self._pool, [self._name])
            seen = self._uses.all()
            return [] if seen.unreadable else self._ordered(seen, float("inf"), entries)

    # -- who looks ---------------------------------------------------------------------------

    def all(self) -> list[Entry]:
        """Return all layers of the list, and those of which a deletion was begun (`deleting`)."""
        with self._alone():
            self._list()
            return list(self._entries())

    def problems(self) -> Sequence[str]:
        """Return a line for each entry of the list that could not be read when `all` read it. Nothing else is done."""
        return self._problems()

    def uses(self) -> Seen:
        """Return who uses what, and which hosts there are."""
        with self._alone():
            return self._uses.all()

    def forget_host(self, owner: Owner, ours: Collection[str] = ()) -> None:
        """Forget the uses of a host that does not live, and will not come back; those of `ours` become our own.

        Where we use a layer already, that is left to our driver, which may live: it would not know of a second use. If
        this fails, some of the host's uses are left, and the same call goes on.
        """
        with self._alone():
            used = self._uses.all().users
            users = {layer: used.get(layer, set()) for layer in ours}
            self._uses.note([layer for layer in ours if owner in users[layer] and self._owner not in users[layer]])
            self._uses.forget_owner(owner)

    # -- within: the caller is alone ---------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=deadline.left(self._pool.timeout)):
            raise deadline.Overdue("the list of shared layers has been busy for too long")
        try:
            yield
        finally:
            self._lock.release()

    def _take(self, entry: Entry) -> bool:
        """Use a layer, what is below it and what is above it. Tell whether we may be told of it."""
        by_layer = {item.layer: item for item in self._entries() if not item.deleting}
        from_bottom = (*reversed(list(_below(entry, by_layer))), entry, *self._above(entry))
        wanted = [item for item in from_bottom if item.layer not in self._told]
        new = {item.layer for item in wanted if not self._uses.has(item.layer)}
        self._uses.note([item.layer for item in wanted])
        self._list()
        end = time.monotonic() + AHEAD_SECONDS
        for item in wanted:
            # A layer below may be lost to the list, but one that we use was ours before.
            is_held = item.below in self._told or (self._uses.has(item.below) and item.below not in new)
            if item.key in self._listed and (is_held or not item.below):
                self._tell(item)
                self._ahead[item.layer] = end
        self._uses.take_back(new - self._told.keys())
        return entry.layer in self._told

    def _above(self, entry: Entry) -> Sequence[Entry]:
        """Return the layers above one, the nearest first, AHEAD at the most."""
        on: dict[str, list[Entry]] = {}
        for item in self._standing.values():
            on.setdefault(item.below, []).append(item)
        found = [entry]
        for item in found:
            found += on.get(item.layer, ())
            if len(found) > AHEAD:
                break
        return found[1 : AHEAD + 1]

    def _tell(self, entry: Entry) -> None:
        self._told[entry.layer] = self._told_of[entry.chain] = entry

    def _ask_for(self, entry: Entry) -> None:
        """A layer was asked for: its use, and that of what is below it, does not end by itself any more."""
        for item in (entry, *_below(entry, self._told)):
            self._ahead.pop(item.layer, None)

    def _forget(self, layer: str) -> None:
        """Forget that we were told of a layer."""
        self._ahead.pop(layer, None)
        told = self._told.pop(layer, None)
        if told and self._told_of.get(told.chain) == told:
            del self._told_of[told.chain]

    def _lock_chain(self, chain: str) -> bool:
        until = time.monotonic() + OFFER_SECONDS
        # No thread of ours offers beside this one, so a lock of ours is left from a failure.
        while not rados_objects.lock(self._pool, self._name, chain, self._owner.digest, LOCK_SECONDS):
            if time.monotonic() > until:
                return False
            time.sleep(PAUSE_SECONDS)
        return True

    def _offer(self, entry: Entry) -> Entry | None:
        self._list()
        if entry.below and not (self._uses.has(entry.below) and f"{entry.parent} {entry.below}" in self._listed):
            return None
        first = self._told_of.get(entry.chain) or self._standing.get(entry.chain)
        if first and first.layer != entry.layer:
            if first.below != entry.below or not self._take(first):
                return None
            self._ask_for(first)
            return first
        if first is None:
            rados_objects.set_omap(self._pool, self._name, entry.key, str(entry))
            self._listed[entry.key] = self._standing[entry.chain] = entry
            self._unmark(entry.layer)
        self._tell(first or entry)
        return first or entry

    def _unmark(self, layer: str) -> None:
        """Remove the marks that a layer is being deleted: it has gone, or we use it."""
        for item in list(self._entries()):
            if item.layer == layer and item.deleting:
                rados_objects.remove_omap(self._pool, self._name, item.key)
                del self._listed[item.key]

    def _is_needed(self, entry: Entry) -> bool:
        """Tell whether anybody uses a layer, or stands on it."""
        # First the uses: who uses it no more has offered before that what stands on it.
        seen = self._uses.all()
        self._list()
        on_it = any(item.below == entry.layer for item in self._entries())
        return on_it or bool(seen.unreadable) or bool(seen.users.get(entry.layer))

    # -- within: the list --------------------------------------------------------------------

    def _entries(self) -> Iterator[Entry]:
        return (item for item in self._listed.values() if isinstance(item, Entry))

    def _problems(self) -> list[str]:
        return [item for item in self._listed.values() if isinstance(item, str)]

    def _list(self) -> None:
        """Read the list. An entry never changes, so only those are read that were not there before."""
        self._uses.load()
        began = time.monotonic()
        keys = rados_objects.omap_keys(self._pool, self._name)
        unknown = [key for key in keys if key not in self._listed]
        new = self._read(unknown) if unknown else {}
        self._listed = {key: new.get(key) or self._listed[key] for key in keys if key in new or key in self._listed}
        self._standing = {}
        for item in self._entries():
            other = self._standing.get(item.chain)
            if not item.deleting and (other is None or _rank(item) < _rank(other)):
                self._standing[item.chain] = item
        if self._listed_at == float("-inf"):
            # The uses of our earlier lives hold for what is listed still.
            for item in self._entries():
                if not item.deleting and self._uses.has(item.layer):
                    self._tell(item)
        self._listed_at = began

    def _read(self, unknown: Sequence[str]) -> dict[str, Entry | str]:
        """Read entries. One that has gone meanwhile is left out."""
        values: dict[str, str] = {}
        try:
            if len(unknown) <= _FEW:
                values = {key: rados_objects.omap_value(self._pool, self._name, key) for key in unknown}
        except rbdcli.RbdError:
            values = {}
        if not values:
            values = dict(rados_objects.omap(self._pool, self._name))
        return {key: _parsed(key, values[key]) for key in unknown if key in values}

    def _ordered(self, seen: Seen, before: float, entries: Iterable[Entry] = ()) -> list[Entry]:
        """Return the entries that nobody has used since a time, each before what is below it, the oldest first."""
        found: dict[str, Entry] = {}
        for item in sorted(entries or self._entries(), key=lambda item: not item.deleting):
            # If it is listed, too, that is the entry to delete.
            found[item.layer] = item
        on: dict[str, set[str]] = {}
        for item in found.values():
            on.setdefault(item.below, set()).add(item.layer)
        since = {item.layer: self._since(item, seen) for item in found.values()}
        ready = [(since[layer], layer) for layer in found if not on.get(layer)]
        heapq.heapify(ready)
        ordered: list[Entry] = []
        while ready:
            at, layer = heapq.heappop(ready)
            item = found[layer]
            if seen.users.get(layer) or at > before or self._is_being_deleted(item):
                continue
            ordered.append(item)
            on[item.below].discard(layer)
            if item.below in found and not on[item.below]:
                heapq.heappush(ready, (since[item.below], item.below))
        return ordered

    def _since(self, entry: Entry, seen: Seen) -> float:
        """Return since when nobody uses a layer; 0 if that does not matter any more, or a clock was wrong."""
        since = max(entry.offered, seen.ended.get(entry.layer, 0.0))
        return 0.0 if entry.deleting or since > time.time() + _FUTURE_SECONDS else since

    def _is_being_deleted(self, entry: Entry) -> bool:
        """Tell whether another host that lives has begun to delete a layer."""
        if entry.deleting in ("", self._owner.digest[:DIGITS]):
            return False
        return bool(rados_objects.watching(self._pool, self._watched + entry.deleting))


def _below(entry: Entry, entries: dict[str, Entry]) -> Iterator[Entry]:
    """Yield what is below a layer, the nearest first, as far as it is known."""
    below = entries.get(entry.below)
    while below:
        yield below
        below = entries.get(below.below)


def _rank(entry: Entry) -> tuple[int, str]:
    """Of two layers for one chain, the one that was offered first stands for it."""
    return entry.offered, entry.layer


def _parsed(key: str, value: str) -> Entry | str:
    try:
        return Entry.parse(key, value)
    except ValueError as error:
        return str(error)
