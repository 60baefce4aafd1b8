"""Who gets a finished layer reads all that it brought: it is read ahead, and only that, and so is the next one."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable

import pytest
from lab import Cluster
from plugin_client import Client, PluginProcess, make_tar, wait_until

NewId = Callable[[], str]
FILES = 200
SIZE = 30_000
# To read ahead is a favour: on a machine that is short of memory the kernel leaves some of it.
ENOUGH = FILES * 9 // 10


def tree(name: str) -> bytes:
    """An archive of a directory with some files that are not large."""
    return make_tar({name: None, **{f"{name}/{number}": bytes([number]) * SIZE for number in range(FILES)}})


def in_memory(directory: str) -> int:
    """How many files of a directory are wholly in the page cache; to look reads none of them."""
    paths = [os.path.join(directory, name) for name in os.listdir(directory)]
    argv = ["fincore", "--bytes", "--noheadings", "--output", "RES", *paths]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return sum(int(line) >= SIZE for line in said.split())


def chain(client: Client, new_id: NewId, *names: str) -> list[str]:
    """Layers, each on the one before, with a directory of files of that name."""
    made: list[str] = []
    for name in names:
        layer = client.create(new_id(), *made[-1:])
        client.apply_diff(layer, tree(name))
        made.append(layer)
    return made


def two_layers(client: Client, new_id: NewId) -> str:
    """A layer with files, on one with others."""
    return chain(client, new_id, "below", "own")[-1]


def three_layers(plugin: PluginProcess, cluster: Cluster, new_id: NewId, *, anew: bool = True) -> list[str]:
    """Three layers; `anew`: of which the driver, since it was started later, knows nothing yet."""
    layers = chain(plugin.client, new_id, "below", "own", "top")
    if anew:
        assert plugin.terminate() == 0
        plugin.start()
    cluster.wait_unmapped()
    return layers


def mounted_ahead(plugin: PluginProcess, layer: str) -> str:
    """Where a layer is mounted that Docker has not got."""
    return f"{plugin.home}/mnt/{layer}/driver"


def walk(plugin: PluginProcess, lowest: str, below: str, top: str) -> None:
    """Get a layer and the one on it, and wait until the next is mounted."""
    plugin.client.get(lowest)
    plugin.client.put(lowest)
    plugin.client.get(below)
    wait_until(lambda: os.path.ismount(mounted_ahead(plugin, top)), "the next layer is mounted")


@pytest.mark.parametrize("anew", [True, False])
def test_the_next_layer_is_read_ahead_too(plugin: PluginProcess, cluster: Cluster, new_id: NewId, anew: bool) -> None:
    client = plugin.client
    lowest, below, top = three_layers(plugin, cluster, new_id, anew=anew)
    walk(plugin, lowest, below, top)
    wait_until(
        lambda: in_memory(f"{mounted_ahead(plugin, top)}/rootfs/top") >= ENOUGH, "the next layer's files are read"
    )
    root = client.get(top)
    client.put(below)
    assert in_memory(f"{root}/top") >= ENOUGH, "what was read stays"
    assert client.listing(top) == ["below", "own", "top"]
    client.put(top)
    cluster.wait_unmapped()


def test_the_lowest_layer_begins_a_walk(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    lowest, below, _ = three_layers(plugin, cluster, new_id)
    plugin.client.get(lowest)
    directory = f"{mounted_ahead(plugin, below)}/rootfs/own"
    wait_until(lambda: os.path.isdir(directory) and in_memory(directory) >= ENOUGH, "the next layer's files are read")
    plugin.client.put(lowest)
    cluster.wait_unmapped()


def test_a_next_layer_that_nobody_gets_is_let_go(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    lowest, below, top = three_layers(plugin, cluster, new_id)
    walk(plugin, lowest, below, top)
    plugin.client.put(below)
    cluster.wait_unmapped()


def test_a_next_layer_is_removed(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    lowest, below, top = three_layers(plugin, cluster, new_id)
    image = plugin.client.metadata(top)["Image"]
    walk(plugin, lowest, below, top)
    plugin.client.remove(top)
    assert not os.path.ismount(mounted_ahead(plugin, top))
    wait_until(lambda: image not in cluster.images(), "its image is gone")
    plugin.client.put(below)


def test_the_driver_ends_with_a_next_layer_mounted(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    lowest, below, top = three_layers(plugin, cluster, new_id)
    walk(plugin, lowest, below, top)
    plugin.client.put(below)
    assert plugin.terminate() == 0
    assert cluster.mapped() == []
    plugin.start()


def test_a_container_s_layer_is_no_next_one(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """Nor does one layer alone make a walk."""
    client = plugin.client
    _, below, top = three_layers(plugin, cluster, new_id, anew=False)
    container = new_id()
    client.create(f"{container}-init", top, writable=True)
    client.create(container, f"{container}-init", writable=True)
    assert plugin.terminate() == 0
    plugin.start()
    for layer in (below, top):
        client.get(layer)
    wait_until(lambda: "rbd children" in plugin.log_text(), "the driver has looked for the next layer")
    time.sleep(1)
    assert sorted(cluster.mapped()) == sorted(client.metadata(layer)["Image"] for layer in (below, top))
    for layer in (below, top):
        client.put(layer)


def test_what_a_layer_brought_is_read_ahead(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """Also by a driver that was started later."""
    client = plugin.client
    layer = two_layers(client, new_id)
    assert plugin.terminate() == 0
    plugin.start()
    cluster.wait_unmapped()
    root = client.get(layer)
    wait_until(lambda: in_memory(f"{root}/own") >= ENOUGH, "the layer's files are read")
    assert in_memory(f"{root}/below") == 0
    client.put(layer)


def test_what_replaces_files_of_the_layer_below_is_read_ahead(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId
) -> None:
    """The new files get the inodes of the removed ones: which inodes are in use does not tell them."""
    layer = chain(plugin.client, new_id, "same", "same")[-1]
    cluster.wait_unmapped()
    root = plugin.client.get(layer)
    wait_until(lambda: in_memory(f"{root}/same") >= ENOUGH, "the layer's files are read")
    plugin.client.put(layer)


def test_only_inodes_of_the_layer_itself_are_looked_at(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    client = plugin.client
    *_, below = chain(client, new_id, "a", "b", "c")
    layer = client.create(new_id(), below)
    client.apply_diff(layer, make_tar({"own/1": b"x"}))
    cluster.wait_unmapped()
    root = client.get(layer)
    with open(f"{root}/../layer.json", encoding="utf-8") as note:
        chunks = json.load(note)["chunks"]
    inode = os.stat(f"{root}/own/1").st_ino
    assert any(first <= inode < first + 64 for first in chunks)
    assert len(chunks) <= 3, "of more than 600 inodes, 64 in each"
    client.put(layer)


def test_a_layer_is_put_while_it_is_read_ahead(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    client = plugin.client
    layer = two_layers(client, new_id)
    for _ in range(5):
        cluster.wait_unmapped()
        client.get(layer)
        client.put(layer)
    assert client.listing(layer) == ["below", "own"]
