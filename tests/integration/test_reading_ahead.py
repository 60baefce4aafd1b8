"""Who gets a finished layer reads all that it brought: it is read ahead, and only that, and so is the next one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest
from lab import Cluster
from plugin_client import Client, PluginProcess, make_tar, wait_until

NewId = Callable[[], str]
FILES = 200
SIZE = 30_000
# To read ahead is a favour: on a machine that is short of memory the kernel leaves some of it.
ENOUGH = FILES * 9 // 10


def own(plugin: PluginProcess, layer: str) -> str:
    """Where what a layer brought is to be seen while it is mounted."""
    return f"{plugin.home}/mnt/{layer}/layer/rootfs/own"


def in_memory(directory: str) -> int:
    """How many files of a directory are wholly in the page cache; to look reads none of them."""
    paths = [os.path.join(directory, name) for name in os.listdir(directory)]
    argv = ["fincore", "--bytes", "--noheadings", "--output", "RES", *paths]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return sum(int(line) >= SIZE for line in said.split())


def is_read(plugin: PluginProcess, layer: str) -> None:
    directory = own(plugin, layer)
    wait_until(lambda: os.path.isdir(directory) and in_memory(directory) >= ENOUGH, f"the files of {layer} are read")


@pytest.fixture
def chain(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> list[str]:
    """Three layers, each with files of its own, and nothing of them in memory."""
    made: list[str] = []
    files = {f"own/{number}": bytes([number]) * SIZE for number in range(FILES)}
    for _ in range(3):
        layer = plugin.client.create(new_id(), *made[-1:])
        plugin.client.apply_diff(layer, make_tar({"own": None, **files}))
        made.append(layer)
    cluster.wait_unmapped()
    return made


def test_what_a_layer_brought_is_read_ahead(plugin: PluginProcess, cluster: Cluster, chain: list[str]) -> None:
    """Also by a driver that was started later; what is below it is mounted, and not read."""
    assert plugin.terminate() == 0
    plugin.start()
    *below, layer = chain
    plugin.client.get(layer)
    is_read(plugin, layer)
    assert [in_memory(own(plugin, each)) for each in below] == [0, 0]
    plugin.client.put(layer)
    cluster.wait_unmapped()


def test_the_next_layer_is_read_ahead_too(plugin: PluginProcess, cluster: Cluster, chain: list[str]) -> None:
    lowest, middle, top = chain
    plugin.client.get(lowest)
    for layer in (lowest, middle):
        is_read(plugin, layer)
    plugin.client.put(lowest)
    plugin.client.get(middle)
    assert in_memory(own(plugin, middle)) >= ENOUGH, "what was read stays"
    is_read(plugin, top)
    plugin.client.put(middle)
    cluster.wait_unmapped()


def test_one_layer_alone_is_no_walk(plugin: PluginProcess, cluster: Cluster, chain: list[str]) -> None:
    """As BuildKit gets one."""
    lowest, middle, top = chain
    image = plugin.client.metadata(top)["Image"]
    for layer in (middle, lowest):
        plugin.client.get(layer)
        is_read(plugin, layer)
    assert image not in cluster.mapped()
    for layer in (middle, lowest):
        plugin.client.put(layer)


def test_a_next_layer_is_removed(plugin: PluginProcess, cluster: Cluster, chain: list[str]) -> None:
    *_, middle, top = chain
    plugin.client.get(chain[0])
    plugin.client.get(middle)
    is_read(plugin, top)
    image = plugin.client.metadata(top)["Image"]
    plugin.client.remove(top)
    wait_until(lambda: image not in cluster.images(), "its image is gone")
    for layer in (chain[0], middle):
        plugin.client.put(layer)


def test_the_driver_ends_while_a_next_layer_is_kept(plugin: PluginProcess, cluster: Cluster, chain: list[str]) -> None:
    lowest, middle, _ = chain
    image = plugin.client.metadata(lowest)["Image"]
    plugin.client.get(lowest)
    is_read(plugin, middle)
    assert plugin.terminate() == 0
    assert cluster.mapped() == [image]
    plugin.start()
    plugin.client.put(lowest)
    cluster.wait_unmapped()


def test_a_layer_is_put_while_it_is_read_ahead(
    plugin: PluginProcess, client: Client, cluster: Cluster, chain: list[str]
) -> None:
    for _ in range(3):
        client.get(chain[0])
        client.put(chain[0])
        cluster.wait_unmapped()
    assert client.listing(chain[0]) == ["own"]
