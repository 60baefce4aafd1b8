"""A lock per name that exists only while somebody holds it or waits for it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Locks:
    """Locks by name. Order, where one thread holds two: a layer before its parent, never the reverse.

    A parent is always older than its layers, so that order has no cycle.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold the lock of `name` for the length of a `with` block."""
        with self._guard:
            lock, users = self._waiting.get(name, (threading.Lock(), 0))
            self._waiting[name] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._waiting[name]
                if users == 1:
                    del self._waiting[name]
                else:
                    self._waiting[name] = (lock, users - 1)
