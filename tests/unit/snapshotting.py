"""A snapshotter on a host in memory, and what its clients do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unit.fakes import FakePool
from unit.layered import Life

from cluster.shared_layers import SharedLayers
from cluster.told import Told
from graph.reaper import Reaper
from images import layer_state
from snapshots.info import Kind
from snapshots.store import Store
from snapshotter import rebuilding
from snapshotter.notes import Notes
from snapshotter.sharing import Sharing
from snapshotter.snapshotter import Snapshotter


class Process:
    """One process, which has found what the one before it has left in its root. `id`: of what a client makes."""

    def __init__(self, pool: FakePool, root: Path, *, shares: bool = True, keep: float = 0.0) -> None:
        life = self.life = Life(root, pool)
        life.home.clients_mount = life.from_before._clients_mount = life.systems._clients_mount = True
        self.store = Store(str(root))
        self.reaper = Reaper(life, self._gone)
        self.shared = SharedLayers(pool.as_pool(), "docker_image", life.layers.owner())
        self.told = Told(pool.as_pool(), "docker_image", life.layers.owner())
        self.notes = Notes(self.store, life.layers, self.told, life.home.timeout)
        self.sharing = Sharing(self.store, life, self.reaper, self.shared, self.notes, enabled=shares, keep=keep)
        self.snapshotter = Snapshotter(self.store, life, self.reaper, self.sharing, self.notes)
        life.learn()
        self.snapshotter.recover()
        self.problems: list[str] = []
        if not self.store.is_whole():
            found = rebuilding.find(life.layers, self.shared, self.told, life.removals)
            self.problems = found.problems
            self.store.restore(found.snapshots, found.unnoted)
            self.snapshotter.recover()
            self.snapshotter.set_whole()
        self.sharing.reconcile()
        self.notes.reconcile()
        self.sharing.start()
        self.notes.start()
        self.snapshotter.set_ready()

    def _gone(self, layer: str) -> None:
        self.sharing.gone(layer)
        self.store.removed(layer)

    def end(self) -> None:
        """It does nothing any more."""
        self.sharing.works.end()
        self.notes.works.end()
        self.reaper.works.end()
        self.life.mapping.end()

    def layer(self, key: str) -> str:
        """The layer of a snapshot."""
        return self.store.find(key).layer

    def prepare(self, key: str, parent: str = "", **labels: str) -> str:
        """Make an active snapshot; return its layer."""
        self.snapshotter.prepare(Kind.ACTIVE, key, parent, labels)
        return self.layer(key)

    def write(self, layer: str, name: str) -> None:
        """Put a file into a snapshot, as a client does."""
        Path(self.life.paths.point(layer), layer_state.ROOT, name).write_text(name)

    def commit(self, name: str, parent: str = "") -> str:
        """Make a committed snapshot with one file; return its layer."""
        layer = self.prepare(f"{name}-key", parent)
        self.write(layer, name.rpartition("/")[2])
        self.snapshotter.commit(f"{name}-key", name, {})
        return layer

    def upper(self, key: str) -> Path:
        """The directory that a snapshot is written to, as a client is told."""
        [told] = self.snapshotter.mounts(key)
        return Path(next(option for option in told.options if option.startswith("upperdir=")).partition("=")[2])


@contextmanager
def processes() -> Iterator[list[Process]]:
    """A list of processes that are ended at the end of the block."""
    made: list[Process] = []
    try:
        yield made
    finally:
        for process in made:
            process.end()


def has_image(pool: FakePool, layer: str) -> bool:
    """Tell whether a layer has an image."""
    return f"docker_image_{layer}" in pool.images
