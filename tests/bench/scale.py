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

from host import screen
from host.progress import Progress

MB = 1_000_000
LAYERS, CONTAINERS, AT_ONCE = 2000, 200, 50
# As many runs at each stage, but no more than the least once the stage has taken its time.
RUNS, LEAST, STAGE_SECONDS = 15, 5, 20.0
# What of the time for filling the layers may take.
LAYERS_SHARE = 0.7
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
        self._begin = time.monotonic()
        self._client.init(f"{stack.directory}/home", [f"ceph.configfile={stack.conf}"])
        self._image = self._client.create(uuid.uuid4().hex * 2)
        self._client.apply_diff(self._image, make_tar({"content": "a small image"}))
        self._layers = [self._image]
        self._mounted: list[str] = []
        # What containers share on a host is there from the first stage on.
        self._container()

    def measure(self, progress: Progress) -> None:
        """Fill the pool in stages and measure at each; what stays mounted is removed at the end."""
        progress.begin("measuring in an empty pool")
        empty = full = self._stage()
        for target in (self._size.layers // 4, self._size.layers // 2, self._size.layers):
            progress.begin(f"layers up to {target}", target, len(self._layers))
            self._fill(self._layer, target - len(self._layers), LAYERS_SHARE * self._size.seconds, progress)
            full = self._stage()
        for target in (self._size.containers // 4, self._size.containers):
            progress.begin(f"containers up to {target}", target, len(self._mounted))
            self._fill(self._container, target - len(self._mounted), self._size.seconds, progress)
            full = self._stage()
        for kind in KINDS:
            before, after = (self._results.p50(f"{kind}@{images}") for images in (empty, full))
            if before and after:
                self._results.add(f"scale_{kind}", OURS, after / before)
        missing = self._size.layers - len(self._layers) + self._size.containers - len(self._mounted)
        self._results.add("scale_missing", OURS, float(missing))
        self._results.add("scale_layers", OURS, float(len(self._layers)))
        self._results.add("scale_containers", OURS, float(len(self._mounted)))
        progress.begin("many at once")
        self._many_at_once()
        progress.begin("removing the containers")
        self._remove_containers()

    def _stage(self) -> int:
        """Measure a container's calls in the pool as it is now; return how many images that has."""
        self._stack.settle()
        images = len(self._layers) + 2 * len(self._mounted)
        begin = time.monotonic()
        if f"create@{images}" not in self._results.rows:
            for number in range(RUNS):
                if number < LEAST or time.monotonic() < begin + STAGE_SECONDS:
                    for kind, seconds in self._one_life().items():
                        self._results.add(f"{kind}@{images}", OURS, seconds)
            self._results.add(f"memory@{images}", OURS, self._peak())
            costs = ", ".join(f"{kind} {1000 * (self._results.p50(f'{kind}@{images}') or 0):.0f} ms" for kind in KINDS)
            what = f"{len(self._layers)} layers, {len(self._mounted)} containers"
            screen.say(f"scale: {what}: {costs}; {self._peak():.0f} MB", sys.stderr)
        return images

    def _peak(self) -> float:
        assert self._stack.watch
        return self._stack.watch.usage().peak / MB

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

    def _layer(self) -> None:
        """A layer without a parent: a clone of the base image, which takes the least of the benchmark's time."""
        self._layers.append(self._client.create(uuid.uuid4().hex * 2))

    def _container(self) -> None:
        init, layer = _new_container()
        self._client.create(init, self._image, writable=True)
        self._client.create(layer, init, writable=True)
        self._client.get(layer)
        self._mounted.append(layer)

    def _fill(self, make: Callable[[], None], number: int, seconds: float, progress: Progress) -> None:
        """Make so many, some at a time, until so many seconds since the beginning are over."""

        def one(_: int) -> None:
            if time.monotonic() < self._begin + seconds:
                make()

        with ThreadPoolExecutor(WORKERS) as threads:
            for _ in threads.map(one, range(number)):
                progress.advance()

    def _many_at_once(self) -> None:
        """Containers made, mounted, put and removed at once: seconds, and how many of them failed."""
        failed: list[str] = []

        def one() -> None:
            try:
                self._one_life()
            except Exception as failure:
                failed.append(str(failure))

        self._results.add("scale_at_once", OURS, _timed(lambda: in_parallel([one] * AT_ONCE)))
        self._results.add("scale_failed", OURS, float(len(failed)))
        for line in failed[:5]:
            screen.say(f"scale: failed: {line}", sys.stderr)
        self._results.add("memory", OURS, self._peak())

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
