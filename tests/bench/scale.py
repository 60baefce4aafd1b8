"""How cost grows with the pool: many layers and mounted containers, made at the driver's socket without dockerd.

A container is what docker create and docker start ask for: an init layer on an image's layer, a layer on that, Get. At
each stage a few of them are made, mounted, put and removed, one call at a time; the stages end with many at once.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from floor import in_parallel
from plugin_client import make_tar
from results import OURS, Results
from stack import Stack

MB = 1_000_000
LAYERS, CONTAINERS, AT_ONCE, RUNS = 2000, 200, 50, 15
WORKERS = 4
KINDS = ("create", "get", "put", "remove")


class Size(NamedTuple):
    """How far to go: layers and mounted containers; after `seconds` the filling stops where it is."""

    layers: int
    containers: int
    seconds: float


class Scale:
    """A driver with one small image in its pool, being filled."""

    def __init__(self, stack: Stack, size: Size, results: Results) -> None:
        self._stack = stack
        self._client = stack.client
        self._size = size
        self._results = results
        self._deadline = time.monotonic() + size.seconds
        self._client.init(f"{stack.directory}/home", [f"ceph.configfile={stack.conf}"])
        self._image = self._layer("", "small image")
        self._layers = 1
        self._mounted: list[str] = []

    def measure(self) -> None:
        """Fill the pool in stages and measure at each; what stays mounted is removed at the end."""
        empty = self._stage()
        for target in (self._size.layers // 4, self._size.layers // 2, self._size.layers):
            self._fill(lambda: self._layer(self._image, ""), target, lambda: self._layers)
            self._stage()
        full = empty
        for target in (self._size.containers // 4, self._size.containers):
            self._fill(self._container, target, lambda: len(self._mounted))
            full = self._stage()
        for kind in KINDS:
            before, after = (self._results.p50(f"{kind}@{name}") for name in (empty, full))
            if before and after:
                self._results.add(f"scale_{kind}", OURS, after / before)
        self._many_at_once()
        self._remove_containers()

    def _stage(self) -> str:
        """Measure a container's calls in the pool as it is now; the name of the stage tells how full it is."""
        self._stack.settle()
        name = f"{self._layers}+{len(self._mounted)}"
        for _ in range(RUNS):
            for kind, seconds in self._one_life().items():
                self._results.add(f"{kind}@{name}", OURS, seconds)
        assert self._stack.watch
        peak = self._stack.watch.usage().peak / MB
        self._results.add(f"memory@{name}", OURS, peak)
        costs = ", ".join(f"{kind} {1000 * (self._results.p50(f'{kind}@{name}') or 0):.0f} ms" for kind in KINDS)
        print(f"scale: {self._layers} layers, {len(self._mounted)} mounted: {costs}; {peak:.0f} MB", file=sys.stderr)
        return name

    def _one_life(self) -> dict[str, float]:
        init, layer = _new_container()
        return {
            "create": _timed(lambda: self._create(init, layer)),
            "get": _timed(lambda: self._client.get(layer)),
            "put": _timed(lambda: self._client.put(layer)),
            "remove": _timed(lambda: self._remove(layer, init)),
        }

    def _create(self, init: str, layer: str) -> None:
        """The calls of docker create."""
        for name, parent in ((init, self._image), (layer, init)):
            self._client.create(name, parent, writable=True)
            self._client.get(name)
            self._client.put(name)

    def _remove(self, *layers: str) -> None:
        """The calls of docker rm."""
        for layer in layers:
            self._client.remove(layer)

    def _layer(self, parent: str, content: str) -> str:
        """A layer of an image; the archive of most is left out, since it would only take the benchmark's time."""
        layer = self._client.create(uuid.uuid4().hex * 2, parent)
        if content:
            self._client.apply_diff(layer, make_tar({"content": content}), parent)
        return layer

    def _container(self) -> str:
        init, layer = _new_container()
        self._client.create(init, self._image, writable=True)
        self._client.create(layer, init, writable=True)
        self._client.get(layer)
        self._mounted.append(layer)
        return layer

    def _fill(self, make: Callable[[], str], target: int, now: Callable[[], int]) -> None:
        """Make as many as are missing, some at a time, until the time is over."""

        def one(_: int) -> None:
            if time.monotonic() < self._deadline:
                made = make()
                if made not in self._mounted:
                    self._counted()

        with ThreadPoolExecutor(WORKERS) as threads:
            for _ in threads.map(one, range(target - now())):
                pass

    def _counted(self) -> None:
        self._layers = sum(not layer.endswith("-init") for layer in self._client.created) - len(self._mounted)

    def _many_at_once(self) -> None:
        """Containers made, mounted, put and removed at once: seconds, and how many of them failed."""
        failed: list[str] = []

        def one() -> None:
            try:
                self._one_life()
            except Exception as failure:
                failed.append(str(failure))

        self._results.add("scale_at_once", OURS, in_parallel([one] * AT_ONCE))
        self._results.add("scale_failed", OURS, float(len(failed)))
        for line in failed[:5]:
            print(f"scale: failed: {line}", file=sys.stderr)
        assert self._stack.watch
        self._results.add("memory", OURS, self._stack.watch.usage().peak / MB)

    def _remove_containers(self) -> None:
        """What is mounted must go before the cluster; image layers go with it."""
        with ThreadPoolExecutor(WORKERS) as threads:
            list(threads.map(self._client.remove, self._mounted))


def _new_container() -> tuple[str, str]:
    layer = uuid.uuid4().hex * 2
    return f"{layer}-init", layer


def _timed(task: Callable[[], object]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started
