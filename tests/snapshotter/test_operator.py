"""An operator's check, gc and takeover for snapshotters of two hosts, on a real cluster."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from client import Snapshots
from conftest import remove_all
from lab import Cluster, mounts_below
from lab_fixtures import lab_options
from mounting import mounted
from plugin_client import wait_until
from services import Ceph

Start = Callable[[str], Ceph]
# How long the cluster takes a client for living that says nothing any more; 30 s unless set.
WATCH_SECONDS = 8
REF_LABEL = "containerd.io/snapshot.ref"
CHAIN = f"sha256:{7:064x}"


@pytest.fixture
def start(cluster: Cluster, session_directory: str) -> Iterator[Start]:
    """Start the snapshotter of a host. At the end nothing may be left, but what a dead host has on its disk."""
    cluster.ceph("config", "set", "osd", "osd_client_watch_timeout", str(WATCH_SECONDS))
    living: list[Ceph] = []

    def begin(host: str) -> Ceph:
        service = Ceph(cluster, os.path.join(session_directory, uuid.uuid4().hex[:6]), lab_options())
        service.live_on(host)
        living.append(service)
        service.start()
        return service

    yield begin
    for service in living:
        print(f"--- log of {service.root}\n{service.log_tail()}")
        if service.running:
            remove_all(service)
            wait_until(lambda: mounts_below(service.root) == [], "nothing is mounted")  # noqa: B023
    wait_until(lambda: cluster.images("docker_image_") == [], "what was removed has gone")
    for service in living:
        service.bury()
        if service.running:
            service.end()
    cluster.ceph("config", "rm", "osd", "osd_client_watch_timeout")
    cluster.ceph("osd", "blocklist", "clear")


def check(service: Ceph, *words: str) -> tuple[int, str]:
    """What is found when nothing is too young."""
    return service.operate("check", "--min-age", "0", *words)


def gc(service: Ceph, *words: str) -> tuple[int, str]:
    """What goes when nothing is too young."""
    return service.operate("gc", "--min-age", "0", *words)


def layer_of(service: Ceph, key: str) -> str:
    """The layer of the pool that a snapshot stands for."""
    with contextlib.closing(sqlite3.connect(os.path.join(service.root, "snapshots.db"))) as database:
        [(layer,)] = database.execute("SELECT image FROM snapshot WHERE key = ?", (key,)).fetchall()
    return str(layer)


def write(client: Snapshots, key: str, directory: str) -> None:
    """Write a file into a snapshot, and tell of nothing that is not in the cluster."""
    os.makedirs(directory, exist_ok=True)
    with mounted(client.mounts(key), directory) as place:
        for path in (os.path.join(place, "file"), place):
            descriptor = os.open(path, os.O_RDONLY if path == place else os.O_WRONLY | os.O_CREAT)
            if path != place:
                os.write(descriptor, key.encode())
            os.fsync(descriptor)
            os.close(descriptor)


def read(client: Snapshots, key: str, directory: str) -> str:
    """The file that `write` has written."""
    with mounted(client.mounts(key), directory) as place, open(os.path.join(place, "file"), encoding="utf-8") as source:
        return source.read()


def fill(service: Ceph, directory: str) -> dict[str, str]:
    """Make a layer that all hosts share, a container on it, and one that is this host's alone; the layer of each."""
    client = service.client()
    key, labels = f"default/1/extract-1-a {CHAIN}", {REF_LABEL: CHAIN}
    client.prepare(key, labels=labels)
    client.commit(f"default/2/{CHAIN}", key, labels)
    shared = layer_of(service, f"default/2/{CHAIN}")
    wait_until(lambda: "shared by all hosts" in check(service, "--all")[1], "it is shared")
    client.prepare("container", f"default/2/{CHAIN}")
    write(client, "container", directory)
    client.prepare("import key")
    client.commit("imported", "import key")
    client.close()
    return {"shared": shared} | {key: layer_of(service, key) for key in ("container", "imported")}


def images(*layers: str) -> list[str]:
    """The images of some layers."""
    return sorted(f"docker_image_{layer}" for layer in layers)


def take_over(service: Ceph, host: str) -> str:
    """Take a host over once the cluster knows that it is dead; what is said."""
    said: list[tuple[int, str]] = []

    def taken() -> bool:
        said.append(service.operate("takeover", "--host", host))
        assert said[-1][0] == 0 or f"{host} lives" in said[-1][1], said[-1]
        return said[-1][0] == 0

    wait_until(taken, f"{host} is known to be dead")
    return said[-1][1]


