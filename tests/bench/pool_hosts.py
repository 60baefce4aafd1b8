"""Hosts of one pool on one machine: each has a root, a containerd and a host name of its own; and the registry for all.

A host's snapshotter is ours, or containerd's own overlayfs on the local disk. Hosts of ours that share a machine-id are
told apart by their roots. Images are pulled as a kubelet has it done: `ctr image pull` of containerd 1.x does not look
for layers that are there already. All that a host starts and mounts is ended with it, whatever has failed before.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import grpc
from cri import ImageService
from plugin_client import PYTHON, REPO
from results import OURS
from stack import BenchError, Stack
from usage import Watch

NAMESPACE = "k8s.io"
SNAPSHOTTERS = {True: "ceph", False: "overlayfs"}
COMMAND_SECONDS, PULL_SECONDS, WAIT_SECONDS, END_SECONDS = 120.0, 900.0, 300.0, 60.0

_CONTAINERD = """
version = 2
root = "{directory}/containerd"
state = "{directory}/run"

[grpc]
  address = "{directory}/c.sock"

[ttrpc]
  address = "{directory}/c.sock.ttrpc"

[proxy_plugins.ceph]
  type = "snapshot"
  address = "{directory}/s.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{snapshotter}"

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{directory}/cni/bin"
  conf_dir = "{directory}/cni/conf"
"""


class Registry:
    """tests/registry.py with the blobs of an image (bench_images.published) in it; it counts what is fetched."""

    def __init__(self, directory: str, blobs: str, name: str) -> None:
        os.mkdir(directory)
        for blob in os.listdir(blobs):
            os.symlink(os.path.join(blobs, blob), os.path.join(directory, blob))
        with open(os.path.join(directory, f"{name}_latest"), encoding="utf-8") as source:
            self._layers = {layer["digest"] for layer in json.load(source)["layers"]}
        self._fetched = os.path.join(directory, "fetched")
        self._process = subprocess.Popen(
            [PYTHON, os.path.join(REPO, "tests", "registry.py"), directory],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(lambda: os.path.exists(os.path.join(directory, "port")), "the registry")
            with open(os.path.join(directory, "port"), encoding="ascii") as port:
                self.image = f"127.0.0.1:{port.read()}/{name}:latest"
        except BaseException:
            self.end()
            raise

    def fetched(self) -> int:
        """How many bytes of the image's layers were fetched so far."""
        with contextlib.suppress(FileNotFoundError), open(self._fetched, encoding="ascii") as source:
            words = [line.split() for line in source]
            return sum(int(size) for digest, size in words if digest in self._layers)
        return 0

    def end(self) -> None:
        """End it."""
        _end(self._process)


