"""How a layer is joined with what is below it: an overlay of what it brought above what each parent did, nearest first.

Its directories are named as seen from the links (paths.py), so that 127 of them fit into the options of one mount.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

import mounts
from host import deadline
from images import layer_state
from images.layer_state import LayerState
from mapped.file_systems import FileSystems, LayerLost
from mapped.home import Home

# Attributes that overlayfs keeps for itself.
_OVERLAY = "trusted.overlay."


class Overlays:
    """The overlays of one home's layers. The own file systems of the layers that are joined must be mounted."""

    def __init__(self, home: Home, systems: FileSystems, root_owner: tuple[int, int]) -> None:
        """`root_owner` is whom the root directory of a layer without parents belongs to."""
        self._paths, self._layers, self._daemon, self._timeout = home.paths, home.layers, home.daemon, home.timeout
        self._systems = systems
        self._options = home.options.view_options
        self._root_owner = root_owner

    def prepared(self, layer: str) -> LayerState:
        """Return the state of a mounted layer, written when it is mounted first: then its root gets what it inherits.

        What is nearest below a new layer must be mounted. Raises LayerLost, deadline.Overdue, OSError.
        """
        directory = self._paths.point(layer)
        said = layer_state.read(directory, self._timeout)
        if said and said.layer == layer:
            return said
        parents = tuple(self._layers.parents(layer))
        made = LayerState(layer, parents, init=said.layer if said else "")
        if said and said.init:
            raise LayerLost(f"layer {layer}: {said.layer} is no init layer, but a container's; remove {layer}")
        nearest = self._nearest(layer, made)
        path = os.path.join(self._paths.links, nearest) if nearest else ""
        self._systems.make_writable(layer)
        deadline.call(lambda: _prepare(directory, made, path, self._root_owner), directory, self._timeout)
        layer_state.write(directory, made, self._timeout)
        return made

    def _nearest(self, layer: str, made: LayerState) -> str:
        """Name the directory that is nearest below what a layer brought, "" if there is none."""
        if made.init:
            return self._paths.inside(layer, layer_state.INIT)
        return self._paths.short(made.parents[0]) if made.parents else ""

    def lower(self, layer: str, said: LayerState, *, own: bool) -> list[str]:
        """Name the directories below a layer, nearest first; `own`: with what it brought itself."""
        links = self._paths.links

        def look() -> list[str]:
            found = []
            for parent in said.parents:
                found.append(self._paths.short(parent))
                # A container's layer, whose init layer is in itself.
                init = self._paths.inside(parent, layer_state.INIT)
                if os.path.isdir(os.path.join(links, init)):
                    found.append(init)
            return found

        below = deadline.call(look, self._paths.point(layer), self._timeout)
        init = [self._paths.inside(layer, layer_state.INIT)] if said.init else []
        return [*([self._paths.short(layer)] if own else []), *init, *below]

    def mount(self, layer: str, name: str, point: str, lower: Sequence[str], *, writable: bool, label: str) -> None:
        """Mount the overlay `name` of a layer at `point`. Raises LayerBusy, command.CommandError."""
        # A kernel joins one directory with an upper one, or two.
        if len(lower) < (1 if writable else 2):
            lower = [*lower, self._paths.inside(layer, layer_state.NONE)]
        own = [self._paths.inside(layer, directory) for directory in (layer_state.ROOT, layer_state.WORK)]
        self._daemon.refuse_if_ended(layer)
        mounts.overlay(
            name,
            point,
            lower,
            (own[0], own[1]) if writable else None,
            options=self._options,
            label=label,
            directory=self._paths.links,
            timeout=self._timeout,
        )


def _prepare(directory: str, made: LayerState, nearest: str, root_owner: tuple[int, int]) -> None:
    """Prepare a new layer. Its root gets what that of the nearest directory has: in a view the topmost root counts.

    Done once more after a crash, it comes to the same. What its init layer brought is in it already, and becomes a
    directory of its own.
    """
    root, init = os.path.join(directory, layer_state.ROOT), os.path.join(directory, layer_state.INIT)
    if made.init and not os.path.lexists(init):
        os.rename(root, init)
    os.makedirs(root, exist_ok=True)
    if not nearest:
        os.chown(root, *root_owner)
        return
    found = os.stat(nearest)
    os.chown(root, found.st_uid, found.st_gid)
    os.chmod(root, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(nearest):
        if not name.startswith(_OVERLAY):
            os.setxattr(root, name, os.getxattr(nearest, name))
    os.utime(root, ns=(found.st_atime_ns, found.st_mtime_ns))
