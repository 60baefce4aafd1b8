"""Ends what an operator has typed in order when a signal interrupts it: by KeyboardInterrupt in the main thread."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

from host import command

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A thread that is about to end may start one more command.
_AGAIN_SECONDS = 0.1


@contextlib.contextmanager
def by_signals(*, commands_too: bool = False) -> Iterator[None]:
    """Let SIGTERM and SIGHUP interrupt the `with` block as SIGINT does, once: what is left then goes undisturbed.

    The KeyboardInterrupt has the number of the signal. `commands_too`: the commands that run are killed, those of all
    threads. Otherwise the block, which waits for its threads, might end much later: with a cluster that is sick.
    """
    # One that our caller ignores (nohup) stays ignored.
    signals = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    interrupted, ended = threading.Event(), threading.Event()

    def interrupt(number: int, _: object) -> None:
        for each in signals:
            # Not SIG_IGN: the commands that clean up would inherit it. And if another signal came together with this
            # one, Python is about to call its handler, too: then SIG_IGN is a TypeError (3.9), or a line on stderr.
            signal.signal(each, _nothing)
        interrupted.set()
        raise KeyboardInterrupt(number)

    def kill() -> None:
        interrupted.wait()
        while not ended.wait(_AGAIN_SECONDS):
            command.end_running(logging.DEBUG)

    if commands_too:
        threading.Thread(target=kill, name="interruption", daemon=True).start()
    former = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        # First: `interrupt` must not come while this thread has the lock of an event.
        for number, handler in former.items():
            signal.signal(number, handler)
        ended.set()
        interrupted.set()


def _nothing(*_: object) -> None:
    """Do nothing for a signal."""


def number_of(interruption: KeyboardInterrupt) -> int:
    """Return the number of the signal that interrupted us."""
    return int(interruption.args[0]) if interruption.args else signal.SIGINT
