"""Frames of HTTP/2 as octets: how one is read from a socket, what may stand in it, how one is written (RFC 9113).

What a frame does to a connection is decided in http2.py.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import NamedTuple

from host.failure import Failure

# RFC 9113 section 3.4.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Types: RFC 9113 section 6.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
# Flags. ACK is that of SETTINGS and PING.
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 0x1, 0x1, 0x4, 0x8, 0x20
# Settings: RFC 9113 section 6.5.2.
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)
# Codes of errors: RFC 9113 section 7.
NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB

# The largest payload of a frame. Every peer takes it, and we announce no other (RFC 9113 section 4.2).
FRAME_SIZE = 16384
LARGEST_WINDOW = (1 << 31) - 1
_HEAD_BYTES = 9
_RECEIVE_BYTES = 1 << 16
# A socket raises this if its peer pauses for too long. From Python 3.10 on it is TimeoutError, before it is not.
ASLEEP = socket.timeout


class BadConnection(Failure):
    """The peer broke the protocol, or asks too much: the connection must end, with GOAWAY and this code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class BadStream(Failure):
    """One stream must end, with RST_STREAM and this code. The connection goes on."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Frame(NamedTuple):
    """One frame as it came. `payload` still holds the padding."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class FrameReader:
    """Reads a socket frame by frame."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._held = bytearray()

    def preface(self) -> bool:
        """Read what every client sends first. Tell whether it came whole.

        Raises BadConnection for any other octets, and what the socket raises; ASLEEP too.
        """
        while len(self._held) < len(PREFACE) and PREFACE.startswith(self._held):
            if not self._receive():
                return False
        if not self._held.startswith(PREFACE):
            raise BadConnection(PROTOCOL_ERROR, "this is no HTTP/2 with prior knowledge (RFC 9113 section 3.4)")
        del self._held[: len(PREFACE)]
        return True

    def next(self) -> Frame | None:
        """Return the next frame, or None if the peer has closed. Raises BadConnection for a frame that is too large.

        It waits without a limit: the time limit of the socket is for writing. Raises OSError as the socket does.
        """
        if not self._fill(_HEAD_BYTES):
            return None
        size = int.from_bytes(self._held[:3], "big")
        if size > FRAME_SIZE:
            raise BadConnection(FRAME_SIZE_ERROR, f"a frame of {size} bytes, {FRAME_SIZE} are allowed")
        kind, flags, stream = struct.unpack(">BBL", self._held[3:_HEAD_BYTES])
        if not self._fill(_HEAD_BYTES + size):
            return None
        payload = bytes(self._held[_HEAD_BYTES : _HEAD_BYTES + size])
        del self._held[: _HEAD_BYTES + size]
        return Frame(kind, flags, stream & LARGEST_WINDOW, payload)

    def _fill(self, size: int) -> bool:
        while len(self._held) < size:
            try:
                if not self._receive():
                    return False
            except ASLEEP:
                continue
        return True

    def _receive(self) -> bool:
        data = self._peer.recv(_RECEIVE_BYTES)
        self._held += data
        return bool(data)


def write(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return the octets of a frame (RFC 9113 section 4.1)."""
    return struct.pack(">HBBBL", len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def settings(values: Mapping[int, int]) -> bytes:
    """Return a SETTINGS frame (RFC 9113 section 6.5.1)."""
    return write(SETTINGS, 0, 0, b"".join(struct.pack(">HL", name, value) for name, value in values.items()))


def window_update(stream: int, size: int) -> bytes:
    """Return a WINDOW_UPDATE frame (RFC 9113 section 6.9)."""
    return write(WINDOW_UPDATE, 0, stream, struct.pack(">L", size))


def rst_stream(stream: int, code: int) -> bytes:
    """Return an RST_STREAM frame (RFC 9113 section 6.4)."""
    return write(RST_STREAM, 0, stream, struct.pack(">L", code))


def goaway(last: int, code: int, text: str = "") -> bytes:
    """Return a GOAWAY frame with a text for who debugs the peer (RFC 9113 section 6.8)."""
    return write(GOAWAY, 0, 0, struct.pack(">LL", last, code) + text.encode("utf-8", "replace")[:200])


def content(frame: Frame) -> bytes:
    """Return the payload of DATA or HEADERS without padding and priority. Raises BadConnection if they do not fit.

    RFC 9113 sections 6.1 and 6.2.
    """
    begin, end = 0, len(frame.payload)
    if frame.flags & PADDED:
        if not frame.payload:
            raise BadConnection(FRAME_SIZE_ERROR, "a padded frame is empty")
        begin, end = 1, end - frame.payload[0]
    if frame.kind == HEADERS and frame.flags & PRIORITY_FLAG:
        begin += 5
    if begin > end:
        # What is cut off by the frame's own size is one error, padding beyond it another.
        short = begin > len(frame.payload)
        raise BadConnection(FRAME_SIZE_ERROR if short else PROTOCOL_ERROR, "a frame is shorter than its padding")
    return frame.payload[begin:end]


def number(frame: Frame) -> int:
    """Return the one number of RST_STREAM or WINDOW_UPDATE, of 31 or 32 bits. Raises BadConnection for another size."""
    if len(frame.payload) != 4:
        raise BadConnection(
            FRAME_SIZE_ERROR, f"a frame of type {frame.kind} holds {len(frame.payload)} bytes and not 4"
        )
    value = int.from_bytes(frame.payload, "big")
    return value & LARGEST_WINDOW if frame.kind == WINDOW_UPDATE else value


def read_settings(frame: Frame) -> dict[int, int]:
    """Return what a SETTINGS frame sets, the last value of each. Raises BadConnection for a value that is not allowed.

    RFC 9113 sections 6.5 and 6.5.2.
    """
    if len(frame.payload) % 6:
        raise BadConnection(FRAME_SIZE_ERROR, "SETTINGS end within a setting")
    values: dict[int, int] = {}
    for name, value in struct.iter_unpack(">HL", frame.payload):
        if name == ENABLE_PUSH and value > 1:
            raise BadConnection(PROTOCOL_ERROR, f"ENABLE_PUSH is {value} and not 0 or 1")
        if name == INITIAL_WINDOW_SIZE and value > LARGEST_WINDOW:
            raise BadConnection(FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is {value}, more than {LARGEST_WINDOW}")
        if name == MAX_FRAME_SIZE and not FRAME_SIZE <= value < 1 << 24:
            raise BadConnection(
                PROTOCOL_ERROR, f"MAX_FRAME_SIZE is {value}, outside of {FRAME_SIZE} to {(1 << 24) - 1}"
            )
        values[name] = value
    return values
