"""The life of a process that serves: one of a kind, ended in order by a signal, whatever its parent had set for it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator

from host.failure import Failure

OPEN_FILES = 1 << 16
M_ARENA_MAX = -8  # malloc.h

log = logging.getLogger("instance")


class AlreadyServed(Failure):
    """Another instance has our socket, or our root. The text is one line: what to do."""


@contextlib.contextmanager
def only(path: str, option: str) -> Iterator[None]:
    """Hold the lock file PATH.lock in the `with` block; `option` names another path.

    Raises AlreadyServed if another instance has it, OSError.
    """
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(path + ".lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyServed(f"another instance serves {path}; stop it or give {option}") from None
        yield


def catch_signals() -> socket.socket:
    """Let SIGTERM and SIGINT only send their numbers to a socket from now on. Return that socket.

    A handler must not do more: it interrupts the main thread, which may hold a lock of Python's own at that moment.
    """
    caught, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return caught


def stop_on_signal(shutdown: Callable[[], None], caught: socket.socket) -> None:
    """Call `shutdown` of a server once a signal is caught. A thread does this, since it waits for the server's loop."""

    def stop() -> None:
        log.info("%s: finishing what runs", signal.Signals(caught.recv(1)[0]).name)
        shutdown()

    threading.Thread(target=stop, name="signals", daemon=True).start()


def reset_process() -> None:
    """Undo settings of a parent process that a new program inherits, and set the limits that the driver needs."""
    # If SIGCHLD were ignored, we would not see how our commands end. If signals were blocked, none would end us.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Each connection of dockerd takes one descriptor, and a command some for a moment.
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, min(most, OPEN_FILES)), most))
    # By default, glibc gives each thread a heap of its own, and each keeps what was freed. Other C libraries have no
    # such call.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
