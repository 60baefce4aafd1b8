"""Looks for what belongs to nobody: in the pool, among mappings, mounts and directories, against what is known of it.

It is known to who uses the layers of the home: Docker, or containerd by the snapshotter (knowledge.py).

It looks only for things of this host and this home: the owner stands in the metadata of each image. It changes
nothing, and opens nothing that a running driver or Docker could stumble over.

A finding that is proven `dead` is for `collector.py` to remove. An image is dead if it

- belongs to this host under its present name, and to this home, or to nobody, since its Create was killed; and has an
  id as Docker makes them, or as we do for a snapshot,
- is named neither by Docker's layer store nor in BuildKit's databases, nor in the snapshotter's, which are read before
  the pool and after it, and are whole (`docker_database.py`, `snapshots_database.py`),
- was made more than an hour ago: Docker writes a layer down within moments after it was made or filled,
- is mapped by nobody (no watcher, no mapping, no mount, no directory), so that nothing fills it now,
- has no image standing on it that is not dead, and was not taken over from another host, whose Docker may still come.

A layer that all hosts share is dead if it is not listed as such, no host uses it, and the same holds of its age, its
users on this host, and what stands on it. One that is listed goes by the rules of that list (cluster/shared_layers.py).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import mounts
import rbdcli
from cluster import claim
from cluster.owner import Owner
from cluster.shared_layers import SharedLayers
from host import deadline
from host.progress import Progress
from images.base_image import FORMAT, FORMAT_KEY
from images.family import parents_of
from images.layers import TAKEN_KEY, Layers
from images.names import BASE
from images.record import KEY, Record
from images.trash import REMOVED_SOURCES
from maintenance.knowledge import Database, Known
from mapped.paths import REMOVED

MIN_AGE_SECONDS = 3600.0
# A finding younger than that is the driver's work in progress: it empties the trash and unmaps in the background.
BEHIND_SECONDS = 600.0
# Seconds between two looks: the steps of a driver follow each other faster.
SETTLE_SECONDS = 1.0
_AT_ONCE = 8

ORPHAN, HALF_MADE, TRASH = "orphan-image", "half-made", "trash"
STALE_MAPPING, STALE_MOUNT, STALE_DIRECTORY = "stale-mapping", "stale-mount", "stale-directory"
MISSING, STALE_RECORD, SHARED = "missing-image", "stale-record", "shared-layer"


@dataclass(frozen=True)
class Finding:
    """Something that belongs to nobody.

    `place` is what to act upon: an image, an id in the trash, a device or a path. `age` in seconds and `size` in bytes
    are None where nobody knows. `dead`: it is proven. `idle`: a pool in order has such things, too. `below`: the layers
    that an image stands on.
    """

    kind: str
    id: str
    why: str
    place: str
    age: float | None = None
    size: int | None = None
    dead: bool = False
    idle: bool = False
    below: tuple[str, ...] = ()


@dataclass
class _Here:
    """What this host has, read once: devices by image; mount points by layer; directories by layer, with their time."""

    devices: Mapping[str, str]
    mounted: Mapping[str, Sequence[str]]
    directories: Mapping[str, float]


@dataclass
class _Seen:
    """What there is, read once. `namesakes`: machine-ids of our name; `gone`: layers of containers that are gone.

    `shared`: why a shared layer is kept, for each that is.
    """

    images: Collection[str]
    here: _Here
    known: Known
    namesakes: Sequence[str]
    shared: Mapping[str, str]
    gone: set[str] = field(default_factory=set)


class Inspection:
    """One look at one driver's pool, host and home."""

    def __init__(
        self,
        layers: Layers,
        prefix: str,
        home: str,
        database: Database,
        *,
        min_age: float = MIN_AGE_SECONDS,
        progress: Progress | None = None,
    ) -> None:
        self._layers = layers
        self._pool = layers.pool
        self._prefix = prefix
        self._home = home
        self._root = os.path.join(home, "mnt")
        self._owner = layers.owner()
        self._shared = SharedLayers(self._pool, prefix, self._owner, beside=True)
        self._database, self._words = database, database.words
        self._min_age, self._progress = min_age, progress or Progress("")

    def findings(self) -> list[Finding]:
        """Look, and return the findings, with images in an order in which they can be removed. Changes nothing.

        Raises command.CommandError, knowledge.DatabaseMissing, LayerError, OSError, ValueError: nothing is known
        then.
        """
        self._progress.begin("reading what there is")
        seen = self._look()
        found = [*self._orphans(seen), *self._scratch(seen), *self._missing(seen)]
        found += [*self._records(seen.known), *self._mappings(seen), *self._directories(seen.here), *self._trash()]
        return found

    def still_dead(self, finding: Finding) -> bool:
        """Look once more at one finding, just before it is removed.

        Raises FileNotFoundError if it went by itself, and what `findings` raises.
        """
        look: dict[str, Callable[[], bool]] = {
            ORPHAN: lambda: self._is_unknown(finding),
            SHARED: lambda: self._is_unshared(finding),
            HALF_MADE: lambda: not self._in_use(finding.place),
            STALE_RECORD: lambda: _holds(self._records(self._database.known()), finding),
            # `Pool.unmap` looks itself whether the image is still mapped there.
            STALE_MAPPING: lambda: not (os.path.lexists(self._directory(finding.id)) or _is_used(finding.place)),
            STALE_DIRECTORY: lambda: self._is_stale_still(finding),
            TRASH: lambda: _holds(self._trash(), finding),
        }
        if not finding.dead or look[finding.kind]():
            return finding.dead
        if self._has_gone(finding):
            raise FileNotFoundError(finding.place)
        return False

    def _has_gone(self, finding: Finding) -> bool:
        if finding.kind == TRASH:
            return finding.place not in [item.image_id for item in self._layers.trash.images()]
        if finding.kind in (ORPHAN, HALF_MADE, SHARED):
            return not self._layers.exists(self._layers.layer(finding.place))
        return finding.kind == STALE_RECORD and not os.path.lexists(finding.place)

    def _is_unknown(self, finding: Finding) -> bool:
        layer = finding.id
        unknown = layer not in self._database.known().named and not self._database.mentioned([layer])
        return unknown and not self._in_use(finding.place) and not os.path.lexists(self._directory(layer))

    def _is_unshared(self, finding: Finding) -> bool:
        if finding.id in self._database.known().named or self._kept_for_hosts([finding.id]):
            return False
        return not (os.path.lexists(self._directory(finding.id)) or self._in_use(finding.place))

    def _is_stale_still(self, finding: Finding) -> bool:
        changed = self._changed(finding.id)
        if changed is None:
            return True
        return _holds(self._directories(self._look_here({finding.id: changed})), finding)

    # -- what is there -----------------------------------------------------------------------

    def _look(self) -> _Seen:
        # The databases are read before and after: a layer that is being made, or removed, is in one of the two.
        before = self._database.known()
        directories = self._read_directories()
        images = set(self._layers.images())
        here = self._look_here(directories)
        here.devices = {image: device for image, device in here.devices.items() if image in images}
        known = self._database.known()
        known.named, known.shared = {**before.named, **known.named}, before.shared | known.shared
        gone = {layer for layers in known.gone.values() for layer in layers}
        machines = claim.machines(self._pool, self._prefix, self._owner)
        namesakes = [item.machine for item in machines if item != self._owner]
        return _Seen(images, here, known, namesakes, self._kept_for_hosts(self._layers.among(images)), gone)

    def _kept_for_hosts(self, layers: Iterable[str]) -> dict[str, str]:
        """Say of those of some layers why they are kept that all hosts share, or that a host uses."""
        # Who is told of a layer uses it, and then looks whether it is listed. So the list comes first here.
        listed = {entry.layer: entry for entry in self._shared.all()}
        uses = self._shared.uses()
        kept: dict[str, str] = {}
        for layer in layers:
            hosts = ", ".join(sorted(owner.seen_from(self._owner) for owner in uses.users.get(layer, ())))
            if layer in listed and listed[layer].deleting:
                kept[layer] = "its deletion has begun"
            elif layer in listed or hosts:
                kept[layer] = f"shared by all hosts; used by {hosts or 'nobody now'}"
            elif uses.unreadable or self._shared.problems():
                kept[layer] = [*uses.unreadable, *self._shared.problems()][0]
        return kept

    def _look_here(self, directories: Mapping[str, float]) -> _Here:
        devices = {item.image: item.device for item in self._pool.mappings()}
        points: dict[str, list[str]] = {}
        for item in mounts.table():
            if item.point.startswith(self._root + "/"):
                points.setdefault(item.point[len(self._root) + 1 :].partition("/")[0], []).append(item.point)
        return _Here(devices, points, directories)

    def _read_directories(self) -> dict[str, float]:
        """Return the directories of layers, each with the time when something was last made or removed in it."""
        found: dict[str, float] = {}
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._root):
                changed = self._changed(name)
                if changed is not None:
                    found[name] = changed
        return found

    def _changed(self, layer: str) -> float | None:
        """Return when something was last made or removed in a layer's directory; None if there is no directory."""
        try:
            return os.stat(self._directory(layer)).st_mtime
        except FileNotFoundError:
            return None

    def _directory(self, layer: str) -> str:
        return os.path.join(self._root, layer)

    def _is_removed(self, layer: str) -> bool:
        """Tell whether a layer was removed whose image the driver has yet to delete (removals.py)."""
        return os.path.isdir(os.path.join(self._directory(layer), REMOVED))

    def _in_use(self, image: str) -> bool:
        """Tell whether anybody has an image open. True also if the image is gone: somebody is removing it."""
        try:
            return bool(self._pool.watchers(image)) or image in [item.image for item in self._pool.mappings()]
        except rbdcli.ImageMissing:
            return True

    # -- images ------------------------------------------------------------------------------

    def _orphans(self, seen: _Seen) -> list[Finding]:
        base = self._layers.image(BASE)
        strangers = [
            name
            for name in seen.images
            if not name.startswith(base) and self._is_stranger(self._layers.layer(name), seen.known)
        ]
        self._progress.begin("looking at images that have no name here", len(strangers))

        def look(image: str) -> Finding | None:
            found = self._orphan(image, seen)
            self._progress.advance()
            return found

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            found = [finding for finding in threads.map(look, strangers) if finding]
        self._progress.begin("looking at the rest")
        mentioned = self._database.mentioned([finding.id for finding in found])
        for at, finding in enumerate(found):
            if finding.id in mentioned:
                found[at] = replace(finding, why="BuildKit knows it, or did until lately", dead=False, idle=True)
        return self._without_needed(found, seen.images)

    @staticmethod
    def _is_stranger(layer: str, known: Known) -> bool:
        """Tell whether a layer is to be described: it is not named, or belongs to all hosts: one may ask whose."""
        return layer not in known.named or layer in known.shared

    def _without_needed(self, found: Sequence[Finding], images: Collection[str]) -> list[Finding]:
        """Return the findings, those no longer dead on which a living layer stands; a layer before its parents."""
        if not any(finding.dead for finding in found):
            return list(found)
        layers = self._layers.among(images)
        parents = dict(parents_of(layers, self._layers.parents_if_there))
        dead = {finding.id for finding in found if finding.dead}
        living = [layer for layer in parents if layer not in dead and not self._is_removed(layer)]
        needed = {parent for layer in living for parent in parents[layer]}
        why = "a layer that is not dead stands on it"
        kept = [replace(item, why=why, dead=False) if item.dead and item.id in needed else item for item in found]
        kept = [replace(item, below=tuple(parents.get(item.id, ()))) for item in kept]
        return sorted(kept, key=lambda item: -len(item.below))

    def _orphan(self, image: str, seen: _Seen) -> Finding | None:
        """Describe an image that is not named, or is shared; None if it belongs to another host or home, or is gone."""
        layer = self._layers.layer(image)
        if self._is_removed(layer):
            return None
        try:
            metadata = self._pool.metadata(image)
            # It has no owner, but it is a clone of our base image: its Create was killed before it wrote the owner.
            # Whichever host made it, it is dead once it is old enough.
            unowned = metadata.get(FORMAT_KEY) == FORMAT and KEY not in metadata
            if self._is_shared(metadata):
                return self._shared_layer(image, layer, seen)
            if layer in seen.known.named:
                return None
            owner = self._owner_in(metadata)
            if not owner.is_same(self._owner) and not unowned:
                return None
            age = time.time() - self._pool.created(image)
            size = self._pool.used(image)
            watchers = self._pool.watchers(image)
        except rbdcli.ImageMissing:
            return None
        words, is_taken = self._words, metadata.get(TAKEN_KEY) == image
        reasons = {
            f"it was taken over from another host; {words.knower} here does not know it": is_taken
            and self._database.keeps_taken,
            self._doubt(owner, seen): bool(self._doubt(owner, seen)) and not unowned,
            f"its name is not an id of {words.knower}'s": not self._database.ids.fullmatch(layer),
            **self._uses_of(image, watchers, seen),
            f"{words.knower} may be about to write it down": age < self._min_age,
        }
        why = next((reason for reason, holds in reasons.items() if holds), "")
        dead = not why
        if not why and unowned:
            why = "it has no owner: its Create was killed"
        why = why or ("its container is gone" if layer in seen.gone else f"{words.knower} knows no such layer")
        return Finding(ORPHAN, layer, why, image, age, size, dead=dead, idle=age < self._min_age)

    def _uses_of(self, image: str, watchers: Sequence[str], seen: _Seen) -> dict[str, bool]:
        """Return in words how an image may be in use, each with whether it is."""
        layer = self._layers.layer(image)
        return {
            f"it is mounted here, until {self._words.daemon} starts anew": layer in seen.here.mounted,
            f"it is open at {', '.join(watchers)}": bool(watchers),
            f"it is mapped as {seen.here.devices.get(image)}": image in seen.here.devices,
            f"{self._directory(layer)} exists": layer in seen.here.directories,
        }

    def _shared_layer(self, image: str, layer: str, seen: _Seen) -> Finding:
        """Describe a layer that all hosts share. Raises rbdcli.ImageMissing."""
        age = time.time() - self._pool.created(image)
        reasons = {
            seen.shared.get(layer, ""): layer in seen.shared,
            f"{self._words.knower} names it ({seen.known.named.get(layer)})": layer in seen.known.named,
            **self._uses_of(image, self._pool.watchers(image), seen),
            "a host may be about to offer it": age < self._min_age,
        }
        why = next((reason for reason, holds in reasons.items() if holds), "")
        is_idle = layer in seen.shared or layer in seen.known.named or age < self._min_age
        words = why or "it was made for all hosts, but none can find it, and none uses it"
        return Finding(SHARED, layer, words, image, age, self._pool.used(image), dead=not why, idle=is_idle)

    def _is_shared(self, metadata: Mapping[str, str]) -> bool:
        try:
            record = Record.parse(metadata.get(KEY, ""))
        except ValueError:
            return False
        return record is not None and record.shared

    def _owner_in(self, metadata: Mapping[str, str]) -> Owner:
        """Return the owner that an image's metadata names; an empty one if there is none, or it cannot be read."""
        try:
            record = Record.parse(metadata.get(KEY, ""))
        except ValueError:
            record = None
        return record.owner if record else Owner("", "", "")

    def _doubt(self, owner: Owner, seen: _Seen) -> str:
        """Say why a layer of ours may belong to another machine; "" if it cannot."""
        if owner.host != self._owner.host:
            return (
                f"it was made by host {owner.host}, of which this one may be a clone; if it was that itself: takeover"
            )
        if owner.machine and owner != self._owner:
            return f"it was made on the machine {owner.machine}, and this one tells no machine-id"
        if not owner.machine and seen.namesakes:
            return f"an older version made it, and there are more machines of this name: {', '.join(seen.namesakes)}"
        return ""

    def _scratch(self, seen: _Seen) -> Iterator[Finding]:
        """Yield the base images that never got their name."""
        ours = self._layers.scratch()
        for image in sorted(seen.images):
            if not image.startswith(self._layers.image(BASE) + "."):
                continue
            with contextlib.suppress(rbdcli.ImageMissing):
                age = time.time() - self._pool.created(image)
                if age < self._min_age:
                    continue
                size = self._pool.used(image)
                if image != ours:
                    why = "a base image that another host or home left half made; its own driver removes it"
                    yield Finding(HALF_MADE, self._layers.layer(image), why, image, age, size)
                    continue
                busy = self._in_use(image) or os.path.lexists(os.path.join(self._home, BASE))
                why = "a base image that was never made to its end"
                yield Finding(HALF_MADE, self._layers.layer(image), why, image, age, size, dead=not busy)

    def _missing(self, seen: _Seen) -> Iterator[Finding]:
        """Yield the layers that are named and the pool does not have."""
        gone = [layer for layer in seen.known.named if self._layers.image(layer) not in seen.images]
        # Not those that were made while we looked, or are being removed: Docker forgets a layer moments after the
        # driver has removed it.
        gone = [layer for layer in gone if not self._layers.exists(layer)]
        if gone:
            time.sleep(SETTLE_SECONDS)
        now = self._database.known() if gone else Known()
        for layer in gone:
            if layer in now.named and layer not in now.unmade:
                why = f"{self._words.knower} names it ({now.named[layer]}), but the pool has no such image"
                yield Finding(MISSING, layer, why, self._layers.image(layer))

    def _trash(self) -> Iterator[Finding]:
        for item in self._layers.trash.images():
            age = time.time() - item.deleted_at
            layer = self._layers.layer(item.name)
            if item.source not in REMOVED_SOURCES:
                why = "moved to the trash by somebody else, or by a driver of before; nobody but an operator removes it"
                yield Finding(TRASH, layer, why, item.image_id, age, idle=True)
            elif age >= min(self._min_age, BEHIND_SECONDS):
                why = "in the trash still: it has clones, or somebody has it open"
                yield Finding(TRASH, layer, why, item.image_id, age, dead=True)

    # -- Docker ------------------------------------------------------------------------------

    def _records(self, known: Known) -> Iterator[Finding]:
        """Yield the records that Docker's layer store still has of containers that are gone."""
        for place, layers in known.gone.items():
            with contextlib.suppress(FileNotFoundError):
                age = time.time() - os.stat(place).st_mtime
                why = f"a container that is gone, of which Docker's layer store keeps {', '.join(layers) or 'nothing'}"
                young = age < self._min_age
                yield Finding(STALE_RECORD, os.path.basename(place), why, place, age, dead=not young, idle=young)

    # -- this host ---------------------------------------------------------------------------

    def _mappings(self, seen: _Seen) -> Iterator[Finding]:
        """Yield the devices that no driver will unmap: a driver finds its own by their directories."""
        devices = self._without_directory(seen.here.devices)
        if devices:
            # A driver may be at work: it removes the directory after it has unmapped, and makes it before it maps.
            time.sleep(SETTLE_SECONDS)
            mapped = {item.image: item.device for item in self._pool.mappings() if item.image in seen.images}
            now = self._without_directory(mapped)
            devices = {image: device for image, device in devices.items() if now.get(image) == device}
        for image, device in devices.items():
            try:
                if not self._owner_in(self._pool.metadata(image)).is_same(self._owner):
                    continue
            except rbdcli.ImageMissing:
                continue
            used = _is_used(device)
            why = f"mapped as {device} without a directory in {self._root}" + (", and in use" if used else "")
            yield Finding(STALE_MAPPING, self._layers.layer(image), why, device, dead=not used)

    def _without_directory(self, devices: Mapping[str, str]) -> dict[str, str]:
        layers = {image: self._layers.layer(image) for image in devices}
        return {
            image: devices[image]
            for image, layer in layers.items()
            if not layer.startswith(BASE) and not os.path.lexists(self._directory(layer))
        }

    def _directories(self, here: _Here) -> Iterator[Finding]:
        """Yield the directories for layers that are neither mapped nor mounted, and mounts without an image."""
        for layer, changed in here.directories.items():
            age = time.time() - changed
            if age < min(self._min_age, BEHIND_SECONDS):
                continue
            found = self._stale(layer, age, here)
            # Each step of the driver makes or removes something in the layer's directory. So it was not at work.
            if found and self._changed(layer) == changed:
                yield found

    def _stale(self, layer: str, age: float, here: _Here) -> Finding | None:
        image, place = self._layers.image(layer), self._directory(layer)
        if self._is_removed(layer):
            who, driver = self._words.remover, self._words.driver
            why = f"{who} removed it, but {driver} has not been able to let its image go; its log says why"
            return Finding(STALE_DIRECTORY, layer, why, place, age)
        if layer in here.mounted:
            if self._layers.exists(layer):
                return None
            why = f"mounted at {here.mounted[layer][0]}, but the pool has no such image"
            return Finding(STALE_MOUNT, layer, why, here.mounted[layer][0], age)
        if image not in here.devices:
            why = "a directory for a layer that is neither mapped nor mounted"
            return Finding(STALE_DIRECTORY, layer, why, place, age, dead=age >= self._min_age)
        if _is_used(here.devices[image]):
            return None
        why = f"mapped as {here.devices[image]} for nobody; the next start of {self._words.driver} unmaps it"
        return Finding(STALE_MAPPING, layer, why, here.devices[image], age)


def _is_used(device: str) -> bool:
    """Tell whether somebody uses a device. True also if it does not answer, since the cluster takes no writes."""
    try:
        return mounts.in_use(device)
    except deadline.Overdue:
        return True


def _holds(found: Iterable[Finding], finding: Finding) -> bool:
    """Tell whether a finding was found once more."""
    return (finding.kind, finding.place, True) in [(item.kind, item.place, item.dead) for item in found]
