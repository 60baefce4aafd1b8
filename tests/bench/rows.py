"""The rows: each function measures one or a few of them, on our driver, on the peer, and the floor beside them.

In the order in which they are run: images are loaded into an empty pool first, so that each finds all its layers new.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import bench_images
from engine import Engine
from floor import Floor, in_parallel, write_file
from results import FLOOR, OURS, PEER, Results, Window
from stack import Stack
from usage import page_cache

from host import screen
from host.progress import Progress

MB = 1_000_000
MIB = 1 << 20
WRITTEN = 200 * MIB
AT_ONCE = 10
IDLE = 5
# Containers that read the same, of which so many are made and removed at a time.
SHARING, WORKERS = 20, 4


class Plan(NamedTuple):
    """How much is done: `runs` for the cheap rows, `few` for those of many seconds; after `seconds` each runs once.

    `cold` are those of the `depths` at which a first start is measured.
    """

    runs: int
    few: int
    depths: Sequence[int]
    cold: Sequence[int]
    seconds: float
    peer: bool = True


FULL = Plan(runs=20, few=3, depths=(2, 10, 20, 40, 80, 120), cold=(2, 10, 40, 120), seconds=660)
QUICK = Plan(runs=5, few=1, depths=(2, 20), cold=(2, 20), seconds=150)


class Bench:
    """The stack under measurement and what was found so far."""

    def __init__(self, stack: Stack, floor: Floor, plan: Plan, results: Results) -> None:
        self.stack = stack
        self.floor = floor
        self.plan = plan
        self.results = results
        self._deadline = time.monotonic() + plan.seconds
        self._empty = stack.stored()
        self.note_stored("empty pool", self._empty)

    def sites(self) -> Iterator[tuple[str, Engine]]:
        """Ours and, unless the plan is without it, the peer."""
        yield OURS, self.stack.ours
        if self.plan.peer:
            yield PEER, self.stack.peer

    def repeat(self, times: int, least: int = 1) -> Iterator[int]:
        """Count up to `times`; once the plan's time is over, `least` times have to do."""
        for number in range(times):
            if number >= least and time.monotonic() > self._deadline:
                return
            yield number

    def timed(self, key: str, who: str, task: Callable[[], object]) -> float:
        """Measure a task as a sample of a row."""
        begin, started = time.time(), time.perf_counter()
        task()
        seconds = time.perf_counter() - started
        self.results.add(key, who, seconds)
        if who == OURS:
            self.results.windows.append(Window(key, begin, begin + seconds))
        return seconds

    def stored(self, step: str) -> int:
        """Bytes in the pool more than when it was empty, noted as those after a step."""
        size = self.stack.stored() - self._empty
        self.note_stored(step, size)
        return size

    def note_stored(self, step: str, size: int) -> None:
        """Note what the pool holds after a step."""
        self.results.stored.append((step, size))

    def need(self, archive: str, image: str) -> None:
        """Load an image that a row runs on, unless it is there."""
        for _, engine in self.sites():
            if not engine.has_image(image):
                engine.load(archive)

    @contextlib.contextmanager
    def warm(self, image: str) -> Iterator[None]:
        """A container of this image runs, so that what containers share on a host is there."""
        container = _sleeper(self.stack.ours, image)
        yield
        self.stack.ours.remove(container)


@contextlib.contextmanager
def prepared(stack: Stack, plan: Plan, results: Results) -> Iterator[Bench]:
    """A benchmark on a running stack; what its floors leave mounted goes with it."""
    floor = Floor(stack)
    try:
        floor.make_parents()
        yield Bench(stack, floor, plan, results)
    finally:
        floor.close()


# -- images ------------------------------------------------------------------------------------


def load_tiny(bench: Bench, layers: int) -> None:
    """Load and remove an image of many tiny layers."""
    archive, image = bench_images.tiny(layers), f"bench:tiny-{layers}"
    for number in bench.repeat(bench.plan.few):
        for who, engine in bench.sites():
            bench.timed(f"load_{layers}", who, functools.partial(engine.load, archive))
        if number == 0:
            bench.results.add(f"stored_{layers}", OURS, bench.stored(f"load, {layers} tiny layers") / MB)
        bench.stack.settle()
        for who, engine in bench.sites():
            bench.timed(f"rmi_{layers}", who, functools.partial(engine.remove_image, image))
        bench.stack.settle()
        _layers_floor(bench, f"{layers}", layers)
    bench.stored(f"rmi of the {layers} layers")


