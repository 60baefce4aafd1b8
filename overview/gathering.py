"""Asks the pool what is in it, in as few commands as there are: hundreds of layers are to be told in seconds.

- what all images hold, and their ids: one `rbd du` for the pool, which reads their object-maps
- which layers are shared, and who uses them: two omaps
- of each image its header, which has the record and the time: one `rados` for each, where `rbd` needs two
- of each image who has it open: one `rados` for each

The last two are asked for _AT_ONCE at a time. Who has what open is asked for WATCHING_SECONDS at the most.

Others make and remove layers meanwhile. What was listed and has gone is left out.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import rbdcli
from cluster import rados_objects
from cluster.owner import Owner
from cluster.shared_layers import SharedLayers
from host import command, logs
from host.progress import Progress
from images.layers import Layers
from images.names import BASE
from images.record import KEY, Record
from overview.contents import Contents, Host, Layer, Names
from snapshots.info import IMAGE_LABEL

log = logging.getLogger("tree")

# Seconds after which nobody is asked any more who has an image open.
WATCHING_SECONDS = 30.0
# Seconds that `rbd du` may take for each image, beside `ceph.timeout`.
_USAGE_SECONDS = 0.05
# `rbd du` fails as a whole if an image goes while it is looked at. After so many tries each image is asked for alone.
_TRIES = 3
_AT_ONCE = 8
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class Gathering:
    """One look at the pool. `names`: what this host's own database calls its layers."""

    def __init__(self, layers: Layers, prefix: str, names: Names, progress: Progress) -> None:
        self._layers, self._pool, self._prefix = layers, layers.pool, prefix
        self._names, self._progress = names, progress
        self._here = layers.owner()
        self._users: Mapping[str, set[Owner]] = {}
        self._addresses: dict[str, set[str]] = {}
        self._mapped: Collection[str] = ()
        self._until = 0.0

    def look(self) -> Contents:
        """Return what is in the pool. Changes nothing. Raises command.CommandError, deadline.Overdue."""
        self._progress.begin("listing the images")
        images = self._layers.images()
        self._progress.begin("asking what all images hold")
        usage = self._usage(images)
        self._progress.begin("asking who uses the shared layers")
        seen = SharedLayers(self._pool, self._prefix, self._here, beside=True).uses()
        for line in seen.unreadable:
            log.warning("who uses shared layers is not known in whole: %s", line)
        self._users = seen.users
        base = self._layers.image(BASE)
        found = {image: usage[image] for image in images if image in usage}
        ours = {image: held for image, held in found.items() if not image.startswith(base)}
        headers = self._headers(ours)
        layers = [self._layer(image, held, headers[image]) for image, held in ours.items() if headers[image]]
        hosts = self._hosts({layer.owner for layer in layers if layer.owner} | seen.owners | {self._here})
        return Contents(
            self._pool.name,
            self._pool.namespace,
            self._prefix,
            self._here,
            time.time(),
            sum(held.size for image, held in found.items() if image not in ours),
            {layer.id: layer for layer in self._opened(layers, ours)},
            hosts,
            self._names,
        )

    # -- what images hold ----------------------------------------------------------------------

    def _usage(self, images: Collection[str]) -> Mapping[str, rbdcli.Usage]:
        for _ in range(_TRIES):
            try:
                return self._pool.usage(more_seconds=_USAGE_SECONDS * len(images))
            except rbdcli.RbdError:
                # If the cluster is sick, the next command says so.
                self._pool.list()
        self._progress.begin("asking what each image holds", len(images))
        return {image: held for image, held in self._each(self._usage_of, images).items() if held}

    def _usage_of(self, image: str) -> rbdcli.Usage | None:
        try:
            return self._pool.usage(image)[image]
        except (rbdcli.ImageMissing, LookupError):
            return None

    # -- what they are -------------------------------------------------------------------------

    def _headers(self, images: Mapping[str, rbdcli.Usage]) -> Mapping[str, rados_objects.Header | None]:
        self._progress.begin("asking what each layer is", len(images))
        return self._each(lambda image: rados_objects.header(self._pool, images[image].image_id), images)

    def _layer(self, image: str, held: rbdcli.Usage, header: rados_objects.Header | None) -> Layer:
        layer = self._layers.layer(image)
        assert header
        try:
            record = Record.parse(header.metadata.get(KEY, ""))
        except ValueError:
            record = None
        if record is None:
            return Layer(layer, image, held.size, header.created)
        users = sorted(owner.seen_from(self._here) for owner in self._users.get(layer, ()))
        note = record.snapshot
        return Layer(
            layer,
            image,
            held.size,
            header.created,
            record.owner,
            record.parents,
            record.shared,
            # What stands there was written by others, and is for a terminal.
            (logs.printable(str(note.get("key", ""))), logs.printable(str(note.get("kind", "")))),
            _called(note),
            tuple(dict.fromkeys(users)),
        )

    # -- where they are open -------------------------------------------------------------------

    def _hosts(self, owners: Collection[Owner]) -> tuple[Host, ...]:
        """Return the hosts, and learn at which addresses they are."""
        self._until = time.monotonic() + WATCHING_SECONDS
        self._progress.begin("asking which hosts answer", len(owners))
        ordered = sorted(owners, key=lambda owner: (owner != self._here, str(owner)))
        watching = self._each(lambda owner: self._asked(owner.object(self._prefix), rados_objects.watching), ordered)
        for owner, addresses in watching.items():
            for address in addresses or ():
                self._addresses.setdefault(_machine(address), set()).add(owner.seen_from(self._here))
        return tuple(Host(owner, None if found is None else bool(found)) for owner, found in watching.items())

    def _opened(self, layers: Collection[Layer], usage: Mapping[str, rbdcli.Usage]) -> list[Layer]:
        self._progress.begin("asking where each layer is open", len(layers))
        # It is asked for in words of rbd's, which another version may print in other ones.
        with contextlib.suppress(command.CommandError, ValueError, LookupError):
            self._mapped = {item.image for item in self._pool.mappings()}
        ids = {layer.image: usage[layer.image].image_id for layer in layers}
        opened = self._each(lambda image: self._asked(ids[image], rados_objects.opened), ids)
        return [replace(layer, open_at=self._where(layer, opened[layer.image])) for layer in layers]

    def _asked(self, name: str, ask: Callable[[rbdcli.Pool, str], Collection[str]]) -> Collection[str] | None:
        """Return addresses; None once it is too late for that."""
        if time.monotonic() > self._until:
            return None
        try:
            return ask(self._pool, name)
        except command.CommandTimeout:
            self._until = 0.0
            return None

    def _where(self, layer: Layer, addresses: Collection[str] | None) -> tuple[str, ...] | None:
        """Name the hosts at some addresses; an address where no host answers, or several."""
        here = [self._here.host] if layer.image in self._mapped else []
        if addresses is None:
            return tuple(here) or None
        known = [(address, self._addresses.get(_machine(address), set())) for address in addresses]
        names = [next(iter(hosts)) if len(hosts) == 1 else _machine(address) for address, hosts in known]
        return tuple(dict.fromkeys([*here, *sorted(names)]))

    # -- many at once --------------------------------------------------------------------------

    def _each(self, ask: Callable[[_Item], _Answer], items: Iterable[_Item]) -> dict[_Item, _Answer]:
        """Ask something about each, some at the same time. After the first failure, nobody else is asked."""

        def answer(item: _Item) -> tuple[_Item, _Answer]:
            answered = ask(item)
            self._progress.advance()
            return item, answered

        threads = ThreadPoolExecutor(_AT_ONCE)
        try:
            return dict(threads.map(answer, items))
        finally:
            threads.shutdown(cancel_futures=True)


def _called(note: Mapping[str, object]) -> str:
    labels = note.get("labels")
    return logs.printable(str(labels.get(IMAGE_LABEL, ""))) if isinstance(labels, Mapping) else ""


def _machine(address: str) -> str:
    """Return the address of a client's machine, without its port and nonce: 10.0.0.1:0/123 -> 10.0.0.1."""
    return address.rpartition(":")[0].strip("[]")
