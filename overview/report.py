"""The contents of a pool as one JSON object, for programs. Fields are added to it, and none is changed or removed.

    version     1
    pool, namespace, prefix, host, home     what was looked at, and from where
    at          when, in seconds since 1970
    stored      bytes of all images; base: those of the base images
    names_missing   why images and containers have no names, in one line, or ""
    images      what each image adds: names (perhaps none), layers (ids, from the top down), containers (ids of their
                layers), stored (bytes of what it adds, containers and their init layers too),
                on (null, or the id of the layer below), layers_below (their number), stored_below (their bytes)
    layers      each layer once: id, image (its name in the pool), kind (image, container, init, unfinished), stored
                (bytes), created (seconds since 1970, or null), parents (ids, nearest first), host and home and
                machine (whose it is; null for an unfinished one), shared, used_by (hosts, of a shared one),
                open_at (hosts or addresses; null if that could not be asked), snapshot (containerd's key, or ""),
                container (null, or its name and state)
    hosts       host, machine, home, answers (whether a driver does; null if that could not be asked)

Layers of no image, and containers on none, are in `layers` alone.
"""

from __future__ import annotations

import json

from cluster.owner import Owner
from overview.contents import CONTAINER, Contents, Layer
from overview.groups import Group, grouped

VERSION = 1


def written(contents: Contents) -> str:
    """Return the object."""
    fields = {
        "version": VERSION,
        "pool": contents.pool,
        "namespace": contents.namespace,
        "prefix": contents.prefix,
        "host": contents.here.host,
        "home": contents.here.home,
        "at": round(contents.at, 3),
        "stored": contents.stored,
        "base": contents.base,
        "names_missing": contents.names.missing,
        "images": [_image(contents, group) for group in grouped(contents) if group.layers],
        "layers": [_layer(contents, contents.layers[layer]) for layer in sorted(contents.layers)],
        "hosts": [{**_owner(host.owner), "answers": host.answers} for host in contents.hosts],
    }
    return json.dumps(fields, indent=2)


def _image(contents: Contents, group: Group) -> dict[str, object]:
    below = contents.below(group.layers[-1])
    return {
        "names": list(group.names),
        "layers": [layer.id for layer in group.layers],
        "containers": [standing.layer.id for standing in group.containers],
        "stored": group.stored,
        "on": below[0].id if below else None,
        "layers_below": group.layers_below,
        "stored_below": group.stored_below,
    }


def _layer(contents: Contents, layer: Layer) -> dict[str, object]:
    kind = contents.kind(layer)
    owner = _owner(layer.owner) if layer.owner else {"host": None, "machine": None, "home": None}
    return {
        "id": layer.id,
        "image": layer.image,
        "kind": kind,
        "stored": layer.stored,
        "created": None if layer.created is None else round(layer.created, 3),
        "parents": list(layer.parents),
        **owner,
        "shared": layer.shared,
        "used_by": list(layer.used_by),
        "open_at": None if layer.open_at is None else list(layer.open_at),
        "snapshot": layer.snapshot[0],
        "container": contents.container(layer)._asdict() if kind == CONTAINER else None,
    }


def _owner(owner: Owner) -> dict[str, object]:
    return {"host": owner.host, "machine": owner.machine, "home": owner.home}
