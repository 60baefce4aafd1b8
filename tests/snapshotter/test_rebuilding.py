"""Roots that were lost: the service makes its database anew from the pool, and containerd finds what it knows.

What was there before is what the service itself had told; files are those that were written.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence

import pytest
from changes import file
from client import ALREADY_EXISTS, UNAVAILABLE, Info, Mount, Snapshots
from conftest import remove_all
from lab import Cluster, mounts_below
from lab_fixtures import lab_options
from mounting import mount_all, unmount_all
from plugin_client import wait_until
from services import Ceph
from work import Work, refused

Start = Callable[[str], "Host"]
REF = "containerd.io/snapshot.ref"
# A kubelet's pull brings such labels, when layers are to be found by other snapshotters.
ANNOTATIONS = {"containerd.io/snapshot/cri.image-ref": "registry/image:1", "containerd.io/snapshot/é": "ß" * 1500}


def chain(number: int) -> str:
    """A chain id."""
    return f"sha256:{number:064x}"


class Host:
    """A service on a host of its own, a client of it, and a directory to mount in."""

    def __init__(self, service: Ceph, directory: str) -> None:
        self.service = service
        self.calls: Snapshots = service.client()
        self.place = os.path.join(directory, f"w-{uuid.uuid4().hex[:6]}")
        os.mkdir(self.place)
        self.work = Work(self.calls, self.place)

    def pull(self, number: int, parent: str = "", *, found: bool = False) -> str:
        """Do what containerd does for a layer of an image: unpack it, unless it is there; the snapshot's name."""
        key, labels = f"default/1/extract-{number}-a {chain(number)}", {REF: chain(number), **ANNOTATIONS}
        if found:
            refused(ALREADY_EXISTS, self.calls.prepare, key, parent, labels)
            listed = self.calls.list(f'labels."{REF}"=={chain(number)},parent=="{parent}"')
            [name] = [info.name for info in listed if info.kind == "committed"]
            return name
        self.write(self.calls.prepare(key, parent, labels), f"layer {number}")
        self.calls.commit(f"default/2/{chain(number)}", key, labels)
        return f"default/2/{chain(number)}"

    def write(self, mounts: Sequence[Mount], name: str) -> None:
        """Put a file into a snapshot."""
        self.work.change(mounts, file(name, name))

    def told(self) -> dict[str, Info]:
        """What is listed, but for the views; Stat says the same."""
        found = {info.name: info for info in self.calls.list() if info.kind != "view"}
        for name, info in found.items():
            assert self.calls.stat(name) == info
        return found

    def files(self, *names: str) -> dict[str, object]:
        """What a user sees in some snapshots, by views of those that are committed."""
        seen: dict[str, object] = {}
        for name, info in self.told().items():
            if name in names or not names:
                view = f"view of {name}"
                mounts = self.calls.mounts(name) if info.kind == "active" else self.calls.view(view, name)
                seen[name] = self.work.files(mounts)
                if info.kind == "committed":
                    self.calls.remove(view)
        return seen

    def settle(self) -> None:
        """Wait until the pool has notes of all."""
        wait_until(lambda: self.rows("NOT noted OR chain <> '' AND NOT shared OR state = 4") == [], "all is noted")

    def rows(self, where: str) -> list[str]:
        """The layers of some snapshots."""
        with sqlite3.connect(os.path.join(self.service.root, "snapshots.db")) as database:
            return [layer for (layer,) in database.execute(f"SELECT layer FROM snapshot WHERE {where}")]

    def log(self) -> str:
        """All that the service has said."""
        return self.service._process.log_text()

    def lose_database(self) -> None:
        """Only the database goes; what is mapped and mounted stays."""
        self.service.end()
        for name in os.listdir(self.service.root):
            if name.startswith("snapshots.db"):
                os.unlink(os.path.join(self.service.root, name))

    def lose_root(self) -> None:
        """What a new disk leaves: nothing, and nothing is mapped."""
        wait_until(lambda: mounts_below(self.service.root) == [], "nothing is mounted")
        self.service.end()
        shutil.rmtree(self.service.root)


@pytest.fixture
def start(cluster: Cluster, session_directory: str) -> Iterator[Start]:
    """Start the snapshotter of a host. At the end nothing may be left in the pool."""
    made: list[Host] = []

    def begin(name: str) -> Host:
        service = Ceph(cluster, os.path.join(session_directory, uuid.uuid4().hex[:6]), lab_options())
        service.live_on(name)
        service.start()
        made.append(Host(service, session_directory))
        return made[-1]

    yield begin
    for host in made:
        print(f"--- log of {host.service.root}\n{host.service.log_tail()}")
        for point in reversed(mounts_below(host.place)):
            unmount_all(point)
        remove_all(host.service)
    wait_until(lambda: cluster.images("docker_image_") == [], "what was removed has gone")
    for host in made:
        wait_until(lambda: host.rows("1") == [], "no row is left")  # noqa: B023
        host.service.end()
        host.calls.close()
    wait_until(lambda: notes(cluster) == "", "no note is left")


