"""Layers on a host in memory: images, their file systems and their views, for the tests of what is mounted when."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from unittest.mock import Mock

from unit.fake_host import FakeHost
from unit.fakes import FakePool

from images import options
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
