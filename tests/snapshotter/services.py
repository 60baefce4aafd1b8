"""The services that the suite talks to: ours on a real cluster, and containerd with its own overlayfs as the reference.

What stands in the suite is true of both. What containerd adds on top of its snapshotter, and how the tests see to it:

- snapshots belong to a namespace, and its collector removes those that nobody has a lease for. Here it never runs.
- it takes no labels over 4096 bytes in key and value, whatever the snapshotter is.
- a List is put together of several looks at its database and at the snapshotter: a snapshot that is committed meanwhile
  may be missing under both of its names.
- the error of a filter that does not parse loses its code (`MALFORMED_FILTER`).
- Cleanup is not implemented for clients: its collector calls the snapshotter's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence

from client import INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE, Refused, Snapshots
from lab import Cluster, device_servers, mounts_below, send_all
from needs import requires
from plugin_client import SLOWNESS, PluginProcess, wait_until

REFERENCE = "overlayfs"
CEPH = "ceph"
MALFORMED_FILTER = {REFERENCE: "UNKNOWN", CEPH: INVALID_ARGUMENT}
_CONTAINERD = """
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{directory}/s.sock"
[plugins."io.containerd.gc.v1.scheduler"]
  deletion_threshold = 0
  mutation_threshold = 1000000
  startup_delay = "1000h"
"""


class Service:
    """A service with its socket and its state, which outlive the process. `name` is the snapshotter's."""

    name = ""
    namespace: str | None = None

    def __init__(self, address: str) -> None:
        self.address = address

    def client(self, timeout: float = 60) -> Snapshots:
        """A connection of its own."""
        return Snapshots(self.address, self.name, self.namespace, timeout)

    def start(self) -> None:
        """Start it, and wait until it answers a call, and makes snapshots: ours first waits for the cluster."""
        self._launch()
        probe = self.client()
        wait_until(lambda: self._answers(probe), f"{self.name} answers")
        wait_until(lambda: self._makes_one(probe), f"{self.name} makes a snapshot")
        probe.close()

    def restart(self, *, kill: bool = False) -> None:
        """End it, by SIGKILL or as systemd would, and start it again."""
        self.kill() if kill else self.end()
        self.start()

    def end(self) -> None:
        """SIGTERM, and wait for its end."""
        raise NotImplementedError

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        raise NotImplementedError

    def left(self) -> list[str]:
        """What it still has of snapshots that were removed: their data goes in the background."""
        return []

    def log_tail(self) -> str:
        """The end of its log."""
        raise NotImplementedError

    def _launch(self) -> None:
        raise NotImplementedError

    def _running(self) -> bool:
        raise NotImplementedError

    def _makes_one(self, probe: Snapshots) -> bool:
        assert self._running(), self.log_tail()
        try:
            probe.prepare("first of all")
        except Refused as error:
            assert error.code == UNAVAILABLE, error
            return False
        probe.remove("first of all")
        return True

    def _answers(self, probe: Snapshots) -> bool:
        assert self._running(), self.log_tail()
        try:
            probe.stat("nobody has this key")
        except Refused as error:
            if error.code == UNAVAILABLE:
                return False
            assert error.code == NOT_FOUND, error
            return True
        raise AssertionError("it knows a key that nobody made")


class Reference(Service):
    """A containerd of our own, and its snapshotter overlayfs."""

    name = REFERENCE
    namespace = "suite"

    def __init__(self, directory: str) -> None:
        super().__init__(os.path.join(directory, "s.sock"))
        requires(shutil.which("containerd") is not None, "containerd")
        os.makedirs(directory)
        self._log = os.path.join(directory, "log")
        self._config = os.path.join(directory, "config.toml")
        with open(self._config, "w", encoding="utf-8") as target:
            target.write(_CONTAINERD.format(directory=directory))
        self._process: subprocess.Popen[bytes] | None = None

    def end(self) -> None:
        assert self._process
        self._process.terminate()
        self._process.wait(60 * SLOWNESS)

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait(60 * SLOWNESS)

    def log_tail(self) -> str:
        with open(self._log, encoding="utf-8", errors="replace") as source:
            return "\n".join(source.read().splitlines()[-60:])

    def _launch(self) -> None:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                ["containerd", "--config", self._config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _running(self) -> bool:
        return self._process is not None and self._process.poll() is None


class _Process(PluginProcess):
    """The program with the command that serves containerd in place of Docker. `more`: further words of the command."""

    more: Sequence[str] = ()

    def arguments(self) -> list[str]:
        options = [word for option in self.options for word in ("--option", option)]
        return [
            "snapshotter",
            "--address",
            self.socket,
            "--root",
            self.home,
            "--log-level",
            "debug",
            *options,
            *self.more,
        ]

    def site(self) -> list[str]:
        return ["--root", self.home]


class Ceph(Service):
    """docker_graph_driver.py snapshotter, with a directory of its own."""

    name = CEPH

    def __init__(self, cluster: Cluster, directory: str, options: Mapping[str, str | Sequence[str]]) -> None:
        pairs = [
            f"ceph.{name}={value}"
            for name, values in {**options, "configfile": cluster.conf}.items()
            for value in ([values] if isinstance(values, str) else values)
        ]
        self._process = _Process(directory, cluster.environment, pairs)
        self._cluster = cluster
        self._dead: list[dict[str, str]] = []
        super().__init__(self._process.socket)

    @property
    def root(self) -> str:
        """What it remembers, and its mounts."""
        return self._process.home

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.running

    def live_on(self, host: str) -> None:
        """Be on a host of that name from the next start on, with mappings that no other one sees."""
        self._process.host = host
        self._process.environment["RBD_STAND_IN_DIR"] = os.path.join(self._cluster.directory, f"mapped-{host}")

    def add(self, *words: str) -> None:
        """Be started with these words, too, from the next start on."""
        self._process.more = words

    def run_by(self, python: str) -> None:
        """Be run by another Python from the next start on."""
        self._process.python = python

    def operate(self, *words: str) -> tuple[int, str]:
        """Run one of the operator's commands on its host; its exit status and all it said."""
        return self._process.operate(*words)

    def die(self) -> None:
        """What is left when a machine is lost: what is in Ceph, and its disk."""
        watchers = self._process.watchers()
        self.kill()
        send_all([*watchers, *device_servers(self._process.environment)], signal.SIGKILL)
        for point in reversed(mounts_below(self.root)):
            subprocess.run(["umount", "--lazy", point], check=True)
        self._dead.append(dict(self._process.environment))

    def bury(self) -> None:
        """End what is left here of its mappings since it died: the stand-in looks for that itself."""
        for environment in self._dead:
            argv = ["rbd", "--conf", self._cluster.conf, "device", "list"]
            subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=120)

    def end(self) -> None:
        assert self._process.terminate() == 0, self.log_tail()
        assert not os.path.exists(self.address)
        log = self._process.log_text()
        assert "Traceback" not in log
        assert "defect of the driver" not in log

    def kill(self) -> None:
        self._process.kill()

    def log_tail(self) -> str:
        return self._process.log_tail()

    def left(self) -> list[str]:
        return mounts_below(self._process.home) + self._cluster.images("docker_image_")

    def _launch(self) -> None:
        self._process.launch()

    def _running(self) -> bool:
        return self._process.running
