"""HTTP on a unix socket as dockerd speaks it (moby, pkg/plugins/client.go). Each connection has a thread."""

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
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

from host import logs
from host.failure import EXPECTED
from host.locks import Gate
from protocol.body import DRAIN_SECONDS, Body
from protocol.plugin import Plugin
from protocol.request import BadRequest, UnknownMethod

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
# The largest call of Docker's is Init, with a few options; a page is plenty, this is generous.
BODY_LIMIT = 1 << 20
# From a request's first byte to its last, but for archives, which may pause: a client that stops
# in the middle must not keep a thread for ever. Between requests dockerd may be silent for days.
REQUEST_SECONDS = 60.0
STREAM_SECONDS = 600.0
LINGER_SECONDS = 2.0
# What a socket raises whose peer does nothing for too long. It is TimeoutError from Python 3.10 on, and not before.
ASLEEP = socket.timeout

log = logging.getLogger("server")


class Handler(BaseHTTPRequestHandler):
    """One connection of dockerd's: many requests, one after the other."""

    protocol_version = "HTTP/1.1"
    server: Server
    # Set once an archive was begun and could not be ended: there is no place for an error's text any more.
    broken_off = False
    body: Body | None = None

    # -- http.server -------------------------------------------------------------------------

    def handle_one_request(self) -> None:
        """Wait for the next request without a limit, then for the whole of it with one."""
        self.connection.settimeout(None)
        if not self.rfile.peek(1):  # type: ignore[attr-defined] # rfile is a BufferedReader
            self.close_connection = True
            return
        self.connection.settimeout(REQUEST_SECONDS)
        super().handle_one_request()

    def address_string(self) -> str:
        """The peer of a unix socket has no address; http.server would look for one."""
        return "docker"

    def log_message(self, format: str, *args: Any) -> None:
        """Our own line says more (method, id, time, error); this one is for debugging HTTP."""
        log.debug(format, *args)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses is told as JSON too."""
        self.close_connection = True
        # A line that is no request is taken for one of HTTP/0.9, whose answers have no head.
        self.request_version = self.protocol_version
        self._reply(code, {"Err": message or explain or f"HTTP error {code}"})

    def do_POST(self) -> None:
        """Answer one call; every failure becomes one line of `Err`."""
        # It is closed at the end of this process, and does not open again.
        with self.server.requests.shared(threading.TIMEOUT_MAX):
            self._answer()

    def _answer(self) -> None:
        started = time.monotonic()
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
        except BadRequest as failure:
            error = self._fail(400, failure)
        except UnknownMethod as failure:
            error = self._fail(404, failure)
        except (BrokenPipeError, ConnectionResetError, ASLEEP) as failure:
            # The client is gone or asleep: there is nobody to answer.
            self.close_connection, error = True, f"the client went away: {failure}"
        except EXPECTED as failure:
            error = self._fail(500, failure)
        except Exception as failure:
            log.exception("%s %s: a defect of the driver", method, subject)
            error = self._fail(500, failure)
        took = 1000 * (time.monotonic() - started)
        log.log(
            logging.WARNING if error else logging.INFO, "%s %s %.0f ms%s", method, subject, took, error and ": " + error
        )

    # -- calls with an archive ---------------------------------------------------------------

    def _apply_diff(self, layer: str, body: Body) -> None:
        self.connection.settimeout(STREAM_SECONDS)
        try:
            answer = self.server.plugin.apply_diff(layer, body)
        except (BadRequest, ConnectionError, ASLEEP):
            # dockerd writes a layer down only when it is whole: one that was killed will never remove this one.
            # One that lives removes it too, which is a success then.
            with contextlib.suppress(*EXPECTED):
                self.server.plugin.abandon(layer)
            raise
        except EXPECTED:
            # The client sends on until it has an answer; unread, it would see a broken pipe and try again.
            with contextlib.suppress(BadRequest, OSError):
                body.drain()
            self.close_connection = True
            raise
        body.drain()
        self._reply(200, answer)

    def _diff(self, data: bytes) -> None:
        """Send an archive as it comes. An error after the first byte can only be told by breaking off."""
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
        # A chunk of no bytes would be the end.
        if chunk:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    # -- replies -----------------------------------------------------------------------------

    def _fail(self, status: int, failure: Exception) -> str:
        text = logs.printable(" ".join(str(failure).split())) or type(failure).__name__
        # What is left of a refused body would be read as the next request.
        unread = self.body is None or not self.body.ended
        self.close_connection = self.close_connection or unread
        if not self.broken_off:
            with contextlib.suppress(OSError):
                self._reply(status, {"Err": text})
                if unread:
                    self._linger()
        return text

    def _linger(self) -> None:
        """Read on what a refused client still sends, until it stops or pauses.

        A socket closed with bytes unread tells the client of a broken pipe, not of our answer (RFC 9112 section 9.6).
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
    """The socket; a thread for each connection."""

    # dockerd keeps idle connections open for ever: nobody may wait for their threads.
    daemon_threads = True
    block_on_close = False
    # Who connects while the queue is full is refused at once (unix(7), EAGAIN), dockerd too; the kernel cuts this down
    # to net.core.somaxconn.
    request_queue_size = 4096

    def __init__(self, path: str, plugin: Plugin) -> None:
        self.plugin = plugin
        self._path = path
        # Who is inside has a request that is not answered yet. The plugin's own gate opens before the answer is sent.
        self.requests = Gate()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        super().__init__(path, Handler)

    def server_bind(self) -> None:
        """Let nobody but root connect, which takes the right to write (unix(7)); by our umask nobody had it before."""
        super().server_bind()
        os.chmod(self._path, 0o600)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke outside of a request."""
        log.debug("connection broke: %s", sys.exc_info()[1])


def _query(query: str, name: str) -> str:
    """Return a value of an ApplyDiff query; Go builds it without quoting, ids need none."""
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if key == name:
            return unquote(value)
    raise BadRequest(f"ApplyDiff: the query has no {name}")


def _subject(data: bytes) -> str:
    """The id of a call for its log line, if it has one."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        return " ".join(str(json.loads(data).get("ID", "")).split())[:130]
    return ""
