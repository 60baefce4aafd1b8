"""Locks between threads: one for each name, and a gate that lets many in at once, or one alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from host import deadline


class Locks:
    """Locks by name, each of which exists only while somebody holds it or waits for it.

    Order, where one thread holds two: a layer before its parent, never the reverse.

    A parent is always older than its layers, so that order has no cycle.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold the lock of `name` for the length of a `with` block.

        Raises deadline.Overdue if those before it take longer than this thread's request may.
        """
        with self._guard:
            lock, users = self._waiting.get(name, (threading.Lock(), 0))
            self._waiting[name] = (lock, users + 1)
        try:
            seconds = deadline.left(threading.TIMEOUT_MAX)
            if not lock.acquire(timeout=seconds):
                raise deadline.Overdue(f"layer {name}: other requests have been at work with it for {seconds:.3g} s")
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._guard:
                lock, users = self._waiting[name]
                if users == 1:
                    del self._waiting[name]
                else:
                    self._waiting[name] = (lock, users - 1)


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
