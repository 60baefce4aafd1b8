"""What unit tests share, and what each must hold: no process that it started runs on."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_client import wait_until
from unit.fake_host import FakeHost
from unit.fakes import FakePool
from unit.layered import Life


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


@pytest.fixture
def pool() -> FakePool:
    """A pool with three layers."""
    made = FakePool()
    made.add_base()
    for layer in "abc":
        made.add_layer(layer)
    return made


@pytest.fixture
def host(pool: FakePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHost:
    """A host in memory, in the kernel's place, on which `pool` is mapped."""
    return FakeHost.in_place(pool, monkeypatch, tmp_path / "content")


@pytest.fixture
def life(pool: FakePool, host: FakeHost, tmp_path: Path) -> Life:
    """A process that knows nothing yet of `host`."""
    return Life(tmp_path / "home", pool)


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
