"""endpoint.py: who serves a socket, and whose the settings beside it are."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.doctored import outcome

from doctor import endpoint
from doctor.endpoint import Endpoint
from doctor.finding import BROKEN, IMPROVE, NOT_CHECKED, OK
from protocol.init_state import NoUse


@pytest.fixture
def address(short: Path) -> str:
    return str(short / "s.sock")


@pytest.fixture
def served(address: str) -> Iterator[socket.socket]:
    """A socket that this process serves."""
    with socket.socket(socket.AF_UNIX) as serving:
        serving.bind(address)
        serving.listen()
        yield serving


def look(address: str) -> tuple[str, str]:
    return outcome(Endpoint(address, "/nonexistent", lambda: "").checks(), "socket")


def test_a_driver_that_does_not_run_yet(address: str) -> None:
    assert look(address) == (OK, f"{address} is not there: the driver does not run yet")


def test_a_socket_that_was_left_behind(address: str, served: socket.socket) -> None:
    served.close()
    status, text = look(address)
    assert status == IMPROVE
    assert text.startswith(f"nobody serves {address}: a driver that was killed has left it")


def test_another_file_in_its_place(address: str) -> None:
    Path(address).touch()
    assert look(address)[0] == BROKEN


@pytest.mark.usefixtures("served")
def test_a_socket_that_is_served(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status, text = look(address)
    assert status == BROKEN
    assert text.startswith(f"process {os.getpid()} serves {address}, and is none of ours: ")
    monkeypatch.setattr(endpoint, "PROGRAM", "pytest")
    assert look(address) == (OK, f"process {os.getpid()} serves {address}")


def test_a_server_in_another_pid_namespace(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "served_by", lambda _: endpoint.Peer(0, ""))
    assert look(address) == (OK, f"a process of another pid namespace serves {address}")


def test_a_socket_for_root_alone(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(endpoint, "served_by", refused)
    assert look(address) == (NOT_CHECKED, f"only root may connect to {address}")


# -- the file ----------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of root's, whoever runs the tests."""
    path = tmp_path / "state"
    path.touch(0o644)
    really = os.stat

    def stat(name: Any, **options: Any) -> os.stat_result:
        said = really(name, **options)
        return os.stat_result([*said[:4], 0, *said[5:]]) if name == str(path) else said

    monkeypatch.setattr(os, "stat", stat)
    return path


def read(path: Path, settings: Callable[[], str] = lambda: "of home /home") -> tuple[str, str]:
    return outcome(Endpoint("/nonexistent", str(path), settings).checks(), "state file")


def test_settings(state: Path) -> None:
    assert read(state) == (OK, "of home /home")


def test_settings_that_were_never_kept(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == (OK, f"{tmp_path}/none is not there: it was never used yet")


def test_settings_that_others_may_write(state: Path) -> None:
    state.chmod(0o666)
    status, text = read(state)
    assert status == IMPROVE
    assert "(user 0, mode 666); do: chown root " in text


def test_settings_that_are_damaged(state: Path) -> None:
    def settings() -> str:
        raise NoUse(f"{state} is of no use, restart dockerd: it is no JSON")

    assert read(state, settings) == (BROKEN, f"{state} is of no use, restart dockerd: it is no JSON")
