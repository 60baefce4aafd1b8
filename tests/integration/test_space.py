"""What is stored in the pool: little for a container that does little, and nothing twice."""

from __future__ import annotations

import os
from collections.abc import Callable

from lab import Cluster, StartPlugin
from plugin_client import PluginProcess, make_tar, wait_until

NewId = Callable[[], str]


def new_container(plugin: PluginProcess, layer: str, image: str) -> str:
    """What docker create does; the container's layer is put again."""
    client = plugin.client
    client.create(layer + "-init", image)
    _write(plugin, layer + "-init", {"hosts": "", "resolv.conf": ""})
    client.create(layer, layer + "-init", writable=True)
    _write(plugin, layer, {"mine": layer})
    return layer


def _write(plugin: PluginProcess, layer: str, files: dict[str, str]) -> None:
    root = plugin.client.get(layer)
    for name, content in files.items():
        with open(os.path.join(root, name), "w", encoding="ascii") as target:
            target.write(content)
    plugin.client.put(layer)


def data_objects(cluster: Cluster, image: str) -> dict[str, int]:
    """The bytes of each of an image's own objects, by name."""
    prefix = cluster.info(image)["block_name_prefix"]
    names = [
        name for name in cluster.run(["rados", "--conf", cluster.conf, "-p", "rbd", "ls"]).split() if prefix in name
    ]
    stats = [cluster.run(["rados", "--conf", cluster.conf, "-p", "rbd", "stat", name]) for name in names]
    return {name: int(said.rsplit(" ", 1)[1]) for name, said in zip(names, stats)}


def test_a_container_that_does_little_stores_little(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """Mounting stores 2 MiB of cleared log; that is given back, and what was written is all there."""
    client = plugin.client
    image = client.create(new_id())
    client.apply_diff(image, make_tar({"etc": None, "etc/name": "of the image"}))
    layer = new_container(plugin, new_id(), image)
    cluster.wait_unmapped()
    for name in (layer, f"{layer}-init"):
        assert sum(data_objects(cluster, f"docker_image_{name}").values()) < 1_200_000, name
    assert client.read(layer, "mine") == layer.encode()
    assert client.read(layer, "etc/name") == b"of the image"
    cluster.wait_unmapped()
    device = cluster.rbd("device", "map", "--options", "noudev", f"rbd/docker_image_{layer}").strip()
    try:
        cluster.run(["xfs_repair", "-n", device])
    finally:
        cluster.rbd("device", "unmap", device)


def test_an_image_holds_what_its_layer_brought(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """And nothing of what is below; each is a clone of the base image, whose snapshot is the pool's only one."""
    client = plugin.client
    large, small = client.create(new_id()), new_id()
    client.apply_diff(large, make_tar({"large": os.urandom(12 << 20), "etc": None}))
    client.create(small, large)
    client.apply_diff(small, make_tar({"small": "x"}), large)
    container = new_container(plugin, new_id(), small)
    cluster.wait_unmapped()
    for layer in (small, f"{container}-init", container):
        assert sum(data_objects(cluster, f"docker_image_{layer}").values()) < 1_200_000, layer
    for layer in (large, small, f"{container}-init", container):
        assert cluster.info(f"docker_image_{layer}")["parent"]["image"] == "docker_image_base_image"
    assert cluster.snapshots("docker_image_") == []
    assert client.listing(container) == ["etc", "hosts", "large", "mine", "resolv.conf", "small"]


def test_a_deletion_takes_as_long_as_it_gets_on(start_plugin: StartPlugin, cluster: Cluster, new_id: NewId) -> None:
    """Ceph asks for each object of a huge image, though nothing is stored; others go beside it."""
    plugin = start_plugin(imageprefix="huge", basesize="512M")
    client = plugin.client
    huge, *others = [client.create(new_id()) for _ in range(5)]
    client.call("Cleanup")
    cluster.rbd("resize", "--no-progress", "--size", "4T", f"rbd/huge_{huge}")
    plugin.options = [option for option in plugin.options if "timeout" not in option] + ["ceph.timeout=3"]
    plugin.init()
    for layer in (huge, *others):
        client.remove(layer)
    wait_until(lambda: not {f"huge_{layer}" for layer in others} & set(cluster.images("huge_")), "the others are gone")
    wait_until(lambda: cluster.images("huge_") == [], "the huge one has left")
    wait_until(lambda: not cluster.rbd("trash", "ls", "--all", "rbd").strip(), "it is deleted to its end")
    assert "no progress" not in plugin.log_text()
