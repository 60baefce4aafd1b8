"""Which layers of the pool need which: the parents of every layer that has an image.

If an image goes while another layer stands on it, that layer is lost. Docker removes layers before their parents, but
for its own crashes, and BuildKit's. So the parents of all layers are looked at before an image goes. That takes a
command for each layer that is not known yet: all of them once in a driver's life, and then the few that other hosts
have made since.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from host import task

# Layers that this process made are known at once. Others, as a takeover brings them, are looked for after this time.
LISTED_SECONDS = 10.0
_AT_ONCE = 8


class Family:
    """The parents of layers.

    `names` lists all layers. `ask` returns the parents of one; None if it is gone, or has no record.
    """

    def __init__(self, names: Callable[[], Collection[str]], ask: Callable[[str], Sequence[str] | None]) -> None:
        self._names, self._ask = names, ask
        self._lock, self._listing = threading.Lock(), threading.Lock()
        self._parents: dict[str, frozenset[str]] = {}
        # The layers that were made, and that have gone, since the last list was asked for.
        self._made: set[str] = set()
        self._gone: set[str] = set()
        self._listed = float("-inf")

    def add(self, layer: str, parents: Iterable[str]) -> None:
        """Learn that a layer was made."""
        with self._lock:
            self._parents[layer] = frozenset(parents)
            self._made.add(layer)
            self._gone.discard(layer)

    def drop(self, layer: str) -> None:
        """Learn that a layer has gone."""
        with self._lock:
            self._parents.pop(layer, None)
            self._made.discard(layer)
            self._gone.add(layer)

    def needing(self, layer: str) -> list[str]:
        """Name the layers that stand on `layer`. Raises what `names` and `ask` raise: then that is not known.

        The parents that were learned until then are kept for the next call.
        """
        self._learn()
        with self._lock:
            return sorted(child for child, parents in self._parents.items() if layer in parents)

    def known_children(self, layer: str) -> list[str]:
        """Name the layers that are known to stand on `layer` directly. Asks nobody."""
        with self._lock:
            above = len(self._parents.get(layer, ())) + 1
            return [each for each, parents in self._parents.items() if layer in parents and len(parents) == above]

    def _learn(self) -> None:
        with self._listing:
            if time.monotonic() - self._listed < LISTED_SECONDS:
                return
            began = time.monotonic()
            with self._lock:
                self._made.clear()
                self._gone.clear()
            there = set(self._names())
            with self._lock:
                for gone in self._parents.keys() - there - self._made:
                    del self._parents[gone]
                unknown = there.difference(self._parents)
            for layer, parents in parents_of(unknown, self._ask):
                with self._lock:
                    # If the layer was made or has gone meanwhile, the answer is out of date.
                    if layer not in self._made | self._gone:
                        self._parents[layer] = frozenset(parents)
            self._listed = began


def parents_of(
    layers: Iterable[str], ask: Callable[[str], Sequence[str] | None]
) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield each layer with its parents; a layer for which `ask` returns None is left out. Raises what `ask` raises.

    Several are asked for at once. The parents of a layer's parent follow it in the layer's own list: so most layers
    need not be asked for.
    """
    unknown = set(layers)
    carried = task.carried(ask)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        while unknown:
            asked = {layer: threads.submit(carried, layer) for layer in itertools.islice(unknown, _AT_ONCE)}
            unknown.difference_update(asked)
            # First the layers that have answers, then the error of one that has none.
            wait(asked.values())
            for layer, answer in sorted(asked.items(), key=lambda item: item[1].exception() is not None):
                parents = answer.result()
                if parents is None:
                    continue
                yield layer, parents
                for at, parent in enumerate(parents):
                    if parent in unknown:
                        unknown.remove(parent)
                        yield parent, parents[at + 1 :]
