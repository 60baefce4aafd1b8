"""Layers on a host in memory: images, their file systems and their views, for the tests of what is mounted when.

First a process that has layers on its host, and how it uses them; then a driver, as Docker calls it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock

from unit.fake_host import FakeHost
from unit.fakes import FakePool

import mounts
from graph.driver import Driver
from images import layer_state, options
from images.layer_state import LayerState
from mapped.file_systems import FileSystems
from mapped.home import Home
from mapped.host_layers import HostLayers
from mapped.view import Place


class Life(HostLayers):
    """What a new process has before it has learned anything. `idle`: the layers that are mapped for nobody now."""

    def __init__(self, path: Path, pool: FakePool, root_owner: tuple[int, int] | None = None) -> None:
        self.path = path
        self.pool = pool
        self.idle: list[str] = []
        wanted = dataclasses.replace(options.DEFAULTS, mountopt=("logbsize=32k", "xino=off"))
        liveness = Mock(shown=True)
        super().__init__(Home(str(path), wanted, pool.as_pool()), liveness, root_owner or (os.geteuid(), os.getegid()))
        self.layers, self.paths, self.locks = self.home.layers, self.home.paths, self.home.locks
        os.makedirs(path / "mnt", exist_ok=True)

    def leave_mapped(self, layer: str) -> None:
        """Nothing is done in the background: a test says when."""
        self.idle.append(layer)

    def learn(self) -> list[str]:
        """Learn what an earlier life had mounted."""
        self.removals.learn()
        return sorted(self.from_before.learn(self.removals))

    def settle(self) -> list[str]:
        """A daemon has started anew."""
        return sorted(self.from_before.settle(self.removals))

    # -- as Docker and the driver ask for it -----------------------------------------------------

    def get(self, layer: str, *, finished: bool = False, label: str = "") -> str:
        """Mount a layer for Docker."""
        with self.locks.hold(layer):
            assert self.views.acquire(layer, Place.DOCKER, finished=finished, label=label) is Place.DOCKER
        return self.point(layer)

    def put(self, layer: str) -> None:
        """Undo that."""
        with self.locks.hold(layer):
            self.views.uncount(layer, Place.DOCKER)
            self.views.unmount_unused(layer, Place.DOCKER)

    def unmap(self, *layers: str) -> None:
        """Unmap what nobody needs: these, or all that were told to be idle."""
        for layer in layers or sorted({*self.idle}):
            with self.locks.hold(layer):
                self.views.unmap_unused(layer)

    def point(self, layer: str, place: Place = Place.DOCKER) -> str:
        """Where a layer is mounted."""
        return self.views.point(layer, place)


def nothing_left(life: Life, host: FakeHost) -> bool:
    """Tell whether nothing is mapped or mounted, nor anything on the disk that would stand for it."""
    there = [*os.listdir(life.path / "mnt"), *(os.listdir(life.path / "l") if (life.path / "l").exists() else ())]
    assert (host.mounted, life.pool.devices, there) == ({}, {}, [])
    assert life.devices.mapped() == []
    return True


def again(life: Life) -> Life:
    """A process that knows nothing yet."""
    return Life(life.path, life.pool)


def finish(pool: FakePool, layer: str, *parents: str) -> None:
    """Nobody writes to a layer any more, and its note says so."""
    layer_state.write(str(pool.files(f"docker_image_{layer}")), LayerState(layer, parents, finished=True), 60)


def acquire(life: Life, layer: str, place: Place, *, finished: bool = False) -> Place:
    """Mount a view of a layer."""
    with life.locks.hold(layer):
        return life.views.acquire(layer, place, finished=finished)


def release(life: Life, layer: str, place: Place) -> None:
    """Undo that."""
    with life.locks.hold(layer):
        life.views.uncount(layer, place)
        life.views.unmount_unused(layer, place)


def share(systems: FileSystems, layer: str, user: str) -> None:
    """A finished layer, as everybody uses it who stands on it."""
    systems.acquire(layer, user, write=False, finished=True)


def write(systems: FileSystems, layer: str, user: str = "me") -> None:
    """One that is not finished."""
    systems.acquire(layer, user, write=True, finished=False)


def leave(systems: FileSystems, layer: str, user: str = "me") -> None:
    """Nobody uses it any more, and it is mounted no more; its device stays."""
    systems.release(layer, user)
    systems.unmount(layer)


# -- a driver --------------------------------------------------------------------------------------

Lives = Callable[[], Driver]


def create(driver: Driver, layer: str, parent: str = "") -> str:
    """Make a layer, and return its name."""
    driver.create(layer, parent, None)
    return layer


def chain(driver: Driver, *names: str) -> None:
    """Layers, each on the one before."""
    for parent, layer in zip(("", *names), names):
        create(driver, layer, parent)


def use(driver: Driver, *layers: str) -> None:
    """As Docker mounts a layer, and has done with it."""
    for layer in layers:
        driver.get(layer, "")
        driver.put(layer)


def gone(pool: FakePool, layer: str) -> Callable[[], bool]:
    """Tells whether the image of a layer has gone."""
    return lambda: f"docker_image_{layer}" not in pool.images


def says(pool: FakePool, layer: str) -> LayerState:
    """What the note of a layer says."""
    said = layer_state.read(str(pool.files(f"docker_image_{layer}")), 60)
    assert said
    return said


class Applied(NamedTuple):
    """What archive.apply was called with."""

    root: str
    mounted: mounts.Mount
    note: LayerState
