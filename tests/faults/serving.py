"""A snapshotter on a host of its own, whose mappings no other host sees. It can be killed, and lose its power."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable

from client import Snapshots
from lab import Cluster, kill_device_servers, mounts_below
from lab_fixtures import lab_options
from plugin_client import PluginProcess, wait_until
from services import Ceph
from work import Work, depths

from cluster.owner import Owner
from cluster.shared_layers import SharedLayers
from rbdcli import Pool


class Host(Ceph):
    """One of them. `calls` is a client of it, `work` mounts what it answers."""

    def __init__(self, cluster: Cluster, directory: str, prefix: str, **options: str) -> None:
        super().__init__(cluster, directory, {**lab_options(), "imageprefix": prefix, **options})
        self.cluster, self.prefix = cluster, prefix
        self.pool = options.get("datapool", "rbd")
        self.process.environment["RBD_STAND_IN_DIR"] = os.path.join(directory, "mapped")
        place = os.path.join(directory, "work")
        os.mkdir(place)
        self.calls: Snapshots = self.client()
        self.work = Work(self.calls, place)
        with open(self.process.log, "ab") as log:
            self._said = log.tell()

    @property
    def process(self) -> PluginProcess:
        """Its process."""
        return self._process

    def start(self) -> None:
        """Start it, and wait until it answers, and is ready to make snapshots."""
        self.start_unready()
        self.wait_ready()

    def start_unready(self) -> None:
        """Start it, and wait until it answers."""
        self._said = len(self.process.log_text())
        self._launch()
        wait_until(lambda: self._answers(self.calls), "it answers")

    def is_ready(self) -> bool:
        """Whether it has said since its start that the cluster has let it make snapshots."""
        return " INFO ready\n" in self.said()

    def said(self) -> str:
        """What it has said since its start."""
        return self.process.log_text()[self._said :]

    def wait_ready(self) -> None:
        """Wait until it is ready."""
        wait_until(lambda: self.is_ready() or not self.process.running, "it is ready")
        assert self.process.running, self.log_tail()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what it does in the background. Raises ConnectionError if it is killed over it."""
        wait_until(lambda: not self.process.running or condition(), what)
        if not self.process.running:
            raise ConnectionError("killed")

    # -- what is there -----------------------------------------------------------------------

    def rows(self, columns: str, where: str = "1") -> list[tuple[object, ...]]:
        """What its store has, whether it runs or not."""
        with contextlib.closing(sqlite3.connect(f"file:{self.process.home}/snapshots.db?mode=ro", uri=True)) as store:
            return store.execute(f"SELECT {columns} FROM snapshot WHERE {where}").fetchall()

    def image(self, name: str) -> str:
        """The layer that stands for a snapshot."""
        ((image,),) = self.rows("image", f"key = '{name}'")
        return str(image)

    def is_offered(self, name: str) -> bool:
        """Whether the store says that other hosts can find a snapshot."""
        return self.rows("shared", f"key = '{name}'") == [(1,)]

    def removals(self) -> int:
        """How many removed snapshots have a layer still."""
        return len(self.rows("layer", "key IS NULL"))

    def shared(self) -> SharedLayers:
        """What the pool says of layers that hosts share, for somebody who only looks."""
        pool = Pool(self.pool, "", "admin", self.cluster.conf, 60.0, "krbd", ())
        return SharedLayers(pool, self.prefix, Owner("nobody", "", "/"), beside=True)

    def users(self, layer: str) -> list[str]:
        """The homes of those who use a layer."""
        return sorted(owner.home for owner in self.shared().uses().users.get(layer, ()))

    def images(self) -> list[str]:
        """The layers in the pool."""
        return self.cluster.images(f"{self.prefix}_", self.pool)

    def mapped(self) -> list[str]:
        """The devices of this host, by images."""
        return [name for name, _ in self._mapped()]

    def _mapped(self) -> list[tuple[str, str]]:
        said = self._rbd("device", "list", "--format", "json")
        return [(item.get("name") or item["image"], item["device"]) for item in json.loads(said)]

    def _rbd(self, *words: str) -> str:
        environment = {**self.cluster.environment, "RBD_STAND_IN_DIR": self.process.environment["RBD_STAND_IN_DIR"]}
        argv = ["rbd", "--conf", self.cluster.conf, *words]
        return subprocess.run(argv, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout

    # -- its end -----------------------------------------------------------------------------

    def switch_off(self) -> None:
        """As `reboot` leaves a host: nothing is mapped, and all was written out."""
        self.kill()
        for point in reversed(mounts_below(self.process.home)):
            subprocess.run(["umount", point], check=True)
        for _, device in self._mapped():
            self._rbd("device", "unmap", device)

    def lose_power(self) -> None:
        """Devices go with what was not flushed, then the process; what is mounted is taken off by force."""
        assert kill_device_servers(self.process.environment), "nothing is mapped: there is nothing to lose"
        self.kill()
        self._take_off()

    def _take_off(self) -> None:
        """Without the files of the stand-in's daemons: by those it finds its loop devices, and detaches them."""
        served = self.process.environment["RBD_STAND_IN_DIR"] + "/"
        for point in reversed(mounts_below(os.path.dirname(self.process.home))):
            if not point.startswith(served):
                subprocess.run(["umount", "--lazy", point], check=True)
        assert self.mapped() == []

    def remove_all(self) -> None:
        """Remove all snapshots, children first."""
        for name, _ in sorted(depths(self.calls.list()).items(), key=lambda pair: -pair[1]):
            self.calls.remove(name)

    def nothing_left(self) -> None:
        """Look that nothing is left of what was removed, on this host and in the pool. It has ended then."""
        assert list(self.calls.list()) == []
        wait_until(lambda: self.rows("key") == [], "no row is left in the store")
        wait_until(lambda: self.images() == [], "no layer is left in the pool")
        wait_until(lambda: self.cluster.trash(self.prefix, self.pool) == [], "the trash is empty")
        shared = self.shared()
        wait_until(lambda: shared.all() == [], "no layer is listed as shared")
        assert list(shared.problems()) == []
        assert self.process.home not in str(shared.uses().users)
        self.end()
        assert self.mapped() == []
        assert mounts_below(os.path.dirname(self.process.home)) == []
        for name in ("mnt", "l"):
            assert os.listdir(os.path.join(self.process.home, name)) == []
        if os.path.isdir(os.path.join(self.process.home, "idmapped")):
            assert os.listdir(os.path.join(self.process.home, "idmapped")) == []
        left = set(os.listdir(self.process.home)) - {"mnt", "l", "empty", "idmapped"}
        assert left <= {"snapshots.db", "snapshotter.lock", "settings.json"}, left

    def give_up(self) -> None:
        """End all of it, whatever state a failed test has left it in."""
        print(f"--- log of {self.process.home}\n{self.log_tail()}")
        if self.process.running:
            self.kill()
        kill_device_servers(self.process.environment)
        self._take_off()
        self.calls.close()