class Host:
    """A running host, of ours or of the peer: `who`, as results.py has them."""

    def __init__(self, stack: Stack, name: str, who: str) -> None:
        """Start it. If that fails, nothing of it is left running."""
        self.directory = os.path.join(stack.directory, name)
        self.who, self.name, self._stack = who, name, stack
        self.log = os.path.join(self.directory, "snapshotter.log")
        # What the stand-in maps for it is told apart from what it maps for others.
        self._environment = {**stack.environment, "RBD_STAND_IN_DIR": os.path.join(self.directory, "mapped")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._snapshotter = SNAPSHOTTERS[who == OURS]
        self.watch: Watch | None = None
        os.mkdir(self.directory)
        try:
            self._start()
        except BaseException:
            self.end()
            raise

    def _start(self) -> None:
        if self.who == OURS:
            words = ["--address", f"{self.directory}/s.sock", "--root", f"{self.directory}/root"]
            words += ["--option", f"ceph.configfile={self._stack.conf}", "--log-level", "debug"]
            self._launch("snapshotter", [PYTHON, os.path.join(REPO, "docker_graph_driver.py"), "snapshotter", *words])
            self.watch = Watch(self._daemons[0].pid)
        config = os.path.join(self.directory, "containerd.toml")
        with open(config, "w", encoding="utf-8") as target:
            target.write(_CONTAINERD.format(directory=self.directory, snapshotter=self._snapshotter))
        self._launch("containerd", ["containerd", "--config", config])
        wait_for(self._makes_snapshots, f"{self.name} makes a snapshot")
        self._images = ImageService(f"{self.directory}/c.sock", PULL_SECONDS)
        wait_for(self._lists_images, f"{self.name} lists its images")
        # What was made to see whether it can be is removed some time later, which is not to be measured.
        wait_for(lambda: not glob.glob(f"{self.directory}/root/mnt/*"), f"{self.name} has removed its first snapshot")

    def _launch(self, name: str, argv: Sequence[str]) -> None:
        with open(f"{self.directory}/{name}.log", "ab") as log:
            process = subprocess.Popen(
                ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"bench-{self.name}", *argv],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._daemons.append(process)

    def _makes_snapshots(self) -> bool:
        if any(daemon.poll() is not None for daemon in self._daemons):
            raise BenchError(f"a daemon of {self.name} has ended: {self.log_tail()}")
        probe = ("snapshots", "--snapshotter", self._snapshotter)
        with contextlib.suppress(BenchError):
            self.ctr(*probe, "prepare", "probe")
            self.ctr(*probe, "delete", "probe")
            return True
        return False

    def _lists_images(self) -> bool:
        with contextlib.suppress(grpc.RpcError):
            self._images.call("ListImages")
            return True
        return False

    # -- images and containers ---------------------------------------------------------------

    def pull(self, image: str) -> None:
        """Pull an image as a kubelet does."""
        self._images.call("PullImage", image=self._images.image(image))

    def remove_image(self, image: str) -> None:
        """Remove it, and for the peer what was stored for it."""
        self._images.call("RemoveImage", image=self._images.image(image))

    def run(self, image: str) -> None:
        """A container that does nothing, from its making to its removal."""
        self.ctr("run", "--rm", *self._container(image), "true")

    def start(self, image: str) -> str:
        """A container that sleeps; its name."""
        *words, name = self._container(image)
        self.ctr("run", "--detach", *words, name, "sleep", "10000")
        return name

    def remove(self, container: str) -> None:
        """Remove a container that `start` has made."""
        self.ctr("tasks", "delete", "--force", container)
        self.ctr("containers", "delete", container)

    def file(self, container: str, path: str) -> str:
        """Path at which the benchmark sees a file of a running container."""
        table = [line.split() for line in self.ctr("tasks", "list").splitlines()]
        return f"/proc/{next(words[1] for words in table if words[0] == container)}/root/{path}"

    def _container(self, image: str) -> list[str]:
        # What runc remembers of all, it would have in one place of this machine.
        words = ["--null-io", "--runc-root", f"{self.directory}/runc", "--snapshotter", self._snapshotter]
        return [*words, image, f"bench-{uuid.uuid4().hex[:12]}"]

    def ctr(self, *words: str) -> str:
        """A command of ctr; what it prints. Raises BenchError."""
        return self._run(["ctr", "--address", f"{self.directory}/c.sock", "--namespace", NAMESPACE, *words])

    # -- looking at it, and its end ----------------------------------------------------------

    def quiet(self) -> None:
        """Wait until it has nothing to remove any more: that is done in the background."""
        if self.who == OURS:
            pattern = f"{self.directory}/root/mnt/*/removed"
            wait_for(lambda: not glob.glob(pattern), f"{self.name} has removed what it was to remove")

    def mapped(self) -> list[str]:
        """The devices that it has mapped."""
        if self.who != OURS:
            return []
        return [str(item["device"]) for item in json.loads(self._run(["rbd", "device", "list", "--format", "json"]))]

    def log_tail(self) -> str:
        """The last lines of its daemons."""
        lines = []
        for name in ("snapshotter", "containerd"):
            with (
                contextlib.suppress(OSError),
                open(f"{self.directory}/{name}.log", encoding="utf-8", errors="replace") as log,
            ):
                lines += [line[:300] for line in log.read().splitlines()[-15:]]
        return "\n".join(lines)

    def end(self, keep_log: str = "") -> None:
        """End it, with its containers, mounts and mappings, and remove its directory; `keep_log` gets its log, too."""
        if self.watch:
            self.watch.stop()
        with contextlib.suppress(BenchError):
            for container in self.ctr("containers", "list", "--quiet").split():
                with contextlib.suppress(BenchError):
                    self.ctr("tasks", "delete", "--force", container)
        for daemon in reversed(self._daemons):
            _end(daemon)
        for point in reversed(_mounts_below(self.directory)):
            # What serves a mapping is mounted, too, and goes with it.
            if not point.startswith(f"{self.directory}/mapped/"):
                subprocess.run(["umount", point], timeout=COMMAND_SECONDS, check=False)
        with contextlib.suppress(BenchError):
            for device in self.mapped():
                self._run(["rbd", "device", "unmap", device, "--options", "noudev"])
        if keep_log and os.path.exists(self.log):
            os.makedirs(os.path.dirname(keep_log), exist_ok=True)
            with open(self.log, "rb") as source, open(keep_log, "ab") as target:
                shutil.copyfileobj(source, target)
        if not _mounts_below(self.directory):
            shutil.rmtree(self.directory)

    def _run(self, argv: Sequence[str]) -> str:
        return run(argv, self._environment)


def run(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a command; what it prints. Raises BenchError, also if it takes too long."""
    try:
        done = subprocess.run(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(str(error)) from error
    if done.returncode:
        raise BenchError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def wait_for(what: Callable[[], bool], name: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait until something is true. Raises BenchError."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise BenchError(f"not within {seconds:.0f} s: {name}")
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_SECONDS)


def _mounts_below(directory: str) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        points = [line.split()[4] for line in table]
    return [point for point in points if point.startswith(directory + "/")]
