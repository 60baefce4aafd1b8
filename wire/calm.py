"""How many frames a peer may send that ask for nothing: a flood of them would keep a thread busy for ever.

PING, SETTINGS, resets, empty frames and the like are a part of every connection, so none is refused by itself. Known
floods: CVE-2019-9511 to 9518, CVE-2023-44487 (rapid reset), CVE-2024-27316 (continuation); RFC 9113 section 10.5.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from wire.frames import ENHANCE_YOUR_CALM, BadConnection

# As many at once, and as many a second for ever.
MOST, PER_SECOND = 1000, 100.0
# What an answered frame of ours allows: gRPC clients send two WINDOW_UPDATE and a PING for a DATA frame.
EARNED = 4


class Calm:
    """The frames that one peer may still send. They become more with time, and with what we send it; up to MOST."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = float(MOST)
        self._at = clock()

    def spend(self, what: str) -> None:
        """Count a frame. Raises BadConnection with ENHANCE_YOUR_CALM if there were too many."""
        now = self._clock()
        self._left = min(MOST, self._left + PER_SECOND * (now - self._at)) - 1
        self._at = now
        if self._left < 0:
            raise BadConnection(ENHANCE_YOUR_CALM, f"too many frames that ask for nothing, the last one: {what}")

    def earn(self) -> None:
        """Count a frame of an answer. Threads that send at the same time may lose one: that is no harm."""
        self._left = min(MOST, self._left + EARNED)
