"""How gRPC says in header fields what became of a call, and how long it may take (grpc/doc/PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import re
import time

from host.failure import Failure
from wire.hpack import Field

# grpc/doc/statuscodes.md.
OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14

# In bytes, as it is sent. Clients limit all header fields together, some of them to 8 KiB.
_MESSAGE_LIMIT = 4000
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class Status(Failure):
    """A call fails with this code, and with its text for the caller."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Refusal(Status):
    """A call fails in this way by its caller's making."""

    is_refusal = True


def trailers(code: int, message: str = "") -> list[Field]:
    """Return the fields that end a call."""
    fields = [(b"grpc-status", b"%d" % code)]
    if message:
        fields.append((b"grpc-message", percent_encoded(message)))
    return fields


def percent_encoded(message: str) -> bytes:
    """Return a text in printable ASCII: other bytes of its UTF-8, and `%`, are `%XX`. A long text is cut."""
    out = bytearray()
    for char in message:
        one = char.encode("utf-8", "backslashreplace")
        if not " " <= char <= "~" or char == "%":
            one = b"".join(b"%%%02X" % byte for byte in one)
        if len(out) + len(one) > _MESSAGE_LIMIT:
            break
        out += one
    # HTTP/2 allows no blank at an end (RFC 9113 section 8.2.1).
    return bytes(out).strip(b" ")


def deadline_of(timeout: bytes | None) -> float:
    """Return the end of a call, by time.monotonic(), for its `grpc-timeout`; infinity if it has none.

    Raises Refusal if it is malformed.
    """
    if timeout is None:
        return float("inf")
    match = _TIMEOUT.fullmatch(timeout)
    if not match:
        raise Refusal(INTERNAL, f"grpc-timeout is malformed: {timeout[:40]!r}")
    return time.monotonic() + int(match[1]) * _SECONDS[match[2]]
