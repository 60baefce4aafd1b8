#!/usr/bin/env python3
"""docker-graph-driver: keeps Docker's image layers and containers in Ceph RBD images.

The front door: the command line, the unix socket, and HTTP as dockerd speaks it (moby,
pkg/plugins/client.go). Each request has a thread; everything below is synchronous.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # -I and -P do not look beside this file.
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    from host import environment

    environment.enter(__file__)

import argparse
import contextlib
import ctypes
import fcntl
import json
import logging
import re
import resource
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

import rbdcli
from archive import transfer
from cluster.claim import OwnerTaken
from graph.driver import DriverError
from graph.preconditions import NotReady
from host import command, deadline, logs
from host.gate import Gate
from host.notify import Notifier
from images.layers import LayerError
from images.options import OptionError, Options, parse
from maintenance import commands
from mapped.busy import LayerBusy
from mapped.file_systems import LayerLost
from mounts import MountError
from protocol.plugin import BadRequest, Plugin, UnknownMethod

VERSION = "2.0.0"
SOCKET = "/run/docker/plugins/ceph.sock"
CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
# The largest call of Docker's is Init, with a few options; a page is plenty, this is generous.
BODY_LIMIT = 1 << 20
CHUNK_HEADER_LIMIT = 1 << 10
# From a request's first byte to its last, but for archives, which may pause: a client that stops
# in the middle must not keep a thread for ever. Between requests dockerd may be silent for days.
REQUEST_SECONDS = 60.0
STREAM_SECONDS = 600.0
DRAIN_SECONDS = 60.0
LINGER_SECONDS = 2.0
# From SIGTERM to the end, whatever hangs; the unit's TimeoutStopSec is longer.
FINISH_SECONDS = 60.0
OPEN_FILES = 1 << 16
M_ARENA_MAX = -8  # malloc.h
# What a socket raises whose peer does nothing for too long. It is TimeoutError from Python 3.10 on, and not before.
ASLEEP = socket.timeout
# Failures that are told to Docker in one line; anything else is a defect and is logged with its trace.
EXPECTED = (
    transfer.ArchiveError,
    command.CommandError,
    deadline.Overdue,
    DriverError,
    LayerBusy,
    LayerError,
    LayerLost,
    MountError,
    NotReady,
    OwnerTaken,
    OptionError,
    rbdcli.RbdError,
    OSError,
)

_HEX = re.compile(rb"[0-9A-Fa-f]{1,16}")

log = logging.getLogger("server")


class Body:
    """A request's body as a stream, with its length or chunked (RFC 9112 section 7.1); `read` raises BadRequest.

    `ended` tells that all of it has been read.
    """

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._source = handler.rfile
        self._chunked = handler.headers.get("Transfer-Encoding", "").strip().lower() == "chunked"
        lengths = set(handler.headers.get_all("Content-Length", ["0"]))
        length = " and ".join(sorted(lengths))
        # Longer ones are no sizes, and Python reads none above 4300 digits.
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise BadRequest(f"Content-Length {length[:40]!r} is not a number of bytes")
        self._left = 0 if self._chunked else int(length)
        self.ended = not self._chunked and self._left == 0
        self._first = True

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" at the end of the body; a body that is cut off raises BadRequest."""
        if self._chunked and self._left == 0 and not self.ended:
            self._next_chunk()
        if self.ended:
            return b""
        data = self._source.read(min(size, self._left))
        if not data:
            raise BadRequest("the request's body was cut off")
        self._left -= len(data)
        if self._left == 0 and not self._chunked:
            self.ended = True
        return data

    def read_all(self, limit: int) -> bytes:
        """Return the whole body. Raises BadRequest if it has more than `limit` bytes, or none."""
        if self._left > limit:
            raise BadRequest(f"the request's body has {self._left} bytes; at most {limit} are taken")
        data = bytearray()
        while piece := self.read(limit + 1 - len(data)):
            data += piece
            if len(data) > limit:
                raise BadRequest(f"the request's body has more than {limit} bytes")
        if not data:
            # dockerd repeats a call whose answer was lost with a body that it has already read: empty.
            raise BadRequest("the request has no body; expected a JSON object")
        return bytes(data)

    def drain(self) -> None:
        """Read what is left, so that the answer does not meet a client that is still sending.

        Raises BadRequest if that does not end within DRAIN_SECONDS.
        """
        deadline = time.monotonic() + DRAIN_SECONDS
        while self.read(1 << 20):
            if time.monotonic() > deadline:
                raise BadRequest(f"the request's body did not end within {DRAIN_SECONDS:g} s of its refusal")

    def _next_chunk(self) -> None:
        if not self._first and self._source.readline(CHUNK_HEADER_LIMIT) not in (b"\r\n", b"\n"):
            raise BadRequest("the request's body has a chunk that does not end where it said")
        self._first = False
        line = self._source.readline(CHUNK_HEADER_LIMIT)
        digits = line.partition(b";")[0].strip()
        # `int` takes more than hexadecimal digits: signs, 0x, underscores.
        self._left = int(digits, 16) if _HEX.fullmatch(digits) and line.endswith(b"\n") else -1
        if self._left < 0:
            raise BadRequest(
                "the request's body was cut off" if not line else "the request's body has a bad chunk header"
            )
        if self._left == 0:
            while self._source.readline(CHUNK_HEADER_LIMIT) not in (b"\r\n", b"\n", b""):
                continue
            self.ended = True


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


