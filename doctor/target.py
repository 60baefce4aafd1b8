"""What a doctor looks at: a driver for Docker or a snapshotter, its socket, its home, and its storage options.

What the command line does not say is as at the last start, or, before the first one, as Docker's configuration has it.
What it says wins: it may name a key or a pool that is to be used from the next start on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from doctor import docker_engine
from doctor.containerd_engine import ContainerdEngine
from doctor.docker_engine import DockerEngine
from host import command
from host.failure import EXPECTED
from images import options
from images.options import Options
from maintenance import root_settings
from protocol import init_state
from snapshotter import front, settings

DOCKER, SNAPSHOTTER = "docker", "snapshotter"


class Wanted(NamedTuple):
    """What the command line says. "" or nothing: it does not say."""

    front: str
    socket: str
    state: str
    root: str
    words: Sequence[str]
    docker_config: str
    containerd_config: str
    default_socket: str


class Target(NamedTuple):
    """What is looked at. `settings` reads `state`, as a start would, and says what it holds."""

    front: str
    why: str
    socket: str
    state: str
    home: str
    options: Options
    settings: Callable[[], str]
    docker: DockerEngine
    containerd: ContainerdEngine

    def __str__(self) -> str:
        """Say in one line what is looked at, and by which key."""
        chosen = self.options
        pool = f"{chosen.datapool}/{chosen.namespace}" if chosen.namespace else chosen.datapool
        return f"{self.front} ({self.why}), home {self.home}, pool {pool}, client.{chosen.client}"


def find(wanted: Wanted) -> Target:
    """Find what is looked at. Raises OptionError. What cannot be read is left to the checks of it."""
    chosen, why = (wanted.front, "as told") if wanted.front else _guess(wanted)
    return _snapshotter(wanted, why) if chosen == SNAPSHOTTER else _driver(wanted, why)


def _guess(wanted: Wanted) -> tuple[str, str]:
    """Tell which front end is meant, and why."""
    address = wanted.socket or wanted.default_socket
    docker = DockerEngine(wanted.docker_config, _name(address))
    hints = (
        (bool(wanted.root), SNAPSHOTTER, "--root is a snapshotter's"),
        (bool(wanted.state), DOCKER, "--state is a driver's"),
        (os.path.exists(address + ".state"), DOCKER, "Docker has used it"),
        (os.path.exists(os.path.join(front.ROOT, settings.FILE)), SNAPSHOTTER, f"{front.ROOT} was used"),
        (_named_by_containerd(wanted), SNAPSHOTTER, f"{wanted.containerd_config} names it"),
        (docker.names_us(), DOCKER, f"{wanted.docker_config} names it"),
        (not command.find("dockerd") and bool(command.find("containerd")), SNAPSHOTTER, "there is no Docker here"),
        (True, DOCKER, "nothing tells which; give --front"),
    )
    return next((chosen, why) for found, chosen, why in hints if found)


def _named_by_containerd(wanted: Wanted) -> bool:
    try:
        return bool(ContainerdEngine(wanted.containerd_config, wanted.socket or front.ADDRESS).name())
    except OSError:
        return False


def _driver(wanted: Wanted, why: str) -> Target:
    address = os.path.abspath(wanted.socket or wanted.default_socket)
    state = wanted.state or address + ".state"
    docker = DockerEngine(wanted.docker_config, _name(address))

    def told() -> str:
        home, _, _ = init_state.read_kept(state, options.DEFAULTS)
        return f"{state}: Docker has used the driver with home {home}"

    try:
        home, kept, _ = init_state.read_kept(state, options.DEFAULTS)
    except EXPECTED:
        home = os.path.normpath(os.path.join(docker.data_root(), _name(address)))
        kept = options.parse(docker.storage_options())
    chosen = options.parse(wanted.words, kept)
    containerd = ContainerdEngine(wanted.containerd_config, front.ADDRESS)
    return Target(DOCKER, why, address, state, home, chosen, told, docker, containerd)


def _snapshotter(wanted: Wanted, why: str) -> Target:
    address, root = os.path.abspath(wanted.socket or front.ADDRESS), os.path.abspath(wanted.root or front.ROOT)

    def told() -> str:
        root_settings.read(root, options.DEFAULTS)
        return f"{os.path.join(root, settings.FILE)}: a snapshotter was started with this root"

    containerd = ContainerdEngine(wanted.containerd_config, address)
    name = _name_of_snapshotter(containerd)
    try:
        # The command line of the next start counts. It is likely that of the last one.
        _, kept = root_settings.read(root, options.DEFAULTS)
    except EXPECTED:
        kept = options.DEFAULTS
    chosen = options.parse(wanted.words, kept)
    state, docker = os.path.join(root, settings.FILE), DockerEngine(wanted.docker_config, name)
    return Target(SNAPSHOTTER, why, address, state, root, chosen, told, docker, containerd)


def _name_of_snapshotter(containerd: ContainerdEngine) -> str:
    try:
        return containerd.name() or "ceph"
    except OSError:
        return "ceph"


def _name(address: str) -> str:
    """Return the name of the storage driver that has a socket."""
    return os.path.basename(address).partition(".")[0]


def user(target: Target) -> int | None:
    """Return the process that uses what is mounted: dockerd, or containerd; None if none is to be seen."""
    if target.front == SNAPSHOTTER:
        return docker_engine.running("containerd")
    process = target.docker.process()
    return process.pid if process else None
