"""What Docker itself knows of its layers, read from the files in its data root.

- Its layer store keeps text files: `image/DRIVER/layerdb/sha256/CHAIN/{cache-id,diff,parent}` for a layer of an image,
  `mounts/CONTAINER/{mount-id,init-id,parent}` for a container, `tmp/*/cache-id` while a layer is being registered
  (moby, layer/filestore.go).
- Its images are `image/DRIVER/imagedb/content/sha256/ID`, their names are in `repositories.json`, its containers
  are `containers/ID`.
- BuildKit keeps its own in Bolt databases, `buildkit/*.db`. Bolt stores keys and values as they are, each
  in one piece (bbolt, page.go): an id whose bytes are nowhere in these files is in none of them. The reverse
  proves nothing, since what was deleted stays in the file for a while.

gc removes what Docker does not name. So nothing may be missing here: an image names its layers, a layer its parent, a
container its record and a record its container. If one of these is missing, a part of the data root is not mounted,
copied or readable, and then nothing can be concluded.

A record without its container needs a proof that the container is gone. `docker rm --force` leaves such records when it
cannot reach the driver, although it says that all went well, and no dockerd ever forgets them. But a dockerd that
started without its `containers/` looks the same. So a running dockerd proves it only for records that were made since
it started. And a record must not be newer than `containers/`: each container was made after its record, so it would
have been made in another directory.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import struct
import time
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO

from maintenance import docker_names, dockerd_process
from maintenance.docker_files import ID, Paths, chain_id, content_of, diffs_of, listed, text_of
from maintenance.knowledge import Database, DatabaseMissing, Known, Words
from overview.contents import Names

# Ids of layers: Docker's own, BuildKit's (moby: pkg/stringid; buildkit: identity).
_LAYER_ID = re.compile(r"[0-9a-f]{64}|[0-9a-z]{25}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# The head of each of a Bolt database's first two pages (bbolt, db.go and page.go): the page's own 16 bytes, the magic
# number, version and page size; root, freelist, and how many pages there are.
_BOLT_META, _BOLT_MAGIC = struct.Struct("=16xIII4x24xQ"), 0xED0CDAED
# Seconds between two looks: what Docker makes or removes meanwhile looks damaged for a moment.
PAUSE_SECONDS = 1.0
_LOOKS = 10
# Seconds by which two clocks may differ: that of a process's start, and that of the times of files. Both go in steps.
_CLOCKS = 1.0
# The database in which BuildKit writes down the layers that it has made (moby, builder-next/adapters/snapshot).
_BUILDKIT_LAYERS = "snapshots.db"
# How many records are told at once.
_TOLD = 5
_MOUNT_FIRST = "mount or restore Docker's data root"


class DockerDatabase(Database):
    """The databases of one Docker daemon and storage driver; each method reads them anew."""

    words = Words("Docker", "Docker", "the driver", "dockerd")
    # Layers of Docker's layer store, its init layers, and BuildKit's (moby: pkg/stringid; buildkit: identity).
    ids = re.compile(r"[0-9a-f]{64}(-init)?|[0-9a-z]{25}")
    keeps_taken = True

    def __init__(self, data_root: str, driver: str) -> None:
        self._paths = Paths(data_root, driver)

    def known(self) -> Known:
        """Return what Docker knows, if all of it is there.

        Raises DatabaseMissing if one thing is missing in two looks in a row, or something in each look; OSError,
        ValueError.
        """
        paths = self._paths
        for path in (paths.layers, paths.images, paths.containers):
            if not os.path.isdir(path):
                raise DatabaseMissing(
                    f"{path} does not exist: Docker's data root is not here, or not mounted; name it by --data-root"
                )
        reading = _Reading(paths)
        known, missing = reading.read()
        for _ in range(_LOOKS):
            if not missing:
                return known
            time.sleep(PAUSE_SECONDS)
            known, now = reading.read()
            # While Docker is busy, one thing after the other may seem to be missing.
            for words in missing:
                if words in now:
                    raise DatabaseMissing(words)
            missing = now
        if missing:
            raise DatabaseMissing(missing[0])
        return known

    def names(self) -> Names:
        """Return what Docker calls its images and containers."""
        return docker_names.names(self._paths)

    def forget(self, record: str) -> None:
        """Remove the record of a container that is gone, which would make Docker keep its layers.

        It is renamed in one step, to where Docker looks for no record, and deleted there. Raises FileNotFoundError if
        it has gone, OSError.
        """
        away = os.path.join(self._paths.layers, "tmp", f"{os.path.basename(record)}-forgotten")
        shutil.rmtree(away, ignore_errors=True)
        os.makedirs(os.path.dirname(away), exist_ok=True)
        os.rename(record, away)
        shutil.rmtree(away)

    def mentioned(self, layers: Collection[str]) -> set[str]:
        """Return those of `layers` that BuildKit may know.

        Raises DatabaseMissing if its databases are not whole, OSError if they cannot be read.
        """
        found: set[str] = set()
        try:
            names = [name for name in os.listdir(self._paths.buildkit) if name.endswith(".db")]
        except FileNotFoundError:
            # Docker before 18.06 has no BuildKit.
            return found
        if _BUILDKIT_LAYERS not in names:
            raise DatabaseMissing(f"{self._paths.buildkit} holds no {_BUILDKIT_LAYERS} of BuildKit's; {_MOUNT_FIRST}")
        for name in names:
            found |= _mentioned(os.path.join(self._paths.buildkit, name), layers)
        return found


def _mentioned(path: str, layers: Collection[str]) -> set[str]:
    try:
        with open(path, "rb") as source:
            _check_whole(source)
            with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return {layer for layer in layers if content.find(layer.encode()) >= 0}
    except (FileNotFoundError, ValueError):
        raise DatabaseMissing(f"{path} is not there in whole, or no database of BuildKit's; {_MOUNT_FIRST}") from None


def _check_whole(database: BinaryIO) -> None:
    """Raise ValueError if a Bolt database has not all of its pages. Such a file never becomes smaller."""
    head = database.read(_BOLT_META.size)
    pages, page_size = _pages(head)
    database.seek(page_size)
    pages = max(pages, _pages(database.read(_BOLT_META.size))[0])
    if os.stat(database.fileno()).st_size < pages * page_size:
        raise ValueError


def _pages(head: bytes) -> tuple[int, int]:
    """Return the number of a database's pages, and the bytes of each, from a head of a page. Raises ValueError."""
    if len(head) < _BOLT_META.size:
        raise ValueError
    magic, _, page_size, pages = _BOLT_META.unpack(head)
    if magic != _BOLT_MAGIC:
        raise ValueError
    return pages, page_size


