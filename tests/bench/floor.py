"""The floor of a row: the bare external commands that no driver of this design can avoid, run by the benchmark itself.

Counted is what the caller must wait for. What a driver may do behind his back (unmap after Put, snapshot of a finished
layer, deleting what is in the trash) is done here too, and timed, but not counted. The commands are written out here
and not taken from the driver, whose choice is what is measured; only features and object size are those of its images.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence

from stack import PREFIX, Stack

CLONE_FORMAT = ("--rbd-default-clone-format", "2")
BEHIND = " (behind)"
MIB = 1 << 20


class Commands:
    """A sequence of bare commands: `counted` seconds so far, and those of each step by its name."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.counted = 0.0
        self.steps: list[tuple[str, float]] = []

    def step(self, name: str, argv: Sequence[str], *, behind: bool = False) -> str:
        """Run one command and time it; return what it prints."""
        started = time.perf_counter()
        done = subprocess.run(
            argv, env=self._stack.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        self.note(name, time.perf_counter() - started, behind=behind)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr[-500:]}")
        return done.stdout.strip()

    def note(self, name: str, seconds: float, *, behind: bool = False) -> None:
        """Count something that is no command."""
        self.steps.append((name + (BEHIND if behind else ""), seconds))
        if not behind:
            self.counted += seconds


