"""How long a request may still take: set where it comes in, asked by everything below that waits.

A request's deadline is that of its thread (a context variable). What must be done after it all the same, to undo half
of a layer or to count a mount less, gets GRACE_SECONDS each time, so that a request ends soon after its deadline and
still leaves nothing behind where the cluster answers again. Work that nobody waits for has no deadline.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from host.failure import Failure

GRACE_SECONDS = 3.0

_Result = TypeVar("_Result")
_end: contextvars.ContextVar[float] = contextvars.ContextVar("end", default=float("inf"))


class Overdue(Failure):
    """Something took longer than the request may: one line that says what was waited for."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Let what is done in the `with` block end within `seconds`, whatever was set before."""
    token = _end.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _end.reset(token)


def left(most: float) -> float:
    """Return the seconds that something may take which takes `most` at the most."""
    return min(most, max(_end.get() - time.monotonic(), GRACE_SECONDS))


def call(work: Callable[[], _Result], what: str, most: float) -> _Result:
    """Do what may hang in the kernel: the file system of a device whose cluster does not answer.

    Raises Overdue after `most` seconds at the most; the thread that hangs ends when the cluster answers. Raises also
    what `work` raises.
    """
    return call_all((work,), what, most)[0]


def call_all(works: Sequence[Callable[[], _Result]], what: str, most: float) -> list[_Result]:
    """Do several such at the same time, and return what each returns. Raises as `call` does."""
    seconds = left(most)
    until = time.monotonic() + seconds
    results: dict[int, _Result] = {}
    errors: list[BaseException] = []

    def run(at: int) -> None:
        try:
            results[at] = works[at]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(at,), name=what, daemon=True) for at in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if errors:
        raise errors[0]
    if len(results) < len(works):
        raise Overdue(f"{what}: no answer from its file system within {seconds:g} s")
    return [results[at] for at in range(len(works))]
