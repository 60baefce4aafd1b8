"""Without power: a host goes with all that it had not flushed, and what containerd was answered is there after it.

containerd never unpacks a layer again that was committed: one that is not whole stays so. As in test_power.py, the
stand-in's daemons are killed before the service, and what is mounted is taken off.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from changes import file, files
from client import Info
from lab import Cluster
from needs import NO_RBD, requires
from serving import Host
from snapshot_operations import REF, chain, files_of, find, several, unpacking

Tally = Callable[[str, int], None]
StartHost = Callable[[], Host]
Files = list[dict[str, Any]]

requires(not os.path.isdir("/sys/bus/rbd"), NO_RBD)  # krbd cannot be killed


@pytest.fixture(scope="module", autouse=True)
def short_watches(cluster: Cluster) -> Iterator[None]:
    """A client that died is believed to live until its watch times out, 30 s: as long as a host needs to come up."""
    cluster.ceph("config", "set", "osd", "osd_client_watch_timeout", "2")
    yield
    cluster.ceph("config", "rm", "osd", "osd_client_watch_timeout")


@pytest.fixture
def start_host(cluster: Cluster, session_directory: str) -> Iterator[StartHost]:
    """Hosts of one pool, of which nothing may be left."""
    hosts: list[Host] = []

    def start() -> Host:
        hosts.append(Host(cluster, os.path.join(session_directory, uuid.uuid4().hex[:6]), "power"))
        hosts[-1].start()
        return hosts[-1]

    try:
        yield start
        for host in hosts:
            host.remove_all()
        for host in hosts:
            host.nothing_left()
    finally:
        for host in hosts:
            host.give_up()


def told(host: Host) -> dict[str, Info]:
    """What a host says of its snapshots."""
    return {info.name: info for info in host.calls.list()}


def commit(host: Host, name: str) -> None:
    """A layer of an image."""
    host.work.change(host.calls.prepare("key"), several(name))
    host.calls.commit(name, "key")


def test_what_was_committed_is_there(start_host: StartHost, tally: Tally) -> None:
    """Each layer with the answer still warm, and those below it. Nobody has unmounted it: that would flush it."""
    host = start_host()
    expected: dict[str, Files] = {}
    for number in range(3):
        name = f"layer {number}"
        with host.work.mounted(host.calls.prepare("key", f"layer {number - 1}" if number else "")) as place:
            several(name)(place)
            expected[name] = files(place)
            host.calls.commit(name, "key")
            before = told(host)
            host.lose_power()
        host.start()
        assert told(host) == before
        for name, lines in expected.items():
            assert files_of(host, name) == lines
        tally("power cuts of a snapshotter survived", 1)


def test_what_was_committed_while_it_was_mounted_is_there(start_host: StartHost, tally: Tally) -> None:
    """As a running container is: what it writes after the answer may be lost, and nothing else."""
    host = start_host()
    commit(host, "image")
    with host.work.mounted(host.calls.prepare("container", "image")) as place:
        several("of the container")(place)
        host.calls.commit("new", "container")
        file("too late", "x")(place)
        host.lose_power()
    host.start()
    names = host.work.names(host.calls.view("look", "new"))
    assert [name for name in names if name != "too late"] == ["image", "large", "of the container"]
    host.calls.remove("look")
    tally("power cuts of a snapshotter survived", 1)


def test_what_a_container_flushed_is_there(start_host: StartHost, tally: Tally) -> None:
    """After the start Mounts is all that is asked for, and answers what it answered before."""
    host = start_host()
    commit(host, "image")
    mounts = host.calls.prepare("container", "image")
    usage = host.calls.usage("image")
    with host.work.mounted(mounts) as place:
        several("flushed")(place)
        for top, _, names in os.walk(place):
            for path in (top, *(os.path.join(top, name) for name in names)):
                handle = os.open(path, os.O_RDONLY)
                os.fsync(handle)
                os.close(handle)
        expected = host.work.files(mounts)
        before = told(host)
        host.lose_power()
    host.start()
    assert told(host) == before
    assert host.calls.usage("image") == usage
    assert host.calls.mounts("container") == mounts
    assert host.work.files(mounts) == expected
    tally("power cuts of a snapshotter survived", 1)


def test_what_was_just_prepared_can_be_used(start_host: StartHost, tally: Tally) -> None:
    host = start_host()
    commit(host, "image")
    mounts = host.calls.prepare("container", "image")
    nothing = host.calls.prepare("empty")
    host.lose_power()
    host.start()
    assert host.calls.mounts("container") == mounts
    assert host.work.names(mounts) == ["image", "large"]
    assert host.calls.mounts("empty") == nothing
    assert host.work.names(nothing) == []
    tally("power cuts of a snapshotter survived", 1)


def test_what_another_host_is_told_of_is_whole(start_host: StartHost, tally: Tally) -> None:
    """The power goes right after the answer: the offer is made after the start, and then it is wanted elsewhere."""
    host, other = start_host(), start_host()
    key, _, labels = unpacking(1, "")
    name = f"default/2/{chain(1)}"
    with host.work.mounted(host.calls.prepare(key, "", labels)) as place:
        several("shared")(place)
        expected = files(place)
        host.calls.commit(name, key, {REF: chain(1)})
        host.lose_power()
    host.start()
    host.wait(lambda: host.is_offered(name), "it is offered")
    found = find(other, 1, "")
    assert files_of(other, found) == expected
    assert files_of(host, name) == expected
    tally("power cuts of a snapshotter survived", 1)
