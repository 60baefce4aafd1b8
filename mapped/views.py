"""What Docker, and our own work, see of layers: each joined with its parents at a mount point of its own.

    ROOT/ID/docker     the view for Docker: between Get and Put
    ROOT/ID/driver     the view for an archive that is laid down
    ROOT/ID/below      what is below the layer, read-only: what Diff compares with

A view is an overlay: of what the layer brought, above what each parent did, nearest first. Of a layer that is not
finished it is writable, and there is one at a time: two on the same directories would spoil both (overlayfs.rst,
"Sharing and copying layers"). So while an archive is laid down, Docker cannot have the layer; where Docker has it, our
own work uses that view. A finished layer's is read-only.

So all can be told from the host alone after a crash: what is at `docker` is Docker's and stays, the rest was for nobody
but an earlier life of this process.

Counts are in memory only. The caller holds the layer's lock around each call; the locks of its parents are taken here.
"""

from __future__ import annotations

import contextlib
import contextvars
import enum
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import mounts
import rbdcli
from host import command, deadline
from host.locks import Locks
from images import layer_state
from images.layer_state import LayerState
from mapped import busy, elsewhere
from mapped.busy import LayerBusy
from mapped.file_systems import POINT, FileSystems, Images, LayerLost

log = logging.getLogger("views")

# Where BuildKit mounts a layer once more: to look at it (snapshot/localmounter_unix.go), and for a RUN
# (executor/runcexecutor/executor.go).
_OF_BUILDERS = re.compile(r"/buildkit-mount[^/]*$|/buildkit/executor/[^/]+/rootfs$")
# What one layer from before may take of a start: the others wait for it.
LEARN_SECONDS = 5.0
# Parents that are mapped at the same time.
AT_ONCE = 4
# Attributes that overlayfs keeps for itself.
_OVERLAY = "trusted.overlay."


class Place(enum.Enum):
    """For whom a view is mounted; the value is the name of its mount point."""

    DOCKER = "docker"
    DRIVER = "driver"
    BELOW = "below"


# The view itself, and not only what is below the layer.
_WHOLE = (Place.DOCKER, Place.DRIVER)


@dataclass
class _View:
    """`counts` has a key for each place where the layer is mounted (0: nobody's, still mounted).

    `writable`: not of a finished layer.
    `doubtful`: a mount or unmount ran into its deadline, and may have been done later all the same.
    `guessed`: its count for Docker is not known but one, since it was found mounted at a start.
    `parents`: the layers that it is joined with. `bottom`: there is nothing below it. `parent`: what Docker calls that.
    """

    writable: bool = False
    doubtful: bool = False
    guessed: bool = False
    bottom: bool = False
    label: str = ""
    parents: tuple[str, ...] = ()
    parent: str = ""
    counts: dict[Place, int] = field(default_factory=dict)

    def whole(self) -> Place | None:
        """Return a place where the view itself is mounted."""
        return next((place for place in _WHOLE if place in self.counts), None)


