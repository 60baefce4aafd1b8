"""The views of layers, for Docker and for our own work: each layer joined with its parents, at its own mount point.

    HOME/mnt/ID/docker     the view for Docker: between Get and Put
    HOME/mnt/ID/driver     the view for an archive that is laid down
    HOME/mnt/ID/below      what is below the layer, read-only: what Diff compares with

If a layer is not finished, its view is writable, and there is one at a time: two on the same directories would spoil
both (overlayfs.rst, "Sharing and copying layers"). So while an archive is laid down, Docker cannot have the layer. If
Docker has the layer, our own work uses Docker's view. The view of a finished layer is read-only.

So the host alone tells all of it after a crash (from_before.py): a view at `docker` is Docker's and stays; other views
were for an earlier life of this process, and go.

Users are counted in memory only. The caller holds the layer's lock around each call, but for `uncount` and
`release_ahead`; the locks of its parents are taken here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence

import mounts
from host import command
from images import layer_state
from images.layer_state import LayerState
from mapped import elsewhere, unmounting
from mapped.devices import Devices
from mapped.file_systems import FileSystems
from mapped.home import Home
from mapped.overlays import Overlays
from mapped.stacks import Stacks
from mapped.unmounting import LayerBusy
from mapped.view import WHOLE, Own, Place, View, user_of

log = logging.getLogger("views")


class Views:
    """The views of one home's layers. It decides which view of a layer there is, and when it is unmounted."""

    def __init__(self, home: Home, devices: Devices, systems: FileSystems, overlays: Overlays, stacks: Stacks) -> None:
        self._paths, self._layers, self._timeout = home.paths, home.layers, home.timeout
        self._devices, self._systems, self._overlays, self._stacks = devices, systems, overlays, stacks
        self.idle = stacks.idle
        self._views: dict[str, View] = {}
        self._counting = threading.Lock()

    def point(self, layer: str, place: Place) -> str:
        """Return the mount point of a layer for `place`, mounted or not."""
        return os.path.join(self._paths.directory(layer), place.value)

    def is_mounted(self, layer: str, place: Place) -> bool:
        """Tell whether a layer is mounted for `place`."""
        view = self._views.get(layer)
        return view is not None and place in view.counts

    def count(self) -> int:
        """Count what is mounted, of all layers."""
        return sum(len(view.counts) for view in list(self._views.values()))

    def is_writable(self, layer: str) -> bool:
        """Tell whether a layer has a writable view, for Docker or for ourselves."""
        view = self._views.get(layer)
        return view is not None and view.writable and view.whole() is not None

    def parents(self, layer: str) -> tuple[str, ...]:
        """Return the parents that a mounted layer is joined with, nearest first; () if it is not mounted."""
        view = self._views.get(layer)
        return view.parents if view else ()

    def prepared(self, layer: str) -> LayerState:
        """Return the state of a mounted layer; prepare it if it is new. Raises what Overlays.prepared raises."""
        return self._overlays.prepared(layer)

    # -- acquire and release -----------------------------------------------------------------

    def acquire(self, layer: str, place: Place, *, finished: bool, label: str = "", growing: bool = False) -> Place:
        """Mount a layer for `place`, or count one user more of it there. Return the place to release later.

        Our own work uses Docker's view if there is one. `finished`: the layer is finished, and its view read-only.
        `label` is the SELinux label of a new view. `growing`: the layer is not mapped exclusively, unless it has users
        already. On failure nothing more is mounted than before. Raises rbdcli.ImageMissing for the layer's own image,
        LayerLost for that of a parent, and what FileSystems.acquire and Overlays.prepared raise.
        """
        with contextlib.ExitStack() as undo:
            if known := self._views.get(layer):
                self._look_again(layer, known)
                if place in WHOLE:
                    # A view without users must not be in the way. A view of what is below never is.
                    self._unmount_of(layer, known, [other for other in WHOLE if other is not place])
            view = self._views.get(layer) or View()
            if place is Place.DRIVER and Place.DOCKER in view.counts:
                place = Place.DOCKER
            if place in view.counts:
                self._systems.check_alive(layer, *view.parents)
            else:
                if place is Place.DOCKER and Place.DRIVER in view.counts and view.writable:
                    raise LayerBusy(f"layer {layer}: an archive is being laid down in it; try again")
                self._mount(layer, view, place, undo, finished=finished, label=label, growing=growing)
            with self._counting:
                view.counts[place] += 1
            self._views[layer] = view
            undo.pop_all()
        return place

    def uncount(self, layer: str, place: Place) -> None:
        """Count one user of a view less. The caller need not hold the layer's lock.

        Do nothing if the layer is not mounted there: after a crash, Docker puts layers that it never got.
        """
        view = self._views.get(layer)
        if view is not None:
            with self._counting:
                if view.counts.get(place):
                    view.counts[place] -= 1

    def unmount_unused(self, layer: str, place: Place) -> None:
        """Unmount a view if its last user has left.

        The view of a running container is shown again: Docker may send a Put twice, if a crash took the first answer.
        On failure the view stays mounted, and the next such call or `unmap_unused` tries again. Raises LayerBusy,
        command.CommandError, deadline.Overdue, OSError.
        """
        view = self._views.get(layer)
        if view is None:
            return
        try:
            self._unmount_of(layer, view, (place,))
        except BaseException:
            # The view has no user all the same: it is unmounted later, in the background.
            self.idle(layer)
            raise

    # -- what a layer itself brought ---------------------------------------------------------

    def acquire_own(self, layer: str, *, finished: bool) -> Own:
        """Mount what a layer itself brought, to be read.

        The caller releases Place.BELOW later. Raises what `acquire` raises.
        """
        self.acquire(layer, Place.BELOW, finished=finished)
        own = os.path.join(self._paths.point(layer), layer_state.ROOT)
        view = self._views[layer]
        return Own(own, None if view.bottom else self.point(layer, Place.BELOW), view.parent)

    def map_ahead(self, layer: str) -> None:
        """Map and mount a finished layer that somebody will need in a moment. Raises what `acquire` raises."""
        if not self._systems.is_mounted(layer):
            self.acquire_ahead(layer)
            self.release_ahead(layer)

    def acquire_ahead(self, layer: str) -> None:
        """Map and mount a finished layer until `release_ahead`. Raises what `acquire` raises."""
        try:
            self._systems.acquire(layer, _ahead(layer), write=False, finished=True)
        except BaseException:
            self._stacks.tell_idle(layer)
            raise

    def release_ahead(self, layer: str) -> None:
        """Undo `acquire_ahead`. The caller need not hold the layer's lock."""
        self._systems.uncount(layer, _ahead(layer))
        self._stacks.tell_idle(layer)

    # -- the end -----------------------------------------------------------------------------

    def unmap_unused(self, layer: str, *, tidy: bool = True) -> None:
        """Unmount the views of a layer that have no user, then unmap the layer if it has none.

        `tidy`: give space back before, as FileSystems.tidy does. Raises what `unmount_unused` raises.
        """
        view = self._views.get(layer)
        if view is not None:
            self._unmount_of(layer, view)
        self._systems.unmap_unused(layer, tidy=tidy)

    def _unmount_of(self, layer: str, view: View, places: Iterable[Place] = tuple(Place)) -> None:
        """Unmount the views at these places that have no user."""
        self._look_again(layer, view)
        for place in [place for place in places if view.counts.get(place) == 0]:
            guessed = view.guessed and place is Place.DOCKER
            self._unmount(layer, view, place)
            try:
                if guessed and self._is_used_elsewhere(layer):
                    self._take(layer, view)
            finally:
                self._leave(layer, view, place)

    def discard(self, layer: str) -> None:
        """Unmount a layer that is to be removed, whatever its counts: BuildKit removes layers that it never put.

        It stays mapped. Raises LayerBusy if somebody has it mounted. Raises command.CommandTimeout or deadline.Overdue
        if the kernel still writes out what nobody wants any more: the unmount is done when it can be.
        """
        view = self._views.get(layer)
        failure: command.CommandTimeout | None = None
        if view is not None:
            # What is still in memory is not wanted any more: it is not flushed.
            self._look_again(layer, view, flush=False)
            for place in [*view.counts]:
                try:
                    self._unmount(layer, view, place)
                except command.CommandTimeout as error:
                    failure = error
                    # If the view has left the mount table, only the kernel's own work holds it.
                    self._look_again(layer, view, flush=False)
                self._leave(layer, view, place, flush=False)
        self._systems.unmount(layer)
        if failure and view:
            # The views have no user from now on: they are unmounted once the kernel allows it.
            view.counts = dict.fromkeys(view.counts, 0)
            raise failure
        self._devices.refuse_if_held(layer)

    # -- from before -------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget all views."""
        self._views.clear()

    def items(self) -> list[tuple[str, View]]:
        """Return each layer that has a view, with what is known of its views."""
        return list(self._views.items())

    def learn(self, layer: str, found: Mapping[Place, mounts.Mount], *, is_removed: bool) -> None:
        """Remember the views that an earlier life of this process had mounted of a mapped layer.

        The view for Docker gets one user, unless the layer is removed. The others get none. A view that only a
        container has is shown again. Raises command.CommandError, OSError.
        """
        counts = {place: int(place is Place.DOCKER and not is_removed) for place in found}
        view = View(guessed=not is_removed, counts=counts)
        place = view.whole()
        if place:
            view.writable, view.label = not found[place].read_only, found[place].label
        elif not is_removed and self._systems.is_mapped_writable(layer) and self._devices.is_in_use(layer):
            # A container may have the view in its own mount namespace while ours is gone. A managed plugin's namespace
            # ends with it (`docker plugin disable --force`); or we were killed in `_unmount_of`, before `_take`.
            self._take(layer, view)
        if view.counts:
            self._views[layer] = view

    # -- what a container still has -----------------------------------------------------------

    def settle(self, layer: str) -> None:
        """Unmount a view for Docker, unless somebody uses it: then it stays, with one user.

        Raises command.CommandError, deadline.Overdue, LayerBusy, OSError.
        """
        view = self._views.get(layer)
        if view is None or Place.DOCKER not in view.counts:
            return
        try:
            self._unmount(layer, view, Place.DOCKER)
        except LayerBusy as error:
            log.info("%s stays mounted: %s", layer, error)
            view.counts[Place.DOCKER], view.guessed = 1, True
            return
        try:
            self._take(layer, view)
        finally:
            self._leave(layer, view, Place.DOCKER)

    def settle_put(self, layer: str) -> None:
        """Unmount a view that Docker must have put, if nobody uses it. Raises what `settle` raises.

        The caller knows of the Put by what Docker does now. A Put may be lost at the end of an earlier life of ours:
        Docker repeats it without a body, and gives up. If an unmount failed before, this tries again.
        """
        view = self._views.get(layer)
        if view is not None and view.guessed and Place.DOCKER in view.counts:
            self.settle(layer)
        elif view is not None:
            self._unmount_of(layer, view)

    def _take(self, layer: str, view: View) -> None:
        """Show a view that only other mount namespaces have, if there is one. A second overlay would spoil both."""
        point = self.point(layer, Place.DOCKER)
        mounts.make_directory(point)
        try:
            taken = elsewhere.take(self._paths.source(layer), point, timeout=self._timeout)
        except command.CommandTimeout:
            view.doubtful = True
            self._views[layer] = view
            raise
        if not taken:
            mounts.remove_point(point)
            return
        shown = mounts.at(point)
        if shown:
            view.writable, view.label = not shown.read_only, shown.label
        view.counts[Place.DOCKER], view.guessed = 1, True
        log.info("%s is in use by a running container, mounted at %s", layer, point)

    def _is_used_elsewhere(self, layer: str) -> bool:
        """Tell whether a container has a view that we have unmounted. If it just ended, it gets LIVE_SECONDS to go."""
        return all(elsewhere.find(self._paths.source(layer)) for _ in unmounting.until_free(unmounting.LIVE_SECONDS))

    # -- one step each -----------------------------------------------------------------------

    def _look_again(self, layer: str, view: View, *, flush: bool = True) -> None:
        """After a timeout, learn from the mount table what was done. A mount that was made too late is ended."""
        if not view.doubtful:
            return
        for place in Place:
            mounted = mounts.at(self.point(layer, place)) is not None
            if place is Place.BELOW and view.bottom:
                continue
            if mounted and place not in view.counts:
                unmounting.unmount(self.point(layer, place), self._timeout)
            elif not mounted and place in view.counts:
                self._not_mounted(layer, view, place)
                self._leave(layer, view, place, flush=flush)
        view.doubtful = False

    def _mount(
        self,
        layer: str,
        view: View,
        place: Place,
        undo: contextlib.ExitStack,
        *,
        finished: bool,
        label: str,
        growing: bool,
    ) -> None:
        writable = place in WHOLE and not finished
        if writable and self._systems.is_mounted(layer):
            # We have its device in use, so that does not show whether somebody else has a view of it.
            self._devices.refuse_if_viewed(layer)
        parents = tuple(self._layers.parents(layer))
        user = user_of(layer, place)
        undo.callback(self._undo, layer, view, place, parents)
        self._stacks.acquire(
            layer,
            user,
            parents,
            lambda: self._systems.acquire(layer, user, write=writable, finished=finished, growing=growing),
        )
        self._systems.check_alive(layer, *parents, ask=True, user=user)
        state = self._overlays.prepared(layer)
        lower = self._overlays.lower(layer, state, own=place in WHOLE and finished)
        point = self.point(layer, place)
        mounts.make_directory(point)
        view.counts[place], view.parents, view.parent = 0, parents, state.init or next(iter(parents), "")
        if place is Place.BELOW:
            view.bottom = not lower
            if view.bottom:
                return
        else:
            view.writable, view.label = writable, label
        self._join(layer, view, place, lower, writable=writable, label=label)

    def _join(self, layer: str, view: View, place: Place, lower: Sequence[str], *, writable: bool, label: str) -> None:
        # `elsewhere` looks for a view by its name. What is below is not the view, and has another.
        name = self._paths.source(layer) + (f"-{Place.BELOW.value}" if place is Place.BELOW else "")
        with unmounting.doubting(view):
            self._overlays.mount(layer, name, self.point(layer, place), lower, writable=writable, label=label)

    def _undo(self, layer: str, view: View, place: Place, parents: Sequence[str]) -> None:
        """Undo a failed `_mount`. A view that cannot be unmounted stays known, without users, with all below it."""
        try:
            if place in view.counts:
                self._unmount(layer, view, place)
        finally:
            if place in view.counts:
                self._views[layer] = view
                self.idle(layer)
            else:
                self._stacks.release(layer, user_of(layer, place), parents)

    def _unmount(self, layer: str, view: View, place: Place) -> None:
        if not (place is Place.BELOW and view.bottom):
            with unmounting.doubting(view):
                unmounting.unmount(self.point(layer, place), self._timeout)
        self._not_mounted(layer, view, place)

    def _not_mounted(self, layer: str, view: View, place: Place) -> None:
        with self._counting:
            view.counts.pop(place, None)
        mounts.remove_point(self.point(layer, place))

    def _leave(self, layer: str, view: View, place: Place, *, flush: bool = True) -> None:
        """Release a layer and its parents for a place, unless the view is still mounted there."""
        if place in view.counts:
            return
        if not view.counts and not view.doubtful:
            self._views.pop(layer, None)
        self._stacks.release(layer, user_of(layer, place), view.parents, flush=flush)


def _ahead(layer: str) -> str:
    return f"{layer}/ahead"