def notes(cluster: Cluster) -> str:
    """The notes of what hosts were told of."""
    rados = ["rados", "--conf", cluster.conf, "--pool", "rbd"]
    name = "docker_image_told"
    return cluster.run([*rados, "listomapkeys", name]) if name in cluster.run([*rados, "ls"]).split() else ""


def fill(one: Host, two: Host) -> None:
    """An image that both have, and what each has of its own."""
    top = one.pull(2, one.pull(1))
    one.write(one.calls.prepare("import key", top), "imported")
    one.calls.commit("imported", "import key", {"containerd.io/snapshot/own": "1"})
    one.calls.prepare("container one", "imported", {"containerd.io/snapshot/x": "y"})
    one.write(one.calls.mounts("container one"), "written by one")
    one.settle()
    top = two.pull(2, two.pull(1, found=True), found=True)
    assert top.startswith("shared/")
    two.write(two.calls.prepare("container two", top), "written by two")
    two.calls.view("a view", top)
    two.calls.update("container two", {"containerd.io/snapshot/later": "z"}, "labels.containerd.io/snapshot/later")
    two.settle()


def test_what_was_lost_is_there_again(start: Start) -> None:
    one, two = start("lost-a"), start("lost-b")
    fill(one, two)
    before = {host: (host.told(), host.files()) for host in (one, two)}
    one.lose_root()
    two.lose_database()
    for host in (one, two):
        host.service.start()
        told, files = before[host]
        assert host.told() == told
        assert host.files() == files
        [line] = [line for line in host.log().splitlines() if " was missing: " in line]
        assert line.endswith(f"{len(told)} snapshots are made anew from the pool")
        status, said = host.service.operate("check", "--min-age", "0")
        assert (status, said) == (0, "")
    # Life goes on: on what is shared, on what is not, and for others.
    three = one.pull(3, f"default/2/{chain(2)}")
    one.settle()
    # As long as its maker has it mounted to write, nobody else can mount it.
    [layer] = one.rows(f"key = '{three}'")
    wait_until(lambda: layer not in str(mounts_below(one.service.root)), "it is unmounted")
    top = next(name for name, info in two.told().items() if info.labels.get(REF) == chain(2))
    found = two.pull(3, top, found=True)
    assert two.files(found)[found] == one.files(three)[three]
    one.write(one.calls.mounts("container one"), "once more")
    one.calls.commit("committed", "container one")
    two.calls.remove("container two")
    assert two.service.operate("gc", "--min-age", "0", "--yes")[0] == 0
    one.calls.remove("committed")
    one.calls.prepare("committed", "imported")


def test_a_container_goes_on_while_the_database_is_made_anew(start: Start) -> None:
    host = start("lost-a")
    host.pull(1)
    place = os.path.join(host.place, "running")
    os.mkdir(place)
    mount_all(host.calls.prepare("container", f"default/2/{chain(1)}"), place)
    host.settle()
    host.lose_database()
    host.service.start()
    with open(os.path.join(place, "file"), "w", encoding="ascii") as target:
        target.write("it lives")
    assert sorted(os.listdir(place)) == ["file", "layer 1"]
    assert [mount.source for mount in host.calls.mounts("container")] != []
    # It is known as mounted still, though nobody asked for it.
    assert mounts_below(host.service.root)
    unmount_all(place)


def test_what_was_committed_a_moment_ago_has_the_name_that_is_known_above_it(start: Start) -> None:
    host = start("lost-a")
    host.write(host.calls.prepare("key"), "file")
    host.calls.commit("name", "key")
    host.calls.prepare("above", "name")
    before = {name: info.parent for name, info in host.told().items()}
    host.service.kill()
    assert host.rows("NOT noted"), "the note was written before the kill"
    for name in os.listdir(host.service.root):
        if name.startswith("snapshots.db"):
            os.unlink(os.path.join(host.service.root, name))
    host.service.start()
    assert {name: info.parent for name, info in host.told().items()} == before


def test_nobody_is_told_that_there_is_nothing_while_the_cluster_is_away(start: Start, cluster: Cluster) -> None:
    host = start("lost-a")
    host.write(host.calls.prepare("key"), "file")
    before = host.told()
    host.lose_database()
    os.kill(cluster.daemon("mon.a"), signal.SIGSTOP)
    try:
        host.service._launch()
        wait_until(lambda: os.path.exists(host.service.address), "it serves")
        for call in (lambda: list(host.calls.list()), lambda: host.calls.stat("key"), lambda: host.calls.remove("key")):
            said = refused(UNAVAILABLE, call)
            assert said.startswith("the database is new, and what was in it before is not known yet: ")
        status, said = host.service.operate("gc", "--min-age", "0", "--yes")
        assert (status, "is yet to be made anew from the pool" in said) == (2, True), said
    finally:
        os.kill(cluster.daemon("mon.a"), signal.SIGCONT)
    wait_until(lambda: " INFO ready\n" in host.log().split("listening on")[-1], "it is ready")
    assert host.told() == before
