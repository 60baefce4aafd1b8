"""A layer for the length of its use: whether it may be had on this host, by whom it is seen, and what it is afterwards.

Lock order: a layer before its parents. A layer's lock is held while it is mapped, mounted or unmounted, never while an
archive runs: Docker feeds the Diff of one layer into the ApplyDiff of another.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import NamedTuple

from host import command, deadline
from images import layer_state
from images.layer_state import LayerState
from images.layers import LayerError
from mapped.availability import Availability
from mapped.home import Home
from mapped.removals import Removals
from mapped.states import State, States
from mapped.unmounting import LayerBusy
from mapped.view import Place
from mapped.views import Views

log = logging.getLogger("access")


class Own(NamedTuple):
    """What a layer itself brought: its directory, that of what is below (None: nothing), what Docker made it on."""

    root: str
    below: str | None
    parent: str


class Access:
    """Access to the layers of one home."""

    def __init__(
        self, home: Home, removals: Removals, views: Views, states: States, availability: Availability
    ) -> None:
        self._home, self._locks, self._removals = home, home.locks, removals
        self._views, self._states, self._availability = views, states, availability

    # -- Docker's views ----------------------------------------------------------------------

    def acquire(self, layer: str, place: Place, *, label: str = "", growing: bool = False) -> Place:
        """Mount a layer, a finished one never writable; the caller holds its lock, and releases what is returned.

        Raises LayerError, LayerBusy, LayerLost, rbdcli.RbdError, command.CommandError, deadline.Overdue.
        """
        self._removals.refuse(layer)
        with self._availability.checked(layer):
            finished = self._states.of(layer, growing=growing) is State.FINISHED
            return self._views.acquire(layer, place, finished=finished, label=label, growing=growing and not finished)

    def release(self, layer: str, place: Place) -> None:
        """Undo one `acquire`; of a layer that is not mounted, nothing. Raises LayerBusy, deadline.Overdue.

        The caller does not hold the layer's lock: others may be at work with it for longer than this request lasts.
        """
        self._views.uncount(layer, place)
        try:
            with self._locks.hold(layer):
                self._views.unmount_unused(layer, place)
        except deadline.Overdue:
            # It is nobody's all the same.
            self._views.idle(layer)
            raise

    # -- views of our own ---------------------------------------------------------------------

    @contextlib.contextmanager
    def view(self, layer: str, *, growing: bool = False) -> Iterator[str]:
        """Return the root directory of a layer for the length of a `with` block. Raises what `acquire` does."""
        self._removals.refuse(layer)
        with self._home.bounds(), self._locks.hold(layer):
            place = self.acquire(layer, Place.DRIVER, growing=growing)
        with self._released(layer, place):
            yield self._views.point(layer, place)

    @contextlib.contextmanager
    def own(self, layer: str) -> Iterator[Own]:
        """Return what a layer itself brought for the length of a `with` block. Raises what `acquire` does."""
        with self._home.bounds(), self._locks.hold(layer):
            self._removals.refuse(layer)
            with self._availability.checked(layer):
                finished = self._states.of(layer) is State.FINISHED
                found = Own(*self._views.acquire_own(layer, finished=finished))
        with self._released(layer, Place.BELOW):
            yield found

    @contextlib.contextmanager
    def _released(self, layer: str, place: Place) -> Iterator[None]:
        """Release a layer at the end of the `with` block."""
        try:
            yield
        except BaseException:
            try:
                self._release(layer, place)
            except (command.CommandError, LayerBusy, deadline.Overdue) as error:
                # Why the work ended is worth more to the caller; it is tried again in the background.
                log.error("%s", error)
            raise
        self._release(layer, place)

    def _release(self, layer: str, place: Place) -> None:
        with self._home.bounds():
            self.release(layer, place)

    def begin_archive(self, layer: str) -> LayerState:
        """Mark that an archive is laid down in a layer that is mounted, unless one was before; return its state.

        Raises LayerError, deadline.Overdue, OSError.
        """
        with self._home.bounds(), self._locks.hold(layer):
            self._removals.refuse(layer)
            said = self._views.prepared(layer)
            if said.applying or said.finished:
                raise LayerError(
                    f"layer {layer} takes one archive; {'it had one' if said.finished else 'one is being applied'}"
                )
            layer_state.begin(self._home.paths.point(layer), self._home.timeout)
            return said
