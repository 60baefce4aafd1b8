"""How far each layer has come: open, broken or finished.

If this process made the layer, it remembers that. If not, it mounts the layer's own file system, and reads the state in
it (layer_state.py).
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from images import layer_state
from images.layer_state import LayerState
from images.layers import LayerError
from mapped.file_systems import FileSystems
from mapped.home import Home

# At the end of an archive, all that it left in memory is written out. That may take as long as so many commands.
FLUSHES = 5


class State(enum.Enum):
    """How far a layer has come.

    OPEN: no archive was laid down in it yet, or one is being laid down. BROKEN: its archive failed, or was cut off.
    FINISHED: nobody writes to it any more.
    """

    OPEN = "open"
    BROKEN = "broken"
    FINISHED = "finished"


class States:
    """The states of one home's layers. `idle` is called with a layer that is mapped and has no user any more."""

    def __init__(self, home: Home, systems: FileSystems, idle: Callable[[str], None]) -> None:
        self._home, self._systems, self._idle = home, systems, idle
        self._known: dict[str, State] = {}

    def is_finished(self, layer: str) -> bool:
        """Tell whether a layer is known to be finished. This does not look at its file system."""
        return self._known.get(layer) is State.FINISHED

    def refuse_broken(self, layer: str, words: str = "") -> None:
        """Raise LayerError if a layer is known to be broken, with the text `words` if there is one."""
        if self._known.get(layer) is State.BROKEN:
            broken = f"layer {layer} is broken: its archive was not applied to its end; remove it"
            raise LayerError(words or broken)

    def of(self, layer: str, *, growing: bool = False) -> State:
        """Return the state of a layer, which is OPEN or FINISHED. The caller holds its lock.

        If the layer must be mapped for that, it stays mapped without a user; exclusively unless `growing`. Raises
        LayerError if it is broken, LayerLost, ValueError if layer.json is none of ours, and what FileSystems.acquire
        raises.
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

    def finish(self, layer: str, state: LayerState) -> None:
        """Write out all of a mounted, writable layer, and that it is finished. Raises deadline.Overdue, OSError."""
        layer_state.finish(self._home.paths.point(layer), state, FLUSHES * self._home.timeout)
        self.set(layer, State.FINISHED)

    def forget(self, layer: str) -> None:
        """Forget a layer that is gone."""
        self._known.pop(layer, None)

    def _look(self, layer: str, *, growing: bool) -> State:
        user = f"{layer}/state"
        self._systems.acquire(layer, user, write=False, finished=False, growing=growing)
        try:
            self._systems.check_alive(layer)
            state = layer_state.read(self._home.paths.point(layer), self._home.timeout)
        finally:
            if self._systems.release(layer, user):
                self._idle(layer)
        if state and state.applying:
            return State.BROKEN
        return State.FINISHED if state and state.layer == layer and state.finished else State.OPEN
