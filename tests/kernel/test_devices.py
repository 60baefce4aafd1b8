"""What only a real kernel can show of a device type, at the driver's socket. Runs in the guest, see conftest.py.

A command takes a second or more there. So the tests share one plugin, each with a layer of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator

import pytest
from integration.test_restarts import Container
from lab import Cluster, mounts_below
from plugin_client import Client, PluginProcess, Refused, make_tar, tar_names, wait_until

TYPE = os.environ.get("LAB_DEVICE_TYPE", "krbd")
OTHER_TYPE = {"krbd": "nbd", "nbd": "krbd"}[TYPE]
PREFIX = f"{TYPE}_image"


@contextlib.contextmanager
def running_plugin(directory: str, cluster: Cluster, device_type: str) -> Iterator[PluginProcess]:
    """A plugin after Init; at the end it ends as systemd would end it. Its layers go with the cluster, to save time."""
    options = {"configfile": cluster.conf, "devicetype": device_type, "imageprefix": PREFIX, "timeout": "300"}
    plugin = PluginProcess(directory, cluster.environment, [f"ceph.{name}={value}" for name, value in options.items()])
    plugin.start()
    try:
        plugin.init()
        yield plugin
        assert plugin.terminate() == 0
        # The other driver may have some mapped for seconds more.
        wait_unmapped(cluster)
        log = plugin.log_text()
        assert "Traceback" not in log
        assert "defect of the driver" not in log
    except BaseException:
        print(f"--- log of {plugin.home}\n{plugin.log_tail()}")
        raise
    finally:
        if plugin.running:
            plugin.kill()


@pytest.fixture(scope="module")
def plugin(directory: str, cluster: Cluster) -> Iterator[PluginProcess]:
    """The plugin, with the device type that is tested."""
    with running_plugin(os.path.join(directory, "first"), cluster, TYPE) as running:
        yield running


@pytest.fixture(scope="module")
def other_client(directory: str, cluster: Cluster) -> Iterator[Client]:
    """Another driver of the same layers: it maps by the other type, and so is a stranger as on another host."""
    with running_plugin(os.path.join(directory, "other"), cluster, OTHER_TYPE) as running:
        yield running.client


@pytest.fixture
def client(plugin: PluginProcess) -> Client:
    """The plugin's client."""
    return plugin.client


@pytest.fixture(scope="module")
def image_layer(plugin: PluginProcess) -> str:
    """A finished layer that holds one file."""
    layer = plugin.client.create(uuid.uuid4().hex)
    plugin.client.apply_diff(layer, make_tar({"of the image": "x"}))
    return layer


@pytest.fixture
def layer(client: Client, image_layer: str) -> str:
    """A container's layer on that."""
    return client.create(uuid.uuid4().hex, image_layer, writable=True)


def devices(cluster: Cluster) -> list[str]:
    """The names of our images that this machine has mapped, by either type."""
    return [image for image in cluster.mapped() if image.startswith(PREFIX)]


def is_mapped(cluster: Cluster, layer: str) -> bool:
    """Whether a layer is mapped; the image's own one may be, for some seconds more."""
    return image_of(layer) in devices(cluster)


def wait_unmapped(cluster: Cluster) -> None:
    """The driver unmaps behind what was put."""
    wait_until(lambda: devices(cluster) == [], "nothing is mapped")


def image_of(layer: str) -> str:
    """The name of a layer's image."""
    return f"{PREFIX}_{layer}"


# -- a layer's life ------------------------------------------------------------------------------


def test_life(plugin: PluginProcess, cluster: Cluster, image_layer: str) -> None:
    """Write, read after a new mapping, diff and apply; each device goes with its last user, made small before."""
    client = plugin.client
    layer = client.create(uuid.uuid4().hex, image_layer, writable=True)
    root = client.get(layer)
    with open(os.path.join(root, "new"), "w", encoding="ascii") as target:
        target.write("content")
    assert is_mapped(cluster, layer)
    device = client.metadata(layer)["Device"]
    assert device.startswith({"krbd": "/dev/rbd", "nbd": "/dev/nbd"}[TYPE])
    client.put(layer)
    wait_unmapped(cluster)
    assert "keeps 2 MiB" not in plugin.log_text()

    assert client.read(layer, "new") == b"content"
    archive = client.diff(layer, image_layer)
    assert tar_names(archive) == ["new"]
    child = client.create(uuid.uuid4().hex, image_layer)
    client.apply_diff(child, archive)
    assert client.listing(child) == ["new", "of the image"]
    client.remove(child)
    client.remove(layer)
    wait_until(lambda: not is_mapped(cluster, layer), "it is unmapped")
    with pytest.raises(Refused, match=f"layer {layer} does not exist"):
        client.get(layer)


