"""Two hosts on one pool: each has its own layers, and those of one that died are taken over on request only."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from lab import Cluster, StartPlugin, device_servers, mounts_below, send_all
from plugin_client import PluginProcess, Refused, make_tar, wait_until

NewId = Callable[[], str]
# How long the cluster takes a client for living that says nothing any more; 30 s unless set. Clients say something
# every 5 s.
WATCH_SECONDS = 8


@pytest.fixture(scope="module", autouse=True)
def short_watches(cluster: Cluster) -> Iterator[None]:
    """Nobody wants to wait 30 s for a death."""
    cluster.ceph("config", "set", "osd", "osd_client_watch_timeout", str(WATCH_SECONDS))
    yield
    cluster.ceph("config", "rm", "osd", "osd_client_watch_timeout")


@pytest.fixture
def hosts(start_plugin: StartPlugin, cluster: Cluster) -> Iterator[tuple[PluginProcess, PluginProcess]]:
    """Two hosts, whose blocklisted addresses are forgotten at the end."""
    a, b = start_plugin(host="host-a", imageprefix="hosts"), start_plugin(host="host-b", imageprefix="hosts")
    yield a, b
    send(a, signal.SIGCONT)
    cluster.ceph("osd", "blocklist", "clear")


def takeover(plugin: PluginProcess, host: str, *words: str, **environment: str) -> tuple[int, str]:
    """Run the command on a plugin's host; its exit status and all it said."""
    return plugin.operate("takeover", "--host", host, *words, **environment)


def send(plugin: PluginProcess, number: signal.Signals) -> None:
    """Send a signal to all that a host runs, but the containers."""
    assert plugin.process
    send_all([plugin.process.pid, *device_servers(plugin.environment), *plugin.watchers()], number)


def is_seen(plugin: PluginProcess) -> bool:
    """Whether the plugin says that the cluster sees it."""
    return " DEBUG watching " in plugin.log_text()


def bury(plugin: PluginProcess) -> None:
    """What the end of a host's kernel does."""
    for point in reversed(mounts_below(plugin.home)):
        subprocess.run(["umount", "--lazy", point], check=True)
    plugin.client.created.clear()


def hand_over(dead: PluginProcess, heir: PluginProcess) -> None:
    """Removed by the heir at the end of the test."""
    heir.client.created += dead.client.created


def container(plugin: PluginProcess, new_id: NewId) -> str:
    """An image's layer and a container's."""
    client = plugin.client
    image = client.create(new_id())
    client.apply_diff(image, make_tar({"of the image": "x", "big": b"b" * (7 << 20)}))
    return client.create(new_id(), image, writable=True)


def write_through(path: str, text: str) -> None:
    """Write a file as a database does, and tell of nothing that is not in the cluster."""
    with open(path, "w", encoding="ascii") as target:
        target.write(text)
        target.flush()
        os.fsync(target.fileno())
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def test_each_has_its_own(hosts: tuple[PluginProcess, PluginProcess], cluster: Cluster, new_id: NewId) -> None:
    """What one made the other neither mounts, builds on, nor removes; the base image is shared."""
    a, b = hosts
    first, second = container(a, new_id), container(b, new_id)
    a.client.write(first, "f", "of a")
    b.client.write(second, "f", "of b")
    wait_until(lambda: device_servers(a.environment) == [], "it is unmapped")
    for call in (b.client.get, b.client.remove, lambda layer: b.client.create(new_id(), layer)):
        with pytest.raises(Refused, match=rf"{first} belongs to host host-a \({a.home}\).*takeover --host host-a"):
            call(first)
    assert a.client.read(first, "f") == b"of a"
    assert b.client.read(second, "f") == b"of b"
    assert [name for name in cluster.rbd("ls").split() if name.startswith("hosts_base")] == ["hosts_base_image"]


def test_a_host_that_lives_is_left_alone(hosts: tuple[PluginProcess, PluginProcess], new_id: NewId) -> None:
    """It lives while its driver does, though nothing is mapped; and while a container runs, though no driver does."""
    a, b = hosts
    layer = container(a, new_id)
    wait_until(lambda: is_seen(a) and device_servers(a.environment) == [], "nothing is mapped")
    status, said = takeover(b, "host-a")
    assert (status, "host-a lives: its driver answers from 127.0.0.1:0/" in said) == (2, True), said
    # Its watch is lost, and made again.
    for pid in a.watchers():
        os.kill(pid, signal.SIGKILL)

    root = a.client.get(layer)
    write_through(os.path.join(root, "f"), "precious")
    shown = a.client.metadata(layer)
    a.kill()
    status, said = wait_refused_for(b, "is open at 127.0.0.1:0/")
    assert status == 2, said
    # A container's layer and the one below it are both open; which of them is met first, their random names decide.
    assert any(f"{image} is open at" in said for image in (shown["Image"], shown["Parent"])), said
    assert takeover(a, "host-a") == (2, "takeover: host-a is this very host\n")
    a.start()
    a.init()
    assert a.client.read(layer, "f") == b"precious"


