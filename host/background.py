"""Work that nobody waits for: done a while after it was asked for, in the background, until it is done.

What is to be done can always be told from the host or the cluster, so nothing is lost if this process ends
in between: the next one finds it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from host.failure import EXPECTED_OF_PROGRAMS

log = logging.getLogger("background")

# What cannot be done now may be possible soon: an image still open elsewhere, a cluster that does not answer. Each try
# waits twice as long as the one before, so that a short trouble costs little, and a long one few commands.
FIRST_RETRY_SECONDS, RETRY_SECONDS = 1.0, 30.0


@dataclass
class _Job:
    """When it is to be done, when at the latest however often it is asked for, and how often it failed."""

    due: float
    latest: float
    failures: int = 0


class Background:
    """Some threads, started when they are first needed, that do `work(name)` once the time of that name has come.

    `work` tells whether it is done. What is not, or raises whatever, is tried again, and again: after a success of
    another name at once, since what was in the way may be gone. A name is never done twice at the same time; `at_once`
    different ones are. An error that is a defect of ours (failure.py) is logged with its trace, once.
    """

    def __init__(self, title: str, work: Callable[[str], bool], at_once: int = 1) -> None:
        self._title = title
        self._work = work
        self._at_once = at_once
        self._state = threading.Condition()
        self._jobs: dict[str, _Job] = {}
        self._running: set[str] = set()
        # What `drain` still wait for, and how many of them wait.
        self._untried: set[str] = set()
        self._drains = 0
        self._threads: list[threading.Thread] = []
        self._paused = self._ended = self._failing = False
        # What was said last of a name that failed.
        self._said: dict[str, str] = {}

    def later(self, name: str, seconds: float, at_most: float = float("inf")) -> None:
        """Ask for `name` to be done in `seconds`; asked again, the time begins anew, up to `at_most` seconds in all."""
        with self._state:
            if self._ended:
                return
            now = time.monotonic()
            job = self._jobs.setdefault(name, _Job(now, now + at_most))
            job.due = min(now + seconds, job.latest)
            if self._drains:
                job.due = now
                self._untried.add(name)
            self._start()
            self._state.notify_all()

    def postpone(self, seconds: float) -> None:
        """Let what is still to be done wait for `seconds` more, but for no longer than was allowed for it."""
        with self._state:
            now = time.monotonic()
            for job in self._jobs.values():
                job.due = min(max(job.due, now + seconds), job.latest)

    def wake(self) -> None:
        """What was in the way may be gone: try at once what has failed before."""
        with self._state:
            self._wake()

    def drain(self, timeout: float) -> bool:
        """Try all of it now, and what is asked for meanwhile; tell whether all was tried within `timeout` seconds."""
        with self._state:
            self._untried |= {*self._jobs, *self._running}
            self._hurry(self._jobs.values())
            self._drains += 1
            try:
                return self._state.wait_for(lambda: not self._untried, timeout)
            finally:
                self._drains -= 1
                if not self._drains:
                    self._untried.clear()

    def wait_for(self, name: str, timeout: float) -> bool:
        """Try `name` now, if it was asked for; tell whether it is done, within `timeout` seconds."""
        with self._state:
            if name in self._jobs:
                self._hurry([self._jobs[name]])
            self._state.wait_for(lambda: name not in self._jobs and name not in self._running, timeout)
            return name not in self._jobs and name not in self._running

    def pause(self, timeout: float) -> bool:
        """Begin nothing until `resume`; tell whether what is being done ended within `timeout` seconds."""
        with self._state:
            self._paused = True
            return self._state.wait_for(lambda: not self._running, timeout)

    def resume(self) -> None:
        """Go on after `pause`."""
        with self._state:
            self._paused = False
            self._state.notify_all()

    def is_stopped(self) -> bool:
        """Tell whether nothing is begun now, or any more: what takes long shall end."""
        return self._paused or self._ended

    def end(self) -> None:
        """Begin nothing any more, and let the threads end once they have done what they do now."""
        with self._state:
            self._ended = True
            self._jobs.clear()
            self._untried &= self._running
            self._state.notify_all()

    # -- within; the caller holds `_state`, but in _run, _try and _tell -----------------------

    def _start(self) -> None:
        """Start a thread if all there are may be busy."""
        if len(self._threads) < min(self._at_once, len(self._jobs) + len(self._running)):
            thread = threading.Thread(target=self._run, name=self._title, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _hurry(self, jobs: Iterable[_Job]) -> None:
        for job in jobs:
            job.due = 0.0
        self._state.notify_all()

    def _wake(self) -> None:
        self._hurry([job for job in self._jobs.values() if job.failures])

    def _run(self) -> None:
        while True:
            with self._state:
                name = self._next()
                if not name:
                    return
                job = self._jobs.pop(name)
                self._running.add(name)
            done = self._try(name)
            with self._state:
                self._running.discard(name)
                self._untried.discard(name)
                self._note(name, job, done=done)
                self._state.notify_all()

    def _next(self) -> str:
        """Wait until the time of a name has come that nobody is at; "" once all has ended."""
        while not self._ended:
            jobs = {} if self._paused else self._jobs
            free = {name: job.due for name, job in jobs.items() if name not in self._running}
            name = min(free, key=free.__getitem__, default="")
            left = free[name] - time.monotonic() if free else None
            if left is not None and left <= 0:
                return name
            self._state.wait(left)
        return ""

    def _note(self, name: str, job: _Job, *, done: bool) -> None:
        if done:
            self._said.pop(name, None)
            if self._failing:
                self._wake()
        elif not self._ended:
            job.failures += 1
            job.due = job.latest = time.monotonic() + _pause(job.failures)
            # Asked for meanwhile: then it is not forgotten that it has failed, but the time is the caller's.
            self._jobs.setdefault(name, job).failures = job.failures
        self._failing = not done

    def _try(self, name: str) -> bool:
        try:
            return self._work(name)
        except Exception as error:
            self._tell(name, error)
            return False

    def _tell(self, name: str, error: Exception) -> None:
        """Say why it failed, when that is new."""
        said = f"{type(error).__name__}: {error}"
        if self._said.get(name) == said:
            return
        self._said[name] = said
        words = "%s %s: again in 1 to %g s: %s", self._title, name, RETRY_SECONDS, error
        if isinstance(error, EXPECTED_OF_PROGRAMS):
            log.warning(*words)
        else:
            log.exception(*words)


class Group:
    """Several works in the background, as one."""

    def __init__(self, *works: Background | Group) -> None:
        self._works = works

    def drain(self, timeout: float) -> bool:
        """Try all of it now; tell whether all was tried within `timeout` seconds."""
        return _in_turn(timeout, [work.drain for work in self._works])

    def pause(self, timeout: float) -> bool:
        """Begin nothing until `resume`; tell whether what is being done ended within `timeout` seconds."""
        return _in_turn(timeout, [work.pause for work in self._works])

    def resume(self) -> None:
        """Go on after `pause`."""
        for work in self._works:
            work.resume()

    def wake(self) -> None:
        """What was in the way may be gone: try at once what has failed before."""
        for work in self._works:
            work.wake()

    def end(self) -> None:
        """Begin nothing any more."""
        for work in self._works:
            work.end()


def _in_turn(timeout: float, works: Iterable[Callable[[float], bool]]) -> bool:
    """Do all of these works, one after the other, each with what is left of `timeout` seconds; tell whether all did it.

    A work that has no time left does what it can do at once.
    """
    until = time.monotonic() + timeout
    done = [work(max(0.0, until - time.monotonic())) for work in works]
    return all(done)


def _pause(failures: int) -> float:
    """How long to wait before another try: not as long as another host that got into our way, and we into its."""
    longest = min(FIRST_RETRY_SECONDS * 2.0 ** (failures - 1), RETRY_SECONDS)
    return longest * random.uniform(0.7, 1.0)  # noqa: S311 - no secret
