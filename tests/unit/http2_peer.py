"""Clients of HTTP/2 for tests: one of raw frames, which may say anything, and a server for them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from plugin_client import SLOWNESS

from wire import frames, hpack
from wire.frames import Frame, FrameReader
from wire.hpack import Field
from wire.http2 import Connection
from wire.stream import Stream

REQUEST: list[Field] = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/test.Test/Echo"),
    (b":authority", b"localhost"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
]
HEAD: list[Field] = [(b":status", b"200")]


def echo(stream: Stream) -> None:
    """Answer with the body of the request, or with why it was refused."""
    stream.send(head=HEAD, data=stream.refused.encode() or bytes(stream.body), trailers=[(b"end", b"1")])


class Peer:
    """A connection that sends frames as it is told. It is no client: it answers to nothing by itself."""

    def __init__(self, sock: socket.socket, *, greets: bool = True) -> None:
        self.sock = sock
        self.sock.settimeout(20 * SLOWNESS)
        self._reader = FrameReader(sock)
        self._decoder = hpack.Decoder()
        if greets:
            self.raw(frames.PREFACE + frames.settings({}))

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def raw(self, data: bytes) -> None:
        """Send octets. If the server has ended the connection meanwhile, its reason is still to be read."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def send(self, kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> None:
        self.raw(frames.write(kind, flags, stream, payload))

    def request(self, stream: int, body: bytes | None = b"", fields: list[Field] | None = None) -> None:
        """Send a whole request; without its end if there is no body."""
        self.send(frames.HEADERS, frames.END_HEADERS, stream, hpack.encode(REQUEST if fields is None else fields))
        if body is not None:
            for at in range(0, len(body) - frames.FRAME_SIZE, frames.FRAME_SIZE):
                self.send(frames.DATA, 0, stream, body[at : at + frames.FRAME_SIZE])
            rest = (len(body) - 1) // frames.FRAME_SIZE * frames.FRAME_SIZE if body else 0
            self.send(frames.DATA, frames.END_STREAM, stream, body[rest:])

    def frame(self) -> Frame | None:
        """The next frame, or None at the end of the connection."""
        self.sock.settimeout(20 * SLOWNESS)
        try:
            return self._reader.next()
        except ConnectionResetError:
            return None

    def until(self, *kinds: int, stream: int | None = None) -> Frame | None:
        """The next frame of these types, or None if the connection ends before."""
        while frame := self.frame():
            if (
                frame.kind in kinds
                and not frame.flags & (frame.kind == frames.SETTINGS)
                and stream in (None, frame.stream)
            ):
                return frame
        return None

    def fields(self, frame: Frame) -> dict[bytes, bytes]:
        return dict(self._decoder.decode(frame.payload).fields)

    def answer(self, stream: int) -> tuple[bytes, dict[bytes, bytes]]:
        """The data and the fields of a whole answer."""
        data, fields = b"", {}
        while frame := self.until(frames.DATA, frames.HEADERS, frames.RST_STREAM, frames.GOAWAY):
            if frame.kind == frames.HEADERS:
                found = self.fields(frame)
                fields.update(found if frame.stream == stream else {})
            elif frame.kind == frames.DATA:
                data += frame.payload if frame.stream == stream else b""
            elif frame.stream in (0, stream):
                raise AssertionError(f"in place of an answer: {frame}")
            if frame.stream == stream and frame.flags & frames.END_STREAM:
                return data, fields
        raise AssertionError("the connection ended in place of an answer")

    def ping(self) -> list[Frame]:
        """All that comes before the answer to a PING: what was sent before it has had its effect."""
        self.send(frames.PING, payload=b"12345678")
        seen: list[Frame] = []
        while frame := self.frame():
            if frame.kind == frames.PING:
                return seen
            seen.append(frame)
        raise AssertionError(f"the connection ended: {seen}")

    def goaway(self) -> tuple[int, int, bytes]:
        """The last stream, the code and the text of the next GOAWAY; after it the connection must end."""
        frame = self.until(frames.GOAWAY)
        assert frame is not None, "the connection ended without GOAWAY"
        last, code = struct.unpack_from(">LL", frame.payload)
        assert self.until() is None
        return last, code, frame.payload[8:]


class Server:
    """Connections to `answer`, each with a reader's thread, without a socket in the file system."""

    def __init__(self, answer: Callable[[Stream], None] = echo) -> None:
        self.answer = answer
        self.connections: list[Connection] = []
        self._threads: list[threading.Thread] = []

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        answer = lambda stream: self.answer(stream)  # noqa: PLW0108, E731 - a test may replace it
        connection = Connection(theirs, answer, lambda: sum(each.held() for each in self.connections))
        thread = threading.Thread(target=connection.serve, daemon=True)
        thread.start()
        self.connections.append(connection)
        self._threads.append(thread)
        return ours

    def peer(self, *, greets: bool = True) -> Peer:
        return Peer(self.connect(), greets=greets)

    def end(self) -> None:
        """End all; no reader may stay."""
        for connection in self.connections:
            connection.end()
        for thread in self._threads:
            thread.join(20 * SLOWNESS)
            assert not thread.is_alive()


def serving(answer: Callable[[Stream], None] = echo) -> Iterator[Server]:
    server = Server(answer)
    yield server
    server.end()
