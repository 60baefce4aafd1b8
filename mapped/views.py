"""What Docker, and our own work, see of layers: each joined with its parents at a mount point of its own.

    HOME/mnt/ID/docker     the view for Docker: between Get and Put
    HOME/mnt/ID/driver     the view for an archive that is laid down
    HOME/mnt/ID/below      what is below the layer, read-only: what Diff compares with

Of a layer that is not finished the view is writable, and there is one at a time: two on the same directories would
spoil both (overlayfs.rst, "Sharing and copying layers"). So while an archive is laid down, Docker cannot have the
layer; where Docker has it, our own work uses that view. A finished layer's view is read-only.

So all can be told from the host alone after a crash (views_from_before.py): what is at `docker` is Docker's and stays,
the rest was for nobody but an earlier life of this process.

Counts are in memory only. The caller holds the layer's lock around each call; the locks of its parents are taken here.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import mounts
import rbdcli
from host import command
from images import layer_state
from images.layer_state import LayerState
from mapped import elsewhere, unmounting
from mapped.devices import Devices
from mapped.file_systems import FileSystems, LayerLost
from mapped.home import Home
from mapped.overlays import Overlays
from mapped.unmounting import LayerBusy
from mapped.view import WHOLE, Place, View, user_of

log = logging.getLogger("views")

# Parents that are mapped at the same time.
AT_ONCE = 4


class Views:
    """The views of one home's layers. `idle` is told which layers are mapped for nobody any more."""

    def __init__(
        self, home: Home, devices: Devices, systems: FileSystems, overlays: Overlays, idle: Callable[[str], None]
    ) -> None:
        self._paths, self._layers, self._locks, self._timeout = home.paths, home.layers, home.locks, home.timeout
        self._devices, self._systems, self._overlays = devices, systems, overlays
        self.idle = idle
        self._views: dict[str, View] = {}
        self._counting = threading.Lock()

    def point(self, layer: str, place: Place) -> str:
        """Return the mount point of a layer for `place`, whether it is mounted or not."""
        return os.path.join(self._paths.directory(layer), place.value)

    def is_mounted(self, layer: str, place: Place) -> bool:
        """Tell whether a layer is mounted for `place`."""
        view = self._views.get(layer)
        return view is not None and place in view.counts

    def is_writable(self, layer: str) -> bool:
        """Tell whether a layer is mounted writable, for whomever."""
        view = self._views.get(layer)
        return view is not None and view.writable and view.whole() is not None

    def parents(self, layer: str) -> tuple[str, ...]:
        """Return what a mounted layer is joined with, nearest first; nothing for one that is not mounted."""
        view = self._views.get(layer)
        return view.parents if view else ()

    def prepared(self, layer: str) -> LayerState:
        """Return the state of a mounted layer, prepared if it is new. Raises what Overlays.prepared does."""
        return self._overlays.prepared(layer)

    # -- acquire and release -----------------------------------------------------------------

    def acquire(self, layer: str, place: Place, *, finished: bool, label: str = "", growing: bool = False) -> Place:
        """Mount a layer for a place, or count one more user of it there; return the place to release later.

        Our own work uses Docker's mount if there is one. `finished` layers are finished, and never written to; one that
        is to be `growing` is not mapped exclusively, unless somebody has it already. On failure nothing stays behind.
        Raises rbdcli.ImageMissing (the layer's own), rbdcli.ImageLocked, command.CommandError, LayerBusy, LayerLost.
        """
        with contextlib.ExitStack() as undo:
            if known := self._views.get(layer):
                self._look_again(layer, known)
                if place in WHOLE:
                    # What nobody uses any more is in nobody's way. Who looks at what is below has none.
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
        """Count one user of a view less, whoever is at work with the layer: without its lock.

        A layer that is not mounted there is none of our business: Docker puts what it never got after a crash.
        """
        view = self._views.get(layer)
        if view is not None:
            with self._counting:
                if view.counts.get(place):
                    view.counts[place] -= 1

    def unmount_unused(self, layer: str, place: Place) -> None:
        """Unmount a view if its last user has left.

        But not that of a running container, by a Put whose answer was lost in a crash, and that Docker sends once more.
        Raises LayerBusy: it then stays mounted, and the next such call, or `unmap_unused`, tries again.
        """
        view = self._views.get(layer)
        if view is None:
            return
        try:
            self._unmount_of(layer, view, (place,))
        except BaseException:
            # It is nobody's all the same.
            self.idle(layer)
            raise

    # -- what a layer itself brought ---------------------------------------------------------

    def acquire_own(self, layer: str, *, finished: bool) -> tuple[str, str | None, str]:
        """Have what a layer brought, to be read: return its directory, that of what is below (None for nothing), and
        what Docker made it on, "" for nothing.

        Left as Place.BELOW. Raises what `acquire` does.
        """
        self.acquire(layer, Place.BELOW, finished=finished)
        own = os.path.join(self._paths.point(layer), layer_state.ROOT)
        view = self._views[layer]
        return own, None if view.bottom else self.point(layer, Place.BELOW), view.parent

    def map_ahead(self, layer: str) -> None:
        """Map and mount a finished layer that somebody will need in a moment. Raises what `acquire` does."""
        if not self._systems.is_mounted(layer):
            self.acquire_ahead(layer)
            self.release_ahead(layer)

    def acquire_ahead(self, layer: str) -> None:
        """Map and mount a finished layer until `release_ahead`. Raises what `acquire` does."""
        try:
            self._systems.acquire(layer, _ahead(layer), write=False, finished=True)
        except BaseException:
            self._tell_idle(layer)
            raise

    def release_ahead(self, layer: str) -> None:
        """Undo that: without the layer's lock."""
        self._systems.uncount(layer, _ahead(layer))
        self._tell_idle(layer)

    # -- the end -----------------------------------------------------------------------------

    def unmap_unused(self, layer: str, *, tidy: bool = True) -> None:
        """Unmount and unmap a layer that nobody needs. Raises LayerBusy."""
        view = self._views.get(layer)
        if view is not None:
            self._unmount_of(layer, view)
        self._systems.unmap_unused(layer, tidy=tidy)

    def _unmount_of(self, layer: str, view: View, places: Iterable[Place] = tuple(Place)) -> None:
        """Unmount what nobody uses of these."""
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
        """Unmount a layer whatever its counts say: BuildKit removes what it never put.

        Raises LayerBusy if somebody has it mounted, command.CommandTimeout or deadline.Overdue if the kernel does not
        come to its end: it may still write what nobody wants any more.
        """
        view = self._views.get(layer)
        failure: command.CommandTimeout | None = None
        if view is not None:
            # What is still in memory is wanted no more.
            self._look_again(layer, view, flush=False)
            for place in [*view.counts]:
                try:
                    self._unmount(layer, view, place)
                except command.CommandTimeout as error:
                    failure = error
                    # What is no more in the mount table holds nothing but the kernel's own work.
                    self._look_again(layer, view, flush=False)
                self._leave(layer, view, place, flush=False)
        self._systems.unmount(layer)
        if failure and view:
            # Nobody's from now on: it goes once the kernel lets it.
            view.counts = dict.fromkeys(view.counts, 0)
            raise failure
        self._devices.refuse_if_held(layer)

    # -- from before -------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget all views."""
        self._views.clear()

    def items(self) -> list[tuple[str, View]]:
        """Return what is known of each layer that has a view."""
        return list(self._views.items())

    def learn(self, layer: str, found: Mapping[Place, mounts.Mount], *, is_removed: bool) -> None:
        """Remember the views that an earlier life of this process had mounted of a mapped layer.

        That for Docker counts as one user, unless the layer is removed; the others are nobody's.
        """
        counts = {place: int(place is Place.DOCKER and not is_removed) for place in found}
        view = View(guessed=not is_removed, counts=counts)
        place = view.whole()
        if place:
            view.writable, view.label = not found[place].read_only, found[place].label
        elif not is_removed and self._systems.is_mapped_writable(layer) and self._devices.is_in_use(layer):
            # The mount namespace of a managed plugin ends with it (`docker plugin disable --force`), or we were killed
            # in a Put that had to show the view again; the containers have a namespace of their own.
            self._take(layer, view)
        if view.counts:
            self._views[layer] = view

    # -- what a container still has -----------------------------------------------------------

    def settle(self, layer: str) -> None:
        """Unmount a view for Docker, unless somebody uses it: then it counts as one user's. Raises CommandError."""
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
        """Unmount a view that Docker has put, as its caller knows, if nobody uses it.

        A Put that met the end of an earlier life of ours is lost: Docker repeats it without a body, and gives up.
        What could not be unmounted when its last user left is tried again.
        """
        view = self._views.get(layer)
        if view is not None and view.guessed and Place.DOCKER in view.counts:
            self.settle(layer)
        elif view is not None:
            self._unmount_of(layer, view)

    def _take(self, layer: str, view: View) -> None:
        """Show a view that only other mount namespaces have, if there is one: it must not be mounted a second time."""
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
        """Tell whether a container has a view that ours is gone of; one that has just ended may for a moment more."""
        return all(elsewhere.find(self._paths.source(layer)) for _ in unmounting.until_free(unmounting.LIVE_SECONDS))

    # -- one step each -----------------------------------------------------------------------

    def _look_again(self, layer: str, view: View, *, flush: bool = True) -> None:
        """After a time-out: learn from the mount table what was done, and end a mount that nobody was told of."""
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
            # Its device does not tell that somebody else has a view of it.
            self._devices.refuse_if_viewed(layer)
        parents = tuple(self._layers.parents(layer))
        user = user_of(layer, place)
        undo.callback(self._undo, layer, view, place, parents)
        self._acquire_parents(
            layer,
            user,
            parents,
            lambda: self._systems.acquire(layer, user, write=writable, finished=finished, growing=growing),
        )
        self._systems.check_alive(layer, *parents, ask=True, user=user)
        said = self._overlays.prepared(layer)
        lower = self._overlays.lower(layer, said, own=place in WHOLE and finished)
        point = self.point(layer, place)
        mounts.make_directory(point)
        view.counts[place], view.parents, view.parent = 0, parents, said.init or next(iter(parents), "")
        if place is Place.BELOW:
            view.bottom = not lower
            if view.bottom:
                return
        else:
            view.writable, view.label = writable, label
        self._join(layer, view, place, lower, writable=writable, label=label)

    def _join(self, layer: str, view: View, place: Place, lower: Sequence[str], *, writable: bool, label: str) -> None:
        # A view is looked for by its name.
        name = self._paths.source(layer) + (f"-{Place.BELOW.value}" if place is Place.BELOW else "")
        with unmounting.doubting(view):
            self._overlays.mount(layer, name, self.point(layer, place), lower, writable=writable, label=label)

    def _undo(self, layer: str, view: View, place: Place, parents: Sequence[str]) -> None:
        """End what was mounted for a place; what cannot be unmounted stays known, as nobody's, with all below it."""
        try:
            if place in view.counts:
                self._unmount(layer, view, place)
        finally:
            if place in view.counts:
                self._views[layer] = view
                self.idle(layer)
            else:
                self._release(layer, user_of(layer, place), parents)

    def _acquire_parents(self, layer: str, user: str, parents: Sequence[str], own: Callable[[], None]) -> None:
        """Map and mount a layer by `own`, and beside it what is below; what is there needs no thread."""

        def acquire(parent: str) -> None:
            try:
                with self._locks.hold(parent):
                    self._systems.acquire(parent, user, write=False, finished=True)
            except rbdcli.ImageMissing:
                raise LayerLost(
                    f"layer {layer} cannot be mounted: what is below it, layer {parent}, does not exist any more (no "
                    f"image {self._layers.image(parent)}); remove it"
                ) from None

        there = [parent for parent in parents if self._systems.is_mounted(parent)]
        for parent in there:
            acquire(parent)
        missing = [parent for parent in parents if parent not in there]
        if not missing:
            own()
            return
        with ThreadPoolExecutor(AT_ONCE) as threads:
            mapping = [threads.submit(contextvars.copy_context().run, acquire, parent) for parent in missing]
            try:
                own()
                for each in mapping:
                    each.result()
            except BaseException:
                # What was not begun would only take its time.
                for each in mapping:
                    each.cancel()
                raise

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
        """Release a layer and its parents for a place, unless it is still mounted there."""
        if place in view.counts:
            return
        if not view.counts and not view.doubtful:
            self._views.pop(layer, None)
        self._release(layer, user_of(layer, place), view.parents, flush=flush)

    def _release(self, layer: str, user: str, parents: Iterable[str], *, flush: bool = True) -> None:
        # All of them, whatever is wrong with one.
        with contextlib.ExitStack() as stack:
            for parent in parents:
                stack.callback(self._release_parent, parent, user)
            stack.callback(self._tell_idle, layer)
            self._systems.release(layer, user, flush=flush)

    def _release_parent(self, parent: str, user: str) -> None:
        # Somebody may be at work with it for as long as a sick cluster lets him.
        self._systems.uncount(parent, user)
        self._tell_idle(parent)

    def _tell_idle(self, layer: str) -> None:
        if self._devices.device(layer) and not self._systems.users(layer):
            self.idle(layer)


def _ahead(layer: str) -> str:
    return f"{layer}/ahead"