def test_what_belongs_to_nobody_goes_and_nothing_else(start: Start, cluster: Cluster, session_directory: str) -> None:
    a = start("op-a")
    directory = os.path.join(session_directory, "place")
    layers = fill(a, directory)
    assert check(a) == (0, "")
    status, said = check(a, "--all")
    assert status == 0
    [line] = [line for line in said.splitlines() if line.startswith(f"shared-layer {layers['shared']} ")]
    assert line.endswith("shared by all hosts; used by op-a")
    # What it would leave whose database was put back from a backup.
    client = a.client()
    client.prepare("lost")
    lost = layer_of(a, "lost")
    assert check(a) == (0, "")
    a.end()
    assert check(a)[0] == 0, "its database is read when nobody has it open, too"
    with contextlib.closing(sqlite3.connect(os.path.join(a.root, "snapshots.db"))) as database, database:
        database.execute("DELETE FROM snapshot WHERE key = 'lost'")
    a.start()
    wait_until(lambda: "gc removes it" in check(a)[1], "it is unmapped")
    status, said = gc(a)
    assert (status, said.split(" age ")[0]) == (1, f"would remove: orphan-image {lost}")
    assert "the snapshotter knows no such layer" in said
    assert f"docker_image_{lost}" in cluster.images("docker_image_")
    assert gc(a, "--yes")[0] == 0
    cluster.wait_images(images(*layers.values()))
    assert read(client, "container", directory) == "container"
    client.close()


def test_tree_shows_what_is_shared_and_containers(start: Start, session_directory: str) -> None:
    a = start("op-tree")
    layers = fill(a, os.path.join(session_directory, "place"))
    status, said = a.operate("tree", "--json")
    assert status == 0, said
    found = {item["id"]: item for item in json.loads(said)["layers"]}
    assert {layer: item["kind"] for layer, item in found.items()} == {
        layers["shared"]: "image",
        layers["container"]: "container",
        layers["imported"]: "image",
    }
    assert (found[layers["shared"]]["shared"], found[layers["shared"]]["used_by"]) == (True, ["op-tree"])
    assert found[layers["container"]]["container"] == {"name": "container", "state": "active"}
    assert all(item["stored"] > 0 for item in found.values())
    status, said = a.operate("tree")
    assert (status, "container container  active" in said) == (0, True), said


def test_nothing_of_a_snapshotter_at_work_is_taken(start: Start, session_directory: str) -> None:
    a = start("op-a")
    client = a.client()
    place = os.path.join(session_directory, "place")

    def work() -> None:
        for turn in range(12):
            client.prepare(f"key {turn}", f"name {turn - 1}" if turn else "")
            write(client, f"key {turn}", place)
            client.commit(f"name {turn}", f"key {turn}")
            client.prepare(f"removed {turn}")
            client.remove(f"removed {turn}")

    with ThreadPoolExecutor(1) as threads:
        works = threads.submit(work)
        turns = 0
        while not works.done() or turns < 2:
            status, said = gc(a, "--yes")
            assert (status, "orphan-image" in said) == (0, False), said
            turns += 1
        works.result()
    client.view("all of them", "name 11")
    assert read(client, "all of them", place) == "key 11"
    client.close()


def test_a_host_that_died_is_taken_over_and_what_nobody_uses_goes(
    start: Start, cluster: Cluster, session_directory: str
) -> None:
    a, b = start("op-a"), start("op-b")
    layers = fill(a, os.path.join(session_directory, "place"))
    status, said = b.operate("takeover", "--host", "op-a")
    assert (status, "op-a lives" in said) == (2, True), said
    a.die()
    said = take_over(b, "op-a")
    assert "2 of them are of no snapshot here: nobody can use them, and gc --root removes them" in said
    assert f"forgot that op-a {a.root} used 1 shared layers, of which snapshots here need 0" in said
    assert "2 layers of op-a are now of op-b" in said
    status, said = check(b)
    assert status == 1
    found = {line.split()[1] for line in said.splitlines() if line.startswith("orphan-image ")}
    assert found == {layers["container"], layers["imported"]}
    status, said = gc(b, "--yes")
    assert status == 0, said
    # What is shared goes as it always does, when no host uses it any more: here at the next look.
    b.restart()
    cluster.wait_images([])
    assert check(b) == (0, "")


def test_a_root_that_is_brought_to_another_host_works_there(start: Start, session_directory: str) -> None:
    a, b = start("op-a"), start("op-b")
    place = os.path.join(session_directory, "place")
    layers = fill(a, place)
    a.die()
    a.live_on("op-c")
    said = take_over(a, "op-a")
    assert f"forgot that op-a {a.root} used 1 shared layers, of which snapshots here need 1" in said
    assert "2 layers of op-a are now of op-c" in said
    # Another host looks for what nobody uses, before the new one has started.
    b.restart()
    a.start()
    client = a.client()
    assert read(client, "container", place) == "container"
    client.prepare("another", "imported")
    client.close()
    assert check(a) == (0, "")
    assert f"{layers['shared']} " in check(a, "--all")[1]
    assert "shared by all hosts; used by op-c" in check(b, "--all")[1]
