"""What belongs to nobody is found, and only what is proven dead is removed, while the driver serves."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from docker_tree import DockerTree
from lab import Cluster, StartPlugin, mounts_below, views_below
from plugin_client import PYTHON, REPO, PluginProcess, make_tar, wait_until

NewId = Callable[[], str]
BEFORE = 3 * 3600


class Said(NamedTuple):
    """What a command ended with, and printed."""

    status: int
    text: str
    errors: str

    def found(self) -> set[tuple[str, str]]:
        """Kind and id of each line."""
        words = [line.split(": ")[1 if line.startswith(("rem", "would")) else 0].split() for line in self.lines()]
        return {(word[0], word[1]) for word in words}

    def lines(self) -> list[str]:
        """The lines of the text."""
        return self.text.splitlines()

    def json(self) -> dict[str, Any]:
        """The object that --json prints."""
        said = json.loads(self.text)
        assert isinstance(said, dict)
        return said


class Docker:
    """Docker's data root around a plugin's home, as dockerd writes it, and the operator's commands."""

    def __init__(self, plugin: PluginProcess) -> None:
        self.plugin = plugin
        self.tree = DockerTree(os.path.dirname(plugin.home), os.path.basename(plugin.home))

    def run(self, *words: str, **environment: str) -> Said:
        """Run `docker_graph_driver.py WORDS` for this plugin."""
        done = subprocess.run(
            [PYTHON, os.path.join(REPO, "docker_graph_driver.py"), *words, "--socket", self.plugin.socket],
            env={**self.plugin.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def meanwhile(self, call: str, script: str) -> str:
        """Return a PATH with an rbd which, called with words that match a pattern, first runs a line of shell, once."""
        directory = os.path.join(os.path.dirname(self.plugin.home), "fake")
        os.makedirs(directory)
        with open(os.path.join(directory, "rbd"), "w", encoding="utf-8") as target:
            target.write(
                "#!/bin/sh\n"
                "PATH=${PATH#*:}\n"
                f"meanwhile() {{ {script}; }}\n"
                f'case "$*" in\n{call.replace(" ", "*")}*) ! mkdir {directory}/once 2>/dev/null || meanwhile ;;\nesac\n'
                'exec rbd "$@"\n'
            )
        os.chmod(os.path.join(directory, "rbd"), 0o755)
        return f"{directory}:{self.plugin.environment['PATH']}"

    def check(self, *words: str) -> Said:
        """What is found when nothing is too young."""
        return self.run("check", "--min-age", "0", *words)

    def gc(self, *words: str) -> Said:
        """Removed when nothing is too young."""
        return self.run("gc", "--min-age", "0", *words)


@pytest.fixture
def docker(plugin: PluginProcess, cluster: Cluster) -> Docker:
    """A Docker that knows nothing yet."""
    wait_until(lambda: cluster.trash() == [], "earlier tests' trash is emptied")
    return Docker(plugin)


@contextlib.contextmanager
def moved(path: str) -> Iterator[None]:
    """Something is away for a while."""
    os.rename(path, f"{path}.away")
    yield
    os.rename(f"{path}.away", path)


def unmapped(cluster: Cluster) -> None:
    """Wait for what is unmapped behind the caller's back."""
    wait_until(lambda: cluster.mapped() == [], "nothing is mapped")


def test_nothing_is_found_where_docker_knows_all(docker: Docker, cluster: Cluster, new_id: NewId) -> None:
    client = docker.plugin.client
    image, container, cached = client.create(new_id()), new_id(), "zmw1v9qrl54fjcblllwc7fp9f"
    client.apply_diff(image, make_tar({"f": "x"}))
    client.create(container + "-init", image, writable=True)
    client.create(container, container + "-init", writable=True)
    client.create(cached, image)
    parent = docker.tree.layer(image)
    docker.tree.image("small", image)
    docker.tree.container(name := new_id(), container, parent)
    docker.tree.caches([cached])
    client.get(container)
    unmapped_but = sorted((f"docker_image_{container}", f"docker_image_{image}"))
    wait_until(lambda: cluster.mapped() == unmapped_but, "only the container and its image are mapped")
    assert docker.check() == Said(0, "", "")
    assert docker.gc("--yes") == Said(0, "", "")
    # Removed on purpose by an operator: Docker will fail on it.
    client.put(container)
    unmapped(cluster)
    cluster.rbd("rm", f"docker_image_{container}", "--no-progress")
    client.created.remove(container)
    said = docker.check()
    assert said.status == 1
    (line,) = said.lines()
    assert line.startswith(f"missing-image {container} age - size -: Docker names it (of container {name[:12]})")


def test_orphans_go_and_nothing_else(
    docker: Docker, cluster: Cluster, start_plugin: StartPlugin, new_id: NewId
) -> None:
    """A chain that nobody names, one whose leaf is named, one of another home; one in use; a young one."""
    client = docker.plugin.client
    dead = client.create(new_id())
    client.apply_diff(dead, make_tar({"big": b"x" * (7 << 20)}))
    dead_child, named_child = client.create(new_id(), dead), client.create(new_id())
    client.apply_diff(named_child, make_tar({"big": b"x" * (7 << 20)}))
    docker.tree.layer(leaf := client.create(new_id(), named_child))
    mounted = client.create(new_id())
    client.get(mounted)
    other = start_plugin()
    foreign = other.client.create(new_id())
    wait_until(lambda: len(cluster.mapped()) == 1, "the rest is unmapped")

    assert docker.run("check") == Said(0, "", ""), "nothing is an hour old"
    assert docker.run("gc", "--yes") == Said(0, "", "")
    found = {item["id"]: item for item in docker.check("--json").json()["findings"]}
    assert {layer for layer, item in found.items() if item["dead"]} == {dead, dead_child}
    assert set(found) == {dead, dead_child, named_child, mounted}
    assert "a layer that is not dead stands on it" in found[named_child]["why"]
    assert found[dead]["size"] > 7 << 20
    assert 0 <= found[dead]["age"] < 120

    before = cluster.images()
    said = docker.gc()
    assert said.status == 1
    assert said.found() == {("orphan-image", dead), ("orphan-image", dead_child)}
    assert all(line.startswith("would remove: ") for line in said.lines())
    assert cluster.images() == before
    assert docker.gc("--yes").status == 0
    left = {f"docker_image_{layer}" for layer in (leaf, named_child, mounted, foreign)}
    assert set(cluster.images("docker_image_")) == left
    assert cluster.trash() == []
    for layer in (dead, dead_child):
        client.created.remove(layer)
    assert client.read(leaf, "big") == b"x" * (7 << 20)
    assert other.client.listing(foreign) == []


def test_what_has_no_owner_is_found(docker: Docker, cluster: Cluster, new_id: NewId) -> None:
    """As a Create leaves it that was killed between the clone and its record; but nothing of other programs."""
    layer, stranger = docker.plugin.client.create(new_id()), f"docker_image_{new_id()}"
    cluster.rbd("image-meta", "remove", f"rbd/docker_image_{layer}", "docker_graph_driver.layer")
    cluster.rbd("create", "--size", "1M", f"rbd/{stranger}")
    said = docker.gc("--yes")
    assert said.status == 0
    assert len(said.lines()) == 1
    assert f"{layer} age" in said.lines()[0]
    assert "it has no owner: its Create was killed" in said.lines()[0]
    docker.plugin.client.created.remove(layer)
    assert cluster.images("docker_image_") == [stranger]
    cluster.rbd("rm", f"rbd/{stranger}", "--no-progress")


def test_layers_of_the_first_format_are_left_alone(docker: Docker, cluster: Cluster, new_id: NewId) -> None:
    """Of this host or another one, in a pool that a driver of version 1 fills: what it says of them is not our word."""
    image = f"docker_image_{new_id()}"
    cluster.rbd("create", "--size", "1M", f"rbd/{image}")
    for key, value in {"format": "1", "fs": "xfs", "owner": f"another {docker.plugin.home}"}.items():
        cluster.rbd("image-meta", "set", f"rbd/{image}", f"docker_graph_driver.{key}", value)
    assert docker.check("--all") == Said(0, "", "")
    assert docker.gc("--yes") == Said(0, "", "")
    assert cluster.images("docker_image_") == [image]
    cluster.rbd("rm", f"rbd/{image}", "--no-progress")


def test_a_dead_layer_stays_as_long_as_a_living_one_stands_on_it(
    docker: Docker, cluster: Cluster, new_id: NewId
) -> None:
    """A container's layer has all that is below its image written beside it; with the container, all of it goes."""
    client = docker.plugin.client
    lowest = client.create(new_id())
    client.apply_diff(lowest, make_tar({"f": "x"}))
    image, container = client.create(new_id(), lowest), new_id()
    client.create(f"{container}-init", image, writable=True)
    client.create(container, f"{container}-init", writable=True)
    written = docker.tree.layer_directory(docker.tree.layer(container))
    unmapped(cluster)
    found = {item["id"]: item for item in docker.check("--json").json()["findings"]}
    assert {layer for layer, item in found.items() if item["dead"]} == {f"{container}-init"}
    for layer in (lowest, image):
        assert found[layer]["why"] == "a layer that is not dead stands on it"
    assert docker.gc("--yes").status == 0
    assert set(cluster.images("docker_image_")) == {f"docker_image_{layer}" for layer in (lowest, image, container)}
    assert client.read(container, "f") == b"x"

    unmapped(cluster)
    shutil.rmtree(written)
    assert docker.gc("--yes").status == 0
    assert cluster.images("docker_image_") == []
    assert cluster.trash() == []
    client.created.clear()


def test_a_layer_that_docker_writes_down_meanwhile_is_kept(docker: Docker, cluster: Cluster, new_id: NewId) -> None:
    """Between the look and the removal: the second look is just before it."""
    layer = docker.plugin.client.create(new_id())
    unmapped(cluster)
    # The look ends with a list of the trash: then Docker writes the layer down.
    written = docker.tree.layer_directory(docker.tree.layer(layer))
    os.rename(written, f"{docker.tree.root}/unwritten")
    meanwhile = docker.meanwhile("trash ls", f"mv {docker.tree.root}/unwritten {written}")
    said = docker.run("gc", "--min-age", "0", "--yes", PATH=meanwhile)
    assert said.status == 1
    assert f"kept: orphan-image {layer}: somebody has come to know or use it since" in said.lines()
    assert docker.plugin.client.listing(layer) == []


def test_layers_made_while_gc_runs_are_never_taken(docker: Docker, cluster: Cluster, new_id: NewId) -> None:
    """A pull beside gc, at its usual age limit: every layer is unnamed for a while, and then named."""
    client = docker.plugin.client
    gc = subprocess.Popen(
        [
            "sh",
            "-c",
            f'while {PYTHON} {REPO}/docker_graph_driver.py gc --yes --socket "$1"; do echo; done',
            "-",
            docker.plugin.socket,
        ],
        env=docker.plugin.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    parent = ""
    try:
        for number in range(8):
            layer = client.create(new_id(), parent)
            client.apply_diff(layer, make_tar({f"f{number}": "x"}), parent)
            time.sleep(0.2)
            docker.tree.layer(layer)
            parent = layer
    finally:
        os.killpg(gc.pid, 15)
    said, _ = gc.communicate(timeout=120)
    assert len(said) >= 2, "gc ran through at least twice"
    assert said.replace("gc: interrupted", "").strip() == "", "and took nothing"
    assert client.listing(parent) == [f"f{number}" for number in range(8)]


def test_stale_things_of_the_host(docker: Docker, cluster: Cluster, new_id: NewId) -> None:
    """A mapping without a directory, a directory without a mapping."""
    client, home = docker.plugin.client, docker.plugin.home
    mapped, empty = client.create(new_id()), new_id()
    docker.tree.layer(mapped)
    unmapped(cluster)
    device = cluster.rbd("device", "map", "--options", "noudev", f"rbd/docker_image_{mapped}").strip()
    directory = os.path.join(home, "mnt", empty)
    os.makedirs(os.path.join(directory, "docker"))
    os.utime(directory, (time.time() - BEFORE,) * 2)
    said = docker.run("check")
    assert said.status == 1
    assert said.found() == {("stale-mapping", mapped), ("stale-directory", empty)}
    assert f"mapped as {device} without a directory" in said.text

    point = os.path.join(os.path.dirname(home), "somebody")
    os.makedirs(point)
    cluster.run(["mount", "-o", "nouuid", device, point])
    assert docker.run("gc").found() == {("stale-directory", empty)}, "a mounted device is in use"
    cluster.run(["umount", point])
    assert docker.run("gc", "--yes").status == 0
    assert cluster.mapped() == []
    assert os.listdir(os.path.join(home, "mnt")) == []
    assert docker.run("check") == Said(0, "", "")
    assert client.listing(mapped) == []


@pytest.mark.parametrize("calls", [("Put",), ("Put", "Remove")])
def test_a_container_that_ends_while_check_looks(
    docker: Docker, cluster: Cluster, new_id: NewId, calls: tuple[str, ...]
) -> None:
    """It has run for hours, and what was seen of it is not so any more: that belongs to nobody for moments only."""
    layer = docker.plugin.client.create(new_id())
    docker.tree.layer(layer)
    docker.plugin.client.get(layer)
    unmapped_but = [f"docker_image_{layer}"]
    wait_until(lambda: cluster.mapped() == unmapped_but, "only the container is mapped")
    os.utime(os.path.join(docker.plugin.home, "mnt", layer), (time.time() - BEFORE,) * 2)
    post = f"curl --silent --fail --unix-socket {docker.plugin.socket} http://plugin/GraphDriver."
    script = "; ".join(f"""{post}{call} --data '{{"ID": "{layer}"}}' >&2""" for call in calls)
    # Where most images are another prefix's, as after other tests, they are asked for one by one.
    said = docker.run("check", PATH=docker.meanwhile(f"ls --long*|info {layer}", script))
    assert said == Said(0, "", "")
    assert views_below(docker.plugin.home) == []


def test_a_layer_that_docker_forgets_while_check_looks(docker: Docker, cluster: Cluster, new_id: NewId) -> None:
    """Docker forgets a layer after the driver has removed it."""
    layer = new_id()
    path = docker.tree.layer_directory(docker.tree.layer(layer))
    assert docker.run("check", PATH=docker.meanwhile(f"info {layer}", f"rm -r {path}")) == Said(0, "", "")
    assert not os.path.exists(path)


def test_a_directory_that_the_driver_takes_into_use_while_gc_looks(docker: Docker, new_id: NewId) -> None:
    layer = new_id()
    directory = os.path.join(docker.plugin.home, "mnt", layer)
    os.makedirs(directory)
    os.utime(directory, (time.time() - BEFORE,) * 2)
    meanwhile = docker.meanwhile("trash ls", f"mkdir {directory}/docker")
    said = docker.run("gc", "--yes", PATH=meanwhile)
    assert said.status == 1
    assert f"kept: stale-directory {layer}: somebody has come to know or use it since" in said.lines()
    assert os.path.isdir(f"{directory}/docker")
    os.rmdir(f"{directory}/docker")
    os.rmdir(directory)


def test_images_that_come_and_go_while_check_looks(docker: Docker, cluster: Cluster, new_id: NewId) -> None:
    """Other programs' in the same pool, one of which is damaged for good, and this driver's own."""
    client = docker.plugin.client
    layer = client.create(new_id())
    docker.tree.layer(layer)
    # The last that `rbd ls --long` opens, whose status it returns.
    cluster.rbd("create", "--size", "1M", "rbd/zzz_damaged")
    cluster.run(
        ["rados", "--conf", cluster.conf, "--pool", "rbd", "rm", f"rbd_header.{cluster.info('zzz_damaged')['id']}"]
    )
    # It ends by itself: an rbd that is killed leaves an image half made, or with a watcher that keeps it for 30 s.
    script = """
        number=0
        until [ -e "$1" ]; do
            number=$((number + 1))
            for prefix in aaa docker_image zzzz; do rbd create --size 1M rbd/$prefix-$number; done
            for prefix in aaa docker_image zzzz; do rbd rm --no-progress rbd/$prefix-$number; done
        done"""
    enough = os.path.join(docker.plugin.home, "enough")
    coming = subprocess.Popen(
        ["sh", "-ec", script, "-", enough], env={**cluster.environment, "CEPH_CONF": cluster.conf}
    )
    try:
        for number in range(4):
            client.create(made := new_id())
            assert docker.run("check") == Said(0, "", "")
            assert docker.run("gc") == Said(0, "", "")
            client.remove(made)
            assert int(client.status()["Layers"]) >= 1, number
        assert coming.poll() is None
    finally:
        with open(enough, "w", encoding="ascii"):
            status = coming.wait(120)
    assert status == 0
    cluster.rbd("trash", "mv", "rbd/zzz_damaged")
    for line in cluster.rbd("trash", "ls", "rbd").splitlines():
        if line.endswith("zzz_damaged"):
            cluster.run(
                ["rados", "--conf", cluster.conf, "--pool", "rbd", "rmomapkey", "rbd_trash", f"id_{line.split()[0]}"]
            )


def test_half_made_base_image_and_trash(docker: Docker, cluster: Cluster, new_id: NewId) -> None:
    """The base image of a first start that was killed, and what stays in the trash; a snapshot is an operator's."""
    client = docker.plugin.client
    layer = client.create(new_id())
    docker.tree.layer(layer)
    unmapped(cluster)
    cluster.rbd("snap", "create", f"docker_image_{layer}@of-an-operator", "--no-progress")
    cluster.rbd("create", "--size", "1G", "docker_image_base_image.0123456789ab")
    cluster.rbd("create", "--size", "1G", "docker_image_kept")
    cluster.rbd("snap", "create", "docker_image_kept@for-a-clone", "--no-progress")
    format_2 = ("--rbd-default-clone-format", "2")
    cluster.rbd("clone", "docker_image_kept@for-a-clone", "somebodys", *format_2)
    cluster.rbd("snap", "rm", "docker_image_kept@for-a-clone", "--no-progress")
    cluster.rbd("rm", "docker_image_kept", "--rbd-move-parent-to-trash-on-remove=true", "--no-progress")
    cluster.rbd("create", "--size", "1G", "docker_image_operators")
    cluster.rbd("trash", "mv", "docker_image_operators")
    found = {item["id"]: item for item in docker.check("--all", "--json").json()["findings"]}
    half = "base_image.0123456789ab"
    assert set(found) == {half, "kept", "operators"}
    assert {name for name, item in found.items() if item["idle"]} == {"operators"}
    assert not found[half]["dead"], "another home's"
    assert {kind for kind, _ in docker.check().found()} == {"half-made", "trash"}
    said = docker.gc("--yes")
    assert said.status == 1
    assert "kept: trash kept: it has clones, or somebody has it open" in said.text
    assert cluster.trash() == ["docker_image_kept", "docker_image_operators"]
    for image in ("docker_image_base_image.0123456789ab", "somebodys"):
        cluster.rbd("rm", image, "--no-progress")
    for line in cluster.rbd("trash", "ls").splitlines():
        cluster.rbd("trash", "rm", "--force", "--no-progress", line.split()[0])


@pytest.mark.parametrize("part", ["containers", "image/home/layerdb/mounts", "image/home/layerdb/sha256", "buildkit"])
def test_a_docker_of_which_a_part_is_not_there(docker: Docker, cluster: Cluster, new_id: NewId, part: str) -> None:
    """Not mounted yet, or a copy that is under way: a stopped container and what was built must not go."""
    client, cached = docker.plugin.client, "zmw1v9qrl54fjcblllwc7fp9f"
    image = client.create(new_id())
    parent = docker.tree.layer(image)
    docker.tree.image("small", image)
    docker.tree.container(new_id(), container := client.create(new_id(), image, writable=True), parent)
    client.create(f"{container}-init", image, writable=True)
    client.create(cached, image)
    docker.tree.caches([cached])
    unmapped(cluster)
    before = cluster.images()
    path = os.path.join(docker.tree.root, part)
    with moved(path):
        os.mkdir(path)
        for said in (docker.check(), docker.gc("--yes")):
            assert (said.status, said.text) == (2, "")
            assert path.rpartition("/")[0] in said.errors
            assert len(said.errors.splitlines()) == 1
        os.rmdir(path)
    assert cluster.images() == before
    assert docker.gc("--yes") == Said(0, "", "")


def test_two_prefixes_one_of_which_begins_the_other(
    docker: Docker, cluster: Cluster, start_plugin: StartPlugin, new_id: NewId
) -> None:
    """Neither the layers nor the trash of one are the other's, in a pool that both use."""
    other = start_plugin(imageprefix="docker_image_more")
    layer, theirs = docker.plugin.client.create(new_id()), other.client.create(new_id())
    assert docker.plugin.client.status()["Layers"] == "1"
    cluster.rbd("snap", "create", f"docker_image_more_{theirs}@depth1", "--no-progress")
    cluster.rbd("clone", f"docker_image_more_{theirs}@depth1", "child", "--rbd-default-clone-format", "2")
    other.client.remove(theirs)
    trash = [f"docker_image_more_{theirs}"]
    wait_until(lambda: cluster.trash() == trash, "it waits in the trash for its clone")
    kept = other.client.create(new_id())
    unmapped(cluster)
    assert docker.check("--all").found() == {("orphan-image", layer)}
    assert docker.gc("--yes").status == 0
    docker.plugin.client.created.remove(layer)
    assert cluster.images("docker_image_") == [f"docker_image_more_{kept}"]
    assert cluster.trash() == trash
    cluster.rbd("rm", "child", "--no-progress")
    wait_until(lambda: cluster.trash() == [], "it goes with its clone")
    other.client.remove(kept)


def test_what_cannot_be_looked_at(docker: Docker, cluster: Cluster, new_id: NewId, session_directory: str) -> None:
    """Exit 2 and one line, never a removal: no layer database, no state, no cluster. No key is ever shown."""
    layer = docker.plugin.client.create(new_id())
    unmapped(cluster)
    with moved(docker.tree.layerdb):
        said = docker.gc("--yes")
    assert (said.status, said.text) == (2, "")
    assert "layerdb does not exist" in said.errors
    assert docker.run("check", "--state", "/nonexistent").status == 2
    assert f"docker_image_{layer}" in cluster.images()

    with open(cluster.conf, encoding="ascii") as source:
        conf = source.read()
    keyring = next(line.split("=")[1].strip() for line in conf.splitlines() if line.strip().startswith("keyring"))
    with open(keyring.replace("$name", "client.admin").replace("$cluster", "ceph"), encoding="ascii") as source:
        key = next(line.split("=", 1)[1].strip() for line in source if "key =" in line)
    bad = os.path.join(session_directory, "no-such-key.conf")
    with open(bad, "w", encoding="ascii") as target:
        target.write(conf.replace("[global]", "[global]\nkey = " + key[:-8] + "AAAAAA==", 1))
    words = ("--default", f"ceph.configfile={bad}", "--default", "ceph.timeout=5", "--home", docker.plugin.home)
    said = docker.run("check", "--state", "/nonexistent", "--log-level", "debug", *words)
    everything = said.text + said.errors + docker.check("--json", "--log-level", "debug").errors
    assert key not in everything
    assert key[:-8] not in everything
    assert mounts_below(docker.plugin.home) == []
