"""Machines with one name and one home on one pool: told apart by their machine-id, or noticed while both live.

Each is a process with a host name, machine-id, boot id, mounts and home of its own; the path of the home is the same.
"""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Callable, Sequence

import pytest
from docker_tree import DockerTree
from lab import Cluster, StartPlugin
from plugin_client import PluginProcess, Refused, make_tar, tar_names, wait_until

NewId = Callable[[], str]
# As the driver knows it: another one for the test means another machine for the driver, and a kernel started anew.
HOST = """
hostname "$1"
directory=$2 home=$3
mount --bind "$directory/machine-id" /etc/machine-id
mount --bind "$directory/boot-id" /proc/sys/kernel/random/boot_id
mount --bind "$directory/home" "$home"
shift 3
exec "$@"
"""


class Machine:
    """A machine with a driver, which has mapped nothing while it is started anew."""

    def __init__(self, plugin: PluginProcess, home: str, host: str, machine: str) -> None:
        self.plugin, self.client = plugin, plugin.client
        self.directory = os.path.dirname(plugin.socket)
        self.host = host
        self.machine = machine
        plugin.home = home
        plugin.environment["RBD_STAND_IN_DIR"] = os.path.join(self.directory, "mapped")
        os.makedirs(os.path.join(self.directory, "home"))
        DockerTree(self.directory, "home")
        self.boot(str(uuid.uuid4()))

    def boot(self, boot: str = "") -> None:
        """Start it, with another kernel."""
        self._write("machine-id", self.machine)
        self._write("boot-id", boot or str(uuid.uuid4()))
        self.plugin.before = [
            *("unshare", "--uts", "--mount", "sh", "-euc", HOST, "-"),
            *(self.host, self.directory, self.plugin.home),
        ]
        self.plugin.start()

    def _write(self, name: str, text: str) -> None:
        with open(os.path.join(self.directory, name), "w", encoding="ascii") as target:
            target.write(text + "\n")

    def same_boot(self) -> str:
        """The id of its boot."""
        with open(os.path.join(self.directory, "boot-id"), encoding="ascii") as source:
            return source.read().strip()

    def operator(self, *words: str) -> tuple[int, str]:
        """Run one of the operator's commands there; its exit status and all it said."""
        defaults = [word for option in self.plugin.options for word in ("--default", option)]
        home = "--own-home" if words[0] == "takeover" else "--home"
        return self.plugin.operate(*words, home, self.plugin.home, *defaults)

    def gc(self) -> tuple[int, str]:
        """Remove what Docker there, which knows of nothing, does not know."""
        return self.operator("gc", "--yes", "--min-age", "0", "--data-root", self.directory)

    def wait_idle(self) -> None:
        """Wait until it has nothing mapped, and the cluster sees it."""
        mapped = self.plugin.environment["RBD_STAND_IN_DIR"]
        wait_until(lambda: not _servers(mapped), "nothing is mapped")
        wait_until(lambda: " DEBUG watching " in self.plugin.log_text(), "the cluster sees it")

    def loses_power(self) -> None:
        """End without a word to the cluster."""
        watchers = self.plugin.watchers()
        assert watchers
        for pid in watchers:
            os.kill(pid, signal.SIGKILL)
        self.plugin.kill()


def _servers(directory: str) -> Sequence[str]:
    return [name for _, names, _ in os.walk(directory) for name in names if name.startswith("m-")]


StartMachine = Callable[..., Machine]


@pytest.fixture
def start_machine(start_plugin: StartPlugin, session_directory: str) -> StartMachine:
    """Start machines of one test: they share a prefix, and have the same path for a home."""
    name = f"one{uuid.uuid4().hex[:6]}"
    home = os.path.join(session_directory, name, "home")
    os.makedirs(home)

    def start(host: str, machine: str, **options: str) -> Machine:
        plugin = start_plugin(init=False, imageprefix=name, **options)
        plugin.terminate()
        return Machine(plugin, home, host, machine)

    return start


def filled(machine: Machine, new_id: NewId) -> str:
    """A layer that Docker there has forgotten."""
    layer = machine.client.create(new_id())
    machine.client.apply_diff(layer, make_tar({"f": "precious"}))
    machine.wait_idle()
    return layer


def bases(cluster: Cluster, prefix: str) -> Sequence[str]:
    return [name for name in cluster.rbd("ls").split() if name.startswith(f"{prefix}_base")]


def prefix_of(machine: Machine) -> str:
    return os.path.basename(os.path.dirname(machine.plugin.home))


