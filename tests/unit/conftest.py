"""What unit tests share, and what each must hold: no process that it started runs on."""

from __future__ import annotations

import io
import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_client import Client, Connection, wait_until
from unit.fake_host import FakeHost
from unit.fakes import FakePool
from unit.layered import Applied, Life, Lives, finish
from unit.served import FakeDriver

from archive import transfer
from graph import driver as driver_module
from graph import reaper
from graph.driver import Driver
from host import background
from images import layer_state, options
from mapped.devices import Devices
from mapped.file_systems import FileSystems
from mapped.paths import Paths
from protocol.plugin import Plugin
from protocol.server import Server


@pytest.fixture(autouse=True, scope="module")
def nothing_runs_on() -> Iterator[None]:
    """At the end of a module no process is left that has its mark in the environment, whoever started it."""
    mark = f"STARTED_BY_TEST={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    os.environ[name] = value
    yield
    del os.environ[name]
    wait_until(lambda: not _running(mark), f"what the tests started has ended: {_running(mark)}")


@pytest.fixture
def short() -> Iterator[Path]:
    """A short path: those of sockets end at 107 bytes."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


# -- layers on a host ------------------------------------------------------------------------------


@pytest.fixture
def pool() -> FakePool:
    """A pool with a base image."""
    made = FakePool()
    made.add_base(size=options.DEFAULTS.basesize)
    return made


@pytest.fixture
def host(pool: FakePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHost:
    """A host in memory, in the kernel's place, on which `pool` is mapped."""
    return FakeHost.in_place(pool, monkeypatch, tmp_path / "content")


@pytest.fixture
def life(pool: FakePool, host: FakeHost, tmp_path: Path) -> Life:
    """A process that knows nothing yet of `host`, and three layers in `pool`."""
    for layer in "abc":
        pool.add_layer(layer)
    return Life(tmp_path / "home", pool)


@pytest.fixture
def stack(pool: FakePool, life: Life) -> None:
    """The three layers of `life` stand one on the other: two images on one, and beside them an init layer."""
    pool.add_layer("b", "a")
    for layer in ("c", "other", "box-init"):
        pool.add_layer(layer, "b", "a")
    finish(pool, "a")
    finish(pool, "b", "a")


@pytest.fixture
def systems(life: Life) -> FileSystems:
    """What `life` knows of layers' file systems."""
    return life.systems


@pytest.fixture
def devices(life: Life) -> Devices:
    """What it knows of devices."""
    return life.devices


@pytest.fixture
def paths(life: Life) -> Paths:
    """Where its layers are."""
    return life.paths


# -- a driver --------------------------------------------------------------------------------------


@pytest.fixture
def lives(pool: FakePool, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lives]:
    """Makes what a new process has, which has learned what the one before it left."""
    monkeypatch.setattr(driver_module, "pool_of", lambda _: pool.as_pool())
    monkeypatch.setattr(reaper, "REMOVE_SECONDS", 0.0)
    monkeypatch.setattr(background, "FIRST_RETRY_SECONDS", 0.1)
    owner = transfer.IdMaps((transfer.IdRange(0, os.geteuid(), 1),), (transfer.IdRange(0, os.getegid(), 1),))
    made: list[Driver] = []

    def begin() -> Driver:
        made.append(Driver(str(tmp_path / "home"), options.DEFAULTS, owner))
        made[-1].lifetime.learn()
        return made[-1]

    yield begin
    for life in made:
        life.lifetime.end()
    titles = {"removing layer", "unmapping layer", "deleting from the trash", "mapping layer", "reading layer"}
    wait_until(lambda: not titles & {thread.name for thread in threading.enumerate()}, "its threads have ended")


@pytest.fixture
def driver(lives: Lives) -> Driver:
    """A driver of `pool` on `host`."""
    return lives()


@pytest.fixture
def applied(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> list[Applied]:
    """Archives are laid down by nobody; `fail` as their content cuts one off."""
    seen: list[Applied] = []

    def apply(root: str, stream: io.BytesIO, *_: object) -> int:
        content = stream.read()
        said = layer_state.read(os.path.join(os.path.dirname(root), "layer"), 60)
        assert said
        seen.append(Applied(root, host.mounted[root], said))
        if content == b"fail":
            raise transfer.ArchiveError("cut off")
        return len(content)

    monkeypatch.setattr(transfer, "apply", apply)
    return seen


# -- a server --------------------------------------------------------------------------------------


@pytest.fixture
def fake_driver() -> FakeDriver:
    """A driver that is not real."""
    return FakeDriver()


@pytest.fixture
def client(fake_driver: FakeDriver, tmp_path: Path, short: Path) -> Iterator[Client]:
    """Who calls `fake_driver` at its socket."""
    plugin = Plugin(str(tmp_path / "state"))
    plugin._driver = fake_driver  # type: ignore[assignment] # what Init would have put there
    with Server(str(short / "s"), plugin) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield Client(str(short / "s"))
        serving.shutdown()
        thread.join()


@pytest.fixture
def connection(client: Client) -> Iterator[Connection]:
    """One connection that is kept, as dockerd keeps them."""
    kept = Connection(client.path)
    yield kept
    kept.close()


def _running(mark: str) -> list[str]:
    """The command lines of the processes with a mark in their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as source:
                if mark.encode() not in source.read().split(b"\0"):
                    continue
            with open(f"/proc/{pid}/cmdline", "rb") as source:
                found.append(source.read().replace(b"\0", b" ").decode())
        except OSError:
            # It has ended since, or is another user's.
            continue
    return found
