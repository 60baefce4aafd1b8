"""HTTP on a unix socket, as dockerd speaks it (moby, pkg/plugins/client.go). Each connection has a thread."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

from host import logs, served
from host.failure import EXPECTED
from host.locks import Gate
from protocol.body import DRAIN_SECONDS, Body
from protocol.plugin import Plugin
from protocol.request import BadRequest, UnknownMethod

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
# In bytes. Docker's largest call is Init with a few options, which is less than a page.
BODY_LIMIT = 1 << 20
# What is no call of ours is counted by this name.
OTHER = "other"
# With which status an error is answered; any other one with 500.
_STATUS: Mapping[type[Exception], int] = {BadRequest: 400, UnknownMethod: 404}
# How long a client may pause within a request; an archive (STREAM_SECONDS) may pause for longer. A client that stops in
# the middle must not keep a thread for ever. Between requests dockerd may be silent for days.
REQUEST_SECONDS = 60.0
STREAM_SECONDS = 600.0
LINGER_SECONDS = 2.0
# A socket raises this if its peer pauses for too long. From Python 3.10 on it is TimeoutError, before it is not.
ASLEEP = socket.timeout

log = logging.getLogger("server")


class Handler(BaseHTTPRequestHandler):
    """One connection of dockerd's: many requests, one after the other. It decides what an error becomes for dockerd."""

    protocol_version = "HTTP/1.1"
    server: Server
    # Set once an archive was sent in part and failed: then the answer has no place for the error's text any more.
    broken_off = False
    body: Body | None = None

    # -- http.server -------------------------------------------------------------------------

    def handle_one_request(self) -> None:
        """Wait for the next request without a limit. Within the request each wait has a limit, REQUEST_SECONDS."""
        self.connection.settimeout(None)
        if not self.rfile.peek(1):  # type: ignore[attr-defined] # rfile is a BufferedReader
            self.close_connection = True
            return
        self.connection.settimeout(REQUEST_SECONDS)
        super().handle_one_request()

    def address_string(self) -> str:
        """Return a name for the peer: that of a unix socket has no address, which http.server would look for."""
        return "docker"

    def log_message(self, format: str, *args: Any) -> None:
        """Log the line of http.server, to debug HTTP. Our own line says more: method, id, time, error."""
        log.debug(format, *args)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with JSON also when http.server itself refuses a request."""
        self.close_connection = True
        # http.server takes a line that is no request for HTTP/0.9, whose answers have no head.
        self.request_version = self.protocol_version
        self._reply(code, {"Err": message or explain or f"HTTP error {code}"})

    def do_POST(self) -> None:
        """Answer one call. Every failure becomes one line in `Err`."""
        # This gate closes at the end of this process, and does not open again: later requests wait for ever.
        with self.server.requests.shared(threading.TIMEOUT_MAX):
            self._answer()

    def _answer(self) -> None:
        with served.request() as request:
            self._answer_one(request)

    def _answer_one(self, request: served.Served) -> None:
        path, _, query = self.path.partition("?")
        method = path.rpartition(".")[2]
        subject, error = "", ""
        self.body = None
        try:
            body = self.body = Body(self)
            if path == "/Plugin.Activate":
                body.drain()
                self._reply(200, {"Implements": ["GraphDriver"]})
            elif not path.startswith("/GraphDriver."):
                raise UnknownMethod(f"unknown path {path[:80]!r}")
            elif method == "ApplyDiff":
                subject = _query(query, "id")
                self._apply_diff(subject, body)
            else:
                data = body.read_all(BODY_LIMIT)
                subject = _subject(data)
                if method == "Diff":
                    self._diff(data)
                else:
                    self._reply(200, self.server.plugin.call(method, data))
        except (BrokenPipeError, ConnectionResetError, ASLEEP) as failure:
            # The client is gone or asleep: nobody would read an answer.
            request.failed(served.GONE, failure)
            self.close_connection, error = True, f"the client went away: {failure}"
        except Exception as failure:
            result = served.result_of(failure)
            if result == served.DEFECT:
                log.exception("%s %s: a defect of the driver", method, subject)
            request.failed(result, failure)
            error = self._fail(_STATUS.get(type(failure), 500), failure)
        # What is counted has few names, whatever callers ask for.
        known = method if method in ("Activate", *self.server.plugin.methods) else OTHER
        request.end(log, logging.WARNING if error else logging.INFO, known, f"{method} {subject}".strip(), error)

    # -- calls with an archive ---------------------------------------------------------------

    def _apply_diff(self, layer: str, body: Body) -> None:
        self.connection.settimeout(STREAM_SECONDS)
        try:
            answer = self.server.plugin.apply_diff(layer, body)
        except (BadRequest, ConnectionError, ASLEEP):
            # dockerd remembers a layer only when it is whole. So if dockerd was killed, it will never remove this one.
            # If dockerd lives, it removes the layer too, and that is a success then.
            with contextlib.suppress(*EXPECTED):
                self.server.plugin.abandon(layer)
            raise
        except EXPECTED:
            # The client sends on until it has an answer. If we did not read, it would get EPIPE and try again.
            with contextlib.suppress(BadRequest, OSError):
                body.drain()
            self.close_connection = True
            raise
        body.drain()
        self._reply(200, answer)

    def _diff(self, data: bytes) -> None:
        """Send an archive piece by piece. After the first byte, an error can only be told by closing the connection."""
        self.connection.settimeout(STREAM_SECONDS)
        with contextlib.closing(self.server.plugin.diff(data)) as chunks:
            first = next(chunks, b"")
            self.send_response(200)
            self.send_header("Content-Type", "application/x-tar")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                self._send_chunk(first)
                for chunk in chunks:
                    self._send_chunk(chunk)
            except BaseException:
                self.close_connection = True
                self.broken_off = True
                raise
        self.wfile.write(b"0\r\n\r\n")

    def _send_chunk(self, chunk: bytes) -> None:
        # An empty chunk would mean the end of the body.
        if chunk:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    # -- replies -----------------------------------------------------------------------------

    def _fail(self, status: int, failure: Exception) -> str:
        text = logs.printable(" ".join(str(failure).split())) or type(failure).__name__
        # The rest of a refused body would be read as the next request.
        unread = self.body is None or not self.body.ended
        self.close_connection = self.close_connection or unread
        if not self.broken_off:
            with contextlib.suppress(OSError):
                self._reply(status, {"Err": text})
                if unread:
                    self._linger()
        return text

    def _linger(self) -> None:
        """Read what a refused client still sends, until it stops or pauses.

        If a socket is closed with bytes unread, the client sees a reset and not our answer (RFC 9112 section 9.6).
        """
        deadline = time.monotonic() + DRAIN_SECONDS
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(LINGER_SECONDS)
        while self.connection.recv(1 << 16) and time.monotonic() < deadline:
            continue

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


class Server(socketserver.ThreadingUnixStreamServer):
    """The socket that dockerd connects to, with a thread for each connection."""

    # dockerd keeps idle connections open for ever. So the end of this process does not wait for their threads.
    daemon_threads = True
    block_on_close = False
    # While the queue is full, every new connection is refused at once (unix(7), EAGAIN), dockerd's too. The kernel cuts
    # the number down to net.core.somaxconn.
    request_queue_size = 4096

    def __init__(self, path: str, plugin: Plugin) -> None:
        self.plugin = plugin
        self._path = path
        # A thread is inside from its request to its answer. The plugin's own gate is left before the answer is sent.
        self.requests = Gate()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        super().__init__(path, Handler)

    def server_bind(self) -> None:
        """Bind the socket, and let only root connect: that takes the right to write (unix(7)). Our umask gives none."""
        super().server_bind()
        os.chmod(self._path, 0o600)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log that a connection broke outside of a request."""
        log.debug("connection broke: %s", sys.exc_info()[1])


def _query(query: str, name: str) -> str:
    """Return a value of an ApplyDiff query. Go does not quote it: ids need no quotes. Raises BadRequest."""
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if key == name:
            return unquote(value)
    raise BadRequest(f"ApplyDiff: the query has no {name}")


def _subject(data: bytes) -> str:
    """Return the id of a call for its log line, "" if it has none."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        return " ".join(str(json.loads(data).get("ID", "")).split())[:130]
    return ""
