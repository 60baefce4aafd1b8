"""How a layer is joined with what is below it: an overlay puts what it brought above what each of its parents brought.

The nearest parent comes first. All directories are named as seen from the links (paths.py): so 127 of them fit into the
options of one mount.
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

# The attributes that overlayfs keeps for itself begin with this.
_OVERLAY = "trusted.overlay."


class Overlays:
    """The overlays of one home's layers. It decides what is joined. The own file systems of all layers are mounted."""

    def __init__(self, home: Home, systems: FileSystems, root_owner: tuple[int, int]) -> None:
        """`root_owner` is the owner (uid, gid) of the root directory of a layer without parents."""
        self._paths, self._layers, self._daemon, self._timeout = home.paths, home.layers, home.daemon, home.timeout
        self._systems = systems
        self._options = home.options.view_options
        self._root_owner = root_owner

    def prepared(self, layer: str) -> LayerState:
        """Return the state of a mounted layer. At its first mount, write it, and let the root inherit from below.

        The caller holds the layer's lock. The nearest layer below a new layer must be mounted. After a failure the next
        call does the same again. Raises LayerLost, LayerError, command.CommandError, deadline.Overdue, OSError;
        ValueError if layer.json is none of ours.
        """
        directory = self._paths.point(layer)
        found = layer_state.read(directory, self._timeout)
        if found and found.layer == layer:
            return found
        parents = tuple(self._layers.parents(layer))
        made = LayerState(layer, parents, init=found.layer if found else "")
        if found and found.init:
            raise LayerLost(f"layer {layer}: {found.layer} is no init layer, but a container's; remove {layer}")
        nearest = self._nearest(layer, made)
        path = os.path.join(self._paths.links, nearest) if nearest else ""
        self._systems.make_writable(layer)
        deadline.call(lambda: _prepare(directory, made, path, self._root_owner), directory, self._timeout)
        layer_state.write(directory, made, self._timeout)
        return made

    def give_root(self, layer: str, owner: tuple[int, int]) -> None:
        """Let the root of what a layer brought belong to `owner` (uid, gid). Raises deadline.Overdue, OSError."""
        point = self._paths.point(layer)
        deadline.call(lambda: os.chown(os.path.join(point, layer_state.ROOT), *owner), point, self._timeout)

    def _nearest(self, layer: str, made: LayerState) -> str:
        """Name the nearest directory below what a layer brought, "" if there is none."""
        if made.init:
            return self._paths.inside(layer, layer_state.INIT)
        return self._paths.short(made.parents[0]) if made.parents else ""

    def lower(self, layer: str, state: LayerState, *, own: bool) -> list[str]:
        """Name the directories below a layer, nearest first. `own`: first of all, that of what it brought itself.

        Raises deadline.Overdue.
        """
        links = self._paths.links

        def look() -> list[str]:
            found = []
            for parent in state.parents:
                found.append(self._paths.short(parent))
                # The layer of a container has its init layer in itself.
                init = self._paths.inside(parent, layer_state.INIT)
                if os.path.isdir(os.path.join(links, init)):
                    found.append(init)
            return found

        below = deadline.call(look, self._paths.point(layer), self._timeout)
        init = [self._paths.inside(layer, layer_state.INIT)] if state.init else []
        return [*([self._paths.short(layer)] if own else []), *init, *below]

    def lower_of_client(self, parents: Sequence[str]) -> list[str]:
        """Name the directories with what these layers brought, by links of one directory. The paths are absolute."""
        return [os.path.join(self._paths.links, self._paths.short(parent)) for parent in parents]

    def options_of_client(self, layer: str, parents: Sequence[str], below: Sequence[str]) -> list[str]:
        """Return the options of an overlay that a client makes of `layer` ("": of nothing writable) and its parents.

        `below` are the directories of the parents, absolute and all below one: a client cuts off what they have in
        common if the options would be longer than a page (containerd, mount/mount_linux.go).
        """
        lower = [*below]
        if len(lower) < (1 if layer else 2):
            lower.append(os.path.join(self._paths.point(layer or parents[0]), layer_state.NONE))
        chosen = {option.partition("=")[0]: option for option in (*mounts.OVERLAY_OPTIONS, *self._options)}
        # A client compares mounted trees, and not what the upper directory tells. So a directory may be renamed.
        chosen["redirect_dir"] = "redirect_dir=on"
        directories = [f"lowerdir={':'.join(lower)}"]
        if layer:
            point = self._paths.point(layer)
            directories.append(f"upperdir={os.path.join(point, layer_state.ROOT)}")
            directories.append(f"workdir={os.path.join(point, layer_state.WORK)}")
        return [*([] if layer else ["ro"]), *chosen.values(), *directories]

    def mount(self, layer: str, name: str, point: str, lower: Sequence[str], *, writable: bool, label: str) -> None:
        """Mount the overlay `name` of a layer at the mount point `point`.

        Raises LayerBusy if the daemon that asked for it has ended, command.CommandError.
        """
        # overlayfs takes no fewer directories: one lower beside an upper one, or two lower ones.
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
    """Prepare a new layer. Its root gets owner, mode, attributes and times of the `nearest` directory below.

    In a view only the topmost root counts. What an init layer brought is in its copy already, and becomes a directory
    of its own. If this is done again after a crash, the result is the same. Raises OSError.
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
