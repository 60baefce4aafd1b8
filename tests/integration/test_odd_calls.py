"""Calls that dockerd really makes out of order, and what it relies on then; ids that must not be believed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest
from lab import Cluster, StartPlugin, mounts_below, views_below
from plugin_client import Client, PluginProcess, Refused, make_tar, wait_until

NewId = Callable[[], str]


def test_remove_unknown_id_is_done_already(client: Client, new_id: NewId) -> None:
    client.remove(new_id())


def test_remove_twice(client: Client, new_id: NewId) -> None:
    layer = client.create(new_id())
    client.remove(layer)
    client.remove(layer)
    assert client.call("Exists", ID=layer)["Exists"] is False


def test_remove_mounted_id(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """BuildKit's COPY --from gets and removes without a put, whatever the count says."""
    client = plugin.client
    layer = client.create(new_id(), writable=True)
    assert client.get(layer) == client.get(layer)
    client.remove(layer)
    assert mounts_below(plugin.home) == []
    cluster.wait_unmapped()
    cluster.wait_images([])
    wait_until(lambda: os.listdir(os.path.join(plugin.home, "mnt")) == [], "its directory is gone")
    client.put(layer)


def test_no_id_is_refused(client: Client) -> None:
    for method in ("Remove", "Get", "Put", "Create", "Exists", "GetMetadata", "Changes", "DiffSize"):
        with pytest.raises(Refused, match="ID"):
            client.call(method, ID="")
        with pytest.raises(Refused, match="ID"):
            client.call(method)


@pytest.mark.parametrize("method", ["Put", "Remove"])
def test_who_keeps_a_layer_busy_is_named(client: Client, new_id: NewId, method: str) -> None:
    """Somebody of the host's own namespace: no mount table but ours has the layer."""
    layer = client.create(new_id())
    root = client.get(layer)
    with subprocess.Popen(["sleep", "1000"], cwd=root) as process:
        try:
            with pytest.raises(Refused, match=rf"process {process.pid} \(sleep\) has its working directory in it"):
                client.call(method, ID=layer)
        finally:
            process.kill()
    client.put(layer)


def test_put_unknown_id(client: Client, new_id: NewId) -> None:
    client.put(new_id())


def test_put_of_a_layer_that_is_not_mounted(client: Client, new_id: NewId) -> None:
    layer = client.create(new_id())
    client.put(layer)
    client.write(layer, "f", "x")
    client.put(layer)
    assert client.read(layer, "f") == b"x"


def test_get_unknown_id(client: Client, plugin: PluginProcess, new_id: NewId) -> None:
    layer = new_id()
    with pytest.raises(Refused, match=f"layer {layer} does not exist"):
        client.get(layer)
    assert os.listdir(os.path.join(plugin.home, "mnt")) == []


def test_questions_about_an_unknown_id(client: Client, new_id: NewId) -> None:
    layer = new_id()
    for method in ("GetMetadata", "Changes", "DiffSize"):
        with pytest.raises(Refused, match=f"layer {layer} does not exist"):
            client.call(method, ID=layer)


def test_diff_of_an_unknown_id_is_an_error_before_the_archive(client: Client, new_id: NewId) -> None:
    layer = new_id()
    with pytest.raises(Refused, match=f"layer {layer} does not exist") as caught:
        client.diff(layer)
    assert caught.value.status == 500
    child = client.create(new_id())
    with pytest.raises(Refused, match=f"layer {layer} does not exist"):
        client.diff(child, layer)


def test_apply_diff_to_an_unknown_id(client: Client, new_id: NewId) -> None:
    with pytest.raises(Refused, match="does not exist"):
        client.apply_diff(new_id(), make_tar({"f": bytes(1 << 20)}))


def test_get_twice_is_one_mount_and_two_counts(plugin: PluginProcess, new_id: NewId) -> None:
    client = plugin.client
    layer = client.create(new_id())
    root = client.get(layer)
    # The file system and the view.
    assert len(mounts_below(plugin.home)) == 2
    assert client.get(layer) == root
    assert len(mounts_below(plugin.home)) == 2
    client.put(layer)
    assert os.path.ismount(root)
    assert len(mounts_below(plugin.home)) == 2
    client.put(layer)
    assert views_below(plugin.home) == []
    assert client.get(layer) == root
    client.put(layer)


def test_create_existing_id(client: Client, new_id: NewId) -> None:
    """A create whose answer was lost comes again: an error, and the layer keeps what it has."""
    base, layer = client.create(new_id()), new_id()
    client.create(layer, base)
    client.write(layer, "f", "x")
    for parent in (base, ""):
        with pytest.raises(Refused, match=f"layer {layer} exists already"):
            client.call("Create", ID=layer, Parent=parent)
    assert client.read(layer, "f") == b"x"


