"""The floor of a row: the bare external commands that no driver of this design can avoid, run by the benchmark itself.

Counted is what the caller must wait for. What a driver may do in the background (unmount and unmap what nobody uses any
more, delete what is in the trash) is done here too, and timed, but not counted. The commands are written out here and
not taken from the driver, whose choice is what is measured; only features and object size are those of its images.

Every layer is a clone of one base image whose file system holds the directories `rootfs`, `work` and `none`. A view of
a layer is an overlay of its `rootfs` on those of its parents, with the empty `none` at the bottom.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from stack import PREFIX, Stack

CLONE_FORMAT = ("--rbd-default-clone-format", "2")
NO_UDEV = ("--options", "noudev")
OVERLAY = "index=off,metacopy=off,redirect_dir=off,xino=on"
READ_ONLY = "ro,norecovery"
BACKGROUND = " (in the background)"
MIB = 1 << 20
COMMAND_SECONDS = 300
# How many parents are mapped and mounted side by side.
SIDE_BY_SIDE = 4
# Of a long image so many layers are made; the others cost the same.
SAMPLE = 10

T = TypeVar("T")


class Commands:
    """A sequence of bare commands: `counted` seconds so far, and those of each step by its name."""

    def __init__(self, environment: Mapping[str, str], directory: str) -> None:
        self._environment = environment
        self._directory = directory
        self.counted = 0.0
        self.steps: list[tuple[str, float]] = []

    def step(self, name: str, argv: Sequence[str], *, background: bool = False) -> str:
        """Run one command in the floor's directory and time it; return what it prints."""
        started = time.perf_counter()
        done = subprocess.run(
            argv,
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        self.note(name, time.perf_counter() - started, background=background)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr[-500:]}")
        return done.stdout.strip()

    def note(self, name: str, seconds: float, *, background: bool = False) -> None:
        """Count something that is no command."""
        self.steps.append((name + (BACKGROUND if background else ""), seconds))
        if not background:
            self.counted += seconds


