"""Many at once, or one alone: requests run side by side, a new daemon's Init waits until the old one's are over."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator


class GateTimeout(Exception):
    """Those inside did not leave in time."""


class Gate:
    """Counts those inside; whoever wants to be alone waits for them and keeps others out meanwhile."""

    def __init__(self) -> None:
        self._state = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextlib.contextmanager
    def shared(self, timeout: float) -> Iterator[None]:
        """Be inside with others. Raises GateTimeout if who is alone inside takes more than `timeout` seconds."""
        with self._state:
            if not self._state.wait_for(lambda: not self._closed, timeout):
                raise GateTimeout
            self._inside += 1
        try:
            yield
        finally:
            with self._state:
                self._inside -= 1
                self._state.notify_all()

    @contextlib.contextmanager
    def alone(self, timeout: float) -> Iterator[None]:
        """Be inside alone. Raises GateTimeout if the others take more than `timeout` seconds to leave."""
        end = time.monotonic() + timeout
        with self._state:
            if not self._state.wait_for(lambda: not self._closed, timeout):
                raise GateTimeout
            self._closed = True
            try:
                if not self._state.wait_for(lambda: self._inside == 0, max(0.0, end - time.monotonic())):
                    raise GateTimeout
            except BaseException:
                self._open()
                raise
        try:
            yield
        finally:
            with self._state:
                self._open()

    def close(self, timeout: float) -> bool:
        """Let nobody in any more, whatever comes; tell whether those inside left within `timeout` seconds."""
        with self._state:
            self._closed = True
            return self._state.wait_for(lambda: self._inside == 0, timeout)

    def _open(self) -> None:
        self._closed = False
        self._state.notify_all()
