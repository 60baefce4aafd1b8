"""Locks between threads: a lock for each name, and a gate that lets in many threads at once, or one alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from host import deadline, task


class Locks:
    """Locks by name. A lock exists only while a thread holds it or waits for it.

    If a thread takes the locks of two layers, it takes that of a layer before that of its parent, never the reverse. A
    parent is always older than its layers, so this order has no cycle.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold the lock of `name` for the length of a `with` block.

        Raises deadline.Overdue if other threads hold the lock for longer than this thread's request may take. The
        thread must not hold the lock already: it would wait for itself.
        """
        with self._guard:
            lock, users = self._waiting.get(name, (threading.Lock(), 0))
            self._waiting[name] = (lock, users + 1)
        try:
            if not lock.acquire(blocking=False):
                _wait(lock, name)
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


def _wait(lock: threading.Lock, name: str) -> None:
    seconds = deadline.left(threading.TIMEOUT_MAX)
    with _noted_wait():
        if not lock.acquire(timeout=seconds):
            raise deadline.Overdue(f"layer {name}: other requests have been at work with it for {seconds:.3g} s")


@contextlib.contextmanager
def _noted_wait() -> Iterator[None]:
    """Let the request of this thread know that it waits in the `with` block."""
    began = time.monotonic()
    try:
        yield
    finally:
        if spent := task.spent():
            spent.wait(began)


class GateTimeout(Exception):
    """The threads inside did not leave in time."""


class Gate:
    """Counts the threads inside. A thread that wants to be alone keeps others out, and waits for those inside."""

    def __init__(self) -> None:
        self._state = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextlib.contextmanager
    def shared(self, timeout: float) -> Iterator[None]:
        """Be inside with others. Raises GateTimeout if a thread stays alone inside for more than `timeout` seconds."""
        with self._state:
            if self._closed:
                self._wait_open(timeout)
            self._inside += 1
        try:
            yield
        finally:
            with self._state:
                self._inside -= 1
                self._state.notify_all()

    @contextlib.contextmanager
    def alone(self, timeout: float) -> Iterator[None]:
        """Be inside alone. Raises GateTimeout, and opens again, if the others do not leave in `timeout` seconds."""
        end = time.monotonic() + timeout
        with self._state:
            self._wait_open(timeout)
            self._closed = True
            try:
                with _noted_wait():
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
        """Let no thread in any more. Tell whether those inside left within `timeout` seconds."""
        with self._state:
            self._closed = True
            return self._state.wait_for(lambda: self._inside == 0, timeout)

    def _wait_open(self, timeout: float) -> None:
        """Wait until no thread is alone inside. Raises GateTimeout. The caller holds `_state`."""
        with _noted_wait():
            if not self._state.wait_for(lambda: not self._closed, timeout):
                raise GateTimeout

    def _open(self) -> None:
        self._closed = False
        self._state.notify_all()
