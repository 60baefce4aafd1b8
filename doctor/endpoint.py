"""Where the driver listens, and what it keeps there: who serves the socket, and what the last start was told."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import NamedTuple

from doctor.finding import Broken, Improve, Unknown
from graph.preconditions import Check

PROGRAM = "docker_graph_driver.py"
CONNECT_SECONDS = 5.0
_CREDENTIALS = struct.Struct("3i")  # struct ucred, socket(7)


class Peer(NamedTuple):
    """Who serves a socket: its process, 0 if it is in another pid namespace, and its command line."""

    pid: int
    command_line: str


class Endpoint:
    """A socket, and a file with settings beside it. `settings` reads that and says what it holds, as an Init would."""

    def __init__(self, address: str, state: str, settings: Callable[[], str]) -> None:
        self._address = address
        self._state = state
        self._settings = settings

    def checks(self) -> list[Check]:
        """Return the checks."""
        return [Check("socket", self._socket), Check("state file", self._state_file)]

    def _socket(self) -> str:
        try:
            peer = served_by(self._address)
        except FileNotFoundError:
            return f"{self._address} is not there: the driver does not run yet"
        except PermissionError:
            raise Unknown(f"only root may connect to {self._address}") from None
        except ConnectionRefusedError:
            raise Improve(
                f"nobody serves {self._address}: a driver that was killed has left it; start the driver, which "
                f"replaces it"
            ) from None
        if peer is None:
            raise Broken(f"{self._address} is there, and is no socket: move it away")
        if peer.pid == 0:
            return f"a process of another pid namespace serves {self._address}"
        if PROGRAM not in peer.command_line:
            raise Broken(
                f"process {peer.pid} serves {self._address}, and is none of ours: {peer.command_line[:200]}; stop it, "
                f"or give the driver another socket"
            )
        return f"process {peer.pid} serves {self._address}"

    def _state_file(self) -> str:
        try:
            said = os.stat(self._state)
        except FileNotFoundError:
            return f"{self._state} is not there: it was never used yet"
        told = self._settings()
        if said.st_uid != 0 or said.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Improve(
                f"{self._state} can be written by others than root (user {said.st_uid}, mode "
                f"{stat.S_IMODE(said.st_mode):o}); do: chown root {self._state}; chmod go-w {self._state}"
            )
        return told


def served_by(path: str) -> Peer | None:
    """Return who listens on a unix socket; None if there is something else. Raises OSError, as connect(2) does."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return None
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(CONNECT_SECONDS)
        link.connect(path)
        pid, _, _ = _CREDENTIALS.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    words = ""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as source:
        words = source.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return Peer(pid, words)
