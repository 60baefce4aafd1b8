"""Layers on a host in memory: images, their file systems and their views, for the tests of what is mounted when."""

from __future__ import annotations

import os
from pathlib import Path

from unit.fake_host import FakeHost
from unit.fakes import FakePool

from graph.removals import Removals
from host.locks import Locks
from images import options
from images.layers import OBJECT_SIZE, Layers
from mapped.file_systems import FileSystems
from mapped.views import Place, Views


class Life:
    """What a new process has before it has learned anything. `idle`: the layers that are mapped for nobody now."""

    def __init__(self, home: Path, pool: FakePool, root_owner: tuple[int, int] | None = None) -> None:
        self.home = home
        self.pool = pool
        self.layers = Layers(pool.as_pool(), options.DEFAULTS, "/home")
        self.locks = Locks()
        self.idle: list[str] = []
        self.systems = FileSystems(
            pool.as_pool(), str(home), self.layers, fs="xfs", options=("logbsize=32k",), granule=OBJECT_SIZE
        )
        self.views = Views(
            pool.as_pool(),
            self.systems,
            self.layers,
            self.locks,
            options=("xino=off",),
            root_owner=root_owner or (os.geteuid(), os.getegid()),
            idle=self.idle.append,
        )
        self.removals = Removals(self.systems)
        os.makedirs(home / "mnt", exist_ok=True)

    def learn(self) -> list[str]:
        """Learn what an earlier life had mounted."""
        self.removals.learn()
        return sorted(self.views.learn(self.removals))

    def settle(self) -> list[str]:
        """A daemon has started anew."""
        return sorted(self.views.settle(self.removals))

    # -- as Docker and the driver ask for it -----------------------------------------------------

    def get(self, layer: str, *, sealed: bool = False, label: str = "") -> str:
        """Mount a layer for Docker."""
        with self.locks.hold(layer):
            assert self.views.acquire(layer, Place.DOCKER, sealed=sealed, label=label) is Place.DOCKER
        return self.point(layer)

    def put(self, layer: str) -> None:
        """Undo that."""
        with self.locks.hold(layer):
            self.views.leave(layer, Place.DOCKER)
            self.views.unmount_left(layer, Place.DOCKER)

    def let_go(self, *layers: str) -> None:
        """Let go of what nobody needs: these, or all that were told to be idle."""
        for layer in layers or sorted({*self.idle}):
            with self.locks.hold(layer):
                self.views.let_go(layer)

    def point(self, layer: str, place: Place = Place.DOCKER) -> str:
        """Where a layer is mounted."""
        return self.views.point(layer, place)


def nothing_left(life: Life, host: FakeHost) -> bool:
    """Tell whether nothing is mapped or mounted, nor anything on the disk that would stand for it."""
    there = [*os.listdir(life.home / "mnt"), *(os.listdir(life.home / "l") if (life.home / "l").exists() else ())]
    assert (host.mounted, life.pool.devices, there) == ({}, {}, [])
    assert life.systems.mapped() == []
    return True
