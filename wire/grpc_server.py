"""gRPC on a unix socket: the socket, its connections, and their end. What a connection does is in http2.py."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import socketserver
import stat
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from host.failure import Failure
from wire.grpc_call import Dispatcher, Method
from wire.http2 import Connection

# Each has a thread. containerd keeps one for all that it asks.
MOST_CONNECTIONS = 64
# How long `shutdown` waits for calls that were begun.
STOP_SECONDS = 30.0

log = logging.getLogger("grpc")


class NoSocket(Failure):
    """There is something else in the place of the socket."""


class _Handler(socketserver.BaseRequestHandler):
    """The thread of a connection."""

    server: GrpcServer

    def handle(self) -> None:
        """Serve one client until it, or the server, ends."""
        self.server.serve_connection(self.request)


class GrpcServer(socketserver.ThreadingUnixStreamServer):
    """The socket that containerd connects to. `methods` has a method for each path, `/package.Service/Method`."""

    # Clients keep idle connections for ever. So the end of this process does not wait for their threads.
    daemon_threads = True
    block_on_close = False
    # While the queue is full, every new connection is refused at once (unix(7), EAGAIN).
    request_queue_size = 4096

    def __init__(self, path: str, methods: Mapping[str, Method]) -> None:
        """Listen from now on. A socket that is there already is nobody's any more, and is replaced.

        Raises NoSocket if there is another file, and OSError.
        """
        self._path = path
        self._dispatcher = Dispatcher(methods)
        self._state = threading.Condition()
        self._connections: set[Connection] = set()
        self._stopping = False
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise NoSocket(f"{path} is there, and is no socket")
            os.unlink(path)
        super().__init__(path, _Handler)

    def server_bind(self) -> None:
        """Bind the socket, and let only root connect, which takes the right to write (unix(7))."""
        super().server_bind()
        os.chmod(self._path, 0o600)

    def serve_connection(self, peer: socket.socket) -> None:
        """Serve a client until one side ends its connection. One of too many is closed at once."""
        connection = Connection(peer, self._dispatcher.answer, self._held)
        with self._state:
            if self._stopping or len(self._connections) >= MOST_CONNECTIONS:
                log.warning("a client is refused: %d are connected, or the server stops", len(self._connections))
                return
            self._connections.add(connection)
        try:
            connection.serve()
        finally:
            with self._state:
                self._connections.discard(connection)
                self._state.notify_all()

    def _held(self) -> int:
        with self._state:
            connections = list(self._connections)
        return sum(connection.held() for connection in connections)

    def shutdown(self) -> None:
        """Take no calls any more, and return once those that were begun are answered, after STOP_SECONDS at the most.

        Clients send later calls to the next server (RFC 9113 section 6.8). Another thread must be in `serve_forever`.
        """
        until = time.monotonic() + STOP_SECONDS
        super().shutdown()
        with self._state:
            self._stopping = True
            connections = list(self._connections)
        for connection in connections:
            # A peer that does not read would keep the others waiting.
            threading.Thread(target=connection.stop, name="stop", daemon=True).start()
        with self._state:
            if not self._state.wait_for(lambda: not self._connections, until - time.monotonic()):
                log.warning("%d clients still wait for answers, and are left", len(self._connections))
            connections = list(self._connections)
        for connection in connections:
            connection.end()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log that a connection broke in a way that it did not expect itself."""
        log.warning("connection broke: %s", sys.exc_info()[1])