def big_image(bench: Bench) -> None:
    """Load the big image, look at it, change a file, commit, save, and remove it."""
    archive = bench_images.big()
    for number in bench.repeat(bench.plan.few):
        for who, engine in bench.sites():
            bench.timed("load_big", who, functools.partial(engine.load, archive))
        if number == 0:
            stored = bench.stored("load, 716 MB image")
            bench.results.add("stored_big", OURS, stored / MB)
            bench.results.add("stored_ratio", OURS, stored / bench_images.content(archive)[0])
        bench.stack.wait_unmapped()
        for who, engine in bench.sites():
            bench.timed("save", who, functools.partial(engine.save, "bench:big"))
        if number == 0:
            bench.results.add("written_save", OURS, (bench.stored("docker save") - stored) / MB)
        _changed_file(bench, first=number == 0)
        bench.stack.settle()
        for who, engine in bench.sites():
            bench.timed("rmi_big", who, functools.partial(engine.remove_image, "bench:big"))
        bench.stack.settle()
        with bench.floor.image(bench_images.BIG_LAYERS) as layers:
            bench.results.add("save", FLOOR, bench.floor.save(layers))
        _layers_floor(bench, "big", bench_images.BIG_LAYERS, bench_images.BIG_BYTES)
    bench.stored("rmi of the 716 MB image")


def _layers_floor(bench: Bench, name: str, layers: int, size: int = 0) -> None:
    """The floor of loading and removing an image: its layers, and writing the bytes that are in them."""
    floor = bench.floor.layers(layers)
    written = bench.floor.write(size) if size else 0.0
    bench.results.add(f"load_{name}", FLOOR, floor["load"] + written)
    bench.results.add(f"rmi_{name}", FLOOR, floor["rmi"])


def _changed_file(bench: Bench, *, first: bool) -> None:
    """docker diff and docker commit of a container that changed one file of the big image."""
    with _changed(bench, "bench:big") as containers:
        before = bench.stored("one container that changed a file") if first else 0
        _diff(bench, "diff", containers)
        if first:
            bench.results.add("written_diff", OURS, (bench.stored("docker diff of it") - before) / MB)
        for who, engine in bench.sites():
            bench.timed("commit", who, functools.partial(engine.commit, containers[who], "bench-commit"))
        bench.results.add("commit", FLOOR, bench.floor.commit())
        if first:
            bench.stored("docker commit of it")
    for _, engine in bench.sites():
        engine.remove_image("bench-commit")


@contextlib.contextmanager
def _changed(bench: Bench, image: str) -> Iterator[dict[str, str]]:
    """A stopped container on each site that changed one file, while another container of the image runs."""
    containers = {}
    with bench.warm(image):
        for who, engine in bench.sites():
            containers[who] = engine.create(image, "sh", "-c", "echo changed >/etc/issue")
            engine.start(containers[who])
            _expect(engine.wait(containers[who]) == 0, "the container that changes a file")
        yield containers
        for who, engine in bench.sites():
            engine.remove(containers[who])


def _diff(bench: Bench, key: str, containers: Mapping[str, str]) -> None:
    for _ in bench.repeat(3):
        for who, engine in bench.sites():
            bench.timed(key, who, functools.partial(engine.changes, containers[who]))
        bench.results.add(key, FLOOR, bench.floor.diff())


def diff_many(bench: Bench) -> None:
    """docker diff on an image with ten times the files of the big one."""
    bench.need(bench_images.many(), "bench:many")
    with _changed(bench, "bench:many") as containers:
        _diff(bench, "diff_many", containers)
    for _, engine in bench.sites():
        engine.remove_image("bench:many")


# -- containers --------------------------------------------------------------------------------


def lifecycle(bench: Bench) -> None:
    """docker create, start, wait, rm of a container that does nothing."""
    bench.need(bench_images.small(), "bench:small")
    with bench.warm("bench:small"):
        for _ in bench.repeat(bench.plan.runs, least=5):
            for who, engine in bench.sites():
                _one_life(bench, who, engine)
            for key, seconds in bench.floor.lifecycle().items():
                bench.results.add(key, FLOOR, seconds)


