"""What Docker calls images and containers, by their layers, read from its data root for who wants to see them.

Nothing is decided by it, so nothing must be whole: what is not there, or cannot be read, has no name (for what must be
whole, see docker_database.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from host import logs
from maintenance.docker_files import ID, Paths, chain_id, content_of, diffs_of, listed, text_of
from overview.contents import Container, Names

# A container that was never started has this time (Go's zero time).
_NEVER = "0001-01-01T"


def names(paths: Paths) -> Names:
    """Return what Docker calls its layers. Raises nothing: `missing` says why nothing is known."""
    try:
        if not os.path.isdir(paths.layers):
            return Names(missing=f"{paths.layers} does not exist, so Docker's names are not known")
        return Names(_images(paths), dict(_containers(paths)))
    except OSError as error:
        return Names(missing=f"Docker's names cannot be read: {error}")


def _images(paths: Paths) -> dict[str, tuple[str, ...]]:
    """Return the names of images by their top layers. An image without a name is called by its id."""
    store = os.path.join(paths.layers, "sha256")
    layers = {f"sha256:{name}": text_of(os.path.join(store, name, "cache-id")) for name in listed(store)}
    called: dict[str, list[str]] = {}
    for reference, image in _references(paths):
        called.setdefault(image.partition(":")[2], []).append(logs.printable(reference))
    found: dict[str, list[str]] = {}
    for image in filter(ID.fullmatch, listed(paths.images)):
        top = layers.get(_top(paths, image))
        if top:
            # A reference by digest says less than a tag.
            tags = [name for name in called.get(image, ()) if "@" not in name] or called.get(image, [])
            found.setdefault(top, []).extend(tags or [f"image {image[:12]}"])
    return {layer: tuple(sorted(set(words))) for layer, words in found.items()}


def _references(paths: Paths) -> Iterator[tuple[str, str]]:
    repositories = _read(paths.names).get("Repositories")
    for repository in repositories.values() if isinstance(repositories, dict) else ():
        if isinstance(repository, dict):
            yield from ((str(name), str(image)) for name, image in repository.items())


def _top(paths: Paths, image: str) -> str:
    """Return the chain id of an image's top layer; "" if it has none, or cannot be read."""
    chain = ""
    try:
        for diff in diffs_of(image, content_of(os.path.join(paths.images, image)) or b""):
            chain = chain_id(chain, diff)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return ""
    return chain


def _containers(paths: Paths) -> Iterator[tuple[str, Container]]:
    for record in listed(store := os.path.join(paths.layers, "mounts")):
        layer = text_of(os.path.join(store, record, "mount-id"))
        if layer:
            config = _read(os.path.join(paths.containers, record, "config.v2.json"))
            name = logs.printable(str(config.get("Name") or record[:12]).strip("/"))
            yield layer, Container(name, _state(config))


def _state(config: Mapping[str, Any]) -> str:
    """Return the state of a container in the words of `docker ps` (moby, container/state.go)."""
    state = config.get("State")
    if not config or not isinstance(state, dict):
        return "unknown" if config else "gone"
    for field, word in (("Paused", "paused"), ("Restarting", "restarting"), ("Running", "running"), ("Dead", "dead")):
        if state.get(field):
            return word
    return "created" if str(state.get("StartedAt", "")).startswith(_NEVER) else "stopped"


def _read(path: str) -> dict[str, Any]:
    """Read an object of JSON; {} if it is not there, or is none."""
    try:
        found = json.loads(content_of(path) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
