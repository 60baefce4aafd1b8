"""A host with a Docker on the disk, a fake pool and what check and gc make of them."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from docker_tree import DockerTree
from unit.fakes import FakePool, recorded

from images import options
from images.layers import Layers
from maintenance import collector, inspection
from maintenance.docker_database import DockerDatabase

HOUR = 3600.0
PREFIX = options.DEFAULTS.imageprefix


def new_id() -> str:
    """An id as Docker makes them."""
    return uuid.uuid4().hex * 2


class Host:
    """Its Docker is whole; what is added was made hours ago."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = str(directory / "ceph")
        self.root = os.path.join(self.home, "mnt")
        os.makedirs(self.root)
        self.docker = DockerTree(str(directory), "ceph")
        self.pool = FakePool()
        self.layers = Layers(self.pool.as_pool(), options.DEFAULTS, self.home)

    @property
    def database(self) -> DockerDatabase:
        """What Docker knows."""
        return DockerDatabase(str(self.directory), "ceph")

    def look(self, min_age: float = HOUR) -> inspection.Inspection:
        """One look at all of it."""
        return inspection.Inspection(self.layers, PREFIX, self.home, self.database, min_age=min_age)

    def image(self, layer: str = "", age: float = 9 * HOUR, prefix: str = PREFIX, parents: Sequence[str] = ()) -> str:
        """An image of this host's in the pool; its layer is returned."""
        layer = layer or new_id()
        metadata = recorded(self.layers.owner(), *parents)
        self.pool.add(f"{prefix}_{layer}", metadata=metadata, created=time.time() - age)
        return layer

    def container(self, age: float = 9 * HOUR) -> tuple[str, str]:
        """A container with its two images; its id and its layer are returned."""
        name, layer = new_id(), self.image(age=age)
        self.image(f"{layer}-init", age=age)
        self.docker.container(name, layer, age=age)
        return name, layer

    def directory_of(self, layer: str, age: float = 9 * HOUR) -> str:
        """A layer's directory, in which something was made or removed `age` seconds ago."""
        path = os.path.join(self.root, layer)
        os.makedirs(os.path.join(path, "docker"))
        os.utime(path, (time.time() - age,) * 2)
        return path

    def dead(self) -> set[tuple[str, str]]:
        """Kind and id of what gc would remove."""
        return {(finding.kind, finding.id) for finding in self.look().findings() if finding.dead}

    def collect(self, look: inspection.Inspection, found: list[inspection.Finding]) -> dict[str, collector.Outcome]:
        """Let gc remove what was found; what became of it, by id."""
        outcomes = collector.collect(found, look, self.layers, self.database)
        return {outcome.finding.id: outcome for outcome in outcomes}


@contextlib.contextmanager
def moved(path: str) -> Iterator[None]:
    """Something is away for a while."""
    os.rename(path, f"{path}.away")
    yield
    os.rename(f"{path}.away", path)


def family(host: Host) -> tuple[str, str, str]:
    """Three layers, each on the one before, of which Docker knows nothing."""
    first = host.image()
    second = host.image(parents=[first])
    return first, second, host.image(parents=[second, first])


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing changes here by itself."""
    monkeypatch.setattr(inspection, "SETTLE_SECONDS", 0.0)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with a Docker that knows nothing."""
    return Host(tmp_path)
