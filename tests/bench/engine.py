"""The calls of Docker's API that are measured, on dockerd's socket: the docker client's own start would hide them."""

from __future__ import annotations

import http
import http.client
import json
import os
from collections.abc import Mapping, Sequence
from typing import IO, Any
from urllib.parse import quote

from plugin_client import Connection

CALL_SECONDS = 900
PIECE = 1 << 20


class EngineError(Exception):
    """dockerd refused a call: its status (0 for one that is told in an answer's body) and its words."""

    def __init__(self, text: str, status: int = 0) -> None:
        self.status = status
        super().__init__(text)


class Engine:
    """One dockerd; a connection for each call, so that threads can share it."""

    def __init__(self, socket: str) -> None:
        self._socket = socket

    def create(self, image: str, *command: str) -> str:
        """Make a container without a network and return its id."""
        body = {"Image": image, "Cmd": list(command), "StopSignal": "SIGKILL", "HostConfig": {"NetworkMode": "none"}}
        return str(self._json("POST", "/containers/create", body)["Id"])

    def start(self, container: str) -> None:
        """Start a container."""
        self._call("POST", f"/containers/{container}/start")

    def wait(self, container: str) -> int:
        """Wait until a container has ended and return its exit status."""
        return int(self._json("POST", f"/containers/{container}/wait")["StatusCode"])

    def remove(self, container: str) -> None:
        """Remove a container, running or not."""
        self._call("DELETE", f"/containers/{container}?force=1")

    def pid(self, container: str) -> int:
        """The first process of a running container."""
        return int(self._json("GET", f"/containers/{container}/json")["State"]["Pid"])

    def changes(self, container: str) -> int:
        """docker diff: how many paths changed."""
        return len(self._json("GET", f"/containers/{container}/changes") or ())

    def commit(self, container: str, repository: str) -> None:
        """docker commit."""
        self._call("POST", f"/commit?container={container}&repo={quote(repository)}")

    def load(self, archive: str) -> None:
        """docker load."""
        with open(archive, "rb") as source:
            headers = {"Content-Type": "application/x-tar", "Content-Length": str(os.path.getsize(archive))}
            said = self._call("POST", "/images/load?quiet=1", source, headers)
        for line in said.splitlines():
            if line.strip() and "error" in (message := json.loads(line)):
                raise EngineError(f"load {archive}: {message['error']}")

    def save(self, image: str) -> int:
        """docker save, thrown away as it comes: how many bytes."""
        connection, answer = self._open("GET", f"/images/{quote(image)}/get")
        try:
            return sum(iter(lambda: len(answer.read(PIECE)), 0))
        finally:
            connection.close()

    def remove_image(self, image: str) -> None:
        """docker rmi."""
        self._call("DELETE", f"/images/{quote(image)}")

    def has_image(self, image: str) -> bool:
        """Whether an image is there."""
        return image in [tag for item in self._json("GET", "/images/json") for tag in item["RepoTags"] or ()]

    def remove_containers(self) -> None:
        """Remove whatever containers are left; one that has gone meanwhile, or is going, is none of them."""
        for item in self._json("GET", "/containers/json?all=1"):
            try:
                self.remove(str(item["Id"]))
            except EngineError as error:
                if error.status not in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.CONFLICT):
                    raise

    def version(self) -> str:
        """dockerd's version."""
        return str(self._json("GET", "/version")["Version"])

    def _json(self, method: str, path: str, body: Mapping[str, Any] | Sequence[str] | None = None) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        return json.loads(self._call(method, path, data, {"Content-Type": "application/json"}) or b"null")

    def _call(
        self, method: str, path: str, body: bytes | IO[bytes] = b"", headers: Mapping[str, str] | None = None
    ) -> bytes:
        connection, answer = self._open(method, path, body, headers)
        try:
            return answer.read()
        finally:
            connection.close()

    def _open(
        self, method: str, path: str, body: bytes | IO[bytes] = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[Connection, http.client.HTTPResponse]:
        """Send one call and read the head of its answer. Raises EngineError for a refusal."""
        connection = Connection(self._socket, timeout=CALL_SECONDS)
        connection.blocksize = PIECE
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        if answer.status >= 400:
            text = answer.read().decode(errors="replace").strip()
            connection.close()
            raise EngineError(f"{method} {path}: {answer.status}: {text}", answer.status)
        return connection, answer