class Floor:
    """A base image and a parent of the benchmark's own, in the driver's pool, and the sequences on them.

    The parent stays mapped and mounted, as the layers of an image with a running container do. Mount points are
    directories of short names below one directory, in which the commands run: `mount` takes a page of options.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._points = f"{stack.directory}/floor"
        os.makedirs(self._points)
        said = stack.json("rbd", "info", f"rbd/{PREFIX}base_image", "--format", "json")
        self._features = [word for feature in said["features"] for word in ("--image-feature", feature)]
        self._object_size = ["--object-size", f"{said['object_size']}B"]
        self._size = int(said["size"])
        self.steps: dict[str, list[float]] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        # What is mapped and mounted now, for close().
        self._devices: list[str] = []
        self._mounted: list[str] = []
        self._below: list[str] = []
        self._stopped = ""

    def make_parents(self) -> None:
        """Make floor_base with a snapshot, a finished parent that stays mounted, and a container that was stopped."""
        run = self._commands()
        layout = [*self._features, *self._object_size]
        run.step("create", ["rbd", "create", "rbd/floor_base", "--size", f"{self._size}B", *layout])
        device = self._map(run, "floor_base")
        run.step("mkfs", ["mkfs.xfs", "-q", "-K", device])
        point = self._mount(run, device)
        for name in ("rootfs", "work", "none"):
            os.mkdir(f"{self._points}/{point}/{name}")
        self._release(run, point, device)
        run.step("snap create", ["rbd", "snap", "create", "rbd/floor_base@s"])
        self._below = [self._look(run, self._finished_layer())[0]]
        self._stopped = self._finished_layer()

    def close(self) -> None:
        """Unmount and unmap whatever is left, after a failure too; what resists is found by the search for leaks."""
        for point in reversed(self._mounted):
            subprocess.run(["umount", f"{self._points}/{point}"], timeout=COMMAND_SECONDS, check=False)
        for device in self._devices:
            argv = ["rbd", "device", "unmap", device, *NO_UDEV]
            subprocess.run(argv, env=self._stack.environment, timeout=COMMAND_SECONDS, check=False)

    # -- sequences: counted seconds ----------------------------------------------------------

    def lifecycle(self) -> dict[str, float]:
        """A container on a mounted parent: docker create makes two layers, start mounts one, rm removes both."""
        create, start, remove = (self._commands() for _ in range(3))
        images = self._life(create, start, self._below)
        for image in images:
            remove.step("trash mv", ["rbd", "trash", "mv", f"rbd/{image}"])
        self._empty_trash(remove)
        self._keep(create, start, remove)
        return {"create": create.counted, "run": create.counted + start.counted, "rm": remove.counted}

    def at_once(self, number: int) -> float:
        """As many creates and starts at once: counted seconds of the slowest."""
        runs = [self._commands() for _ in range(number)]
        made = in_parallel([functools.partial(self._life, run, run, self._below) for run in runs])
        self._delete([image for images in made for image in images])
        return max(run.counted for run in runs)

    def layers(self, number: int) -> dict[str, float]:
        """Layers of an image, each made and mounted on those before it; all of them removed."""
        make, remove = self._commands(), self._commands()
        sample = min(number, SAMPLE)
        images, below, devices = [self._new() for _ in range(sample)], list[str](), list[str]()
        for image in images:
            point, device = self._layer(make, image, below)
            below.insert(0, point)
            devices.insert(0, device)
        for point, device in zip(below, devices):
            self._release(make, point, device)
        for image in images:
            remove.step("trash mv", ["rbd", "trash", "mv", f"rbd/{image}"])
        self._empty_trash(remove)
        self._keep(make, remove)
        return {"load": make.counted * number / sample, "rmi": remove.counted * number / sample}

    def diff(self) -> float:
        """A stopped container that is compared with what is below it: its own mount, and a view of its parents."""
        run = self._commands()
        point, device = self._look(run, self._stopped)
        view = self._view(run, [f"{self._below[0]}/rootfs", f"{point}/none"])
        self._umount(run, view, background=True)
        self._release(run, point, device)
        self._keep(run)
        return run.counted

    def commit(self) -> float:
        """A stopped container that is compared as for a diff, and a layer made of it."""
        run = self._commands()
        image = self._new()
        point, device = self._layer(run, image, self._below)
        self._release(run, point, device)
        self._delete([image])
        self._keep(run)
        return self.diff() + run.counted

    def save(self, images: Sequence[str]) -> float:
        """An image of which nothing is mapped is read: all its layers mounted, and a view of each."""
        run = self._commands()
        with self._parents(run, images) as below:
            views = [self._view(run, _lower(below[at:])) for at in range(len(below))]
            for view in views:
                self._umount(run, view, background=True)
        self._keep(run)
        return run.counted

    def cold(self, images: Sequence[str]) -> float:
        """A container made and started on an image of which nothing is mapped."""
        run = self._commands()
        with self._parents(run, images) as below:
            made = self._life(run, run, below)
        self._delete(made)
        self._keep(run)
        return run.counted

    def write(self, size: int) -> float:
        """`size` bytes written and fsynced into the view of a container, the way that the row does it."""
        run, image = self._commands(), self._new()
        self._clone(run, image)
        device = self._map(run, image)
        point = self._mount(run, device)
        view = self._view(run, _lower(self._below), point)
        seconds = write_file(f"{self._points}/{view}/out", size)
        self._umount(run, view)
        self._release(run, point, device)
        self._delete([image])
        return seconds

    def snapshot(self) -> float:
        """A snapshot for a container, made and removed: the layer that it writes to, mapped and mounted.

        The client makes the overlay itself, as it does with overlayfs: that, runc, and what ctr and containerd do are
        in the peer's time, which belongs to this floor too. What is removed goes in the background.
        """
        run, image = self._commands(), self._new()
        point, device = self._writable(run, image)
        self._release(run, point, device)
        self._delete([image])
        self._keep(run)
        return run.counted

    @contextlib.contextmanager
    def image(self, number: int) -> Iterator[list[str]]:
        """The images of so many finished layers, none of them mapped; they are deleted in the end."""
        images = in_parallel([self._finished_layer] * number, SIDE_BY_SIDE)
        yield images
        self._delete(images)

    # -- parts of them -----------------------------------------------------------------------

    def _life(self, create: Commands, start: Commands, below: Sequence[str]) -> tuple[str, str]:
        """A container from docker create, which mounts both its layers, to its end; the images of its layers.

        Its own layer is a copy of the init layer's, and stays mounted from create to the end.
        """
        init, layer = self._new(), self._new()
        point, device = self._writable(create, init)
        view = self._view(create, _lower(below), point)
        for number in range(10):
            self._write(view, str(number), f"{number}\n")
        self._umount(create, view)
        self._umount(create, point)
        self._unmap(create, device)
        copy = ["rbd", "deep", "cp", f"rbd/{init}", f"rbd/{layer}", *self._object_size, *CLONE_FORMAT, "--no-progress"]
        create.step("deep cp", copy)
        device = self._map(create, layer)
        point = self._mount(create, device)
        os.rename(f"{self._points}/{point}/rootfs", f"{self._points}/{point}/init")
        os.mkdir(f"{self._points}/{point}/rootfs")
        for run in (create, start):
            view = self._view(run, [f"{point}/init", *_lower(below)], point)
            self._umount(run, view)
        self._release(start, point, device)
        return layer, init

    def _layer(self, run: Commands, image: str, below: Sequence[str]) -> tuple[str, str]:
        """A layer of an image, written and finished; where it stays mounted, read-only, and its device."""
        point, device = self._writable(run, image)
        view = self._view(run, _lower(below) or [f"{point}/none"], point)
        for number in range(3):
            self._write(view, str(number), f"{number}\n")
        self._umount(run, view)
        self._write(point, "layer.json", json.dumps({"parents": list(below)}))
        run.step("remount ro", ["mount", "-o", "remount,ro", point])
        return point, device

    def _writable(self, run: Commands, image: str) -> tuple[str, str]:
        """A new layer, mounted: where, and its device."""
        self._clone(run, image)
        note = json.dumps({"owner": "bench", "parents": [uuid.uuid4().hex * 2]})
        run.step("image-meta set", ["rbd", "image-meta", "set", f"rbd/{image}", "floor.layer", note])
        device = self._map(run, image)
        return self._mount(run, device), device

    def _finished_layer(self) -> str:
        """A layer with a file of a mebibyte that is mounted nowhere."""
        run, image = self._commands(), self._new()
        point, device = self._writable(run, image)
        self._write(point, "rootfs/file", "x" * MIB)
        self._release(run, point, device)
        return image

    def _look(self, run: Commands, image: str) -> tuple[str, str]:
        """A finished layer, mapped and mounted read-only: where, and its device."""
        device = self._map(run, image, "--read-only")
        return self._mount(run, device, READ_ONLY), device

    @contextlib.contextmanager
    def _parents(self, run: Commands, images: Sequence[str]) -> Iterator[list[str]]:
        """Map and mount the layers of an image side by side; yields where. Counted is the time until all are there."""
        parts = [self._commands() for _ in images]
        started = time.perf_counter()
        places = in_parallel(
            [functools.partial(self._look, part, image) for part, image in zip(parts, images)], SIDE_BY_SIDE
        )
        run.note(f"{len(images)} layers mapped and mounted", time.perf_counter() - started)
        yield [point for point, _ in places]
        in_parallel(
            [functools.partial(self._release, part, *place) for part, place in zip(parts, places)], SIDE_BY_SIDE
        )

    # -- steps -------------------------------------------------------------------------------

    def _commands(self) -> Commands:
        return Commands(self._stack.environment, self._points)

    def _new(self) -> str:
        return f"floor_{uuid.uuid4().hex[:12]}"

    def _clone(self, run: Commands, image: str) -> None:
        run.step("clone", ["rbd", "clone", "rbd/floor_base@s", f"rbd/{image}", *self._features, *CLONE_FORMAT])

    def _map(self, run: Commands, image: str, mode: str = "--exclusive") -> str:
        device = run.step("map", ["rbd", "device", "map", f"rbd/{image}", mode, *NO_UDEV]).splitlines()[-1]
        with self._lock:
            self._devices.append(device)
        return device

    def _unmap(self, run: Commands, device: str) -> None:
        run.step("unmap", ["rbd", "device", "unmap", device, *NO_UDEV], background=True)
        with self._lock:
            self._devices.remove(device)

    def _mount(self, run: Commands, device: str, options: str = "rw") -> str:
        return self._mounted_at(run, "mount", ["-t", "xfs", "-o", f"nouuid,noatime,{options}", device])

    def _view(self, run: Commands, lower: Sequence[str], own: str = "") -> str:
        """An overlay of directories, nearest first; writable in the layer mounted at `own`."""
        options = f"lowerdir={':'.join(lower)},{OVERLAY}"
        options += f",upperdir={own}/rootfs,workdir={own}/work" if own else ",ro"
        return self._mounted_at(run, "overlay", ["-t", "overlay", "-o", options, "floor"])

    def _mounted_at(self, run: Commands, name: str, arguments: Sequence[str]) -> str:
        with self._lock:
            point = str(next(self._numbers))
        os.mkdir(f"{self._points}/{point}")
        run.step(name, ["mount", *arguments, point])
        with self._lock:
            self._mounted.append(point)
        return point

    def _umount(self, run: Commands, point: str, *, background: bool = False) -> None:
        run.step("umount", ["umount", point], background=background)
        with self._lock:
            self._mounted.remove(point)
        os.rmdir(f"{self._points}/{point}")

    def _release(self, run: Commands, point: str, device: str) -> None:
        self._umount(run, point, background=True)
        self._unmap(run, device)

    def _write(self, point: str, name: str, content: str) -> None:
        with open(f"{self._points}/{point}/{name}", "w", encoding="ascii") as target:
            target.write(content)

    def _delete(self, images: Sequence[str]) -> None:
        argv = ("rbd", "rm", "--no-progress")
        in_parallel(
            [functools.partial(self._commands().step, "rm", [*argv, f"rbd/{image}"]) for image in images], SIDE_BY_SIDE
        )

    def _empty_trash(self, run: Commands) -> None:
        for item in self._stack.json("rbd", "trash", "ls", "rbd", "--format", "json"):
            if item["name"].startswith("floor_"):
                run.step("trash rm", ["rbd", "trash", "rm", f"rbd/{item['id']}", "--no-progress"], background=True)

    def _keep(self, *runs: Commands) -> None:
        for run in runs:
            for name, seconds in run.steps:
                self.steps.setdefault(name, []).append(seconds)


def _lower(below: Sequence[str]) -> list[str]:
    """The lower directories of what stands on these layers, which are mounted there; nearest first."""
    return [*(f"{point}/rootfs" for point in below), *(f"{point}/none" for point in below[-1:])]


def write_file(path: str, size: int) -> float:
    """Seconds to write a file in pieces of a mebibyte and to sync it."""
    piece = bytes(range(256)) * (MIB // 256)
    started = time.perf_counter()
    with open(path, "wb", buffering=0) as target:
        for _ in range(size // MIB):
            target.write(piece)
        os.fsync(target.fileno())
    return time.perf_counter() - started


def in_parallel(tasks: Sequence[Callable[[], T]], width: int = 0) -> list[T]:
    """Run tasks in threads, `width` of them at a time (0: all): what they return. Raises the first failure."""
    with ThreadPoolExecutor(width or max(1, len(tasks))) as threads:
        return list(threads.map(lambda task: task(), tasks))
