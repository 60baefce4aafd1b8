"""What is sent on a connection: one thread at a time, within the peer's windows (RFC 9113 sections 5.2 and 6.9).

A peer that does not read for WRITE_SECONDS loses its connection. One that gives a stream no window loses the stream.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from host.failure import Failure
from wire.calm import Calm
from wire.frames import CANCEL, FLOW_CONTROL_ERROR, LARGEST_WINDOW, PROTOCOL_ERROR, BadConnection, BadStream

# RFC 9113 section 6.9.2: what each side may send before it hears of windows.
FIRST_WINDOW = 65535
WRITE_SECONDS = 30.0


class StreamGone(Failure):
    """The peer has reset the stream, or the connection has ended: nobody would read an answer."""


class Outgoing:
    """One direction of a connection. Each open stream has a window here; a stream without one is gone."""

    def __init__(self, peer: socket.socket, calm: Calm) -> None:
        self._peer = peer
        self._calm = calm
        self._writing = threading.Lock()
        # It guards all that is below.
        self._changed = threading.Condition()
        self._left = FIRST_WINDOW
        self._first = FIRST_WINDOW
        self._windows: dict[int, int] = {}
        self._ended = False

    # -- octets ------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send frames, all or the connection ends. Raises StreamGone if it has ended, or ends with this."""
        with self._writing:
            if self._ended:
                raise StreamGone("the connection has ended")
            try:
                self._peer.sendall(data)
            except OSError as error:
                self.end()
                raise StreamGone(f"the connection broke, or the peer did not read: {error}") from error

    def write_on(self, stream: int, data: bytes) -> None:
        """Send frames of an answer. Raises StreamGone."""
        if not self.is_open(stream):
            raise StreamGone(f"stream {stream} was reset")
        self.write(data)
        self._calm.earn()

    def end(self) -> None:
        """End the connection: whoever waits to read, to write or for a window goes on at once."""
        with self._changed:
            self._ended = True
            self._windows.clear()
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket after `end`. No thread writes then: its number may be that of another file soon."""
        with self._writing:
            self._peer.close()

    # -- windows -----------------------------------------------------------------------------

    def open(self, stream: int) -> None:
        """Give a new stream its window."""
        with self._changed:
            if not self._ended:
                self._windows[stream] = self._first

    def is_open(self, stream: int) -> bool:
        """Tell whether an answer on this stream would be read."""
        return stream in self._windows

    def forget(self, stream: int) -> None:
        """Let nothing be sent on a stream any more."""
        with self._changed:
            self._windows.pop(stream, None)
            self._changed.notify_all()

    def take(self, stream: int, most: int, until: float) -> int:
        """Return how many bytes of data may be sent now, up to `most`; they are taken from both windows.

        It waits until one byte may be sent; at the time `until`, by time.monotonic(), it returns 0. Raises StreamGone.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._room(stream) != 0, max(0.0, until - time.monotonic()))
            room = self._room(stream)
            if room < 0:
                raise StreamGone(f"stream {stream} was reset")
            size = min(most, room)
            if size:
                self._left -= size
                self._windows[stream] -= size
            return size

    def grow(self, stream: int, size: int) -> None:
        """Add to a window; stream 0 means that of the connection. Raises BadConnection or BadStream.

        RFC 9113 sections 6.9 and 6.9.1.
        """
        error = BadStream if stream else BadConnection
        if not size:
            raise error(PROTOCOL_ERROR, "WINDOW_UPDATE of 0 bytes")
        with self._changed:
            if not stream:
                self._left = grown = self._left + size
            elif stream in self._windows:
                self._windows[stream] = grown = self._windows[stream] + size
            else:
                return
            self._changed.notify_all()
        if grown > LARGEST_WINDOW:
            raise error(FLOW_CONTROL_ERROR, f"a window of {grown} bytes, more than {LARGEST_WINDOW}")

    def resize(self, first: int) -> None:
        """Apply INITIAL_WINDOW_SIZE to streams to come and to open ones, whose windows may become negative.

        Raises BadConnection for a window that becomes too large (RFC 9113 section 6.9.2).
        """
        with self._changed:
            more, self._first = first - self._first, first
            for stream in self._windows:
                self._windows[stream] += more
            largest = max(self._windows.values(), default=0)
            self._changed.notify_all()
        if largest > LARGEST_WINDOW:
            raise BadConnection(FLOW_CONTROL_ERROR, f"a window of {largest} bytes, more than {LARGEST_WINDOW}")

    def _room(self, stream: int) -> int:
        """Return what both windows allow, or -1 if the stream is gone."""
        window = self._windows.get(stream)
        return -1 if window is None else max(0, min(window, self._left))


def no_window(stream: int, seconds: float) -> BadStream:
    """Return the error of a peer that takes an answer too slowly."""
    return BadStream(CANCEL, f"stream {stream}: the peer gave no window for the answer within {seconds:.3g} s")
