"""How far each layer has come: open, broken or finished.

It is remembered from when the layer was made. Of a layer from before our start its own file system tells
(layer_state.py), which is mounted for that.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from images import layer_state
from images.layer_state import LayerState
from images.layers import LayerError
from mapped.file_systems import FileSystems
from mapped.home import Home

# All that an archive left in memory is written out at its end: so many times as long as one command may take.
FLUSHES = 5


class State(enum.Enum):
    """How far a layer has come.

    OPEN: no archive was laid down in it, or is; BROKEN: its archive failed, or was cut off; FINISHED: nobody writes to
    it any more.
    """

    OPEN = "open"
    BROKEN = "broken"
    FINISHED = "finished"


class States:
    """The states of one home's layers. `idle` is told which layers are mapped for nobody any more."""

    def __init__(self, home: Home, systems: FileSystems, idle: Callable[[str], None]) -> None:
        self._home, self._systems, self._idle = home, systems, idle
        self._known: dict[str, State] = {}

    def is_finished(self, layer: str) -> bool:
        """Tell whether a layer is known to be finished, without a look at its file system."""
        return self._known.get(layer) is State.FINISHED

    def refuse_broken(self, layer: str, words: str = "") -> None:
        """Raise LayerError if a layer is known to be broken; `words` say who needs it."""
        if self._known.get(layer) is State.BROKEN:
            broken = f"layer {layer} is broken: its archive was not applied to its end; remove it"
            raise LayerError(words or broken)

    def of(self, layer: str, *, growing: bool = False) -> State:
        """Return the state of a layer, which is OPEN or FINISHED; the caller holds its lock.

        One that is to be `growing` is not mapped exclusively. Raises LayerError if it is broken, and what
        FileSystems.acquire raises.
        """
        if layer not in self._known:
            self._known[layer] = self._look(layer, growing=growing)
            if self.is_finished(layer):
                self._systems.set_finished(layer)
        self.refuse_broken(layer)
        return self._known[layer]

    def set(self, layer: str, state: State) -> None:
        """Remember the state of a layer."""
        self._known[layer] = state
        if state is State.FINISHED:
            self._systems.set_finished(layer)

    def finish(self, layer: str, said: LayerState) -> None:
        """Write out all of a mounted layer, and that it is finished. Raises deadline.Overdue, OSError."""
        layer_state.finish(self._home.paths.point(layer), said, FLUSHES * self._home.timeout)
        self.set(layer, State.FINISHED)

    def forget(self, layer: str) -> None:
        """Forget a layer that is gone."""
        self._known.pop(layer, None)

    def _look(self, layer: str, *, growing: bool) -> State:
        user = f"{layer}/state"
        self._systems.acquire(layer, user, write=False, finished=False, growing=growing)
        try:
            self._systems.check_alive(layer)
            said = layer_state.read(self._home.paths.point(layer), self._home.timeout)
        finally:
            if self._systems.release(layer, user):
                self._idle(layer)
        if said and said.applying:
            return State.BROKEN
        return State.FINISHED if said and said.layer == layer and said.finished else State.OPEN
