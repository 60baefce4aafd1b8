"""The rows of `bench.sh snapshotter`: an image, hosts of ours that share a pool, hosts with containerd's overlayfs.

The image and the registry are the same for both, and they take turns. Pulled into an empty pool first, it is then what
the pool holds for all other hosts.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import bench_images
from floor import Floor
from pool_hosts import Host, Registry, wait_for
from results import FLOOR, OURS, PEER, Results, Window
from stack import PREFIX, BenchError, Stack

from host import screen
from host.progress import Progress

MB = 1_000_000
NAME = "big"
LAYERS = bench_images.BIG_LAYERS
# Files of the image with 100 MB together: each layer has one with a third of its bytes.
READ = [f"opt/layer{number}/00/0" for number in range(1, 6)]


class Plan(NamedTuple):
    """How often: pulls into an empty pool, hosts that pull it then, containers run, and containers that read."""

    first: int
    hosts: int
    runs: int
    reads: int


FULL = Plan(first=3, hosts=10, runs=15, reads=9)
QUICK = Plan(first=1, hosts=3, runs=5, reads=3)


class Pulls:
    """The benchmark on a running cluster."""

    def __init__(self, stack: Stack, plan: Plan, results: Results, keep_log: str) -> None:
        self._stack, self._plan, self._results, self._keep_log = stack, plan, results, keep_log
        self._peak, self._empty = 0, 0

    def measure(self, progress: Progress) -> None:
        """All rows, in their order."""
        steps = (self._first_pulls, self._more_hosts, self._runs, self._reads)
        progress.begin("starting two hosts")
        with contextlib.ExitStack() as ends:
            registry = Registry(
                f"{self._stack.directory}/registry", bench_images.published(bench_images.big(), NAME), NAME
            )
            ends.callback(registry.end)
            pair = [ends.enter_context(self._host("first", who)) for who in (OURS, PEER)]
            for number, step in enumerate(steps):
                progress.begin(step.__name__[1:], len(steps), number)
                started = time.monotonic()
                step(registry, pair)
                screen.say(f"bench: {step.__name__[1:]}: {time.monotonic() - started:.0f} s", sys.stderr)
        self._results.add("service_memory", OURS, self._peak / MB)

    # -- rows --------------------------------------------------------------------------------

    def _first_pulls(self, registry: Registry, pair: Sequence[Host]) -> None:
        """The image pulled while nobody has it."""
        image, ours = registry.image, pair[0]
        self._empty = self._note_stored("empty pool")
        for number in range(self._plan.first):
            if number:
                for host in pair:
                    host.remove_image(image)
                wait_for(self._pool_is_empty, "the pool is empty again")
            for host in pair:
                self._timed("pull_first", host.who, functools.partial(host.pull, image))
                if host is ours:
                    wait_for(self._is_offered, "the first host has offered its layers")
            ours.quiet()

    def _more_hosts(self, registry: Registry, _: Sequence[Host]) -> None:
        """Other hosts, each new, that pull it and run a container, one after the other."""
        image, totals = registry.image, {OURS: 0.0, PEER: 0.0}
        fetched = 0
        stored, there = self._note_stored("the image, pulled by one host"), self._images()
        for number in range(self._plan.hosts):
            for who in totals:
                with self._host(str(number), who) as host:
                    before = registry.fetched()
                    totals[who] += self._timed("pull_second", who, functools.partial(_pull_and_run, host, image))
                    if who == OURS:
                        fetched += registry.fetched() - before
                        # containerd removes a container's snapshot when its collector comes by.
                        wait_for(lambda: self._images() == there, "the container's layer has gone")
        for who, total in totals.items():
            self._results.add(f"pull_hosts@{self._plan.hosts}", who, total)
        grown = self._note_stored(f"and by {self._plan.hosts} more") - stored
        self._results.add("pull_fetched", OURS, fetched / MB)
        self._results.add("pull_stored", OURS, max(0, grown) / MB)

    def _runs(self, registry: Registry, pair: Sequence[Host]) -> None:
        """A container run on a host that has the image, while another one of it runs there; and its floor."""
        with self._warm(registry.image, pair), _floor(self._stack) as floor:
            for _ in range(self._plan.runs):
                for host in pair:
                    self._timed("snapshot_run", host.who, functools.partial(host.run, registry.image))
                self._results.add("snapshot_run", FLOOR, floor.snapshot())
            self._results.steps = floor.steps

    def _reads(self, registry: Registry, pair: Sequence[Host]) -> None:
        """100 MB of the image read in a container, while the one that has read them first runs."""
        with self._warm(registry.image, pair) as first:
            for host, container in zip(pair, first):
                _read(host, container)
            for _ in range(self._plan.reads):
                for host in pair:
                    second = host.start(registry.image)
                    paths = [host.file(second, name) for name in READ]
                    self._timed("image_read", host.who, functools.partial(_read_files, paths))
                    host.remove(second)

    # -- parts -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _host(self, name: str, who: str) -> Iterator[Host]:
        host = Host(self._stack, f"{'ours' if who == OURS else 'peer'}-{name}", who)
        try:
            yield host
            if host.watch:
                self._peak = max(self._peak, host.watch.usage().peak)
        except BaseException:
            print(f"--- the end of the logs of {host.name}", host.log_tail(), sep="\n", file=sys.stderr)
            raise
        finally:
            host.end(self._keep_log)

    @contextlib.contextmanager
    def _warm(self, image: str, pair: Sequence[Host]) -> Iterator[list[str]]:
        containers = [host.start(image) for host in pair]
        yield containers
        for host, container in zip(pair, containers):
            host.remove(container)

    def _timed(self, key: str, who: str, task: Callable[[], object]) -> float:
        begin, started = time.time(), time.perf_counter()
        task()
        seconds = time.perf_counter() - started
        self._results.add(key, who, seconds)
        if who == OURS:
            self._results.windows.append(Window(key, begin, begin + seconds))
        return seconds

    def _note_stored(self, step: str) -> int:
        size = self._stack.stored() - self._empty
        self._results.stored.append((step, size))
        return size

    def _is_offered(self) -> bool:
        return (
            len(self._stack.run(["rados", "--pool", "rbd", "listomapkeys", f"{PREFIX}chains"]).splitlines()) == LAYERS
        )

    def _images(self) -> list[str]:
        trashed = self._stack.json("rbd", "trash", "ls", "rbd", "--format", "json")
        return [*sorted(self._stack.run(["rbd", "ls", "rbd"]).split()), *(item["name"] for item in trashed)]

    def _pool_is_empty(self) -> bool:
        return self._images() == [f"{PREFIX}base_image"]


@contextlib.contextmanager
def _floor(stack: Stack) -> Iterator[Floor]:
    floor = Floor(stack)
    try:
        floor.make_parents()
        yield floor
    finally:
        floor.close()


def _pull_and_run(host: Host, image: str) -> None:
    host.pull(image)
    host.run(image)


def _read(host: Host, container: str) -> None:
    _read_files([host.file(container, name) for name in READ])


def _read_files(paths: Sequence[str]) -> None:
    size = 0
    for path in paths:
        with open(path, "rb", buffering=0) as source:
            while piece := len(source.read(1 << 20)):
                size += piece
    if not 95 * MB < size < 120 * MB:
        raise BenchError(f"the files of the image have {size} bytes together")
