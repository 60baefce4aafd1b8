"""What is below a layer: all of it is seen, it is there as long as anybody needs it, and mended once nobody does."""

from __future__ import annotations

import os
import re
import signal
import stat
from collections.abc import Sequence

import pytest
from lab import Cluster, device_server, views_below
from lab_fixtures import NewId
from plugin_client import PluginProcess, Refused, make_tar, tar_names, wait_until

ADDED, DELETED = 1, 2


def chain(plugin: PluginProcess, new_id: NewId, count: int = 3) -> list[str]:
    """Image layers, each on the one before and with a file of its own, `f0` and so on."""
    layers = [""]
    for number in range(count):
        layers.append(plugin.client.create(new_id(), layers[-1]))
        plugin.client.apply_diff(layers[-1], make_tar({f"f{number}": str(number)}), layers[-2])
    return layers[1:]


def new_container(plugin: PluginProcess, layer: str, image: str) -> str:
    """What docker create does; its init layer brings a file."""
    client = plugin.client
    client.create(f"{layer}-init", image, writable=True)
    client.write(f"{layer}-init", "hosts", "")
    return client.create(layer, f"{layer}-init", writable=True)


def happen(what: str, plugin: PluginProcess) -> None:
    """The end of the driver, and another start; or none."""
    if what == "SIGTERM":
        assert plugin.terminate() == 0
    elif what == "SIGKILL":
        plugin.kill()
    if what:
        plugin.start()


def names_of(layers: Sequence[str]) -> list[str]:
    """The images of layers."""
    return sorted(f"docker_image_{layer}" for layer in layers)


# -- as long as anybody needs it ---------------------------------------------------------------------


@pytest.mark.parametrize("between", ["", "SIGTERM", "SIGKILL"])
def test_what_a_living_layer_stands_on_stays(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, between: str
) -> None:
    """Whatever is removed first, and in whichever life of the driver; gone for Docker it is all the same."""
    client = plugin.client
    first, second, third = chain(plugin, new_id)
    container = new_container(plugin, new_id(), third)
    for layer in (second, third, f"{container}-init"):
        client.remove(layer)
    happen(between, plugin)
    client.call("Cleanup")
    assert [client.call("Exists", ID=layer)["Exists"] for layer in (first, second, third)] == [True, False, False]
    with pytest.raises(Refused, match=f"{third} does not exist: it was removed"):
        client.create(new_id(), third)
    cluster.wait_images(names_of([first, second, third, container]))
    assert client.listing(container) == ["f0", "f1", "f2", "hosts"]
    client.write(container, "mine", "x")

    client.remove(first)
    happen(between, plugin)
    client.call("Cleanup")
    cluster.wait_images(names_of([first, second, third, container]))
    assert client.listing(container) == ["f0", "f1", "f2", "hosts", "mine"]

    client.remove(container)
    happen(between, plugin)
    cluster.wait_images([])
    wait_until(lambda: os.listdir(os.path.join(plugin.home, "mnt")) == [], "their directories are gone")


