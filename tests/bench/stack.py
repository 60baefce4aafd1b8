"""What is measured, started and ended: a cluster with default monitor settings, the driver, dockerd on it, the peer.

Everything lives below one directory, but for the driver's socket, which dockerd looks for in /run/docker/plugins. The
peer is a second dockerd, with overlay2 on the local disk. Daemons are started and ended by the functions of
tests/lib.bash, as in demo.sh and the end-to-end tests; each is ended by the pid that was written down.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from engine import Engine
from lab import lib_argv
from plugin_client import REPO, Client
from usage import Watch

PLUGINS = "/run/docker/plugins"
PREFIX = "docker_image_"
SETTLE_SECONDS = 300.0
# The OSD tells the manager once a second what it stores.
STATISTICS_PAUSE = 1.2


class BenchError(Exception):
    """The benchmark cannot go on: one line that says why."""


class Stack:
    """The cluster and the driver, and with `start_docker` both dockerds; `ours` and `peer` are their APIs."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.name = f"cephbench{os.getpid()}"
        self.socket = f"{PLUGINS}/{self.name}.sock"
        self.log = f"{directory}/driver.log"
        self.conf = f"{directory}/ceph/ceph.conf"
        self.environment = {key: value for key, value in os.environ.items() if key != "LAB_FAST_SNAPSHOTS"}
        self.how_mapped = ""
        self.ours = Engine(f"{directory}/ours/docker.sock")
        self.peer = Engine(f"{directory}/peer/docker.sock")
        self.client = Client(self.socket)
        self.watch: Watch | None = None

    # -- start and end -----------------------------------------------------------------------

    def start_cluster(self) -> None:
        """Start the cluster and note what is on this machine now, for the search for leaks."""
        said = self.run([f"{REPO}/tests/cluster.sh", "up", f"{self.directory}/ceph"])
        self.how_mapped = next(line[5:] for line in said.splitlines() if line.startswith("map: "))
        script = f'eval "$({REPO}/tests/cluster.sh env {self.directory}/ceph)"; env -0'
        pairs = self.run(["bash", "-c", script]).rstrip("\0").split("\0")
        self.environment = dict(pair.split("=", 1) for pair in pairs)
        self.run([f"{REPO}/tests/leaks.sh", "snapshot", f"{self.directory}/before", self.conf])

    def start_driver(self) -> None:
        """Start the driver with a debug log, which costs a line per command, and watch what it uses."""
        start = 'start_plugin "$2" "$3" --log-level debug && echo "$plugin_pid"'
        pid = self._lib(start, self.log, self.socket).strip()
        with open(f"{self.directory}/driver.pid", "w", encoding="ascii") as target:
            target.write(pid)
        self.watch = Watch(int(pid))

    def start_docker(self) -> None:
        """Start dockerd on the driver, and the peer."""
        ceph = ("--storage-opt", f"ceph.configfile={self.conf}")
        self._lib('start_dockerd "${@:2}"', f"{self.directory}/ours", self.name, *ceph)
        self._lib('start_dockerd "${@:2}"', f"{self.directory}/peer", "overlay2")

    def stop(self) -> list[str]:
        """End everything, whatever came up; return what was left behind on the machine."""
        if self.watch:
            self.watch.stop()
        for site, engine in (("ours", self.ours), ("peer", self.peer)):
            if os.path.exists(f"{self.directory}/{site}/docker.sock"):
                with contextlib.suppress(Exception):
                    engine.remove_containers()
            for daemon in ("docker", "containerd"):
                self._end(f"{self.directory}/{site}/{daemon}.pid", f"{self.directory}/{site}")
        self._end(f"{self.directory}/driver.pid", self.socket)
        for suffix in ("", ".lock", ".state"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket + suffix)
        left = self._leaks()
        self._unmount_all()
        self.run([f"{REPO}/tests/cluster.sh", "down", f"{self.directory}/ceph"])
        return left

    def _leaks(self) -> list[str]:
        """What came since the cluster's start and is ours; other people work on the same machine.

        Images stay, since the pool goes with them.
        """
        if not os.path.exists(f"{self.directory}/before"):
            return []
        argv = [f"{REPO}/tests/leaks.sh", "compare", f"{self.directory}/before", self.conf]
        environment = {**self.environment, "LEAKS_IGNORE": "^(image|trash): "}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        ours = ("krbd mapping", "nbd mapping")
        return [line for line in done.stdout.splitlines() if self.directory in line or line.startswith(ours)]

    def _unmount_all(self) -> None:
        with open("/proc/self/mountinfo", encoding="utf-8") as table:
            points = [line.split()[4] for line in table]
        for point in reversed([point for point in points if point.startswith(self.directory + "/")]):
            subprocess.run(["umount", point], check=False)

    def _end(self, pid_file: str, word: str) -> None:
        self._lib('end_recorded "$2" "$3"', pid_file, word)

    # -- looking at it -----------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until the trash is empty, what was removed is gone, and nothing is mapped for nobody.

        What is done in the background must not slow the next row down, and is part of what is stored.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while (self._removed() or self._trashed() or self._idle()) and time.monotonic() < deadline:
            time.sleep(0.2)

    def stored(self) -> int:
        """Bytes that the pool takes on the OSD, once that number stands still."""
        self.settle()
        history = [-1, -2, -3]
        deadline = time.monotonic() + SETTLE_SECONDS
        while len(set(history[-3:])) > 1 and time.monotonic() < deadline:
            time.sleep(STATISTICS_PAUSE)
            pools = self.json("ceph", "df", "--format", "json")["pools"]
            history.append(next(int(pool["stats"]["bytes_used"]) for pool in pools if pool["name"] == "rbd"))
        return history[-1]

    def wait_unmapped(self) -> None:
        """Wait until none of the driver's images is mapped: the state of a host that has just started.

        Raises BenchError when the driver keeps one that nobody uses for longer than that.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while mapped := self._mapped():
            if time.monotonic() > deadline:
                raise BenchError(f"still mapped after {SETTLE_SECONDS:.0f} s: {', '.join(mapped)}")
            time.sleep(0.2)

    def _mapped(self) -> list[str]:
        """The driver's images that are mapped. (The kernel's mapping has a `name`, that of rbd-nbd an `image`.)"""
        devices = self.json("rbd", "device", "list", "--format", "json")
        names = [str(item.get("name", item.get("image"))) for item in devices]
        return [name for name in names if name.startswith(PREFIX)]

    def _idle(self) -> bool:
        devices = {str(item["device"]) for item in self.json("rbd", "device", "list", "--format", "json")}
        with open("/proc/self/mountinfo", encoding="utf-8") as table:
            return bool(devices - {line.split(" - ", 1)[1].split()[1] for line in table})

    def _removed(self) -> bool:
        return any(glob.glob(f"{self.directory}/{home}/mnt/*/removed") for home in ("*", "*/*"))

    def _trashed(self) -> bool:
        items = self.json("rbd", "trash", "ls", "rbd", "--format", "json")
        return any(item["name"].startswith(PREFIX) for item in items)

    def json(self, *argv: str) -> Any:
        """What a command prints."""
        return json.loads(self.run(argv))

    def run(self, argv: Sequence[str], seconds: float = 300) -> str:
        """Run a command in the cluster's environment and return what it prints. Raises BenchError."""
        done = subprocess.run(
            argv,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()[-1000:]}")
        return done.stdout

    def _lib(self, script: str, *arguments: str) -> str:
        """Run a line of shell with the functions of tests/lib.bash; `$2` is the first argument."""
        return self.run(lib_argv(script, *arguments))


