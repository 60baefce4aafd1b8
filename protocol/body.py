"""The body of an HTTP request as a stream: how long it is, and whether it came whole."""

from __future__ import annotations

import re
import time
from http.server import BaseHTTPRequestHandler

from protocol.request import BadRequest

CHUNK_HEADER_LIMIT = 1 << 10
DRAIN_SECONDS = 60.0

_HEX = re.compile(rb"[0-9A-Fa-f]{1,16}")


class Body:
    """A request's body as a stream. It has a Content-Length, or it is chunked (RFC 9112 section 7.1).

    `ended` tells that all of it has been read. Raises BadRequest for a bad length. Every reader raises OSError if the
    client is gone, or asleep for longer than the connection's timeout.
    """

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._source = handler.rfile
        self._chunked = handler.headers.get("Transfer-Encoding", "").strip().lower() == "chunked"
        lengths = set(handler.headers.get_all("Content-Length", ["0"]))
        length = " and ".join(sorted(lengths))
        # A longer number is no size, and Python reads no number of more than 4300 digits.
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise BadRequest(f"Content-Length {length[:40]!r} is not a number of bytes")
        self._left = 0 if self._chunked else int(length)
        self.ended = not self._chunked and self._left == 0
        self._first = True

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" at the end of the body. Raises BadRequest if the body is cut off."""
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
        """Return the whole body. Raises BadRequest if it has more than `limit` bytes, or none, or is cut off."""
        if self._left > limit:
            raise BadRequest(f"the request's body has {self._left} bytes; at most {limit} are taken")
        data = bytearray()
        while piece := self.read(limit + 1 - len(data)):
            data += piece
            if len(data) > limit:
                raise BadRequest(f"the request's body has more than {limit} bytes")
        if not data:
            # If an answer was lost, dockerd repeats the call, but the body is empty: dockerd has read it already.
            raise BadRequest("the request has no body; expected a JSON object")
        return bytes(data)

    def drain(self) -> None:
        """Read the rest of the body before the answer: a client that still sends would not read it.

        Raises BadRequest if the body does not end within DRAIN_SECONDS, or is cut off.
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
        # `int` would take signs, 0x and underscores, too.
        self._left = int(digits, 16) if _HEX.fullmatch(digits) and line.endswith(b"\n") else -1
        if self._left < 0:
            raise BadRequest(
                "the request's body was cut off" if not line else "the request's body has a bad chunk header"
            )
        if self._left == 0:
            while self._source.readline(CHUNK_HEADER_LIMIT) not in (b"\r\n", b"\n", b""):
                continue
            self.ended = True
