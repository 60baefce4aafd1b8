"""Work that nobody waits for: it is begun a while after it was asked for, in the background, and tried until done.

The host or the cluster always tells what is to be done. So nothing is lost if this process ends before: its next life
finds the work.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from host import served, task
from host.failure import EXPECTED_OF_PROGRAMS

log = logging.getLogger("background")

# Work that fails now may be possible soon: an image is still open elsewhere, or a cluster does not answer. Each pause
# is twice as long as the one before. So a short trouble costs little time, and a long trouble few commands.
FIRST_RETRY_SECONDS, RETRY_SECONDS = 1.0, 30.0


@dataclass
class _Job:
    """When a piece of work is to be done.

    `due`: the time at which it begins, by time.monotonic().
    `latest`: the latest such time, however often the work is asked for or postponed.
    `since`: when it was due first; it has not been done since.
    `failures`: how often it has failed.
    """

    due: float
    latest: float
    since: float
    failures: int = 0

    def begin_at(self, due: float) -> None:
        """Let it begin then, but not after `latest`."""
        self.due = min(due, self.latest)
        if not self.failures:
            self.since = self.due


class Waiting(NamedTuple):
    """What of one kind of work is due and not done yet: the number of names, and the seconds that the oldest is due.

    What failed stays due until it is done.
    """

    title: str
    number: int
    oldest: float


class Background:
    """Threads that call `work(name)` once the time of that name has come. They start when they are first needed.

    `work` tells whether it is done. If it is not, or raises any error, it is tried again and again. If another name
    succeeds after a failure, it is tried at once: the obstacle may be gone. One name is never done twice at the same
    time; up to `at_once` names are. An error that is a defect of ours (failure.py) is logged with its trace, once.
    """

    def __init__(self, title: str, work: Callable[[str], bool], at_once: int = 1) -> None:
        self._title = title
        self._work = work
        self._at_once = at_once
        self._state = threading.Condition()
        self._jobs: dict[str, _Job] = {}
        # The names that are just being done, and since when each was due.
        self._running: dict[str, float] = {}
        # The names that calls of `drain` still wait for, and the number of these calls.
        self._untried: set[str] = set()
        self._drains = 0
        self._threads: list[threading.Thread] = []
        self._paused = self._ended = self._failing = False
        # The last error that was logged for each name that failed.
        self._said: dict[str, str] = {}

    def later(self, name: str, seconds: float, at_most: float = float("inf")) -> None:
        """Ask for `name` to be done in `seconds`. To ask again begins the time anew, up to `at_most` seconds in all."""
        with self._state:
            if self._ended:
                return
            now = time.monotonic()
            job = self._jobs.setdefault(name, _Job(now, now + at_most, now))
            job.begin_at(now if self._drains else now + seconds)
            if self._drains:
                self._untried.add(name)
            self._start()
            self._state.notify_all()

    def postpone(self, seconds: float) -> None:
        """Let all names wait for `seconds` from now at least, but not beyond the `at_most` of each."""
        with self._state:
            now = time.monotonic()
            for job in self._jobs.values():
                job.begin_at(max(job.due, now + seconds))

    def wake(self) -> None:
        """Try at once all names that have failed before: the obstacle may be gone."""
        with self._state:
            self._wake()

    def drain(self, timeout: float) -> bool:
        """Try all names now, and those asked for meanwhile. Tell whether all were tried within `timeout` seconds."""
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
        """Try `name` now, if it was asked for. Tell whether it is done, after `timeout` seconds at the most."""
        with self._state:
            if name in self._jobs:
                self._hurry([self._jobs[name]])
            self._state.wait_for(lambda: name not in self._jobs and name not in self._running, timeout)
            return name not in self._jobs and name not in self._running

    def pause(self, timeout: float) -> bool:
        """Begin nothing until `resume`. Tell whether all that was begun ended within `timeout` seconds."""
        with self._state:
            self._paused = True
            return self._state.wait_for(lambda: not self._running, timeout)

    def resume(self) -> None:
        """Go on after `pause`."""
        with self._state:
            self._paused = False
            self._state.notify_all()

    def waiting(self) -> list[Waiting]:
        """Tell what is due and not done yet, also what is just being done: a list of one."""
        with self._state:
            now = time.monotonic()
            # A name that is asked for again while it is being done is one.
            names = {name: job.since for name, job in self._jobs.items()} | self._running
            due = [since for since in names.values() if since <= now]
            return [Waiting(self._title, len(due), now - min(due) if due else 0.0)]

    def is_stopped(self) -> bool:
        """Tell whether `pause` or `end` was called: then work that takes long shall give up."""
        return self._paused or self._ended

    def end(self) -> None:
        """Begin nothing any more. Each thread ends once it has done what it does now; nobody waits for that."""
        with self._state:
            self._ended = True
            self._jobs.clear()
            self._untried &= self._running.keys()
            self._state.notify_all()

    # -- within; the caller holds `_state`, but not of _run, _try and _tell -------------------

    def _start(self) -> None:
        """Start a thread if all threads may be busy."""
        if len(self._threads) < min(self._at_once, len(self._jobs) + len(self._running)):
            thread = threading.Thread(target=self._run, name=self._title, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _hurry(self, jobs: Iterable[_Job]) -> None:
        now = time.monotonic()
        for job in jobs:
            # Before all that is due already.
            job.due, job.since = 0.0, min(job.since, now)
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
                self._running[name] = job.since
            done = self._try(name)
            with self._state:
                self._running.pop(name)
                self._untried.discard(name)
                self._note(name, job, done=done)
                self._state.notify_all()

    def _next(self) -> str:
        """Wait until the time of a name has come that no thread is at work with. Return "" after `end`."""
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
            # If the name was asked for meanwhile, the new time counts, and what is known of its past is kept.
            again = self._jobs.setdefault(name, job)
            again.failures, again.since = job.failures, job.since
        self._failing = not done

    def _try(self, name: str) -> bool:
        with task.background(f"{self._title} {name}"):
            try:
                return self._work(name)
            except Exception as error:
                served.failed_in_background(error)
                self._tell(name, error)
                return False

    def _tell(self, name: str, error: Exception) -> None:
        """Log why a name failed, unless it failed with the same error before."""
        text = f"{type(error).__name__}: {error}"
        if self._said.get(name) == text:
            return
        self._said[name] = text
        words = "%s %s: again in 1 to %g s: %s", self._title, name, RETRY_SECONDS, error
        if isinstance(error, EXPECTED_OF_PROGRAMS):
            log.warning(*words)
        else:
            log.exception(*words)


class Group:
    """Several works in the background, treated as one. Each method does that of all of them."""

    def __init__(self, *works: Background | Group) -> None:
        self._works = works

    def drain(self, timeout: float) -> bool:
        """Try all names now. Tell whether all were tried within `timeout` seconds."""
        return in_turn(timeout, [work.drain for work in self._works])

    def pause(self, timeout: float) -> bool:
        """Begin nothing until `resume`. Tell whether all that was begun ended within `timeout` seconds."""
        return in_turn(timeout, [work.pause for work in self._works])

    def resume(self) -> None:
        """Go on after `pause`."""
        for work in self._works:
            work.resume()

    def waiting(self) -> list[Waiting]:
        """Tell what is due and not done yet, of each work."""
        return [one for work in self._works for one in work.waiting()]

    def wake(self) -> None:
        """Try at once all names that have failed before: the obstacle may be gone."""
        for work in self._works:
            work.wake()

    def end(self) -> None:
        """Begin nothing any more."""
        for work in self._works:
            work.end()


def in_turn(timeout: float, works: Iterable[Callable[[float], bool]]) -> bool:
    """Call these, one after the other, each with the rest of `timeout` seconds. Tell whether all returned True.

    If no time is left, a call does what it can do at once.
    """
    until = time.monotonic() + timeout
    done = [work(max(0.0, until - time.monotonic())) for work in works]
    return all(done)


def _pause(failures: int) -> float:
    """Return how many seconds to wait before another try. Chance keeps two hosts from meeting again and again."""
    longest = min(FIRST_RETRY_SECONDS * 2.0 ** (failures - 1), RETRY_SECONDS)
    return longest * random.uniform(0.7, 1.0)  # noqa: S311 - no secret
