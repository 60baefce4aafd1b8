"""One request and its answer: a stream of HTTP/2 (RFC 9113 section 5.1, 8.1)."""

from __future__ import annotations

import time
from collections.abc import Iterable

from wire import frames, hpack
from wire.hpack import Field
from wire.outgoing import FIRST_WINDOW, Outgoing, no_window

# How long the peer may take for what one `send` sends.
SEND_SECONDS = 60.0
# As much is joined for one call of the kernel.
_BATCH = 4 * frames.FRAME_SIZE


class Stream:
    """A request that has come, and the way back. A thread of its own works on it.

    `fields`: the header fields, valid ones of a request.
    `body`: the whole body.
    `refused`: why `fields` or `body` is not whole: it is too large. The answer must say so.
    """

    def __init__(self, number: int, fields: list[Field], outgoing: Outgoing) -> None:
        self.number = number
        self.fields = fields
        self.body = bytearray()
        self.refused = ""
        self._outgoing = outgoing
        # For the connection: what it may still receive, whether the request is whole, whether a thread has it, and
        # whether its answer is.
        self.window = FIRST_WINDOW
        self.whole = self.begun = self.answered = False

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return not self.answered and not self._outgoing.is_open(self.number)

    def send(
        self, *, head: Iterable[Field] | None = None, data: bytes = b"", trailers: Iterable[Field] | None = None
    ) -> None:
        """Send a part of the answer: its head comes first, once; `trailers` end it, and may be all of it.

        It waits for the windows of the peer. Raises StreamGone if the peer has gone, and BadStream if it lets the
        answer wait for more than SEND_SECONDS.
        """
        held = b"" if head is None else self._headers(head, 0)
        rest = memoryview(data)
        until = time.monotonic() + SEND_SECONDS
        while rest:
            # Before it waits for a window, the peer has all that came before.
            size = self._outgoing.take(self.number, min(len(rest), _BATCH), 0.0 if held else until)
            if time.monotonic() > until:
                raise no_window(self.number, SEND_SECONDS)
            held += self._data(rest[:size])
            rest = rest[size:]
            if rest:
                self._outgoing.write_on(self.number, held)
                held = b""
        if trailers is not None:
            held += self._headers(trailers, frames.END_STREAM)
            # The peer may begin another stream as soon as it has this.
            self.answered = True
        if held:
            self._outgoing.write_on(self.number, held)

    def _headers(self, fields: Iterable[Field], flags: int) -> bytes:
        return frames.write(frames.HEADERS, frames.END_HEADERS | flags, self.number, hpack.encode(fields))

    def _data(self, data: memoryview) -> bytes:
        pieces = range(0, len(data), frames.FRAME_SIZE)
        return b"".join(
            frames.write(frames.DATA, 0, self.number, bytes(data[at : at + frames.FRAME_SIZE])) for at in pieces
        )