class Floor:
    """A base image and a parent of the benchmark's own, in the driver's pool, and the sequences on them."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._points = f"{stack.directory}/floor"
        os.makedirs(self._points)
        said = stack.json("rbd", "info", f"rbd/{PREFIX}base_image", "--format", "json")
        features = [word for feature in said["features"] for word in ("--image-feature", feature)]
        self._layout = [*features, "--object-size", f"{said['object_size']}B"]
        self._size = int(said["size"])
        self.steps: dict[str, list[float]] = {}
        self._lock = threading.Lock()
        self._make_parents()

    def _make_parents(self) -> None:
        """floor_base (an empty file system) and floor_parent, a clone of it that holds a file; each with a snapshot."""
        run = Commands(self._stack)
        run.step("create", ["rbd", "create", "rbd/floor_base", "--size", f"{self._size}B", *self._layout])
        device = self._map(run, "floor_base")
        run.step("mkfs", ["mkfs.xfs", "-q", "-K", device])
        run.step("unmap", ["rbd", "device", "unmap", device, "--options", "noudev"])
        run.step("snap create", ["rbd", "snap", "create", "rbd/floor_base@s"])
        self._clone(run, "floor_base", "floor_parent")
        device = self._map(run, "floor_parent")
        point = self._mount(run, device)
        with open(f"{point}/file", "wb") as target:
            target.write(bytes(MIB))
        self._umount(run, point, device)
        run.step("snap create", ["rbd", "snap", "create", "rbd/floor_parent@s"])
        # One more without a snapshot, to be copied as a small layer can be.
        self._clone(run, "floor_base", "floor_small")

    # -- sequences: counted seconds ----------------------------------------------------------

    def lifecycle(self) -> dict[str, float]:
        """A container: docker create makes and writes two layers, start mounts one, rm takes both away."""
        create, start, remove = (Commands(self._stack) for _ in range(3))
        init, layer = self._new(), self._new()
        self._clone(create, "floor_parent", init)
        self._mounted_once(create, init)
        create.step("deep cp", ["rbd", "deep", "cp", f"rbd/{init}", f"rbd/{layer}", *CLONE_FORMAT, "--no-progress"])
        self._mounted_once(create, layer)
        self._mounted_once(start, layer)
        for image in (layer, init):
            remove.step("trash mv", ["rbd", "trash", "mv", f"rbd/{image}"])
        self._empty_trash(remove)
        self._keep(create, start, remove)
        return {"create": create.counted, "run": create.counted + start.counted, "rm": remove.counted}

    def at_once(self, number: int) -> float:
        """As many creates and starts at once: counted seconds of the slowest."""
        ids = [(self._new(), self._new()) for _ in range(number)]
        done: list[float] = []

        def one(init: str, layer: str) -> None:
            run = Commands(self._stack)
            self._clone(run, "floor_parent", init)
            self._mounted_once(run, init)
            run.step("deep cp", ["rbd", "deep", "cp", f"rbd/{init}", f"rbd/{layer}", *CLONE_FORMAT, "--no-progress"])
            self._mounted_once(run, layer)
            self._mounted_once(run, layer)
            done.append(run.counted)

        in_parallel([functools.partial(one, *pair) for pair in ids])
        cleanup = Commands(self._stack)
        for pair in ids:
            for image in pair:
                cleanup.step("rm", ["rbd", "rm", f"rbd/{image}", "--no-progress"])
        return max(done)

    def layer(self, *, small: bool) -> dict[str, float]:
        """A layer of an image: made (copied if its parent is `small`, else cloned) and mounted; removed."""
        make, remove = Commands(self._stack), Commands(self._stack)
        image = self._new()
        if small:
            copy = ["rbd", "deep", "cp", "rbd/floor_small", f"rbd/{image}", *CLONE_FORMAT, "--no-progress"]
            make.step("deep cp", copy)
        else:
            self._clone(make, "floor_parent", image)
        self._mounted_once(make, image)
        remove.step("trash mv", ["rbd", "trash", "mv", f"rbd/{image}"])
        self._empty_trash(remove)
        self._keep(make, remove)
        return {"layer": make.counted, "rmi": remove.counted}

    def reading(self) -> float:
        """A layer that is looked at: mapped read-only and mounted."""
        run = Commands(self._stack)
        options = ("--read-only", "--options", "noudev")
        device = run.step("map", ["rbd", "device", "map", "rbd/floor_parent", *options]).splitlines()[-1]
        point = self._mount(run, device, "ro,norecovery")
        self._umount(run, point, device)
        self._keep(run)
        return run.counted

    def write(self, size: int) -> float:
        """`size` bytes written and fsynced into a mounted clone, the way that the row does it."""
        run, image = Commands(self._stack), self._new()
        self._clone(run, "floor_parent", image)
        device = self._map(run, image)
        point = self._mount(run, device)
        seconds = write_file(f"{point}/out", size)
        self._umount(run, point, device)
        run.step("rm", ["rbd", "rm", f"rbd/{image}", "--no-progress"])
        return seconds

    # -- steps -------------------------------------------------------------------------------

    def _new(self) -> str:
        return f"floor_{uuid.uuid4().hex[:12]}"

    def _clone(self, run: Commands, parent: str, image: str) -> None:
        layout = self._layout[: self._layout.index("--object-size")]
        run.step("clone", ["rbd", "clone", f"rbd/{parent}@s", f"rbd/{image}", *layout, *CLONE_FORMAT])

    def _map(self, run: Commands, image: str) -> str:
        options = ("--exclusive", "--options", "noudev")
        return run.step("map", ["rbd", "device", "map", f"rbd/{image}", *options]).splitlines()[-1]

    def _mount(self, run: Commands, device: str, options: str = "rw") -> str:
        point = f"{self._points}/{uuid.uuid4().hex[:8]}"
        os.mkdir(point)
        run.step("mount", ["mount", "-t", "xfs", "-o", f"nouuid,noatime,{options}", device, point])
        return point

    def _umount(self, run: Commands, point: str, device: str) -> None:
        run.step("umount", ["umount", point])
        os.rmdir(point)
        run.step("unmap", ["rbd", "device", "unmap", device, "--options", "noudev"], behind=True)

    def _mounted_once(self, run: Commands, image: str) -> None:
        """Get, ten small files, Put."""
        device = self._map(run, image)
        point = self._mount(run, device)
        for number in range(10):
            with open(f"{point}/{number}", "w", encoding="ascii") as target:
                target.write(f"{number}\n")
        self._umount(run, point, device)

    def _empty_trash(self, run: Commands) -> None:
        listed = subprocess.run(
            ["rbd", "trash", "ls", "rbd", "--format", "json"],
            env=self._stack.environment,
            capture_output=True,
            check=True,
        )
        for item in json.loads(listed.stdout):
            if item["name"].startswith("floor_"):
                run.step("trash rm", ["rbd", "trash", "rm", f"rbd/{item['id']}", "--no-progress"], behind=True)

    def _keep(self, *runs: Commands) -> None:
        with self._lock:
            for run in runs:
                for name, seconds in run.steps:
                    self.steps.setdefault(name, []).append(seconds)


def write_file(path: str, size: int) -> float:
    """Seconds to write a file in pieces of a mebibyte and to sync it."""
    piece = bytes(range(256)) * (MIB // 256)
    started = time.perf_counter()
    with open(path, "wb", buffering=0) as target:
        for _ in range(size // MIB):
            target.write(piece)
        os.fsync(target.fileno())
    return time.perf_counter() - started


def in_parallel(tasks: Sequence[Callable[[], object]]) -> float:
    """Run each task in a thread of its own: seconds until all are done. Raises the first failure."""
    failures: list[BaseException] = []

    def guarded(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(task,)) for task in tasks]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - started