def wait_refused_for(plugin: PluginProcess, reason: str) -> tuple[int, str]:
    """Repeat the takeover until it is refused for another reason than that the driver answers."""
    deadline = time.monotonic() + 3 * WATCH_SECONDS
    while True:
        status, said = takeover(plugin, "host-a")
        if reason in said or time.monotonic() > deadline:
            return status, said


def test_a_host_that_died_is_taken_over(
    hosts: tuple[PluginProcess, PluginProcess], cluster: Cluster, new_id: NewId
) -> None:
    """Silent, not dead: it comes back and is kept off; what it wrote before is there, what it writes then is not."""
    a, b = hosts
    layer, idle = container(a, new_id), container(a, new_id)
    a.client.write(idle, "f", "idle")
    root = a.client.get(layer)
    write_through(os.path.join(root, "f"), "precious")
    wait_until(
        lambda: len(device_servers(a.environment)) == 2 and is_seen(a), "only the container and its image are mapped"
    )
    send(a, signal.SIGSTOP)
    assert takeover(b, "host-a")[0] == 2
    with pytest.raises(Refused, match="belongs to host host-a"):
        b.client.get(idle)

    wait_until(lambda: takeover(b, "host-a")[0] == 0, "the cluster takes it for dead", 4 * WATCH_SECONDS)
    assert takeover(b, "host-a")[0] == 0, "it can be asked for again"
    assert "127.0.0.1:0/" in cluster.ceph("osd", "blocklist", "ls")
    assert b.client.read(idle, "f") == b"idle"

    send(a, signal.SIGCONT)
    with pytest.raises(OSError, match="error"):
        write_through(os.path.join(root, "g"), "too late")
    for other in (idle, layer):
        with pytest.raises(Refused):
            a.client.get(other) if other == idle else a.client.create(new_id(), other)
    hand_over(a, b)
    send(a, signal.SIGKILL)
    bury(a)
    wait_until(lambda: b.client.listing(layer) == ["big", "f", "of the image"], "b has it")
    assert b.client.read(layer, "f") == b"precious"
    child = b.client.create(new_id(), layer, writable=True)
    assert b.client.read(child, "f") == b"precious"


def test_a_takeover_that_lacks_a_right_or_is_interrupted_goes_on(
    hosts: tuple[PluginProcess, PluginProcess], cluster: Cluster, new_id: NewId, session_directory: str
) -> None:
    """A key that may not fence is told so, and nothing is taken; one with `profile rbd` may.

    Then it is broken off after each of the commands that change something; the same call again ends it.
    """
    a, b = hosts
    layer = container(a, new_id)
    write_through(os.path.join(a.client.get(layer), "f"), "precious")
    hand_over(a, b)
    send(a, signal.SIGKILL)
    states = {name: state_as(b, cluster, name, mon) for name, mon in (("weak", "allow r"), ("profile", "profile rbd"))}
    weak, able = ("--state", states["weak"]), ("--state", states["profile"])
    wait_until(lambda: "lives" not in takeover(b, "host-a", *weak)[1], "it is taken for dead", 4 * WATCH_SECONDS)
    status, said = takeover(b, "host-a", *weak)
    assert (status, "client.weak may not blocklist 127.0.0.1:0/" in said) == (2, True), said
    with pytest.raises(Refused, match="belongs to host host-a"):
        b.client.get(layer)

    path = f"{breaking_programs(session_directory)}:{b.environment['PATH']}"
    for step in ("osd blocklist", "lock rm", "image-meta set"):
        status, said = takeover(b, "host-a", *able, BREAK_AT=step, PATH=path)
        assert (status, "(exit 5)" in said) == (2, True), f"{step}: {said}"
    status, said = takeover(b, "host-a", *able)
    assert status == 0, said
    bury(a)
    assert b.client.read(layer, "f") == b"precious"


def state_as(plugin: PluginProcess, cluster: Cluster, name: str, mon: str) -> str:
    """Make a Ceph user, and a state file as if the plugin were that one; its path."""
    keyring = os.path.join(os.path.dirname(cluster.conf), f"ceph.client.{name}.keyring")
    caps = ("mon", mon, "osd", "profile rbd pool=rbd")
    cluster.ceph("auth", "get-or-create", f"client.{name}", *caps, "-o", keyring)
    path = f"{plugin.socket}.{name}"
    with open(plugin.socket + ".state", encoding="utf-8") as source, open(path, "w", encoding="utf-8") as target:
        target.write(source.read().replace('"Opts": [', f'"Opts": ["ceph.client={name}", '))
    return path


def breaking_programs(directory: str) -> str:
    """A directory with an rbd and a ceph that fail after they did what $BREAK_AT names."""
    place = os.path.join(directory, "breaking")
    os.makedirs(place)
    for program in ("rbd", "ceph"):
        with open(os.path.join(place, program), "w", encoding="ascii") as target:
            target.write(
                f'#!/bin/sh\nPATH=${{PATH#*:}}\ncase "$1 $2" in "$BREAK_AT") {program} "$@" && exit 5;; esac\n'
                f'exec {program} "$@"\n'
            )
        os.chmod(os.path.join(place, program), 0o755)
    return place
