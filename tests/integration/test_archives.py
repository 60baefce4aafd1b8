"""ApplyDiff and Diff: whole, cut off, repeated, one feeding the other."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from lab import Cluster, StartPlugin, mounts_below
from plugin_client import (
    HEADERS,
    Client,
    PluginProcess,
    Refused,
    in_pieces,
    make_tar,
    tar_names,
    wait_until,
)

NewId = Callable[[], str]


def begin_apply_diff(client: Client, layer: str, data: bytes) -> socket.socket:
    """Send the head of an ApplyDiff and some of its archive, and stop there."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(client.path)
    lines = [f"POST /GraphDriver.ApplyDiff?id={layer}&parent= HTTP/1.1", *(f"{k}: {v}" for k, v in HEADERS.items())]
    connection.sendall("\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode())
    for piece in in_pieces(data):
        connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
    return connection


def assert_broken(client: Client, layer: str, new_id: NewId) -> None:
    """A half-applied layer must not be taken for a layer by anybody; it can be removed."""
    with pytest.raises(Refused, match="broken"):
        client.get(layer)
    with pytest.raises(Refused, match="broken"):
        client.diff(layer)
    with pytest.raises(Refused, match=r"broken|one archive"):
        client.apply_diff(layer, make_tar({"f": "x"}))
    with pytest.raises(Refused, match=r"broken|one archive"):
        client.apply_diff(layer, b"")
    child = new_id()
    try:
        client.create(child, layer)
    except Refused as error:
        assert "broken" in error.text
    else:
        with pytest.raises(Refused, match="broken"):
            client.get(child)
        client.remove(child)
    client.remove(layer)
    assert client.call("Exists", ID=layer)["Exists"] is False


def big_tar(size: int = 20 << 20) -> bytes:
    """An archive that no socket buffer holds."""
    return make_tar({"first": "x", "big": os.urandom(size), "last": "y"})


def test_apply_diff_is_read_to_its_very_end(client: Client, new_id: NewId) -> None:
    """tar-split sends zeros after the archive's end; an early answer would cut its checksum short."""
    sent = 0
    archive = make_tar({"f": "hello"}, padding=3 << 20)

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for piece in in_pieces(archive):
            yield piece
            sent += len(piece)

    layer = client.create(new_id())
    assert client.apply_diff(layer, pieces()) == 5
    assert sent == len(archive)
    assert client.read(layer, "f") == b"hello"


@pytest.mark.parametrize("archive", [b"", bytes(512), bytes(1024), bytes(10240)], ids=["none", "512", "1024", "10240"])
def test_an_archive_without_entries(client: Client, new_id: NewId, archive: bytes) -> None:
    layer = client.create(new_id())
    assert client.apply_diff(layer, archive) == 0
    assert client.listing(layer) == []


def test_an_archive_that_was_applied_comes_again_empty(client: Client, new_id: NewId) -> None:
    """dockerd repeats a call whose answer was lost, from a reader that is at its end."""
    layer = client.create(new_id())
    client.apply_diff(layer, make_tar({"f": "x"}))
    for archive in (b"", make_tar({"g": "y"})):
        with pytest.raises(Refused, match="archive"):
            client.apply_diff(layer, archive)
    with pytest.raises(Refused, match="archive"):
        client.post(f"/GraphDriver.ApplyDiff?id={layer}&parent=", b"").json()
    assert client.listing(layer) == ["f"]


def test_a_refused_archive_is_read_to_its_end(client: Client, new_id: NewId) -> None:
    """Otherwise the client sees a broken pipe in place of the reason, and tries again."""
    layer = client.create(new_id())
    client.apply_diff(layer, make_tar({"f": "x"}))
    with pytest.raises(Refused, match="archive"):
        client.apply_diff(layer, big_tar(8 << 20))


def test_a_layer_whose_client_went_away_in_the_middle_is_removed(client: Client, new_id: NewId) -> None:
    """dockerd writes a layer down only when it is whole: one that was killed will never remove this one."""
    layer = client.create(new_id())
    connection = begin_apply_diff(client, layer, big_tar()[: 10 << 20])
    connection.close()
    wait_until(lambda: not client.call("Exists", ID=layer)["Exists"], "the layer is removed")
    with pytest.raises(Refused, match="does not exist"):
        client.get(layer)
    client.remove(layer)


def test_an_archive_that_ends_too_early_breaks_the_layer(client: Client, new_id: NewId) -> None:
    """The HTTP body is whole, the tar in it is not."""
    layer = client.create(new_id())
    with pytest.raises(Refused):
        client.apply_diff(layer, big_tar()[: 10 << 20])
    assert_broken(client, layer, new_id)


def test_garbage_breaks_the_layer(client: Client, new_id: NewId) -> None:
    layer = client.create(new_id())
    with pytest.raises(Refused):
        client.apply_diff(layer, b"this is no archive " * 1000)
    assert_broken(client, layer, new_id)


def test_kill_9_in_the_middle_of_an_archive(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    client = plugin.client
    parent = client.create(new_id())
    client.apply_diff(parent, make_tar({"of the parent": "x"}))
    layer = client.create(new_id(), parent)
    connection = begin_apply_diff(client, layer, big_tar()[: 10 << 20])
    view = os.path.join(plugin.home, "mnt", layer, "driver")
    wait_until(lambda: os.path.ismount(view), "the layer is mounted")
    time.sleep(0.5)
    plugin.kill()
    connection.close()
    assert os.path.ismount(view)
    plugin.start()
    wait_until(lambda: mounts_below(plugin.home) == [], "what the killed one had mounted is unmounted")
    cluster.wait_unmapped()
    assert_broken(client, layer, new_id)
    assert client.listing(parent) == ["of the parent"]


def test_kill_9_before_the_first_byte_of_an_archive_leaves_a_layer_that_can_be_removed(
    plugin: PluginProcess, new_id: NewId
) -> None:
    layer = plugin.client.create(new_id())
    begin_apply_diff(plugin.client, layer, b"").close()
    plugin.kill()
    plugin.start()
    plugin.client.remove(layer)


def test_a_child_of_a_layer_broken_by_kill_9_is_broken_too(plugin: PluginProcess, new_id: NewId) -> None:
    client = plugin.client
    layer = client.create(new_id())
    with pytest.raises(Refused):
        client.apply_diff(layer, big_tar()[: 10 << 20])
    plugin.kill()
    plugin.start()
    assert_broken(client, layer, new_id)


def test_an_applied_layer_is_still_finished_after_kill_9(plugin: PluginProcess, new_id: NewId) -> None:
    client = plugin.client
    layer = client.create(new_id())
    client.apply_diff(layer, make_tar({"f": "x"}))
    plugin.kill()
    plugin.start()
    with pytest.raises(Refused, match="archive"):
        client.apply_diff(layer, b"")
    assert client.read(layer, "f") == b"x"


def test_diff_of_one_layer_feeds_apply_diff_of_another(client: Client, new_id: NewId) -> None:
    """docker commit: the Diff stays open while Create and ApplyDiff run, the one feeding the other."""
    image = client.create(new_id())
    client.apply_diff(image, make_tar({"old": "x"}))
    container = new_id()
    client.create(container + "-init", image, writable=True)
    client.create(container, container + "-init", writable=True)
    content = os.urandom(8 << 20)
    client.get(container)
    client.write(container, "big", content)
    connection, answer = client.open_diff(container, container + "-init")
    first = answer.read(1 << 16)
    committed = client.create(new_id(), image)

    def rest() -> Iterator[bytes]:
        yield first
        while piece := answer.read(1 << 16):
            yield piece

    assert client.apply_diff(committed, rest(), image) == len(content)
    connection.close()
    client.put(container)
    assert client.read(committed, "big") == content
    assert client.read(committed, "old") == b"x"


def test_two_diffs_at_once(client: Client, new_id: NewId) -> None:
    """Of one layer, and of a layer and its parent: BuildKit diffs a whole chain in parallel."""
    chain = [client.create(new_id())]
    client.apply_diff(chain[0], make_tar({"a": os.urandom(1 << 20)}))
    for name in ("b", "c"):
        chain.append(client.create(new_id(), chain[-1]))
        client.apply_diff(chain[-1], make_tar({name: os.urandom(1 << 20)}))
    pairs = [(chain[0], ""), (chain[1], chain[0]), (chain[2], chain[1]), (chain[2], chain[1])]
    with ThreadPoolExecutor(4) as threads:
        archives = list(threads.map(lambda pair: client.diff(*pair), pairs))
    assert [tar_names(archive) for archive in archives] == [["a"], ["b"], ["c"], ["c"]]
    assert archives[2] == archives[3]


def test_a_diff_that_nobody_reads_to_its_end(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """docker save that is interrupted: the layer is released, the next one gets it all."""
    client = plugin.client
    layer = client.create(new_id())
    client.apply_diff(layer, big_tar())
    connection, answer = client.open_diff(layer)
    answer.read(1 << 16)
    answer.close()
    connection.close()
    wait_until(lambda: mounts_below(plugin.home) == [] and cluster.mapped() == [], "the layer is released")
    assert tar_names(client.diff(layer)) == ["big", "first", "last"]


def test_a_child_is_made_while_its_parents_diff_is_open(client: Client, new_id: NewId) -> None:
    """BuildKit exports a layer that it made by Create, Get and Put while the next step begins on it."""
    layer = client.create(new_id())
    client.write(layer, "big", os.urandom(8 << 20))
    connection, answer = client.open_diff(layer)
    first = answer.read(1 << 16)
    child = client.create(new_id(), layer)
    client.write(child, "f", "x")
    assert len(first + answer.read()) > 8 << 20
    connection.close()
    assert client.listing(child) == ["big", "f"]


def test_changes_of_a_running_container(client: Client, new_id: NewId) -> None:
    """docker diff and ps -s while the layer is mounted for Docker and written to."""
    image = client.create(new_id())
    client.apply_diff(image, make_tar({"old": "x"}))
    container = new_id()
    client.create(container + "-init", image, writable=True)
    client.create(container, container + "-init", writable=True)
    root = client.get(container)
    for number in range(3):
        with open(os.path.join(root, f"file-{number}"), "wb") as target:
            target.write(bytes(100))
        assert client.diff_size(container, container + "-init") == 100 * (number + 1)
        assert len(client.changes(container, container + "-init")) == number + 1
    client.put(container)


def test_reading_an_image_does_not_write_into_the_pool(
    start_plugin: StartPlugin, cluster: Cluster, new_id: NewId
) -> None:
    """docker save and docker diff open every file; access times would copy every block."""
    client = start_plugin(imageprefix="reading").client
    layer = client.create(new_id())
    client.apply_diff(layer, make_tar({f"f{number}": os.urandom(10_000) for number in range(200)}))
    # Before it is unmapped, what mounting stored is given back.
    cluster.wait_unmapped()
    before = used(cluster, f"reading_{layer}")
    root = client.get(layer)
    for number in range(200):
        with open(os.path.join(root, f"f{number}"), "rb") as source:
            assert len(source.read()) == 10_000
    client.put(layer)
    client.diff(layer)
    assert used(cluster, f"reading_{layer}") == before


def used(cluster: Cluster, image: str) -> str:
    """How many bytes the objects of an image hold."""
    return cluster.rbd("du", "--exact", f"rbd/{image}", "--format", "json")
