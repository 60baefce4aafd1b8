"""Who gets a finished layer reads all that it brought: it is read ahead, and only that."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

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


def two_layers(client: Client, new_id: NewId) -> str:
    """A layer with files, on one with others."""
    below = client.create(new_id())
    client.apply_diff(below, tree("below"))
    layer = client.create(new_id(), below)
    client.apply_diff(layer, tree("own"))
    return layer


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


def test_a_layer_is_put_while_it_is_read_ahead(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    client = plugin.client
    layer = two_layers(client, new_id)
    for _ in range(5):
        cluster.wait_unmapped()
        client.get(layer)
        client.put(layer)
    assert client.listing(layer) == ["below", "own"]
