"""Empties the trash behind the caller's back: what is removed is gone at once for Docker, the deleting takes its time.

The trash itself is the list of what is to be done, so nothing is lost if this process ends.
"""

from __future__ import annotations

import logging
import threading
from typing import Protocol

import command

log = logging.getLogger("reaper")

# Something in the trash may be held for a while: a client that is going away, a clone still in use.
RETRY_SECONDS = 30.0


class Trash(Protocol):
    """What is emptied."""

    def reap(self) -> bool:
        """Delete what can be deleted; tell whether something is left."""


class Reaper:
    """One thread that empties the trash when woken, started when it is first needed."""

    def __init__(self, trash: Trash) -> None:
        self._trash = trash
        self._state = threading.Condition()
        self._asked = 0
        self._done = 0
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Ask for the trash to be emptied soon; returns at once."""
        with self._state:
            self._asked += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="reaper", daemon=True)
                self._thread.start()
            self._state.notify_all()

    def drain(self, timeout: float) -> bool:
        """Wait until what was asked for so far is done, `timeout` seconds at the most; tell whether it is."""
        with self._state:
            asked = self._asked
            return self._state.wait_for(lambda: self._done >= asked, timeout)

    def _work(self) -> None:
        left = False
        while True:
            with self._state:
                self._state.wait_for(lambda: self._asked > self._done, RETRY_SECONDS if left else None)
                asked = self._asked
            try:
                left = self._trash.reap()
            except (command.CommandError, LookupError, ValueError) as error:
                # A cluster that does not answer, or one whose rbd prints what we do not know: no reason to give up.
                log.warning("the trash is not emptied now, again in %g s: %s", RETRY_SECONDS, error)
                left = True
            with self._state:
                self._done = asked
                self._state.notify_all()