class Views:
    """The views of one home's layers. `idle` is told which layers are mapped for nobody any more."""

    def __init__(
        self,
        pool: rbdcli.Pool,
        systems: FileSystems,
        images: Images,
        locks: Locks,
        *,
        options: Sequence[str],
        root_owner: tuple[int, int],
        idle: Callable[[str], None],
    ) -> None:
        """`root_owner` is whom the root directory of a layer without parents belongs to."""
        self._pool = pool
        self.systems = systems
        self._images = images
        self._locks = locks
        self._options = options
        self._root_owner = root_owner
        self._idle = idle
        self._views: dict[str, _View] = {}
        self._counting = threading.Lock()

    def point(self, layer: str, place: Place) -> str:
        """Return the mount point of a layer for `place`, whether it is mounted or not."""
        return os.path.join(self.systems.directory(layer), place.value)

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

    # -- acquire and release -----------------------------------------------------------------

    def acquire(self, layer: str, place: Place, *, sealed: bool, label: str = "", growing: bool = False) -> Place:
        """Mount a layer for a place, or count one more user of it there; return the place to release later.

        Our own work uses Docker's mount if there is one. `sealed` layers are finished, and never written to; one that
        is to be `growing` is not mapped exclusively, unless somebody has it already. On failure nothing stays behind.
        Raises rbdcli.ImageMissing (the layer's own), rbdcli.ImageLocked, command.CommandError, LayerBusy, LayerLost.
        """
        with contextlib.ExitStack() as undo:
            if known := self._views.get(layer):
                self._look_again(layer, known)
                if place in _WHOLE:
                    # What nobody uses any more is in nobody's way. Who looks at what is below has none.
                    self._unmount_unused(layer, known, [other for other in _WHOLE if other is not place])
            view = self._views.get(layer) or _View()
            if place is Place.DRIVER and Place.DOCKER in view.counts:
                place = Place.DOCKER
            if place in view.counts:
                self.systems.check_alive(layer, *view.parents)
            else:
                if place is Place.DOCKER and Place.DRIVER in view.counts and view.writable:
                    raise LayerBusy(f"layer {layer}: an archive is being laid down in it; try again")
                self._mount(layer, view, place, undo, sealed=sealed, label=label, growing=growing)
            with self._counting:
                view.counts[place] += 1
            self._views[layer] = view
            undo.pop_all()
        return place

    def leave(self, layer: str, place: Place) -> None:
        """Count one user of a view less, whoever is at work with the layer: without its lock.

        A layer that is not mounted there is none of our business: Docker puts what it never got after a crash.
        """
        view = self._views.get(layer)
        if view is not None:
            with self._counting:
                if view.counts.get(place):
                    view.counts[place] -= 1

    def unmount_left(self, layer: str, place: Place) -> None:
        """Unmount a view if its last user has left.

        But not that of a running container, by a Put whose answer was lost in a crash, and that Docker sends once more.
        Raises LayerBusy: it then stays mounted, and the next such call, or `let_go`, tries again.
        """
        view = self._views.get(layer)
        if view is None:
            return
        try:
            self._unmount_unused(layer, view, (place,))
        except BaseException:
            # It is nobody's all the same.
            self._idle(layer)
            raise

    # -- what a layer itself brought ---------------------------------------------------------

    def open(self, layer: str, *, sealed: bool) -> tuple[str, str | None, str]:
        """Have what a layer brought, to be read: return its directory, that of what is below (None for nothing), and
        what Docker made it on, "" for nothing.

        Left as Place.BELOW. Raises what `acquire` does.
        """
        self.acquire(layer, Place.BELOW, sealed=sealed)
        own = os.path.join(self.systems.point(layer), layer_state.ROOT)
        view = self._views[layer]
        return own, None if view.bottom else self.point(layer, Place.BELOW), view.parent

    def warm(self, layer: str) -> None:
        """Map and mount a finished layer that somebody will need in a moment. Raises what `acquire` does."""
        if not self.systems.is_mounted(layer):
            self.keep_ahead(layer)
            self.leave_ahead(layer)

    def keep_ahead(self, layer: str) -> None:
        """Map and mount a finished layer until `leave_ahead`. Raises what `acquire` does."""
        try:
            self.systems.acquire(layer, _ahead(layer), write=False, sealed=True)
        except BaseException:
            self._tell_idle(layer)
            raise

    def leave_ahead(self, layer: str) -> None:
        """Undo that: without the layer's lock."""
        self.systems.leave(layer, _ahead(layer))
        self._tell_idle(layer)

    # -- the end -----------------------------------------------------------------------------

    def let_go(self, layer: str, *, tidy: bool = True) -> None:
        """Unmount and unmap a layer that nobody needs. Raises LayerBusy."""
        view = self._views.get(layer)
        if view is not None:
            self._unmount_unused(layer, view)
        self.systems.let_go(layer, tidy=tidy)

    def _unmount_unused(self, layer: str, view: _View, places: Iterable[Place] = tuple(Place)) -> None:
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
        self.systems.unmount(layer)
        if failure and view:
            # Nobody's from now on: it goes once the kernel lets it.
            view.counts = dict.fromkeys(view.counts, 0)
            raise failure
        self.systems.refuse_if_held(layer)

    # -- after a restart ---------------------------------------------------------------------

    def learn(self, removed: Collection[str]) -> list[str]:
        """Learn from the host what an earlier life of this process had mapped; return what is to be let go of it.

        A view for Docker counts as one user (moby's graphdriver/counter.go does the same). What was mounted or mapped
        for that life's own work counts as nobody's. One layer that cannot be looked at does not keep the others. Of
        those that are removed somebody else sees to it that they go.
        """
        self._views.clear()
        self.systems.remove_stale_links()
        layers = self.systems.layers()
        # Else one of them would come to its end after we have looked.
        self.systems.end_maps(layers)
        table = mounts.table()
        mounted = mounts.visible(table)
        for found in table:
            if found.point.startswith(f"{self.systems.root}/") and mounted.get(found.point) is not found:
                log.error("%s is hidden by what was mounted above it, and goes with that", found.point)
        mapped: dict[str, list[str]] = {}
        for item in self._pool.mappings() if layers else ():
            mapped.setdefault(item.image, []).append(item.device)
        for layer in layers:
            with _from_before(layer):
                self._learn(layer, mounted, mapped.get(self._images.image(layer), []), is_removed=layer in removed)
        for layer, view in self._views.items():
            with _from_before(layer):
                self._learn_parents(layer, view)
        return self._left_over(removed)

    def _left_over(self, removed: Collection[str]) -> list[str]:
        """Name the layers that are mapped, or have a view anywhere, for nobody."""
        viewed = {layer for layer, view in list(self._views.items()) if 0 in view.counts.values()}
        return sorted(viewed.union(self.systems.unused()).difference(removed))

    def _learn(
        self, layer: str, mounted: Mapping[str, mounts.Mount], devices: Sequence[str], *, is_removed: bool
    ) -> None:
        mounts.make_directory(self.systems.directory(layer))
        points = (self.systems.point(layer), *(self.point(layer, place) for place in Place))
        shown = {point: mounted[point] for point in points if point in mounted}
        self.systems.learn(layer, shown.get(self.systems.point(layer)), devices)
        found = {place: shown[point] for place in Place if (point := self.point(layer, place)) in shown}
        if not self.systems.device(layer):
            for item in found.values():
                log.error("unmounting %s: the layer's device is gone", item.point)
                busy.unmount(item.point, self._pool.timeout)
            self.systems.remove_directories(layer)
            return
        # What is removed is nobody's.
        counts = {place: int(place is Place.DOCKER and not is_removed) for place in found}
        view = _View(guessed=not is_removed, counts=counts)
        place = view.whole()
        if place:
            view.writable, view.label = not found[place].read_only, found[place].label
        elif not is_removed and self.systems.is_writable(layer) and self.systems.is_in_use(layer):
            # The mount namespace of a managed plugin ends with it (`docker plugin disable --force`), or we were killed
            # in a Put that had to show the view again; the containers have a namespace of their own.
            self._take(layer, view)
        if view.counts:
            self._views[layer] = view

    def _learn_parents(self, layer: str, view: _View) -> None:
        """Count a view that was found as a use of what it is joined of."""
        for place in view.counts:
            self.systems.adopt(layer, _user(layer, place), write=view.writable)
        said = layer_state.read(self.systems.point(layer), self._pool.timeout)
        if said is None or said.layer != layer:
            raise mounts.MountError(f"{self.systems.point(layer)} has no note of it")
        view.parents, view.parent = said.parents, said.init or next(iter(said.parents), "")
        if said.finished:
            self.systems.seal(layer)
        for parent in said.parents:
            self.systems.seal(parent)
            for place in view.counts:
                self.systems.adopt(parent, _user(layer, place), write=False)

    def settle(self, removed: Collection[str]) -> list[str]:
        """Docker has started anew: keep mounted, as one user each, what a container still uses; unmount the rest.

        Returns the layers that are mapped for nobody now. One that cannot be unmounted does not keep the others.

        A running container (live-restore) holds its view in its own mount namespace. A builder that was killed with
        the former daemon holds it in ours.
        """
        self._unmount_builders()
        for layer, view in list(self._views.items()):
            if Place.DOCKER in view.counts and layer not in removed:
                with _from_before(layer):
                    self._settle(layer, view)
        return self._left_over(removed)

    def settle_one(self, layer: str) -> None:
        """Do the same to one layer, if its user for Docker is only guessed: the caller knows that Docker has put it.

        What could not be unmounted when its last user left is tried again.

        A Put that met the end of an earlier life of ours is lost: Docker repeats it without a body, and gives up.
        """
        view = self._views.get(layer)
        if view is not None and view.guessed and Place.DOCKER in view.counts:
            self._settle(layer, view)
        elif view is not None:
            self._unmount_unused(layer, view)

    def _settle(self, layer: str, view: _View) -> None:
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

    def _take(self, layer: str, view: _View) -> None:
        """Show a view that only other mount namespaces have, if there is one: it must not be mounted a second time."""
        point = self.point(layer, Place.DOCKER)
        mounts.make_directory(point)
        try:
            taken = elsewhere.take(self.systems.source(layer), point, timeout=self._pool.timeout)
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
        return all(elsewhere.find(self.systems.source(layer)) for _ in busy.until_free(busy.LIVE_SECONDS))

    def _unmount_builders(self) -> None:
        """End what BuildKit left mounted: no build is running now.

        dockerd renames the directory in which some of these mounts are, and tries to delete it.
        """
        views = {self.systems.source(layer) for layer in self.systems.layers()}
        for item in reversed(mounts.table()):
            if item.source in views and _OF_BUILDERS.search(item.point):
                log.warning("unmounting %s, left behind by a builder", item.point)
                with _from_before(item.point):
                    busy.unmount(item.point, self._pool.timeout)

    # -- one step each -----------------------------------------------------------------------

    def _look_again(self, layer: str, view: _View, *, flush: bool = True) -> None:
        """After a time-out: learn from the mount table what was done, and end a mount that nobody was told of."""
        if not view.doubtful:
            return
        for place in Place:
            mounted = mounts.at(self.point(layer, place)) is not None
            if place is Place.BELOW and view.bottom:
                continue
            if mounted and place not in view.counts:
                busy.unmount(self.point(layer, place), self._pool.timeout)
            elif not mounted and place in view.counts:
                self._not_mounted(layer, view, place)
                self._leave(layer, view, place, flush=flush)
        view.doubtful = False

    def _mount(
        self,
        layer: str,
        view: _View,
        place: Place,
        undo: contextlib.ExitStack,
        *,
        sealed: bool,
        label: str,
        growing: bool,
    ) -> None:
        writable = place in _WHOLE and not sealed
        if writable and self.systems.is_mounted(layer):
            # Its device does not tell that somebody else has a view of it.
            self.systems.refuse_if_viewed(layer)
        parents = tuple(self._images.parents(layer))
        user = _user(layer, place)
        undo.callback(self._undo, layer, view, place, parents)
        self._acquire_parents(
            layer,
            user,
            parents,
            lambda: self.systems.acquire(layer, user, write=writable, sealed=sealed, growing=growing),
        )
        self.systems.check_alive(layer, *parents, ask=True, user=user)
        said = self.dressed(layer)
        lower = self._lower(layer, said, own=place in _WHOLE and sealed)
        point = self.point(layer, place)
        mounts.make_directory(point)
        view.counts[place], view.parents, view.parent = 0, parents, said.init or next(iter(parents), "")
        if place is Place.BELOW:
            view.bottom = not lower
            if view.bottom:
                return
        else:
            view.writable, view.label = writable, label
        self._join(layer, view, point, lower, upper=writable, label=label)

    def _join(self, layer: str, view: _View, point: str, lower: list[str], *, upper: bool, label: str) -> None:
        # A kernel joins one directory with an upper one, or two.
        if len(lower) < (1 if upper else 2):
            lower = [*lower, _inside(layer, layer_state.NONE)]
        own = (_inside(layer, layer_state.ROOT), _inside(layer, layer_state.WORK)) if upper else None
        name = self.systems.source(layer)
        self.systems.refuse_if_ended(layer)
        with busy.doubting(view):
            mounts.overlay(
                # A view is looked for by its name.
                name if point != self.point(layer, Place.BELOW) else f"{name}-{Place.BELOW.value}",
                point,
                lower,
                own,
                options=self._options,
                label=label,
                directory=self.systems.links,
                timeout=self._pool.timeout,
            )

    def _undo(self, layer: str, view: _View, place: Place, parents: Sequence[str]) -> None:
        """End what was mounted for a place; what cannot be unmounted stays known, as nobody's, with all below it."""
        try:
            if place in view.counts:
                self._unmount(layer, view, place)
        finally:
            if place in view.counts:
                self._views[layer] = view
                self._idle(layer)
            else:
                self._release(layer, _user(layer, place), parents)

    def _acquire_parents(self, layer: str, user: str, parents: Sequence[str], own: Callable[[], None]) -> None:
        """Map and mount a layer by `own`, and beside it what is below; what is there needs no thread."""

        def acquire(parent: str) -> None:
            try:
                with self._locks.hold(parent):
                    self.systems.acquire(parent, user, write=False, sealed=True)
            except rbdcli.ImageMissing:
                raise LayerLost(
                    f"layer {layer} cannot be mounted: what is below it, layer {parent}, does not exist any more (no "
                    f"image {self._images.image(parent)}); remove it"
                ) from None

        there = [parent for parent in parents if self.systems.is_mounted(parent)]
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

    def dressed(self, layer: str) -> LayerState:
        """Return the note of a mounted layer, written when it is mounted first: then its root gets what it inherits.

        What is nearest below a new layer must be mounted.
        """
        directory, seconds = self.systems.point(layer), self._pool.timeout
        said = layer_state.read(directory, seconds)
        if said and said.layer == layer:
            return said
        parents = tuple(self._images.parents(layer))
        made = LayerState(layer, parents, init=said.layer if said else "")
        if said and said.init:
            raise LayerLost(f"layer {layer}: {said.layer} is no init layer, but a container's; remove {layer}")
        nearest = _inside(layer, layer_state.INIT) if made.init else self._link(parents[0]) if parents else ""
        path = os.path.join(self.systems.links, nearest) if nearest else ""
        self.systems.make_writable(layer)
        deadline.call(lambda: _dress(directory, made, path, self._root_owner), directory, seconds)
        layer_state.write(directory, made, seconds)
        return made

    def _lower(self, layer: str, said: LayerState, *, own: bool) -> list[str]:
        """Name the directories below a layer, nearest first; `own`: with what it brought itself."""
        links = self.systems.links

        def look() -> list[str]:
            found = []
            for parent in said.parents:
                found.append(self._link(parent))
                # A container's layer, whose init layer is in itself.
                if os.path.isdir(os.path.join(links, _inside(parent, layer_state.INIT))):
                    found.append(_inside(parent, layer_state.INIT))
            return found

        below = deadline.call(look, self.systems.point(layer), self._pool.timeout)
        init = [_inside(layer, layer_state.INIT)] if said.init else []
        return [*([self._link(layer)] if own else []), *init, *below]

    def _link(self, layer: str) -> str:
        return self.systems.short(layer)

    def _unmount(self, layer: str, view: _View, place: Place) -> None:
        if not (place is Place.BELOW and view.bottom):
            with busy.doubting(view):
                busy.unmount(self.point(layer, place), self._pool.timeout)
        self._not_mounted(layer, view, place)

    def _not_mounted(self, layer: str, view: _View, place: Place) -> None:
        with self._counting:
            view.counts.pop(place, None)
        mounts.remove_point(self.point(layer, place))

    def _leave(self, layer: str, view: _View, place: Place, *, flush: bool = True) -> None:
        """Release a layer and its parents for a place, unless it is still mounted there."""
        if place in view.counts:
            return
        if not view.counts and not view.doubtful:
            self._views.pop(layer, None)
        self._release(layer, _user(layer, place), view.parents, flush=flush)

    def _release(self, layer: str, user: str, parents: Iterable[str], *, flush: bool = True) -> None:
        # All of them, whatever is wrong with one.
        with contextlib.ExitStack() as stack:
            for parent in parents:
                stack.callback(self._release_parent, parent, user)
            stack.callback(self._tell_idle, layer)
            self.systems.release(layer, user, flush=flush)

    def _release_parent(self, parent: str, user: str) -> None:
        # Somebody may be at work with it for as long as a sick cluster lets him.
        self.systems.leave(parent, user)
        self._tell_idle(parent)

    def _tell_idle(self, layer: str) -> None:
        if self.systems.device(layer) and not self.systems.users(layer):
            self._idle(layer)


def _user(layer: str, place: Place) -> str:
    return f"{layer}/{place.value}"


def _ahead(layer: str) -> str:
    return f"{layer}/ahead"


def _inside(layer: str, name: str) -> str:
    """Name a directory of a layer's file system, as seen from the links."""
    return os.path.join("..", "mnt", layer, POINT, name)


def _dress(directory: str, made: LayerState, nearest: str, root_owner: tuple[int, int]) -> None:
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


@contextlib.contextmanager
def _from_before(what: str) -> Iterator[None]:
    """Do something about a layer from before, or a mount; if that cannot be done, it does not keep the others."""
    try:
        with deadline.within(LEARN_SECONDS):
            yield
    except (OSError, ValueError, mounts.MountError, LayerBusy, command.CommandError, deadline.Overdue) as error:
        log.error("%s from before: %s", what, error)
