"""The fixtures of every suite that runs the driver on a real cluster: the cluster, plugins, ids; what is done there.

A cluster lives for the whole session; a plugin lives for a test, which must leave nothing behind. A conftest.py
imports those that its directory needs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import pytest
from lab import Cluster, StartPlugin, mounts_below
from plugin_client import Client, PluginProcess, Refused, make_tar, wait_until
from turns import share

# The fixture of that name.
NewId = Callable[[], str]


def _interrupted(number: int, _: FrameType | None) -> None:
    pytest.exit(f"ended by {signal.Signals(number).name}", 128 + number)


@pytest.fixture(scope="session")
def session_directory() -> Iterator[str]:
    """A short path: those of sockets end at 107 bytes."""
    assert os.geteuid() == 0, "these tests map and mount: run them as root"
    # A run that is cancelled takes its cluster down too.
    signal.signal(signal.SIGTERM, _interrupted)
    directory = tempfile.mkdtemp(prefix="dgd-", dir="/tmp")
    # As /var/lib/docker is with userns-remap: the container's root must get through.
    os.chmod(directory, 0o711)
    yield directory
    if not mounts_below(directory):
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def cluster(session_directory: str) -> Iterator[Cluster]:
    """The cluster; at the end nothing but base images may be left in it, and nothing of it on this machine.

    LAB_DIR names one that is up already (tests/kernel).
    """
    lab = Cluster(session_directory, os.environ.get("LAB_DIR", ""))
    lab.up()
    try:
        yield lab
        assert lab.mapped() == []
        assert mounts_below(session_directory) == []
        lab.wait_images([])
        wait_until(lambda: lab.trash() == [], "the trash is empty")
    finally:
        # What failed tests have left mounted: without the cluster nobody could unmount it any more; devices may hang.
        unmount_what_is_left(session_directory)
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


def lab_options() -> dict[str, str | Sequence[str]]:
    """What every plugin is started with: LAB_OPTIONS="devicetype=nbd timeout=300" (tests/kernel)."""
    pairs = [pair.split("=", 1) for pair in os.environ.get("LAB_OPTIONS", "").split()]
    return {name: value for name, value in pairs}  # noqa: C416 - dict() would be of another type


def new_plugin(cluster: Cluster, directory: str, **options: str | Sequence[str]) -> PluginProcess:
    """A plugin with these options (see `plugins`), not started yet."""
    options = {**lab_options(), "configfile": cluster.conf, **options}
    pairs = [
        f"ceph.{name}={value}"
        for name, values in options.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    return PluginProcess(directory, cluster.environment, pairs)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not in this commit's share (turns.py)."""
    mine = set(share(items))
    config.hook.pytest_deselected(items=[item for item in items if item not in mine])
    items[:] = [item for item in items if item in mine]


@pytest.fixture
def start_plugin(cluster: Cluster, session_directory: str) -> Iterator[StartPlugin]:
    """Start plugins for a test."""
    with plugins(cluster, session_directory) as start:
        yield start


@contextlib.contextmanager
def plugins(cluster: Cluster, directory: str) -> Iterator[StartPlugin]:
    """Start a plugin with these options (`fs="ext4"` or `mountopt=("a", "b")`); Init is called unless init=False.

    `host`: it believes to be on a host of that name.

    What they made is removed at the end, and then nothing may be left: no image, trash, mapping or mount.
    """
    started: list[PluginProcess] = []

    def start(*, init: bool = True, host: str = "", **options: str | Sequence[str]) -> PluginProcess:
        plugin = new_plugin(cluster, os.path.join(directory, uuid.uuid4().hex[:6]), **options)
        if host:
            plugin.host = host
            # Mappings of its own: what a host has mapped no other one sees.
            plugin.environment["RBD_STAND_IN_DIR"] = os.path.join(directory, f"mapped-{host}")
        started.append(plugin)
        plugin.start()
        if init:
            plugin.init()
        return plugin

    before = cluster.mapped()
    yield start
    try:
        for plugin in started:
            end(plugin)
            assert mounts_below(plugin.home) == []
        assert cluster.mapped() == before
    except BaseException:
        for plugin in started:
            drop(plugin, cluster)
        raise
    finally:
        for plugin in started:
            # Shown by pytest when something failed.
            print(f"--- log of {plugin.home}\n{plugin.log_tail()}")


def drop(plugin: PluginProcess, cluster: Cluster) -> None:
    """End a plugin of a test that failed, with all that it has: the next tests must not fail for that, too."""
    if plugin.running:
        plugin.kill()
    unmount_what_is_left(plugin.home)
    for layer in plugin.client.created:
        image = f"rbd/docker_image_{layer}"
        for verb in (["device", "unmap", "--options", "noudev,force"], ["rm", "--no-progress"]):
            subprocess.run(["rbd", "--conf", cluster.conf, *verb, image], env=plugin.environment, check=False)


def unmount_what_is_left(directory: str) -> None:
    """Unmount all below a directory, whoever still uses it and whether its devices answer."""
    for point in reversed(mounts_below(directory)):
        subprocess.run(["umount", "--lazy", point], check=False)


def end(plugin: PluginProcess) -> None:
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
def new_id() -> NewId:
    """Ids as Docker makes them: 64 hex digits."""
    return lambda: uuid.uuid4().hex + uuid.uuid4().hex


def refusal(start_plugin: StartPlugin, **options: str) -> str:
    """What Init says; the plugin goes on serving, and every other call says that there was no Init."""
    plugin = start_plugin(init=False, **options)
    with pytest.raises(Refused) as caught:
        plugin.init()
    assert "\n" not in caught.value.text
    assert caught.value.status == 500
    with pytest.raises(Refused, match="Init was never called"):
        plugin.client.call("Get", ID="x")
    return caught.value.text


def restricted(cluster: Cluster, directory: str, client: str, caps: tuple[str, ...]) -> str:
    """Make a key and a configuration beside which lies that key only."""
    place = os.path.join(directory, f"conf-{client}")
    os.makedirs(place)
    conf = os.path.join(place, "ceph.conf")
    with open(cluster.conf, encoding="ascii") as source, open(conf, "w", encoding="ascii") as target:
        target.write(source.read().replace(f"keyring = {cluster.directory}/ceph.", f"keyring = {place}/ceph."))
    with open(os.path.join(place, f"ceph.client.{client}.keyring"), "w", encoding="ascii") as target:
        target.write(cluster.ceph("auth", "get-or-create", f"client.{client}", *caps))
    return conf


def whole_life(client: Client, new_id: NewId) -> None:
    """Every kind of call once: archive, small and large parents, init layer, growing, diff, remove."""
    image = client.create(new_id())
    client.apply_diff(image, make_tar({"big": bytes(range(256)) * (32 << 10)}))
    container = new_id()
    client.create(container + "-init", image, "2G", writable=True)
    client.create(container, container + "-init", "2G", writable=True)
    client.write(container, "f", "x")
    assert client.changes(container, container + "-init") == {"/f": 1}
    committed = client.create(new_id(), image)
    client.apply_diff(committed, client.diff(container, container + "-init"), image)
    assert client.listing(committed) == ["big", "f"]
    client.remove(client.create(new_id(), committed))
    assert client.metadata(committed)["Image"].endswith(committed)
