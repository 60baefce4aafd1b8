"""A real cluster for the whole session; a plugin of its own for each test, which must leave nothing behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from plugin_client import REPO, Client, PluginProcess, wait_until

CLUSTER = os.path.join(REPO, "tests", "cluster.sh")


class Cluster:
    """The throw-away Ceph and the tools to look into it, as client.admin."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.join(directory, "ceph")
        self.conf = os.path.join(self.directory, "ceph.conf")
        # A directory of our own for the stand-in's state: nobody else's mappings are ever ours.
        self.environment = {
            **os.environ,
            "LAB_FAST_SNAPSHOTS": "1",
            "RBD_STAND_IN_DIR": os.path.join(directory, "mapped"),
        }

    def up(self) -> None:
        """Start it, and take over the environment that it asks for."""
        said = self.run([CLUSTER, "up", self.directory])
        print(said)
        script = f'eval "$({CLUSTER} env {self.directory})"; env -0'
        self.environment = dict(pair.split("=", 1) for pair in self.run(["bash", "-c", script]).split("\0") if pair)

    def down(self) -> None:
        """End it."""
        self.run([CLUSTER, "down", self.directory])

    def run(self, argv: Sequence[str], timeout: float = 120) -> str:
        """Run a command in the cluster's environment; its output."""
        done = subprocess.run(
            argv,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(argv)}: exit {done.returncode}: {done.stderr[-2000:]}"
        return done.stdout

    def rbd(self, *words: str) -> str:
        """One rbd command."""
        return self.run(["rbd", "--conf", self.conf, *words])

    def ceph(self, *words: str) -> str:
        """One ceph command."""
        return self.run(["ceph", "--conf", self.conf, *words])

    def images(self, prefix: str = "", spec: str = "rbd") -> list[str]:
        """The images whose names start with `prefix`, base images not among them."""
        names = json.loads(self.rbd("ls", spec, "--format", "json"))
        return sorted(name for name in names if name.startswith(prefix) and not name.endswith("_base_image"))

    def trash(self, prefix: str = "", spec: str = "rbd") -> list[str]:
        """The names in the trash."""
        said = json.loads(self.rbd("trash", "ls", spec, "--format", "json"))
        return sorted(item["name"] for item in said if item["name"].startswith(prefix))

    def info(self, image: str) -> dict[str, Any]:
        """What rbd info says."""
        said = json.loads(self.rbd("info", f"rbd/{image}", "--format", "json"))
        assert isinstance(said, dict)
        return said

    def mapped(self) -> list[str]:
        """The names of images that this host has mapped, of both device types."""
        lists = [json.loads(self.rbd("device", "list", "-t", kind, "--format", "json")) for kind in ("krbd", "nbd")]
        return sorted(item.get("name") or item["image"] for items in lists for item in items)

    def ancestors(self, image: str) -> int:
        """How many images stand behind one: the kernel maps it only up to 16."""
        parent = self.info(image).get("parent")
        return 1 + self.ancestors(parent["image"]) if parent else 0


def mounts_below(directory: str) -> list[str]:
    """The mount points below a directory, as the kernel lists them."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        points = [line.split()[4] for line in table]
    return [point for point in points if point.startswith(directory + "/")]


@pytest.fixture(scope="session")
def session_directory() -> Iterator[str]:
    """A short path: those of sockets end at 107 bytes."""
    assert os.geteuid() == 0, "these tests map and mount: run them as root"
    directory = tempfile.mkdtemp(prefix="dgd-", dir="/tmp")
    # As /var/lib/docker is with userns-remap: the container's root must get through.
    os.chmod(directory, 0o711)
    yield directory
    if not mounts_below(directory):
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def cluster(session_directory: str) -> Iterator[Cluster]:
    """The cluster; at the end nothing but base images may be left in it, and nothing of it on this machine."""
    lab = Cluster(session_directory)
    lab.up()
    try:
        yield lab
        assert lab.mapped() == []
        assert mounts_below(session_directory) == []
        assert lab.images("docker_image_") == []
        wait_until(lambda: lab.trash() == [], "the trash is empty")
    finally:
        lab.down()
    assert (
        session_directory
        not in subprocess.run(
            ["losetup", "--list", "--output", "BACK-FILE"], capture_output=True, text=True, check=True
        ).stdout
    )
    assert (
        session_directory
        not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    )


StartPlugin = Callable[..., PluginProcess]


@pytest.fixture
def start_plugin(cluster: Cluster, session_directory: str) -> Iterator[StartPlugin]:
    """Start a plugin with these options (`fs="ext4"` or `mountopt=("a", "b")`); Init is called unless init=False.

    What it made is removed at the end of the test, and then nothing may be left: no image, trash, mapping or mount.
    """
    started: list[PluginProcess] = []

    def start(
        *, init: bool = True, home_of: PluginProcess | None = None, **options: str | Sequence[str]
    ) -> PluginProcess:
        options.setdefault("configfile", cluster.conf)
        pairs = [
            f"ceph.{name}={value}"
            for name, values in options.items()
            for value in ([values] if isinstance(values, str) else values)
        ]
        plugin = PluginProcess(next(directories), cluster.environment, pairs)
        started.append(plugin)
        plugin.start()
        if init:
            plugin.init()
        return plugin

    directories = (os.path.join(session_directory, f"{uuid.uuid4().hex[:6]}") for _ in itertools.count())
    # What a failed test has left must not fail the next ones too; the end of the session finds it.
    before = cluster.mapped()
    yield start
    try:
        for plugin in started:
            _end(plugin)
            assert mounts_below(plugin.home) == []
        assert cluster.mapped() == before
    finally:
        for plugin in started:
            # Shown by pytest when something failed.
            print(f"--- log of {plugin.home}\n{plugin.log_tail()}")
            with contextlib.suppress(OSError):
                if plugin.running:
                    plugin.kill()


def _end(plugin: PluginProcess) -> None:
    """Remove what is left of a test's layers, as docker rm would, and end the plugin as systemd would."""
    if not plugin.running:
        plugin.start()
    if os.path.exists(plugin.socket + ".state"):
        for layer in reversed(plugin.client.created[:]):
            plugin.client.remove(layer)
        plugin.client.call("Cleanup")
    assert plugin.terminate() == 0
    assert not os.path.exists(plugin.socket)
    log = plugin.log_text()
    assert "Traceback" not in log
    assert "defect of the driver" not in log


@pytest.fixture
def plugin(start_plugin: StartPlugin) -> PluginProcess:
    """A plugin with default options, after Init."""
    return start_plugin()


@pytest.fixture
def client(plugin: PluginProcess) -> Client:
    """The client of `plugin`."""
    return plugin.client


@pytest.fixture
def new_id() -> Callable[[], str]:
    """Ids as Docker makes them: 64 hex digits."""
    return lambda: uuid.uuid4().hex + uuid.uuid4().hex