class _Reading:
    """One look at the files of the layer store, of the images and of the containers."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._known = Known()
        self._missing: list[str] = []

    def read(self) -> tuple[Known, list[str]]:
        """Return what is known, and what is missing, each in one line."""
        self._known, self._missing = Known(), []
        # Read a thing before those that it needs: Docker makes these first.
        references, images = self._references(), self._read_images()
        containers = listed(self._paths.containers)
        # Unfinished layers before finished ones: Docker finishes a layer by renaming it.
        self._read_unfinished()
        chains = self._read_layers()
        self._check_images(references, images, chains)
        self._read_containers(containers, chains)
        return self._known, self._missing

    def _read_unfinished(self) -> None:
        for name in listed(os.path.join(self._paths.layers, "tmp")):
            self._name(text_of(os.path.join(self._paths.layers, "tmp", name, "cache-id")), "a layer being registered")

    def _name(self, layer: str | None, what: str) -> None:
        if layer and _LAYER_ID.fullmatch(layer):
            self._known.named[layer] = what

    # -- layers and images -------------------------------------------------------------------

    def _read_layers(self) -> set[str]:
        """Read the layers of images; return their chain ids."""
        store = os.path.join(self._paths.layers, "sha256")
        parents: dict[str, str] = {}
        for name in listed(store):
            directory = os.path.join(store, name)
            layer = text_of(os.path.join(directory, "cache-id"))
            self._name(layer, "a layer of an image")
            # Docker ignores other names: CHAIN-RANDOM-removing is a layer that it is removing.
            if not ID.fullmatch(name):
                continue
            diff, parent = (text_of(os.path.join(directory, file)) for file in ("diff", "parent"))
            parents[f"sha256:{name}"] = parent or ""
            self._check(directory, "cache-id", layer, _LAYER_ID)
            self._check(directory, "diff", diff, _DIGEST)
            if parent is not None:
                self._check(directory, "parent", parent, _DIGEST)
            if diff and chain_id(parent, diff) != f"sha256:{name}":
                self._miss(directory, f"{directory} has not the diff and parent that its name was made of")
        for chain, parent in parents.items():
            if parent and parent not in parents:
                directory = os.path.join(store, chain.partition(":")[2])
                self._miss(directory, f"{directory} needs its parent {parent}, which is not there")
        return set(parents)

    def _read_images(self) -> dict[str, list[str]]:
        """Return the images, each with the diff ids of its layers, from the lowest on."""
        found: dict[str, list[str]] = {}
        for name in filter(ID.fullmatch, listed(self._paths.images)):
            content = content_of(path := os.path.join(self._paths.images, name))
            if content is None:
                continue
            try:
                found[name] = diffs_of(name, content)
            except (ValueError, AttributeError, TypeError):
                self._missing.append(f"{path} is empty or damaged; {_MOUNT_FIRST}")
        return found

    def _check_images(
        self, references: Mapping[str, str], images: Mapping[str, list[str]], chains: Collection[str]
    ) -> None:
        for reference, image in references.items():
            if image.partition(":")[2] not in images:
                self._missing.append(f"{reference} is an image that is not in {self._paths.images}; {_MOUNT_FIRST}")
        for name, diffs in images.items():
            chain = ""
            for diff in diffs:
                chain = chain_id(chain, diff)
                if chain not in chains:
                    self._missing.append(
                        f"image {name[:12]} needs layer {chain}, which is not in {self._paths.layers}; {_MOUNT_FIRST},"
                        f" or remove the image, while dockerd is stopped: rm {os.path.join(self._paths.images, name)}"
                    )
                    break

    def _references(self) -> Mapping[str, str]:
        content = content_of(self._paths.names)
        if content is None:
            return {}
        try:
            repositories = json.loads(content)["Repositories"]
            return {str(name): str(image) for names in repositories.values() for name, image in names.items()}
        except (ValueError, LookupError, AttributeError, TypeError):
            self._missing.append(f"{self._paths.names} is empty or damaged; {_MOUNT_FIRST}")
            return {}

    # -- containers --------------------------------------------------------------------------

    def _read_containers(self, containers: Collection[str], chains: Collection[str]) -> None:
        """Read the records that the layer store has of containers, and compare them with the containers."""
        store = os.path.join(self._paths.layers, "mounts")
        records = listed(store)
        alone: list[str] = []
        for name in records:
            if ID.fullmatch(name) and name not in containers:
                alone.append(name)
            else:
                self._check_record(os.path.join(store, name), chains, is_container=name in containers)
                self._name_record(name)
        self._judge(alone)
        for name in set(containers).difference(records):
            self._check_container(name)

    def _check_record(self, directory: str, chains: Collection[str], *, is_container: bool) -> None:
        layer, init, parent = (text_of(os.path.join(directory, file)) for file in ("mount-id", "init-id", "parent"))
        self._check(directory, "mount-id", layer, _LAYER_ID)
        if init is not None or is_container:
            self._check(directory, "init-id", init, re.compile(f"{re.escape(layer or '')}-init"))
        if parent is not None and parent not in chains:
            self._miss(directory, f"{directory} needs its parent {parent or '(empty)'}, which is not there")

    def _name_record(self, name: str) -> None:
        for layer in self._layers_of(name):
            self._known.named[layer] = f"of container {name[:12]}"

    def _layers_of(self, name: str) -> tuple[str, ...]:
        found = (text_of(os.path.join(self._paths.layers, "mounts", name, file)) for file in ("mount-id", "init-id"))
        return tuple(layer for layer in found if layer)

    def _judge(self, alone: Collection[str]) -> None:
        """Decide for each record without a container: the container is gone, or it is not proven that it is."""
        daemon = dockerd_process.running(self._paths.root) if alone else None
        if daemon and not daemon.shares(self._paths.containers):
            daemon = None
        unproven: list[str] = []
        for name in alone:
            record = os.path.join(self._paths.layers, "mounts", name)
            try:
                made, changed = os.stat(record).st_mtime, os.stat(self._paths.containers).st_mtime
            except FileNotFoundError:
                continue
            is_new = daemon is not None and made > daemon.started + _CLOCKS
            # Docker's own builder makes such records too, without an init layer. They mean nothing to a later dockerd.
            is_builders = not os.path.lexists(os.path.join(record, "init-id"))
            if daemon and (not is_new if is_builders else is_new and changed >= made):
                self._known.gone[record] = self._layers_of(name)
                continue
            self._name_record(name)
            if not (daemon and is_builders):
                unproven.append(name)
        if unproven:
            self._missing.append(self._unproven(sorted(unproven)))

    def _unproven(self, names: list[str]) -> str:
        them = f"{names[0][:12]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        return (
            f"container {them} has layers but is not in {self._paths.containers}; if that is not mounted or whole, "
            f"make it so and start dockerd; if the container was removed, remove what is left of it: "
            f"rm -r {' '.join(os.path.join(self._paths.layers, 'mounts', name) for name in names[:_TOLD])}"
        )

    def _check_container(self, name: str) -> None:
        """Report a container of this driver that has no record."""
        content = content_of(path := os.path.join(self._paths.containers, name, "config.v2.json"))
        if content is None:
            # Docker does not know a container without this file, either.
            return
        try:
            config = json.loads(content)
            state: Mapping[str, Any] = config.get("State") or {}
            is_ours = config.get("Driver") == self._paths.driver and not (
                state.get("Dead") or state.get("RemovalInProgress")
            )
        except (ValueError, AttributeError):
            self._missing.append(f"{path} is empty or damaged; {_MOUNT_FIRST}")
            return
        if is_ours:
            self._missing.append(
                f"container {name[:12]} is not in {self._paths.layers}/mounts; {_MOUNT_FIRST}, or remove the container"
            )

    # -- what is missing ---------------------------------------------------------------------

    def _check(self, directory: str, file: str, text: str | None, form: re.Pattern[str]) -> None:
        if text is None or not form.fullmatch(text):
            what = "is missing" if text is None else "is empty" if not text else "is damaged"
            self._miss(directory, f"{os.path.join(directory, file)} {what}")

    def _miss(self, directory: str, words: str) -> None:
        """Report what is missing in a directory, unless Docker has just removed the directory."""
        if os.path.lexists(directory):
            self._missing.append(f"{words}; {_MOUNT_FIRST}")
