"""The throw-away cluster of tests/cluster.sh, and what the tests look at behind the driver's back."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from plugin_client import REPO, PluginProcess, wait_until

CLUSTER = os.path.join(REPO, "tests", "cluster.sh")


def lib_argv(script: str, *arguments: str) -> list[str]:
    """The command for a line of shell with the functions of tests/lib.bash; `$2` is the first argument."""
    return ["bash", "-uc", f'source "$1/tests/lib.bash"; {script}', "bash", REPO, *arguments]


class Cluster:
    """The throw-away Ceph and the tools to look into it, as client.admin."""

    def __init__(self, directory: str, running: str = "", osds: int = 1) -> None:
        """Below `directory`; or one that is up already, in the directory `running`, and is left so."""
        self._is_ours = not running
        self.directory = running or os.path.join(directory, "ceph")
        self.conf = os.path.join(self.directory, "ceph.conf")
        # A directory of our own for the stand-in's state: nobody else's mappings are ever ours.
        self.environment = {
            **os.environ,
            "LAB_FAST_SNAPSHOTS": "1",
            "LAB_OSDS": str(osds),
            "RBD_STAND_IN_DIR": os.path.join(directory, "mapped"),
        }

    def up(self) -> None:
        """Start it, and take over the environment that it asks for."""
        if self._is_ours:
            print(self.run([CLUSTER, "up", self.directory]))
        script = f'eval "$({CLUSTER} env {self.directory})"; env -0'
        self.environment = dict(pair.split("=", 1) for pair in self.run(["bash", "-c", script]).split("\0") if pair)

    def down(self) -> None:
        """End it."""
        if self._is_ours:
            self.run([CLUSTER, "down", self.directory])

    def run(self, argv: Sequence[str], timeout: float = 120) -> str:
        """Run a command in the cluster's environment; its output."""
        done = subprocess.run(
            argv,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(argv)}: exit {done.returncode}: {done.stderr[-2000:]}"
        return done.stdout

    def rbd(self, *words: str) -> str:
        """One rbd command."""
        return self.run(["rbd", "--conf", self.conf, *words])

    def ceph(self, *words: str) -> str:
        """One ceph command."""
        return self.run(["ceph", "--conf", self.conf, *words])

    def typed(self, line: str) -> str:
        """One command line that a document tells its reader to type, as it stands there."""
        return self.run(lib_argv('export CEPH_CONF=$3; typed "$2"', line, self.conf))

    def images(self, prefix: str = "", spec: str = "rbd") -> list[str]:
        """The images whose names start with `prefix`, base images not among them."""
        names = json.loads(self.rbd("ls", spec, "--format", "json"))
        return sorted(name for name in names if name.startswith(prefix) and not name.endswith("_base_image"))

    def wait_images(self, expected: Sequence[str], prefix: str = "docker_image_") -> None:
        """Wait until these are the images: the driver removes them behind what Docker has removed."""
        try:
            wait_until(lambda: self.images(prefix) == list(expected), f"the pool holds {expected}")
        except AssertionError as error:
            raise AssertionError(f"{error}, but {self.images(prefix)}") from None

    def trash(self, prefix: str = "", spec: str = "rbd") -> list[str]:
        """The names in the trash."""
        said = json.loads(self.rbd("trash", "ls", spec, "--format", "json"))
        return sorted(item["name"] for item in said if item["name"].startswith(prefix))

    def info(self, image: str) -> dict[str, Any]:
        """What rbd info says."""
        said = json.loads(self.rbd("info", f"rbd/{image}", "--format", "json"))
        assert isinstance(said, dict)
        return said

    def mapped(self) -> list[str]:
        """The names of images that this host has mapped, of both device types."""
        lists = [json.loads(self.rbd("device", "list", "-t", kind, "--format", "json")) for kind in ("krbd", "nbd")]
        return sorted(item.get("name") or item["image"] for items in lists for item in items)

    def wait_unmapped(self) -> None:
        """Wait until this host has nothing mapped: the driver unmaps behind what Docker has put."""
        wait_until(lambda: self.mapped() == [], "nothing is mapped")

    def daemon(self, name: str) -> int:
        """The process of one of its daemons, such as osd.0."""
        with open(os.path.join(self.directory, "run", f"{name}.pid"), encoding="ascii") as source:
            return int(source.read())

    def snapshots(self, prefix: str = "") -> list[str]:
        """The images that have snapshots, whose names start with `prefix`, base images not among them."""
        names = self.images(prefix)
        return [name for name in names if json.loads(self.rbd("snap", "ls", f"rbd/{name}", "--format", "json"))]

    def ancestors(self, image: str) -> int:
        """How many images stand behind one: the kernel maps it only up to 16."""
        parent = self.info(image).get("parent")
        return 1 + self.ancestors(parent["image"]) if parent else 0


def device_server(environment: Mapping[str, str], image: str) -> int:
    """The process that serves an image's device, in a plugin's environment; with krbd there is none."""
    for path in glob.glob(os.path.join(environment["RBD_STAND_IN_DIR"], "*", "m-*")):
        with (
            contextlib.suppress(FileNotFoundError),
            open(f"{path}/meta", encoding="utf-8") as meta,
            open(f"{path}/pid", encoding="ascii") as pid,
        ):
            if json.load(meta).get("image") == image:
                return int(pid.read())
    raise AssertionError(f"{image} is not mapped")


def device_servers(environment: Mapping[str, str]) -> list[int]:
    """The processes that serve the devices of a host: with them goes what was not written out. What is unmapped
    meanwhile is left out.
    """
    found = []
    for path in glob.glob(os.path.join(environment["RBD_STAND_IN_DIR"], "*", "m-*", "pid")):
        # A daemon that has just begun has nothing written yet.
        with contextlib.suppress(FileNotFoundError, ValueError), open(path, encoding="ascii") as source:
            found.append(int(source.read()))
    return found


def kill_device_servers(environment: Mapping[str, str]) -> int:
    """End them at once, as a power cut does; how many there were."""
    servers = device_servers(environment)
    send_all(servers, signal.SIGKILL)
    return len(servers)


def send_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes, of which some may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def mounts_below(directory: str) -> list[str]:
    """The mount points below a directory, as the kernel lists them."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        points = [line.split()[4] for line in table]
    return [point for point in points if point.startswith(directory + "/")]


def views_below(directory: str) -> list[str]:
    """The mount points of views below a directory, without the layers' own file systems: those stay for seconds."""
    return [point for point in mounts_below(directory) if os.path.basename(point) != "layer"]


# The fixture of that name: starts a plugin with options, given by their names without "ceph.".
StartPlugin = Callable[..., PluginProcess]
