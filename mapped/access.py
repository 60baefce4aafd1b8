"""A layer for the length of its use: it is checked, mounted and counted before, and released afterwards.

Lock order: a layer before its parents. A layer's lock is held while the layer is mapped, mounted or unmounted. It is
never held while an archive runs: Docker feeds the Diff of one layer into the ApplyDiff of another.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from host import command, deadline
from images import layer_state
from images.layer_state import LayerState
from images.layers import LayerRefused
from mapped.availability import Availability
from mapped.home import Home
from mapped.removals import Removals
from mapped.states import State, States
from mapped.unmounting import LayerBusy
from mapped.view import Own, Place
from mapped.views import Views

log = logging.getLogger("access")


class Access:
    """Access to the layers of one home. It decides whether a layer may be used, and whether it may be written to."""

    def __init__(
        self, home: Home, removals: Removals, views: Views, states: States, availability: Availability
    ) -> None:
        self._home, self._locks, self._removals = home, home.locks, removals
        self._views, self._states, self._availability = views, states, availability

    # -- Docker's views ----------------------------------------------------------------------

    def acquire(self, layer: str, place: Place, *, label: str = "", growing: bool = False) -> Place:
        """Mount a layer for `place`, and return the place to release later. A finished layer is mounted read-only.

        The caller holds the layer's lock. `label` and `growing` are those of Views.acquire. On failure nothing more is
        mounted than before. Raises LayerError, LayerBusy, LayerLost, mounts.MountError, command.CommandError,
        deadline.Overdue, OSError; ValueError if layer.json is none of ours.
        """
        self._removals.refuse(layer)
        with self._availability.checked(layer):
            finished = self._states.of(layer, growing=growing) is State.FINISHED
            return self._views.acquire(layer, place, finished=finished, label=label, growing=growing and not finished)

    def release(self, layer: str, place: Place) -> None:
        """Undo one `acquire`. Do nothing if the layer is not mounted.

        The caller does not hold the layer's lock: others may hold it for longer than this request lasts. On failure the
        user is counted out all the same, and the unmount is tried again in the background. Raises LayerBusy,
        command.CommandError, deadline.Overdue, OSError.
        """
        self._views.uncount(layer, place)
        try:
            with self._locks.hold(layer):
                self._views.unmount_unused(layer, place)
        except deadline.Overdue:
            # The user has left all the same: so the layer is unmounted in the background.
            self._views.idle(layer)
            raise

    # -- views of our own ---------------------------------------------------------------------

    @contextlib.contextmanager
    def view(self, layer: str, *, growing: bool = False) -> Iterator[str]:
        """Mount a layer for the `with` block; yield its root directory. Raises what `acquire` and `release` raise."""
        self._removals.refuse(layer)
        with self._home.bounds(), self._locks.hold(layer):
            place = self.acquire(layer, Place.DRIVER, growing=growing)
        with self._released(layer, place):
            yield self._views.point(layer, place)

    @contextlib.contextmanager
    def own(self, layer: str) -> Iterator[Own]:
        """Mount for the `with` block what a layer itself brought. Raises what `acquire` and `release` raise."""
        with self._home.bounds(), self._locks.hold(layer):
            self._removals.refuse(layer)
            with self._availability.checked(layer):
                finished = self._states.of(layer) is State.FINISHED
                found = self._views.acquire_own(layer, finished=finished)
        with self._released(layer, Place.BELOW):
            yield found

    @contextlib.contextmanager
    def _released(self, layer: str, place: Place) -> Iterator[None]:
        """Release a layer at the end of the `with` block. If the block raises an error, that error wins."""
        try:
            yield
        except BaseException:
            try:
                self._release(layer, place)
            except (command.CommandError, LayerBusy, deadline.Overdue) as error:
                # The error of the block is worth more to the caller. The release is tried again in the background.
                log.error("%s", error)
            raise
        self._release(layer, place)

    def _release(self, layer: str, place: Place) -> None:
        with self._home.bounds():
            self.release(layer, place)

    def begin_archive(self, layer: str) -> LayerState:
        """Set the mark that an archive is being laid down in a mounted layer. Return the layer's state before that.

        Raises LayerError if the layer had an archive already; and what Overlays.prepared raises.
        """
        with self._home.bounds(), self._locks.hold(layer):
            self._removals.refuse(layer)
            state = self._views.prepared(layer)
            if state.applying or state.finished:
                raise LayerRefused(
                    f"layer {layer} takes one archive; {'it had one' if state.finished else 'one is being applied'}"
                )
            layer_state.begin(self._home.paths.point(layer), self._home.timeout)
            return state