@contextlib.contextmanager
def only_instance(path: str) -> Iterator[None]:
    """Hold the socket's lock file. Raises DriverError if another instance serves the socket."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(path + ".lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DriverError(f"another instance serves {path}; stop it or give --socket") from None
        yield


def serve(path: str, state_file: str, defaults: Options) -> None:
    """Serve until SIGTERM or SIGINT; running requests are finished, the mounts of containers stay."""
    notifier = Notifier()
    plugin = Plugin(state_file, defaults)
    with only_instance(path):
        plugin.restore()
        # Before the socket is there: who sees it may end us the next moment.
        caught = _catch_signals()
        with Server(path, plugin) as server:
            _stop_on_signal(server, caught)
            threading.Thread(target=_check_at_start, args=(plugin,), name="check", daemon=True).start()
            log.info("listening on %s; plain files of archives are laid down by %s", path, transfer.extractor())
            notifier.tell("READY=1", f"STATUS=listening on {path}")
            server.serve_forever(poll_interval=0.1)
            notifier.tell("STOPPING=1", "STATUS=finishing what runs")
        os.unlink(path)
        if not _finish(server, plugin):
            log.warning("ended with work unfinished after %g s", FINISH_SECONDS)
            command.end_running()


def _finish(server: Server, plugin: Plugin) -> bool:
    """Wait until what runs is answered and what was removed is deleted; tell whether it is.

    All of it together takes FINISH_SECONDS at the most. New requests wait until this process has ended: one that began
    while Python takes itself down would fail anywhere.
    """
    end = time.monotonic() + FINISH_SECONDS
    return server.requests.close(FINISH_SECONDS) and plugin.finish(max(0.0, end - time.monotonic()))


def _catch_signals() -> socket.socket:
    """From now on, let SIGTERM and SIGINT do nothing but send their numbers to the socket that is returned.

    A handler interrupts the main thread, which may hold a lock of Python's own just then: it must not do more.
    """
    caught, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return caught


def _stop_on_signal(server: Server, caught: socket.socket) -> None:
    """End the server's loop when a signal was caught, in a thread: `shutdown` waits for that loop."""

    def stop() -> None:
        log.info("%s: finishing what runs", signal.Signals(caught.recv(1)[0]).name)
        server.shutdown()

    threading.Thread(target=stop, name="signals", daemon=True).start()


def _check_at_start(plugin: Plugin) -> None:
    """Say early what is missing. It is no reason not to serve: Init may name another cluster, or Ceph comes back."""
    try:
        plugin.check()
    except EXPECTED as error:
        log.warning("not ready yet: %s", error)


def _settle() -> None:
    """Take back what a parent may have left us with, which lasts through the start of a program."""
    # Ignored, it would hide how our commands end; blocked, no signal would end us.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Each connection of dockerd's is one, and a command takes some for a moment.
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, min(most, OPEN_FILES)), most))
    # glibc gives each thread a heap of its own, and keeps in each what was freed. Other C libraries have no such call.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def main() -> int:
    """Read the command line and serve; 1 if that is impossible. A command for an operator comes first, if at all."""
    _settle()
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        return commands.main(sys.argv[1:], SOCKET)
    description, epilog = __doc__.partition("\n")[0], "Beside serving: docker_graph_driver.py check|gc|takeover --help"
    parser = argparse.ArgumentParser(prog="docker_graph_driver.py", description=description, epilog=epilog)
    parser.add_argument("--version", action="version", version=f"docker-graph-driver {VERSION}")
    parser.add_argument("--socket", default=SOCKET, metavar="PATH", help="unix socket to serve (default %(default)s)")
    parser.add_argument("--state", metavar="FILE", help="where Init's settings are kept (default: PATH.state)")
    text = "storage option where dockerd gives none, such as ceph.datapool=docker; repeatable"
    parser.add_argument("--default", action="append", default=[], metavar="OPTION=VALUE", help=text)
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", default="info", choices=levels, help="what is logged (default %(default)s)")
    arguments = parser.parse_args()
    logs.start("%(asctime)s %(levelname)s %(message)s", arguments.log_level)
    try:
        defaults = parse(arguments.default)
        serve(os.path.abspath(arguments.socket), arguments.state or arguments.socket + ".state", defaults)
    except EXPECTED as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
