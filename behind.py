"""Work that nobody waits for: done a while after it was asked for, by one thread.

What is to be done can always be told from the host or the cluster, so nothing is lost if this process ends
in between: the next one finds it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

log = logging.getLogger("behind")

# What cannot be done now may be possible soon: an image still open elsewhere, a cluster that does not answer.
RETRY_SECONDS = 30.0


class Behind:
    """One thread, started when it is first needed, that does `work(name)` once the time of that name has come.

    `work` tells whether it is done; what is not, or raises one of `expected`, is tried again after RETRY_SECONDS.
    """

    def __init__(self, title: str, work: Callable[[str], bool], expected: tuple[type[Exception], ...]) -> None:
        self._title = title
        self._work = work
        self._expected = expected
        self._state = threading.Condition()
        # When each is to be done, and when at the latest however often it is asked for.
        self._due: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._running = ""
        self._untried: set[str] = set()
        self._thread: threading.Thread | None = None

    def later(self, name: str, seconds: float, at_most: float = float("inf")) -> None:
        """Ask for `name` to be done in `seconds`; asked again, the time begins anew, up to `at_most` seconds in all."""
        with self._state:
            now = time.monotonic()
            self._due[name] = min(now + seconds, self._latest.setdefault(name, now + at_most))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._title, daemon=True)
                self._thread.start()
            self._state.notify_all()

    def postpone(self, seconds: float) -> None:
        """Let what is still to be done wait for `seconds` more, but for no longer than was allowed for it."""
        with self._state:
            now = time.monotonic()
            for name, due in self._due.items():
                self._due[name] = min(max(due, now + seconds), self._latest[name])

    def drain(self, timeout: float) -> bool:
        """Try all of it now, `timeout` seconds at the most; tell whether everything was tried."""
        with self._state:
            self._untried |= {*self._due, *filter(None, [self._running])}
            self._due.update(dict.fromkeys(self._due, 0.0))
            self._state.notify_all()
            return self._state.wait_for(lambda: not self._untried, timeout)

    def stop(self, timeout: float) -> bool:
        """Begin nothing that was asked for so far; tell whether what is being done ended within `timeout` seconds."""
        with self._state:
            self._due.clear()
            self._latest.clear()
            return self._state.wait_for(lambda: not self._running, timeout)

    def _run(self) -> None:
        while True:
            with self._state:
                name = self._running = self._next()
                del self._due[name], self._latest[name]
            done = self._try(name)
            with self._state:
                self._running = ""
                self._untried.discard(name)
                if not done and name not in self._due:
                    self._due[name] = self._latest[name] = time.monotonic() + _pause()
                self._state.notify_all()

    def _next(self) -> str:
        """Wait until the time of a name has come."""
        while True:
            name = min(self._due, key=self._due.__getitem__, default="")
            left = self._due[name] - time.monotonic() if self._due else None
            if left is not None and left <= 0:
                return name
            self._state.wait(left)

    def _try(self, name: str) -> bool:
        try:
            return self._work(name)
        except self._expected as error:
            log.warning("%s: again in %g s: %s", self._title, RETRY_SECONDS, error)
            return False
        except Exception:
            log.exception("%s of %s: a defect of the driver", self._title, name)
            return True


def _pause() -> float:
    """How long to wait before another try: not as long as another host that got into our way, and we into its."""
    return RETRY_SECONDS * random.uniform(0.7, 1.0)  # noqa: S311 - no secret
