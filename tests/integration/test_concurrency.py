"""Many calls at once, two plugins on one pool, and a crash where a second host could be misled."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from lab import Cluster, StartPlugin, mounts_below, views_below
from plugin_client import PluginProcess, Refused, make_tar, wait_until

NewId = Callable[[], str]


def test_many_containers_at_once(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """Twelve times create, start, exec, stop and rm of one image, all at once."""
    client = plugin.client
    image = client.create(new_id())
    client.apply_diff(image, make_tar({"of the image": "x"}))

    def live(number: int) -> list[str]:
        layer = new_id()
        client.create(layer + "-init", image, writable=True)
        client.write(layer + "-init", "etc/hosts", "")
        client.create(layer, layer + "-init", writable=True)
        root = client.get(layer)
        with open(os.path.join(root, "mine"), "w", encoding="ascii") as target:
            target.write(str(number))
        assert client.get(layer) == root
        client.put(layer)
        names = sorted(os.listdir(root))
        client.put(layer)
        assert client.read(layer, "mine") == str(number).encode()
        client.remove(layer)
        client.remove(layer + "-init")
        return names

    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(live, range(12))) == [["etc", "mine", "of the image"]] * 12
    assert views_below(plugin.home) == []
    cluster.wait_unmapped()
    assert mounts_below(plugin.home) == []
    cluster.wait_images([f"docker_image_{image}"])


def test_one_layer_for_many(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """Twenty users of one layer, each gets, reads and puts: one mount, and none at the end."""
    client = plugin.client
    layer = client.create(new_id())
    client.apply_diff(layer, make_tar({"f": "x"}))
    with ThreadPoolExecutor(20) as threads:
        assert list(threads.map(lambda _: client.read(layer, "f"), range(40))) == [b"x"] * 40
    assert views_below(plugin.home) == []
    cluster.wait_unmapped()
    assert mounts_below(plugin.home) == []


def test_the_first_children_of_a_layer_at_once(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """The first of them finishes the parent, which was only written to; none takes a snapshot."""
    client = plugin.client
    parent = client.create(new_id())
    client.write(parent, "big", os.urandom(8 << 20))
    with ThreadPoolExecutor(8) as threads:
        children = list(threads.map(lambda _: client.create(new_id(), parent), range(8)))
        assert all(threads.map(lambda child: client.listing(child) == ["big"], children))
    assert cluster.snapshots("docker_image_") == []


def test_create_of_one_id_by_two(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """One wins, the other is told; the layer is whole."""
    client = plugin.client
    parent = client.create(new_id())
    client.write(parent, "f", "x")
    layer = new_id()

    def create(_: int) -> bool:
        try:
            client.create(layer, parent)
        except Refused as error:
            assert "exists already" in error.text
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(create, range(4))) == [False, False, False, True]
    assert client.read(layer, "f") == b"x"


def test_removing_all_at_once(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """docker system prune: mounted or not, in no order."""
    client = plugin.client
    layers = [client.create(new_id())]
    client.write(layers[0], "big", os.urandom(6 << 20))
    layers += [client.create(new_id(), layers[0]) for _ in range(4)]
    layers += [client.create(new_id(), layers[1]) for _ in range(3)]
    client.get(layers[-1])
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(client.remove, layers))
    client.call("Cleanup")
    assert cluster.images("docker_image_") == []
    wait_until(lambda: cluster.trash("docker_image_") == [], "the trash is empty")


def test_two_hosts_make_the_base_image_at_once(start_plugin: StartPlugin, cluster: Cluster, new_id: NewId) -> None:
    plugins = [start_plugin(init=False, imageprefix="race") for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda plugin: plugin.init(), plugins))
    assert [name for name in cluster.rbd("ls", "rbd").split() if name.startswith("race")] == ["race_base_image"]
    wait_until(lambda: cluster.trash("race") == [], "the trash is empty")
    for plugin in plugins:
        layer = plugin.client.create(new_id())
        assert plugin.client.listing(layer) == []


def test_two_hosts_do_not_mount_one_layer(start_plugin: StartPlugin, cluster: Cluster, new_id: NewId) -> None:
    """A layer that one has mounted writable is refused to the other, in one line that says so."""
    first, second = start_plugin(imageprefix="two"), start_plugin(imageprefix="two")
    layer = first.client.create(new_id())
    root = first.client.get(layer)
    with open(os.path.join(root, "f"), "w", encoding="ascii") as target:
        target.write("x")
        target.flush()
        os.fsync(target.fileno())
    owner = (
        f"its owner is [^ ]+ {first.home}; it is open at [^ ]+, locked by client[^ ]+ at [^ ]+, last written at .*20"
    )
    with pytest.raises(Refused, match=f"{layer} is in use elsewhere: {owner}"):
        second.client.get(layer)
    # Mapped still, for nobody: it is the first one's nevertheless, and nothing happens to it. In seconds it is
    # unmapped, but not by a driver that stands still.
    first.client.put(layer)
    with first.stopped(), pytest.raises(Refused, match=f"{layer} is in use elsewhere: {owner}"):
        second.client.get(layer)
    assert first.client.read(layer, "f") == b"x"
    assert "anew" not in first.log_text()
    # Neither put nor removed, and its driver's home is gone.
    first.client.get(layer)
    first.kill()
    for point in reversed(mounts_below(first.home)):
        subprocess.run(["umount", point], check=True)
    shutil.rmtree(first.home)
    assert second.client.read(layer, "f") == b"x"
    second.client.created.append(layer)
    first.client.created.remove(layer)


@pytest.mark.parametrize("program", ["mkfs.xfs", "umount"])
def test_kill_9_in_the_middle_of_the_base_image(
    start_plugin: StartPlugin, cluster: Cluster, session_directory: str, new_id: NewId, program: str
) -> None:
    """Mapped, or mounted: the next start takes it away and makes a whole one."""
    prefix = f"crash_{program[:2]}"
    plugin = start_plugin(init=False, imageprefix=prefix)
    assert plugin.terminate() == 0
    with HangingProgram(session_directory, program) as fake:
        plugin.start(PATH=f"{fake.directory}:{plugin.environment['PATH']}")
        with ThreadPoolExecutor(1) as threads:
            init = threads.submit(plugin.init)
            wait_until(fake.was_called, f"{program} is called")
            plugin.kill()
            assert init.exception() is not None
    assert cluster.images(prefix) != [], "half a base image"
    assert cluster.mapped() != []

    other = start_plugin(imageprefix=prefix)
    assert other.client.listing(other.client.create(new_id())) == []
    plugin.start()
    plugin.init()
    assert plugin.client.listing(plugin.client.create(new_id())) == []
    cluster.wait_unmapped()
    assert mounts_below(plugin.home) == []
    assert sorted(os.listdir(plugin.home)) == ["l", "mnt"]


class HangingProgram:
    """A program that is found first on PATH, tells that it was called, and hangs until the `with` block ends."""

    def __init__(self, directory: str, name: str) -> None:
        self.directory = os.path.join(directory, f"hanging-{name}")
        self._path = os.path.join(self.directory, name)
        self._called = os.path.join(self.directory, "called")

    def __enter__(self) -> HangingProgram:
        os.makedirs(self.directory)
        with open(self._path, "w", encoding="ascii") as target:
            target.write(
                f'#!/bin/sh\necho $$ >"{self._called}.new"\nmv "{self._called}.new" "{self._called}"\nexec sleep 600\n'
            )
        os.chmod(self._path, stat.S_IRWXU)
        return self

    def __exit__(self, *_: object) -> None:
        if self.was_called():
            with open(self._called, encoding="ascii") as source:
                subprocess.run(["kill", source.read().strip()], check=False)

    def was_called(self) -> bool:
        """Whether it hangs now."""
        return os.path.exists(self._called)
