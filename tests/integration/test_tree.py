"""What tree shows of a real pool is what is in it, while layers come and go, and one line where there is no cluster."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest
from docker_tree import DockerTree
from lab import Cluster, StartPlugin
from plugin_client import PluginProcess, make_tar, wait_until

from images.base_image import FORMAT

NewId = Callable[[], str]
# Another machine-id: another name alone is a host that was renamed.
MACHINE = ("unshare", "--mount", "sh", "-euc", 'mount --bind "$1" /etc/machine-id; shift; exec "$@"', "-")
MIB = 1 << 20


class Docker:
    """Docker's data root around a plugin's home, and tree."""

    def __init__(self, plugin: PluginProcess) -> None:
        self.plugin = plugin
        self.tree = DockerTree(os.path.dirname(plugin.home), os.path.basename(plugin.home))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `docker_graph_driver.py tree WORDS` for this plugin, on its host."""
        return subprocess.run(
            self.plugin.command("tree", *words, *self.plugin.site()),
            env={**self.plugin.environment, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def json(self) -> dict[str, Any]:
        """What it tells to programs."""
        done = self.run("--json")
        assert (done.returncode, done.stderr) == (0, "")
        said = json.loads(done.stdout)
        assert isinstance(said, dict)
        return said

    def layers(self) -> dict[str, dict[str, Any]]:
        """The layers in that, by their ids."""
        return {item["id"]: item for item in self.json()["layers"]}


@pytest.fixture
def docker(plugin: PluginProcess, cluster: Cluster) -> Docker:
    """A Docker that knows nothing yet."""
    wait_until(lambda: cluster.trash() == [], "earlier tests' trash is emptied")
    return Docker(plugin)


def held(cluster: Cluster, image: str) -> int:
    """The bytes that an image holds."""
    found = json.loads(cluster.rbd("du", f"rbd/{image}", "--format", "json"))["images"]
    return sum(int(item["used_size"]) for item in found)


def test_images_layers_and_containers(docker: Docker, cluster: Cluster, new_id: NewId) -> None:
    began = time.time()
    client = docker.plugin.client
    low, high, container = client.create(new_id()), new_id(), new_id()
    client.apply_diff(low, make_tar({"big": b"x" * (7 * MIB)}))
    client.create(high, low)
    client.apply_diff(high, make_tar({"small": "x"}), low)
    client.create(f"{container}-init", low, writable=True)
    client.create(container, f"{container}-init", writable=True)
    docker.tree.layer(high, docker.tree.layer(low))
    docker.tree.image("shop", low, high)
    name = new_id()
    docker.tree.container(name, container)
    wait_until(lambda: cluster.mapped() == [], "nothing is mapped")

    said = docker.json()
    layers = {item["id"]: item for item in said["layers"]}
    assert {layer: item["kind"] for layer, item in layers.items()} == {
        low: "image",
        high: "image",
        container: "container",
        f"{container}-init": "init",
    }
    for item in layers.values():
        assert item["stored"] == held(cluster, item["image"])
        assert began - 60 < item["created"] < time.time() + 60
        assert (item["home"], item["open_at"], item["shared"]) == (docker.plugin.home, [], False)
    assert layers[low]["stored"] > 7 * MIB
    assert layers[container]["container"] == {"name": name[:12], "state": "unknown"}
    assert said["base"] == held(cluster, "docker_image_base_image")
    assert said["stored"] == said["base"] + sum(item["stored"] for item in layers.values())
    assert [(image["names"], image["layers"]) for image in said["images"]] == [
        (["shop:latest"], [high, low]),
    ]
    assert [item["answers"] for item in said["hosts"] if item["home"] == docker.plugin.home] == [True]
    text = docker.run().stdout
    assert "shop:latest" in text
    assert f"layer {low[:12]}" in text


def test_what_is_mapped_here(docker: Docker, cluster: Cluster, new_id: NewId) -> None:
    client = docker.plugin.client
    low, high = client.create(new_id()), new_id()
    client.create(high, low, writable=True)
    client.get(high)
    wait_until(lambda: len(cluster.mapped()) == 2, "both are mapped")
    opened = {layer: item["open_at"] for layer, item in docker.layers().items()}
    assert opened == {low: [socket.gethostname()], high: [socket.gethostname()]}
    client.put(high)


def test_layers_of_another_host(
    docker: Docker, start_plugin: StartPlugin, new_id: NewId, tmp_path: os.PathLike[str]
) -> None:
    machine = os.path.join(tmp_path, "machine-id")
    with open(machine, "w", encoding="ascii") as target:
        target.write(uuid.uuid4().hex)
    other = start_plugin(init=False, host="tree-other")
    other.terminate()
    other.before = [*MACHINE, machine]
    other.start()
    other.init()
    theirs = other.client.create(new_id())
    ours = docker.plugin.client.create(new_id())
    layers = docker.layers()
    assert (layers[theirs]["host"], layers[ours]["host"]) == ("tree-other", socket.gethostname())
    assert "image of tree-other" in docker.run().stdout


def test_while_layers_come_and_go(docker: Docker, new_id: NewId) -> None:
    """Whatever has gone is left out, and nothing fails."""
    client = docker.plugin.client
    stays = client.create(new_id())
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            layers = [client.create(new_id()) for _ in range(4)]
            for layer in layers:
                client.remove(layer)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(10):
            assert docker.layers()[stays]["kind"] == "image"
    finally:
        ended.set()
        thread.join()


def test_a_picture(docker: Docker, new_id: NewId, tmp_path: os.PathLike[str]) -> None:
    client = docker.plugin.client
    layer = client.create(new_id())
    # What stores nothing has no area.
    client.apply_diff(layer, make_tar({"big": b"x" * (7 * MIB)}))
    path = os.path.join(tmp_path, "pool.svg")
    done = docker.run("--svg", path)
    assert (done.returncode, done.stderr) == (0, "")
    titles = [item.text or "" for item in ET.parse(path).iter("{http://www.w3.org/2000/svg}title")]
    assert [title for title in titles if title.startswith(f"layer {layer[:12]}\n")] != []
    assert os.listdir(tmp_path) == ["pool.svg"]


def test_a_cluster_that_cannot_be_reached_is_one_line(docker: Docker, tmp_path: os.PathLike[str]) -> None:
    conf, state = os.path.join(tmp_path, "ceph.conf"), os.path.join(tmp_path, "state")
    with open(conf, "w", encoding="ascii") as target:
        target.write("[global]\nmon_host = 127.0.0.1:1\nauth_client_required = none\n")
    with open(state, "w", encoding="ascii") as target:
        opts = [f"ceph.configfile={conf}", "ceph.timeout=10"]
        json.dump({"Format": FORMAT, "Home": docker.plugin.home, "Opts": opts}, target)
    began = time.monotonic()
    done = docker.run("--state", state, "--svg", os.path.join(tmp_path, "pool.svg"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tree: ")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < 40
    assert not os.path.exists(os.path.join(tmp_path, "pool.svg"))
