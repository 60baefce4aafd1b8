"""A server on its socket with a driver that is not real, and connections with bytes of all kinds on them."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

from plugin_client import Client, head_of


class FakeDriver:
    """Does what a test tells it: by default everything works and nothing is there."""

    timeout = 60.0

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.archive: Callable[[], Iterator[bytes]] = lambda: iter([b"archive"])
        self.apply: Callable[[Any], int] = self.read_all
        self.on_get: Callable[[str], str] = lambda layer: f"/{layer}"
        self.applied = b""
        self.diffs_ended = 0
        self.lifetime = self.bounds = self

    def request(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    explaining = request

    def create(self, layer: str, parent: str, storage_opt: Any) -> None:
        self.calls.append(("create", layer, parent, json.dumps(storage_opt)))

    def remove(self, layer: str) -> None:
        self.calls.append(("remove", layer))

    def get(self, layer: str, label: str) -> str:
        self.calls.append(("get", layer, label))
        return self.on_get(layer)

    def put(self, layer: str) -> None:
        self.calls.append(("put", layer))

    def exists(self, layer: str) -> bool:
        return layer == "there"

    def status(self) -> list[tuple[str, str]]:
        return [("Pool", "rbd")]

    def metadata(self, layer: str) -> dict[str, str]:
        return {"Image": layer}

    def changes(self, layer: str, parent: str) -> list[tuple[bytes, int]]:
        return [(b"/new", 1), (b"/bad-\xff", 0), ("/ä".encode(), 2)]

    def diff_size(self, layer: str, parent: str) -> int:
        return 42

    def cleanup(self) -> None:
        self.calls.append(("cleanup",))

    def diff(self, layer: str, parent: str) -> Iterator[bytes]:
        try:
            yield from self.archive()
        finally:
            self.diffs_ended += 1

    def apply_diff(self, layer: str, stream: Any) -> int:
        self.calls.append(("apply_diff", layer))
        return self.apply(stream)

    def read_all(self, stream: Any) -> int:
        while data := stream.read(65536):
            self.applied += data
        return len(self.applied)


# What calls are made of.
GET = "/GraphDriver.Get"
BODY = b'{"ID":"a"}\n'
APPLY = "/GraphDriver.ApplyDiff?id=a&parent=b"


def raw(client: Client, *pieces: bytes) -> socket.socket:
    """A connection with these bytes on it."""
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(20)
    link.connect(client.path)
    for piece in pieces:
        link.sendall(piece)
    return link


def read_to_end(link: socket.socket) -> bytes:
    """Everything until the other side closes."""
    data = b""
    with link:
        while piece := link.recv(65536):
            data += piece
    return data


def receive(link: socket.socket, last: bytes) -> bytes:
    """What comes until `last` has come."""
    data = b""
    while last not in data:
        piece = link.recv(65536)
        assert piece, f"closed after {data!r}"
        data += piece
    return data


def chunked(path: str = APPLY) -> bytes:
    """The head of a request whose body comes in chunks."""
    return head_of(path, "Transfer-Encoding: chunked")