def _one_life(bench: Bench, who: str, engine: Engine) -> None:
    made: list[str] = []

    def run() -> None:
        bench.timed("create", who, lambda: made.append(engine.create("bench:small", "true")))
        engine.start(made[0])
        _expect(engine.wait(made[0]) == 0, "a container that runs `true`")

    bench.timed("run", who, run)
    bench.timed("rm", who, lambda: engine.remove(made[0]))


def at_once(bench: Bench) -> None:
    """Ten containers created, started and waited for at once."""
    bench.need(bench_images.small(), "bench:small")
    with bench.warm("bench:small"):
        for _ in bench.repeat(bench.plan.few):
            bench.stack.settle()
            for who, engine in bench.sites():
                made: list[str] = []
                tasks = [functools.partial(_run_and_note, engine, "bench:small", made)] * AT_ONCE
                bench.timed("at_once", who, functools.partial(in_parallel, tasks))
                for container in made:
                    engine.remove(container)
            bench.stack.settle()
            bench.results.add("at_once", FLOOR, bench.floor.at_once(AT_ONCE))


def _run_and_note(engine: Engine, image: str, made: list[str]) -> None:
    container = engine.create(image, "true")
    made.append(container)
    engine.start(container)
    _expect(engine.wait(container) == 0, "one of several containers at once")


def write(bench: Bench) -> None:
    """200 MB written and fsynced in a container's file system."""
    bench.need(bench_images.small(), "bench:small")
    for _ in bench.repeat(bench.plan.few):
        for who, engine in bench.sites():
            container = _sleeper(engine, "bench:small")
            path = f"/proc/{engine.pid(container)}/root/out"
            bench.timed("write", who, functools.partial(write_file, path, WRITTEN))
            engine.remove(container)
        bench.stack.settle()
        bench.results.add("write", FLOOR, bench.floor.write(WRITTEN))


def copy_up(bench: Bench) -> None:
    """One byte changed in a file of 1 GB of the image, and synced."""
    bench.need(bench_images.huge(), "bench:huge")
    for _ in bench.repeat(bench.plan.few):
        for who, engine in bench.sites():
            container = _sleeper(engine, "bench:huge")
            path = f"/proc/{engine.pid(container)}/root/huge"
            bench.timed("copy_up", who, functools.partial(_change_byte, path))
            engine.remove(container)
        bench.stack.settle()
    for _, engine in bench.sites():
        engine.remove_image("bench:huge")


def _change_byte(path: str) -> None:
    with open(path, "r+b", buffering=0) as target:
        os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        target.write(b"x")
        os.fsync(target.fileno())


def idle(bench: Bench) -> None:
    """What a container that does nothing takes in the pool."""
    bench.need(bench_images.small(), "bench:small")
    before = bench.stored("small image")
    containers = [_sleeper(bench.stack.ours, "bench:small") for _ in range(IDLE)]
    after = bench.stored(f"{IDLE} idle containers")
    bench.results.add("idle", OURS, (after - before) / IDLE / MB)
    for container in containers:
        bench.stack.ours.remove(container)


def _sleeper(engine: Engine, image: str) -> str:
    container = engine.create(image, "sleep", "10000")
    engine.start(container)
    return container


# -- depth -------------------------------------------------------------------------------------


def depth(bench: Bench) -> None:
    """A container on images of growing depth, and reading a file of their common bottom layer."""
    depths = bench.plan.depths
    archive = bench_images.depth(depths)
    bench.need(archive, f"bench:depth-{max(depths)}")
    bench.stored(f"load, {max(depths)} layers on a file of 100 MB")
    with bench.warm(f"bench:depth-{max(depths)}"):
        for _ in bench.repeat(min(bench.plan.runs, 7), least=3):
            for number in depths:
                for who, engine in bench.sites():
                    _one_of_depth(bench, who, engine, number)
    for key, row in (("run", "depth_run"), ("read", "depth_read")):
        deep, flat = (bench.results.p50(f"{key}@{number}") for number in (max(depths), min(depths)))
        if deep and flat:
            bench.results.add(row, OURS, deep / flat)


def _one_of_depth(bench: Bench, who: str, engine: Engine, number: int) -> None:
    image, made = f"bench:depth-{number}", list[str]()
    bench.timed(f"run@{number}", who, functools.partial(_run_and_note, engine, image, made))
    engine.remove(made[0])
    container = _sleeper(engine, image)
    read = functools.partial(_read_bottom, _bottom(engine, container), forgotten=True)
    bench.timed(f"read@{number}", who, read)
    engine.remove(container)