@contextlib.contextmanager
def running(*, docker: bool, keep_log: str = "", driver: bool = True) -> Iterator[Stack]:
    """A stack for the length of a `with` block; the driver's log is kept as `keep_log`. Raises BenchError for leaks.

    Without `driver` it is the cluster alone.
    """
    # Sockets have paths of 107 bytes at most.
    stack = Stack(tempfile.mkdtemp(prefix="dgd-bench-", dir="/var/tmp"))
    left: list[str] = []
    try:
        stack.start_cluster()
        if driver:
            stack.start_driver()
        if docker:
            stack.start_docker()
        yield stack
    except BaseException:
        _tell_logs(stack)
        raise
    finally:
        left = stack.stop()
        if keep_log:
            with contextlib.suppress(FileNotFoundError):
                os.makedirs(os.path.dirname(keep_log), exist_ok=True)
                shutil.copy(stack.log, keep_log)
        shutil.rmtree(stack.directory)
    if left:
        raise BenchError("left behind: " + "; ".join(left))


def _tell_logs(stack: Stack) -> None:
    for path in (stack.log, f"{stack.directory}/ours/dockerd.log", f"{stack.directory}/peer/dockerd.log"):
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as source:
            print(f"--- the end of {path}", *source.read().splitlines()[-15:], sep="\n", file=sys.stderr)