def test_create_existing_id_while_it_is_mounted(client: Client, new_id: NewId) -> None:
    layer = client.create(new_id())
    root = client.get(layer)
    with pytest.raises(Refused, match="exists already"):
        client.call("CreateReadWrite", ID=layer)
    with open(os.path.join(root, "f"), "w", encoding="ascii") as target:
        target.write("still writable")
    client.put(layer)


def test_create_on_an_unknown_parent(client: Client, cluster: Cluster, new_id: NewId) -> None:
    layer, parent = new_id(), new_id()
    with pytest.raises(Refused, match=f"{parent}.* does not exist"):
        client.create(layer, parent)
    assert cluster.images("docker_image_") == []
    assert client.call("Exists", ID=layer)["Exists"] is False


def test_create_on_a_removed_parent(client: Client, new_id: NewId) -> None:
    """The parent is known to this process, and gone."""
    parent = client.create(new_id())
    client.create(new_id(), parent)
    client.remove(parent)
    with pytest.raises(Refused, match=f"{parent}.* does not exist"):
        client.create(new_id(), parent)


def test_a_child_outlives_its_parent(client: Client, cluster: Cluster, new_id: NewId) -> None:
    """Docker removes the top first; a crash in between may leave it otherwise."""
    parent = client.create(new_id())
    client.write(parent, "f", bytes(1 << 20))
    children = [client.create(new_id(), parent) for _ in range(2)]
    client.write(children[0], "g", "x")
    client.remove(parent)
    assert client.read(children[0], "f") == bytes(1 << 20)
    client.call("Cleanup")
    assert client.call("Exists", ID=parent)["Exists"] is False
    assert client.read(children[1], "f") == bytes(1 << 20)
    assert cluster.images("docker_image_") == sorted(f"docker_image_{layer}" for layer in (parent, *children))

    for child in children:
        client.remove(child)
    wait_until(lambda: cluster.images("docker_image_") == [], "the parent goes with the last layer that stands on it")


def test_an_error_of_exists_reads_as_false(client: Client) -> None:
    assert client.call("Exists", ID="never-made")["Exists"] is False


def test_a_call_with_unknown_fields(client: Client, new_id: NewId) -> None:
    layer = client.create(new_id())
    assert client.call("Exists", ID=layer, Future={"a": 1})["Exists"] is True


def test_ids_of_buildkit_and_of_init_layers(client: Client, new_id: NewId) -> None:
    image = client.create("zmw1v9qrl54fjcblllwc7fp9f")
    container = new_id()
    client.create(container + "-init", image, writable=True)
    client.create(container, container + "-init", writable=True)
    client.write(container, "f", "x")
    assert client.changes(container, container + "-init") == {"/f": 1}


BAD_IDS = ["../x", "..", ".", "a/b", "/etc", "a@b", "a b", "a\nb", "a\n", "\n", "a\0b", "-a", "--pool", "ä", "a" * 300]


def test_no_bad_id_reaches_a_path_or_an_image(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    client, child = plugin.client, new_id()
    for layer in BAD_IDS:
        for method in ("Create", "CreateReadWrite", "Remove", "Get", "Put", "Exists", "GetMetadata", "Changes"):
            with pytest.raises(Refused, match="is not a layer id"):
                client.call(method, ID=layer)
        with pytest.raises(Refused, match="is not a layer id"):
            client.diff(layer)
        with pytest.raises(Refused, match="is not a layer id"):
            client.call("Create", ID=child, Parent=layer)
    for layer in ("../x", "..%2Fx", "a%0Ab", "a%40b", ""):
        with pytest.raises(Refused, match="is not a layer id"):
            client.apply_diff(layer, make_tar({"f": "x"}))
    assert cluster.images("docker_image_") == []
    assert sorted(os.listdir(plugin.home)) == ["l", "mnt"]
    assert os.listdir(os.path.join(plugin.home, "mnt")) == os.listdir(os.path.join(plugin.home, "l")) == []


def test_the_base_image_is_no_layer(client: Client, cluster: Cluster) -> None:
    for method in ("Get", "Remove", "Create", "Put"):
        with pytest.raises(Refused, match="is not a layer id"):
            client.call(method, ID="base_image")
    assert "docker_image_base_image" in cluster.rbd("ls", "rbd").split()


def test_init_twice_keeps_what_is_there(plugin: PluginProcess, new_id: NewId) -> None:
    layer = plugin.client.create(new_id())
    plugin.client.write(layer, "f", "x")
    plugin.init()
    assert plugin.client.read(layer, "f") == b"x"


def test_before_init_every_call_says_so(start_plugin: StartPlugin, new_id: NewId) -> None:
    client = start_plugin(init=False).client
    for method in ("Get", "Put", "Create", "Remove", "Status", "Cleanup"):
        if method != "Cleanup":
            with pytest.raises(Refused, match="Init was never called"):
                client.call(method, ID=new_id())
    assert client.call("Capabilities") == {"Capabilities": {"ReproducesExactDiffs": False}}