def test_the_kernel_maps_the_features_of_our_images(cluster: Cluster, image_layer: str) -> None:
    bits = {"layering": 1, "exclusive-lock": 4, "object-map": 8, "fast-diff": 16, "deep-flatten": 32, "operations": 256}
    features = cluster.info(image_of(image_layer))["features"]
    with open("/sys/bus/rbd/supported_features", encoding="ascii") as source:
        supported = int(source.read(), 16)
    assert set(features) <= set(bits)
    assert sum(bits[feature] for feature in features) & ~supported == 0


@contextlib.contextmanager
def running_container(root: str, directory: str) -> Iterator[Container]:
    """Somebody who has a layer mounted in a mount namespace of his own."""
    container = Container(root, os.path.join(directory, "container"))
    try:
        yield container
    finally:
        container.end()


# -- who holds it --------------------------------------------------------------------------------


def test_a_mounted_layer_is_refused_to_another_driver(plugin: PluginProcess, other_client: Client, layer: str) -> None:
    """The error says whose layer it is, and where it is open."""
    plugin.client.get(layer)
    try:
        with pytest.raises(Refused) as refused:
            other_client.get(layer)
    finally:
        plugin.client.put(layer)
    host = os.uname().nodename
    said = f"layer {layer} is in use elsewhere: its owner is {host} {plugin.home}; it is open at "
    assert said in refused.value.text
    assert "\n" not in refused.value.text


def test_remove_waits_for_a_mount_namespace_that_holds_the_device(
    client: Client, cluster: Cluster, directory: str, layer: str
) -> None:
    with running_container(client.get(layer), directory) as container:
        ending = subprocess.Popen(["sh", "-c", f"sleep 3; kill -KILL {container.process.pid}"])
        client.remove(layer)
        assert ending.wait(120) == 0
    wait_until(lambda: not is_mapped(cluster, layer), "it is unmapped")


def test_remove_names_who_holds_the_device_for_ever(
    client: Client, cluster: Cluster, directory: str, layer: str
) -> None:
    """The layer can be put all the same; once that one is gone, it can be removed."""
    with running_container(client.get(layer), directory) as container:
        client.put(layer)
        with pytest.raises(Refused, match=rf"cannot be unmapped: process {container.process.pid} \(sleep\)"):
            client.remove(layer)
        assert is_mapped(cluster, layer)
    client.remove(layer)
    wait_until(lambda: not is_mapped(cluster, layer), "it is unmapped")


def test_plugin_killed_9_under_a_mounted_layer(plugin: PluginProcess, cluster: Cluster, layer: str) -> None:
    """The device and the mount live on; the next life of the plugin takes them over."""
    root = plugin.client.get(layer)
    plugin.kill()
    with open(os.path.join(root, "meanwhile"), "w", encoding="ascii") as target:
        target.write("x")
    plugin.start()
    assert is_mapped(cluster, layer)
    plugin.client.put(layer)
    wait_unmapped(cluster)
    assert mounts_below(plugin.home) == []
    assert plugin.client.read(layer, "meanwhile") == b"x"


# -- what goes wrong -----------------------------------------------------------------------------


def test_the_device_vanishes_under_a_mounted_layer(plugin: PluginProcess, cluster: Cluster, layer: str) -> None:
    """Get says so, Put cleans up, the next Get maps anew, and what was synced before is there."""
    client = plugin.client
    root = client.get(layer)
    with open(os.path.join(root, "kept"), "w", encoding="ascii") as target:
        target.write("x")
        target.flush()
        os.fsync(target.fileno())
    take_device_away(cluster, client.metadata(layer)["Device"])
    # The file system notices at its next write.
    with contextlib.suppress(OSError), open(os.path.join(root, "lost"), "w", encoding="ascii") as target:
        target.write("x")
        os.fsync(target.fileno())
    with pytest.raises(Refused, match=f"layer {layer}: its device .* is gone"):
        client.get(layer)
    client.put(layer)
    assert client.read(layer, "kept") == b"x"


def take_device_away(cluster: Cluster, device: str) -> None:
    """As an operator's forced unmap does, and the end of the process that serves a device of nbd."""
    if TYPE == "krbd":
        cluster.rbd("device", "unmap", "--options", "noudev,force", device)
        return
    with open(f"/sys/block/{os.path.basename(device)}/pid", encoding="ascii") as source:
        server = int(source.read())
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{server}"), "rbd-nbd is gone")


if TYPE == "krbd":  # rbd-nbd serves every feature: there is nothing to say

    def test_what_the_kernel_says_of_an_image_that_it_does_not_map(
        client: Client, cluster: Cluster, layer: str
    ) -> None:
        """`rbd device map` itself says nothing but "sysfs write failed"."""
        cluster.rbd("feature", "enable", f"rbd/{image_of(layer)}", "journaling")
        with pytest.raises(Refused, match=r"kernel: .*unsupported features: 0x40") as refused:
            client.get(layer)
        assert "\n" not in refused.value.text
        assert client.metadata(layer)["Device"] == ""
        cluster.rbd("feature", "disable", f"rbd/{image_of(layer)}", "journaling")
        assert client.read(layer, "of the image") == b"x"
