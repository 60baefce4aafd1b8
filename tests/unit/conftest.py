"""What unit tests share, and what each must hold: no process that it started runs on."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_client import wait_until


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
