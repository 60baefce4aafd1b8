"""The layers of a pool as people think of them: images, their layers, and the containers on them.

Each layer is in one group: that of the lowest image that has it. An image that stands on the layers of another one
refers to that. So a group is what an image adds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from overview.contents import CONTAINER, IMAGE, INIT_SUFFIX, Contents, Layer


@dataclass
class Standing:
    """A container's layer with its init layer, as far as that is there. `on` is the layer of an image below it."""

    layer: Layer
    init: Layer | None
    on: Layer | None

    @property
    def stored(self) -> int:
        """Bytes of both."""
        return self.layer.stored + (self.init.stored if self.init else 0)


@dataclass
class Group:
    """What an image adds. `names`: () if nobody here knows it by a name. `layers`: its own ones, from the top down.

    `on`: the group whose layers are below these, the number of these, and their bytes. `rest`: what belongs to no image
    and no container.
    """

    names: tuple[str, ...] = ()
    layers: list[Layer] = field(default_factory=list)
    containers: list[Standing] = field(default_factory=list)
    on: Group | None = None
    layers_below: int = 0
    stored_below: int = 0
    rest: list[Layer] = field(default_factory=list)

    @property
    def top(self) -> Layer | None:
        """The highest layer."""
        return self.layers[0] if self.layers else None

    @property
    def all(self) -> list[Layer]:
        """All layers of the group, those of its containers first."""
        pairs = [item for standing in self.containers for item in (standing.layer, standing.init)]
        return [*(item for item in pairs if item), *self.layers, *self.rest]

    @property
    def stored(self) -> int:
        """Bytes of all its layers, without what is below."""
        return sum(layer.stored for layer in self.all)


def grouped(contents: Contents) -> list[Group]:
    """Return the groups: images with names first, by name; then those without; last what belongs to no image, if any.

    Every layer of the pool is in exactly one of them.
    """
    groups: list[Group] = []
    home: dict[str, Group] = {}
    for top in _tops(contents):
        # Whatever a record names: nothing but layers of images is below an image.
        chain = [top, *(below for below in contents.below(top) if contents.kind(below) == IMAGE)]
        own = 0
        while own < len(chain) and chain[own].id not in home:
            own += 1
        if not own:
            continue
        below = chain[own:]
        group = Group(contents.image_names(top), chain[:own])
        if below:
            group.on, group.layers_below = home[below[0].id], len(below)
            group.stored_below = sum(layer.stored for layer in below)
        groups.append(group)
        home.update((layer.id, group) for layer in group.layers)
    groups.sort(key=lambda group: (not group.names, group.names))
    last = _place_the_others(contents, home)
    return [*groups, last] if last.all else groups


def _tops(contents: Contents) -> list[Layer]:
    """Return the top layers of images, the lowest first, those with names before others."""
    layers = [layer for layer in contents.layers.values() if contents.kind(layer) == IMAGE]
    needed = {below.id for layer in layers for below in contents.below(layer)}
    containers = [layer for layer in contents.layers.values() if contents.kind(layer) == CONTAINER]
    ground = {below[0].id for below in map(contents.below, containers) if below}
    tops = [layer for layer in layers if contents.image_names(layer) or layer.id in ground or layer.id not in needed]
    return sorted(tops, key=lambda top: (not contents.image_names(top), len(top.parents), top.id))


def _place_the_others(contents: Contents, home: dict[str, Group]) -> Group:
    """Put containers into the groups that they stand on. Return a group of what has no place."""
    last = Group()
    placed = set(home)
    by_age = sorted(contents.layers.values(), key=lambda layer: (layer.created or 0.0, layer.id))
    for layer in by_age:
        if layer.id in placed or contents.kind(layer) != CONTAINER:
            continue
        on = next((below for below in contents.below(layer) if below.id in home), None)
        init = contents.layers.get(layer.id + INIT_SUFFIX)
        (home[on.id] if on else last).containers.append(Standing(layer, init, on))
        placed.update(item.id for item in (layer, init) if item)
    last.rest = [layer for layer in by_age if layer.id not in placed]
    return last
