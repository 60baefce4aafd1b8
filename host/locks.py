"""A lock per name that exists only while somebody holds it or waits for it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from host import deadline


class Locks:
    """Locks by name. Order, where one thread holds two: a layer before its parent, never the reverse.

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
