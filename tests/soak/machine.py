"""The cluster, the driver and a dockerd on it, and the faults: each ends with all of them at work again."""

from __future__ import annotations

import contextlib
import glob
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator

from lab import Cluster, lib_argv, mounts_below
from plugin_client import REPO, PluginProcess, process_state, wait_until

PLUGINS = "/run/docker/plugins"
DOCKERD_SECONDS = 90.0
# An OSD that answers again serves what waited for it.
AFTER_PAUSE_SECONDS = 5.0


class DockerError(Exception):
    """A docker command failed, or did not end: one line with its words."""


class Host:
    """The host; `disturbed_at` tells when something was last wrong with it."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.cluster = Cluster(directory)
        self.name = f"cephsoak{os.getpid()}"
        self.faults: Counter[str] = Counter()
        self.disturbed_at = 0.0
        self._ready = threading.Event()
        self._plugin: PluginProcess | None = None

    @property
    def plugin(self) -> PluginProcess:
        """The driver."""
        assert self._plugin
        return self._plugin

    # -- start and end -----------------------------------------------------------------------

    def start(self) -> None:
        """Start all of it."""
        self.cluster.up()
        self._plugin = PluginProcess(os.path.join(self.directory, "plugin"), self.cluster.environment)
        self._plugin.socket = f"{PLUGINS}/{self.name}.sock"
        os.makedirs(PLUGINS, exist_ok=True)
        self._plugin.start()
        self.start_dockerd()
        self._ready.set()

    def stop(self) -> None:
        """End all of it, whatever of it runs."""
        subprocess.run(lib_argv('end_recorded "$2/docker.pid" "$2"', self.directory), check=False)
        # The containers of a dockerd that did not come back.
        subprocess.run(lib_argv('end_containers "$2"', self.directory), check=False)
        subprocess.run(lib_argv('end_recorded "$2/containerd.pid" "$2"', self.directory), check=False)
        if self._plugin and self._plugin.running:
            self._plugin.terminate()
        for suffix in (".lock", ".state"):
            if os.path.exists(self.plugin.socket + suffix):
                os.unlink(self.plugin.socket + suffix)
        for point in reversed(mounts_below(self.directory)):
            subprocess.run(["umount", "--lazy", point], check=False)
        self.cluster.down()

    def wait_ready(self, seconds: float) -> bool:
        """Wait until no fault is being made; tell whether that is so."""
        return self._ready.wait(seconds)

    def docker(self, *words: str, data: bytes = b"", seconds: float = 180, buildkit: bool = False) -> bytes:
        """One docker command; what it prints. Raises DockerError."""
        environment = {**self.cluster.environment, "DOCKER_CONFIG": f"{self.directory}/client"}
        environment["DOCKER_BUILDKIT"] = str(int(buildkit))
        argv = ["/usr/bin/docker", "--host", f"unix://{self.directory}/docker.sock", *words]
        try:
            done = subprocess.run(argv, input=data, env=environment, capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            raise DockerError(f"docker {' '.join(words)[:200]}: not within {seconds:g} s") from None
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[-500:]
            raise DockerError(f"docker {' '.join(words)[:200]}: exit {done.returncode}: {said}")
        return done.stdout

    def operator(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One of the driver's own commands, such as check."""
        program = os.path.join(REPO, "docker_graph_driver.py")
        argv = [self.plugin.python, program, words[0], "--socket", self.plugin.socket, *words[1:]]
        return subprocess.run(
            argv, env=self.cluster.environment, capture_output=True, text=True, timeout=300, check=False
        )

    def named(self) -> list[str]:
        """The layers of images that Docker's layer store has, read from its files."""
        paths = glob.glob(f"{self.directory}/data/image/{self.name}/layerdb/sha256/*/cache-id")
        found = []
        for path in paths:
            with open(path, encoding="ascii") as source:
                found.append(source.read().strip())
        return found

    def end_dockerd(self, number: signal.Signals) -> None:
        """End dockerd by a signal; its containers' processes may go on."""
        with open(f"{self.directory}/docker.pid", encoding="ascii") as source:
            pid = int(source.read())
        os.kill(pid, number)
        wait_until(lambda: process_state(pid) in ("", "Z"), "dockerd ends", DOCKERD_SECONDS)
        # Who is killed leaves it, and the next one waits for as long as that process is not reaped.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.directory}/docker.pid")

    def start_dockerd(self, *options: str) -> None:
        """Start it, again after `end_dockerd`."""
        conf = ("--storage-opt", f"ceph.configfile={self.cluster.conf}")
        self.cluster.run(lib_argv('start_dockerd "${@:2}"', self.directory, self.name, *conf, *options), 150)

    # -- faults ------------------------------------------------------------------------------

    def disturb(self, chance: random.Random) -> None:
        """Make one fault, and return when everything works again."""
        faults = (self._kill_plugin, self._restart_plugin, self._pause_osd, self._restart_dockerd, self._kill_dockerd)
        fault = chance.choices(faults, weights=(4, 1, 3, 1, 1))[0]
        with self._disturbed(fault.__name__.strip("_").replace("_", " ")):
            fault(chance)

    @contextlib.contextmanager
    def _disturbed(self, what: str) -> Iterator[None]:
        self.faults[what] += 1
        self._ready.clear()
        self.disturbed_at = time.monotonic()
        try:
            yield
        finally:
            self.disturbed_at = time.monotonic()
            self._ready.set()

    def _kill_plugin(self, chance: random.Random) -> None:
        self.plugin.kill()
        # systemd waits 100 ms before it starts a service anew, and it may have been told to wait longer.
        time.sleep(chance.choice((0.1, 0.1, 2.0)))
        self.plugin.start()

    def _restart_plugin(self, _: random.Random) -> None:
        if status := self.plugin.terminate():
            raise AssertionError(f"the driver ended with {status}: {self.plugin.log_tail()}")
        self.plugin.start()

    def _pause_osd(self, chance: random.Random) -> None:
        osd = self.cluster.daemon("osd.0")
        os.kill(osd, signal.SIGSTOP)
        try:
            time.sleep(chance.uniform(0.5, 6))
        finally:
            os.kill(osd, signal.SIGCONT)
        time.sleep(AFTER_PAUSE_SECONDS)

    def _restart_dockerd(self, chance: random.Random) -> None:
        self._dockerd_again(signal.SIGTERM, chance)

    def _kill_dockerd(self, chance: random.Random) -> None:
        self._dockerd_again(signal.SIGKILL, chance)

    def _dockerd_again(self, number: signal.Signals, chance: random.Random) -> None:
        self.end_dockerd(number)
        survivors = self._tasks("list", "--quiet").split()
        self.start_dockerd(*chance.choice(((), ("--live-restore",))))
        # A container that dockerd had made, or even started, but not written down yet when it ended is not known to the
        # next one (seen on 20.10.24). Its process holds its root, and Remove says so: an operator ends it.
        running = self.docker("ps", "--quiet", "--no-trunc").decode().split()
        for lost in set(survivors).difference(running):
            self._tasks("delete", "--force", lost)
        # A commit pauses its container, and a dockerd that ends meanwhile leaves it so where it keeps its containers.
        for paused in self.docker("ps", "--quiet", "--filter", "status=paused").decode().split():
            with contextlib.suppress(DockerError):
                self.docker("unpause", paused)

    def _tasks(self, *words: str) -> str:
        """Ask containerd, or tell it, something of the processes of containers; its output, if there is any."""
        argv = lib_argv('tasks "${@:2}"', self.directory, *words)
        return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60).stdout