def test_removed_under_a_running_container(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """`docker rmi --force`: the container reads and writes on, and starts again."""
    client = plugin.client
    layers = chain(plugin, new_id)
    container = new_container(plugin, new_id(), layers[-1])
    root = client.get(container)
    for layer in layers:
        client.remove(layer)
    client.call("Cleanup")
    with open(os.path.join(root, "f0"), encoding="ascii") as source:
        assert source.read() == "0"
    client.put(container)
    cluster.wait_unmapped()
    assert client.read(container, "f1") == b"1"
    cluster.wait_images(names_of([*layers, container, f"{container}-init"]))


@pytest.mark.parametrize("between", ["", "SIGKILL"])
def test_layers_of_a_builder_are_removed_from_below(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, between: str
) -> None:
    """BuildKit makes a layer by Create, Get and Put, then others on it; its collector knows no order."""
    client = plugin.client
    layers = [""]
    for number in range(3):
        layers.append(client.create(new_id(), layers[-1]))
        client.write(layers[-1], f"f{number}", str(number))
    first, second, third = layers[1:]
    client.remove(first)
    happen(between, plugin)
    client.call("Cleanup")
    assert client.listing(third) == ["f0", "f1", "f2"]
    fourth = client.create(new_id(), third)
    client.write(fourth, "f3", "3")
    for layer in (second, third):
        client.remove(layer)
        happen(between, plugin)
        client.call("Cleanup")
        assert client.listing(fourth) == ["f0", "f1", "f2", "f3"]
    cluster.wait_images(names_of([*layers[1:], fourth]))
    client.remove(fourth)
    cluster.wait_images([])


def test_an_operator_s_snapshot_of_a_layer_does_no_harm(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """A backup; what stands on the layer is made and read as ever, and with the layer the snapshot goes."""
    client = plugin.client
    first, second = chain(plugin, new_id, 2)
    client.call("Cleanup")
    cluster.wait_unmapped()
    for layer in (first, second):
        cluster.rbd("snap", "create", "--no-progress", f"rbd/docker_image_{layer}@backup")
    container = new_container(plugin, new_id(), second)
    assert client.listing(container) == ["f0", "f1", "hosts"]
    client.call("Cleanup")
    cluster.wait_unmapped()
    cluster.rbd("snap", "create", "--no-progress", f"rbd/docker_image_{container}-init@backup")
    for layer in (container, f"{container}-init", second, first):
        client.remove(layer)
    cluster.wait_images([])
    wait_until(lambda: cluster.trash("docker_image_") == [], "the trash is empty")


# -- all of it is seen -------------------------------------------------------------------------------


def test_a_container_shows_what_all_below_it_brought(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """And says only what it changed itself. One device of its own holds what its init layer brought, too."""
    client = plugin.client
    image = client.create(new_id())
    client.apply_diff(image, make_tar({"etc": None, "etc/kept": "1", "etc/gone": "1", "etc/changed": "1"}))
    upper = client.create(new_id(), image)
    client.apply_diff(upper, make_tar({"etc": None, "etc/.wh.gone": "", "etc/changed": "2", "more": "2"}), image)
    container = new_id()
    client.create(f"{container}-init", upper, writable=True)
    client.write(f"{container}-init", "etc/hosts", "init")
    client.create(container, f"{container}-init", writable=True)
    root = client.get(container)
    assert sorted(os.listdir(root)) == ["etc", "more"]
    assert sorted(os.listdir(os.path.join(root, "etc"))) == ["changed", "hosts", "kept"]
    for name, content in {"etc/changed": "2", "etc/hosts": "init", "etc/kept": "1"}.items():
        with open(os.path.join(root, name), encoding="ascii") as source:
            assert source.read() == content
    assert client.changes(container, f"{container}-init") == {}
    with open(os.path.join(root, "mine"), "w", encoding="ascii") as target:
        target.write("3")
    os.unlink(os.path.join(root, "more"))
    assert client.changes(container, f"{container}-init") == {"/mine": ADDED, "/more": DELETED}
    assert tar_names(client.diff(container, f"{container}-init")) == [".wh.more", "mine"]
    # Docker asks for it, too, where it has no init layer in its hands (docker commit of before, moby's graphtest).
    assert client.changes(container, upper) == {"/etc": 0, "/etc/hosts": ADDED, "/mine": ADDED, "/more": DELETED}

    files = os.path.join(os.path.dirname(root), "layer")
    assert sorted(os.listdir(files)) == ["init", "layer.json", "none", "rootfs", "work"]
    assert os.listdir(os.path.join(files, "init")) == ["etc"]
    assert os.listdir(os.path.join(files, "init", "etc")) == ["hosts"]
    assert sorted(os.listdir(os.path.join(files, "rootfs"))) == ["mine", "more"]
    wait_until(lambda: cluster.mapped() == names_of([image, upper, container]), "its init layer is mapped no more")
    said = client.metadata(container)
    assert (said["Parent"], said["Depth"]) == (f"docker_image_{upper}", "2")
    client.put(container)
    # A builder's step on what was a container.
    child = client.create(new_id(), container)
    assert client.listing(child) == ["etc", "mine"]
    assert client.read(child, "etc/hosts") == b"init"
    client.write(child, "etc/hosts", "child")
    assert client.changes(child, container) == {"/etc": 0, "/etc/hosts": 0}


def test_containers_of_one_init_layer_s_image_know_nothing_of_each_other(plugin: PluginProcess, new_id: NewId) -> None:
    """Both mounted at once, with all that is below them shared."""
    client = plugin.client
    image = chain(plugin, new_id, 2)[-1]
    one, other = (new_container(plugin, new_id(), image) for _ in range(2))
    roots = [client.get(layer) for layer in (one, other)]
    for number, root in enumerate(roots):
        with open(os.path.join(root, "f0"), "w", encoding="ascii") as target:
            target.write(f"of {number}")
    assert [client.read(layer, "f0") for layer in (one, other)] == [b"of 0", b"of 1"]
    assert client.read(image, "f0") == b"0"
    for layer in (one, other):
        client.put(layer)


def root_as_seen(root: str) -> tuple[object, ...]:
    """What a root directory shows of itself."""
    found = os.stat(root)
    attributes = {name: os.getxattr(root, name) for name in os.listxattr(root)}
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns, attributes


@pytest.mark.parametrize("is_used", [False, True])
def test_a_root_directory_is_inherited(plugin: PluginProcess, new_id: NewId, is_used: bool) -> None:
    """In an overlay the topmost counts: each layer's has what the one below has, until it is changed there."""
    client = plugin.client
    image = client.create(new_id())
    root = client.get(image)
    os.chown(root, 12, 34)
    os.chmod(root, 0o1751)
    os.setxattr(root, "user.of-the-image", b"x")
    os.setxattr(root, "trusted.of-the-image", b"y")
    os.utime(root, ns=(1_500_000_000_123456789, 1_600_000_000_987654321))
    expected = root_as_seen(root)
    client.put(image)
    middle = client.create(new_id(), image)
    container = new_id()
    client.create(f"{container}-init", middle, writable=True)
    if is_used:
        client.listing(f"{container}-init")
    client.create(container, f"{container}-init", writable=True)
    upper = client.create(new_id(), container)
    for layer, below in ((middle, image), (container, f"{container}-init"), (upper, container)):
        assert root_as_seen(client.get(layer)) == expected
        assert client.changes(layer, below) == {}
        client.put(layer)
    os.chmod(client.get(upper), 0o700)
    client.put(upper)
    assert stat.S_IMODE(os.stat(client.get(upper)).st_mode) == 0o700
    client.put(upper)
    assert root_as_seen(client.get(container)) == expected
    client.put(container)


# -- the device of what is shared dies ---------------------------------------------------------------


def test_the_device_of_a_shared_parent_dies(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """The next Get names it and who uses it; once they have put it, it is mapped anew. Others are not disturbed."""
    client = plugin.client
    image, other = chain(plugin, new_id, 1)[0], chain(plugin, new_id, 1)[0]
    running, starting = (new_container(plugin, new_id(), image) for _ in range(2))
    beside = new_container(plugin, new_id(), other)
    client.get(running)
    device = cluster.run(["findmnt", "--noheadings", "--output", "SOURCE", f"{plugin.home}/mnt/{image}/layer"]).strip()
    os.kill(device_server(plugin.environment, f"docker_image_{image}"), signal.SIGKILL)
    with pytest.raises(Refused) as caught:
        client.get(starting)
    said = rf"layer {image}: its device {device} is gone \(.*\); stop what uses it \({running}.*\)"
    assert re.search(said, caught.value.text), caught.value.text
    assert "\n" not in caught.value.text
    assert f"{starting}/" not in caught.value.text
    assert [point for point in views_below(plugin.home) if starting in point] == []
    assert client.read(beside, "f0") == b"0"
    client.put(running)
    for layer in (starting, running):
        assert client.read(layer, "f0") == b"0"
    assert client.listing(starting) == ["f0", "hosts"]


def test_a_container_on_a_dead_device_is_removed(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    client = plugin.client
    image = chain(plugin, new_id, 1)[0]
    running, starting = (new_container(plugin, new_id(), image) for _ in range(2))
    client.get(running)
    os.kill(device_server(plugin.environment, f"docker_image_{image}"), signal.SIGKILL)
    with pytest.raises(Refused, match=f"layer {image}: its device .* is gone"):
        client.get(starting)
    client.remove(running)
    assert client.read(starting, "f0") == b"0"
    client.remove(f"{running}-init")
    wait_until(lambda: cluster.images("docker_image_") == names_of([image, starting, f"{starting}-init"]), "gone", 25)
