"""What is in a pool, as it was found at one moment: its layers, and what is known of each. Nothing here asks anybody.

What the pool tells is known of all hosts. The names of images and containers are known to the database of who uses the
layers of a host (Docker's data root, the snapshotter's database), so they are known of this host alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from cluster.owner import Owner

# The kinds of a layer. INIT is what Docker prepares below a container. UNFINISHED has no record that can be read: its
# Create was killed, or it is being made in this moment.
IMAGE, CONTAINER, INIT, UNFINISHED = "image", "container", "init", "unfinished"
INIT_SUFFIX = "-init"


class Container(NamedTuple):
    """What a host's own database calls a container, and its state in one word."""

    name: str
    state: str


@dataclass(frozen=True)
class Names:
    """What a host's own database calls its layers.

    `images`: the names of the image of which a layer is the top one. `containers` by their layers. `committed`: layers
    that are no container's any more, which the pool may learn later. `missing`: why nothing is known, in one line; ""
    if all could be read.
    """

    images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    containers: Mapping[str, Container] = field(default_factory=dict)
    committed: frozenset[str] = frozenset()
    missing: str = ""


@dataclass(frozen=True)
class Layer:
    """One layer of the pool.

    `stored`: the bytes of its own. `created`: in seconds since 1970; None if that is not known. `parents`: what is
    below it, nearest first. `snapshot`: for which snapshot it stands, by its key, and "active" or "committed"; both ""
    for Docker's. `called`: the name of its image, as far as a snapshot's labels tell it. `used_by`: the hosts that use
    a shared layer. `open_at`: the hosts, or addresses, where it is open; None if that could not be asked in time.
    """

    id: str
    image: str
    stored: int
    created: float | None = None
    owner: Owner | None = None
    parents: tuple[str, ...] = ()
    shared: bool = False
    snapshot: tuple[str, str] = ("", "")
    called: str = ""
    used_by: tuple[str, ...] = ()
    open_at: tuple[str, ...] | None = ()


class Host(NamedTuple):
    """An owner of layers, or a user of shared ones. `answers`: its driver lives; None if that could not be asked."""

    owner: Owner
    answers: bool | None


@dataclass(frozen=True)
class Contents:
    """What is in the pool. `at`: when it was looked at, in seconds since 1970. `base`: bytes of the base images."""

    pool: str
    namespace: str
    prefix: str
    here: Owner
    at: float
    base: int
    layers: Mapping[str, Layer]
    hosts: tuple[Host, ...]
    names: Names

    @property
    def stored(self) -> int:
        """All bytes."""
        return self.base + sum(layer.stored for layer in self.layers.values())

    def kind(self, layer: Layer) -> str:
        """Return the kind of a layer."""
        if layer.owner is None:
            return UNFINISHED
        if layer.id.endswith(INIT_SUFFIX):
            return INIT
        known = layer.id in self.names.containers or layer.id + INIT_SUFFIX in self.layers
        noted = layer.snapshot[1] == "active" and layer.id not in self.names.committed
        return CONTAINER if known or noted else IMAGE

    def below(self, layer: Layer) -> list[Layer]:
        """Return the layers below one that are there, nearest first."""
        return [self.layers[parent] for parent in layer.parents if parent in self.layers]

    def container(self, layer: Layer) -> Container:
        """Return what a container is called: by its own host, or else by the pool."""
        if layer.id in self.names.containers:
            return self.names.containers[layer.id]
        # A key of containerd is NAMESPACE/NUMBER/NAME.
        key = layer.snapshot[0].rpartition("/")[2]
        return Container(key or layer.id[:12], "being unpacked" if key.startswith("extract-") else "")

    def image_names(self, layer: Layer) -> tuple[str, ...]:
        """Return the names of the image of which a layer is the top one, () if it is of none."""
        if layer.id in self.names.images:
            return self.names.images[layer.id]
        return (layer.called,) if layer.called and layer.id not in self._below_of_same_name else ()

    @cached_property
    def _below_of_same_name(self) -> set[str]:
        """The layers on which another one of the same image stands: containerd labels all layers of an image."""
        named = [layer for layer in self.layers.values() if layer.called and self.kind(layer) == IMAGE]
        return {below.id for layer in named for below in self.below(layer) if below.called == layer.called}
