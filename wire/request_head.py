"""The header fields of a request: which ones HTTP/2 allows (RFC 9113 sections 8.2 and 8.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from wire.frames import PROTOCOL_ERROR, BadStream
from wire.hpack import Field

_PSEUDO = {b":method", b":scheme", b":path", b":authority"}
_NEEDED = {b":method", b":scheme", b":path"}
# RFC 9113 section 8.2.2: they are of HTTP/1.1's connections.
_OF_CONNECTIONS = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
# RFC 9113 section 8.2.1, as narrow as tokens of HTTP are.
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_NO_VALUE = re.compile(rb"[\0\r\n]|^[ \t]|[ \t]$")


def check(fields: Iterable[Field]) -> None:
    """Raise BadStream if these are not the fields of a request."""
    seen: set[bytes] = set()
    regular = False
    for name, value in fields:
        if name.startswith(b":"):
            if regular or name in seen or name not in _PSEUDO:
                raise _malformed(f"{name!r} is unknown, not the only one, or not before the other fields")
            seen.add(name)
        else:
            regular = True
            _check_field(name, value)
        if _NO_VALUE.search(value):
            raise _malformed(f"the value of {name!r} has a line end, or a blank at an end")
    if not seen >= _NEEDED or (b":path", b"") in fields:
        raise _malformed("no :method, :scheme or :path")


def check_trailers(fields: Iterable[Field]) -> None:
    """Raise BadStream if these are not fields that may follow a body (RFC 9113 section 8.1)."""
    for name, value in fields:
        _check_field(name, value)


def _check_field(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name):
        raise _malformed(f"{name[:40]!r} is no name of a field")
    if name in _OF_CONNECTIONS or (name == b"te" and value != b"trailers"):
        raise _malformed(f"{name!r} is not allowed in HTTP/2")


def _malformed(text: str) -> BadStream:
    return BadStream(PROTOCOL_ERROR, f"a malformed request: {text}")