def test_machines_of_one_name_are_two_owners(start_machine: StartMachine, new_id: NewId, cluster: Cluster) -> None:
    """Neither mounts nor removes what is the other's; what is left of one that died is taken over by its machine-id."""
    a, b = start_machine("localhost", "a" * 32), start_machine("localhost", "b" * 32)
    a.plugin.init()
    layer = filled(a, new_id)
    b.plugin.init()
    with pytest.raises(Refused, match=f"{layer} belongs to host localhost/{'a' * 32} .*takeover --host localhost/"):
        b.client.get(layer)
    assert b.gc() == (0, "")
    assert tar_names(a.client.diff(layer)) == ["f"]
    a.wait_idle()
    status, said = b.operator("takeover", "--host", "localhost")
    assert (status, "localhost lives: its driver answers from 127.0.0.1:0/" in said) == (2, True), said

    assert a.plugin.terminate() == 0
    status, said = b.operator("takeover", "--host", f"localhost/{'b' * 32}")
    assert (status, "is this very host" in said) == (2, True), said
    status, said = b.operator("takeover", "--host", "localhost")
    assert (status, f"took {prefix_of(a)}_{layer}" in said) == (0, True), said
    assert tar_names(b.client.diff(layer)) == ["f"]
    b.client.created.append(layer)
    a.client.created.clear()


def test_clones_that_start_together(start_machine: StartMachine, new_id: NewId, cluster: Cluster) -> None:
    """One makes the base image and serves; the other is refused, and its gc too, until that one has gone."""
    twins = [start_machine("localhost", "c" * 32) for _ in range(2)]
    refused: dict[int, str] = {}

    def init(number: int) -> None:
        try:
            twins[number].plugin.init()
        except Refused as error:
            refused[number] = error.text

    threads = [threading.Thread(target=init, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [(number, said)] = refused.items()
    assert "another driver lives as host localhost" in said
    assert "answers from 127.0.0.1:0/" in said
    assert "systemd-machine-id-setup" in said
    winner, loser = twins[1 - number], twins[number]
    assert bases(cluster, prefix_of(winner)) == [f"{prefix_of(winner)}_base_image"]

    layer = filled(winner, new_id)
    status, said = loser.gc()
    assert (status, "another driver lives as host localhost" in said) == (2, True), said
    assert tar_names(winner.client.diff(layer)) == ["f"]
    winner.wait_idle()

    assert winner.plugin.terminate() == 0
    loser.plugin.init()
    loser.wait_idle()
    winner.boot()
    wait_until(lambda: "ERROR another driver lives as" in winner.plugin.log_text(), "it is told that it is two")
    assert winner.plugin.log_text().count("ERROR another driver lives as") == 1
    assert loser.plugin.terminate() == 0


def test_a_machine_that_is_renamed_keeps_its_layers(start_machine: StartMachine, new_id: NewId) -> None:
    """It uses them. A clone of it might have the former name: so nothing of that is taken for dead."""
    a = start_machine("before", "d" * 32)
    a.plugin.init()
    layer = filled(a, new_id)
    assert a.plugin.terminate() == 0
    a.host = "after"
    a.boot()
    a.plugin.init()
    assert tar_names(a.client.diff(layer)) == ["f"]
    child = a.client.create(new_id(), layer)
    a.wait_idle()
    status, said = a.gc()
    # What it made itself under its name of now, and Docker does not know.
    assert (status, [line.split()[2] for line in said.splitlines()]) == (0, [child])
    a.client.created.remove(child)
    status, said = a.operator("takeover", "--host", "before")
    assert status == 0, said
    assert tar_names(a.client.diff(layer)) == ["f"]


def test_clones_with_names_of_their_own(start_machine: StartMachine, new_id: NewId) -> None:
    """Made from one image with a machine-id in it: as long as both live, each has its own."""
    a, b = start_machine("one", "e" * 32), start_machine("two", "e" * 32)
    a.plugin.init()
    b.plugin.init()
    layer = filled(a, new_id)
    with pytest.raises(Refused, match=f"{layer} belongs to host one "):
        b.client.get(layer)
    assert a.plugin.terminate() == 0
    assert b.gc() == (0, "")
    a.boot()
    assert tar_names(a.client.diff(layer)) == ["f"]


def test_a_reboot_is_no_clone(start_machine: StartMachine, new_id: NewId) -> None:
    """The cluster takes the one from before for living for 30 s: Init waits for that."""
    a = start_machine("localhost", "f" * 32)
    a.plugin.init()
    layer = filled(a, new_id)
    a.loses_power()
    a.boot()
    a.plugin.init()
    assert tar_names(a.client.diff(layer)) == ["f"]
    assert "another driver lives" not in a.plugin.log_text()


def test_one_memory_image_that_goes_on_twice(start_machine: StartMachine, new_id: NewId) -> None:
    """Both have the same boot, too: they find out that they are not alone, and gc as well."""
    a, b = start_machine("localhost", "9" * 32), start_machine("localhost", "9" * 32)
    a.plugin.init()
    a.wait_idle()
    b.plugin.terminate()
    b.boot(a.same_boot())
    b.plugin.init()
    b.wait_idle()
    status, said = b.gc()
    assert (status, "another driver lives as host localhost" in said) == (2, True), said
    wait_until(lambda: "ERROR another driver lives as" in b.plugin.log_text(), "it is told that it is two")
