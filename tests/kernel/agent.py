#!/usr/bin/env python3
"""Runs commands in the guest of vm.sh for its caller on the host: `serve` is the guest's side, `call` the host's.

One connection is one command. The caller sends a line of JSON (Request). The agent sends frames, each a letter, a
length and so many bytes: "o" and "e" are output and error output as they come, "x" is the exit status and the last.
A caller who closes the connection, or whose time is up, ends the command's session: SIGTERM, five seconds, SIGKILL.

As PID 1 `serve` also does what PID 1 owes: it reaps orphans, and powers the machine off when the agent ends.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import json
import os
import selectors
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

PORT = 1  # in the guest; the host's port is in DIR/port
FRAME = struct.Struct(">cI")
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
TIMED_OUT, UNREACHABLE, NOT_FOUND = 124, 125, 127  # exit statuses, as timeout(1) and shells have them


@dataclass(frozen=True)
class Request:
    """What a caller wants run."""

    token: str
    argv: list[str]
    directory: str
    seconds: float


class Command:
    """A child in a session of its own, its output relayed to a connection."""

    def __init__(self, request: Request, connection: socket.socket) -> None:
        """Starts it. Raises OSError when there is no such program or directory."""
        self.connection = connection
        self.deadline = time.monotonic() + request.seconds
        self.timed_out = False
        self.kill_at: float | None = None
        # No `with`: its pipes may be held by daemons that outlive it, the child itself is waited for in relay().
        self.process = subprocess.Popen(
            request.argv,
            cwd=request.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def relay(self) -> int:
        """Sends output until the child ends; returns its exit status."""
        assert self.process.stdout and self.process.stderr
        outputs = {self.process.stdout: b"o", self.process.stderr: b"e"}
        child = os.pidfd_open(self.process.pid)
        with selectors.DefaultSelector() as selector:
            for pipe, kind in outputs.items():
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ, kind)
            selector.register(self.connection, selectors.EVENT_READ)
            selector.register(child, selectors.EVENT_READ)
            ended = False
            while not ended:
                for key, _ in selector.select(self._patience()):
                    if key.fd == child:
                        ended = True
                    elif key.fileobj is self.connection:
                        selector.unregister(self.connection)
                        self._terminate()
                    elif not self._forward(key.fd, key.data):
                        selector.unregister(key.fileobj)
                self._enforce_deadline()
        os.close(child)
        # What the child wrote is in the pipes by now; a daemon of its making may hold them open for ever.
        for pipe, kind in outputs.items():
            while self._forward(pipe.fileno(), kind):
                pass
            pipe.close()
        status = self.process.wait()
        if self.timed_out:
            return TIMED_OUT
        return status if status >= 0 else 128 - status

    def _patience(self) -> float:
        return max(0.0, (self.kill_at or self.deadline) - time.monotonic())

    def _enforce_deadline(self) -> None:
        if self._patience() > 0:
            return
        if self.kill_at is None:
            self.timed_out = True
            self._terminate()
        else:
            self._signal(signal.SIGKILL)
            self.kill_at = time.monotonic() + GRACE

    def _terminate(self) -> None:
        self._signal(signal.SIGTERM)
        self.kill_at = time.monotonic() + GRACE

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _forward(self, pipe: int, kind: bytes) -> bool:
        """Sends what there is to read; False at the end of the pipe, or when nothing is there."""
        try:
            data = os.read(pipe, 65536)
        except BlockingIOError:
            return False
        if data:
            send(self.connection, kind, data)
        return bool(data)


def send(connection: socket.socket, kind: bytes, data: bytes) -> None:
    """Sends one frame. That the caller has gone is seen where its connection is read, not here."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(FRAME.pack(kind, len(data)) + data)


class Handler(socketserver.StreamRequestHandler):
    """One connection, one command."""

    server: Agent
    rbufsize = 0  # so that nothing is read ahead of what relay() watches

    def handle(self) -> None:
        """Runs what the caller asks for and sends its output and exit status."""
        try:
            request = Request(**json.loads(self.rfile.readline(1 << 20)))
        except (ValueError, TypeError):
            return
        if not hmac.compare_digest(request.token, self.server.token):
            return
        try:
            status = Command(request, self.connection).relay()
        except OSError as error:
            send(self.connection, b"e", f"vm: {error}\n".encode())
            status = NOT_FOUND
        send(self.connection, b"x", bytes([status]))


class Agent(socketserver.ThreadingTCPServer):
    """Waits for callers."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 32

    def __init__(self, token: str) -> None:
        self.token = token
        super().__init__(("", PORT), Handler)


def serve(token: Path) -> None:
    """The guest's side: takes commands for ever."""
    if os.getpid() == 1:
        reap_until_gone(os.fork())
    Agent(token.read_text()).serve_forever()


def reap_until_gone(child: int) -> None:
    """In the child: returns at once. In PID 1: waits for everybody, and powers off after `child`."""
    if child == 0:
        os.setsid()
        return
    while os.wait()[0] != child:
        pass
    print("agent: ended, powering off", flush=True)
    os.execv("/bin/busybox", ["busybox", "poweroff", "-f"])


def call(directory: Path, argv: list[str], seconds: float) -> int:
    """The host's side: has `argv` run in the VM of `directory`, copies its output, returns its exit status."""
    try:
        port, token = int((directory / "port").read_text()), (directory / "token").read_text()
        # The agent keeps the time; a guest that has hung says nothing for longer.
        with socket.create_connection(("127.0.0.1", port), timeout=seconds + 4 * GRACE) as connection:
            connection.sendall(json.dumps(asdict(Request(token, argv, str(Path.cwd()), seconds))).encode() + b"\n")
            with connection.makefile("rb") as frames:
                return copy_output(frames)
    except (OSError, EOFError, ValueError) as error:
        print(f"vm: no answer from the VM in {directory}: {error}", file=sys.stderr)
        return UNREACHABLE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def copy_output(frames: BinaryIO) -> int:
    """Copies frames to stdout and stderr up to the exit status. Raises EOFError when they end before it."""
    while True:
        kind, length = FRAME.unpack(read(frames, FRAME.size))
        data = read(frames, length)
        if kind == b"x":
            return data[0]
        output = sys.stdout.buffer if kind == b"o" else sys.stderr.buffer
        output.write(data)
        output.flush()


def read(frames: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes, else EOFError."""
    data = frames.read(size)
    if len(data) < size:
        raise EOFError("the connection ended before the command did")
    return data


def main() -> int:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    serving = verbs.add_parser("serve", help="in the guest: take commands")
    serving.add_argument("--token", type=Path, required=True, help="file with what a caller must know")
    calling = verbs.add_parser("call", help="on the host: run a command")
    calling.add_argument("--directory", type=Path, required=True, help="the VM's")
    calling.add_argument("--seconds", type=float, default=300.0, help="how long it may take (%(default)s)")
    calling.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND")
    options = parser.parse_args()
    if options.verb == "serve":
        serve(options.token)
    if not options.argv:
        calling.error("no command")
    return call(options.directory, options.argv, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