def _read_bottom(path: str, *, forgotten: bool = False) -> None:
    """Read the file of the bottom layer; `forgotten`: this machine drops first what it has of it in memory."""
    with open(path, "rb", buffering=0) as source:
        if forgotten:
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size = sum(iter(lambda: len(source.read(MIB)), 0))
    _expect(size == bench_images.BOTTOM_BYTES, "the file of the bottom layer")


def cold(bench: Bench) -> None:
    """The first container on a host that has nothing of its image mapped, at several depths."""
    bench.need(bench_images.depth(bench.plan.depths), f"bench:depth-{max(bench.plan.depths)}")
    for number in bench.plan.cold:
        with bench.floor.image(number) as layers:
            for _ in bench.repeat(bench.plan.few):
                bench.stack.wait_unmapped()
                _cold_start(bench, number)
                bench.stack.settle()
                bench.results.add(f"cold@{number}", FLOOR, bench.floor.cold(layers))


def _cold_start(bench: Bench, number: int) -> None:
    for who, engine in bench.sites():
        made: list[str] = []
        task = functools.partial(_run_and_note, engine, f"bench:depth-{number}", made)
        bench.timed(f"cold@{number}", who, task)
        engine.remove(made[0])


# -- what containers share -----------------------------------------------------------------------


def second_read(bench: Bench) -> None:
    """100 MB of the image read in one container after another, while the first that has read it runs."""
    _need_bottom(bench)
    for who, engine in bench.sites():
        first = _sleeper(engine, "bench:depth-2")
        _read_bottom(_bottom(engine, first))
        for _ in bench.repeat(min(bench.plan.runs, 7), least=3):
            second = _sleeper(engine, "bench:depth-2")
            bench.timed("second_read", who, functools.partial(_read_bottom, _bottom(engine, second)))
            engine.remove(second)
        engine.remove(first)


def shared_memory(bench: Bench) -> None:
    """What 100 MB of the image take in memory when twenty containers have read them, relative to one container."""
    _need_bottom(bench)
    for who, engine in bench.sites():
        containers = in_parallel([functools.partial(_sleeper, engine, "bench:depth-2")] * SHARING, WORKERS)
        paths = [_bottom(engine, container) for container in containers]
        alone = page_cache(paths[:1])
        bench.results.add("shared_memory", who, page_cache(paths) / alone)
        in_parallel([functools.partial(engine.remove, container) for container in containers], WORKERS)


def _need_bottom(bench: Bench) -> None:
    bench.need(bench_images.depth((2,)), "bench:depth-2")


def _bottom(engine: Engine, container: str) -> str:
    return f"/proc/{engine.pid(container)}/root/bottom"


# -- all of them -------------------------------------------------------------------------------


def _expect(true: bool, what: str) -> None:
    if not true:
        raise RuntimeError(f"did not do what it should: {what}")


Row = Callable[[Bench], None]
ALL: dict[str, Row] = {
    "load_41": functools.partial(load_tiny, layers=41),
    "load_121": functools.partial(load_tiny, layers=121),
    "big": big_image,
    "diff_many": diff_many,
    "lifecycle": lifecycle,
    "at_once": at_once,
    "write": write,
    "idle": idle,
    "copy_up": copy_up,
    "depth": depth,
    "second_read": second_read,
    "shared_memory": shared_memory,
    "cold": cold,
}
SMALL = ("load_41", "lifecycle", "at_once", "write", "idle", "depth", "second_read", "shared_memory", "cold")


def measure(bench: Bench, names: Sequence[str], progress: Progress) -> None:
    """Measure these rows and then what the driver has used for it all."""
    for number, name in enumerate(names):
        progress.begin(name, len(names), number)
        started = time.monotonic()
        ALL[name](bench)
        bench.stack.settle()
        screen.say(f"bench: {name}: {time.monotonic() - started:.0f} s", sys.stderr)
    assert bench.stack.watch
    usage = bench.stack.watch.usage()
    bench.results.add("memory", OURS, usage.peak / MB)
    bench.results.add("memory_tree", OURS, usage.tree / MB)
    bench.results.add("cpu", OURS, usage.cpu)
    bench.results.steps = bench.floor.steps
