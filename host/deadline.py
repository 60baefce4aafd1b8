"""How long a request may still take. It is set where the request comes in, and asked by everything below that waits.

The deadline belongs to the thread of the request (it is a context variable). Some work must be done even after the
deadline, for example to remove half of a layer or to count down the users of a mount. Each such piece of work gets
GRACE_SECONDS. So a request ends soon after its deadline, and still leaves nothing behind if the cluster answers again.
Work in the background has no deadline.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from host import task
from host.failure import Failure

GRACE_SECONDS = 3.0

_Result = TypeVar("_Result")
_end: contextvars.ContextVar[float] = contextvars.ContextVar("end", default=float("inf"))


class Overdue(Failure):
    """Something took longer than the request may take. `str()` is one line that says what was waited for."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Set the deadline of the work in the `with` block, in seconds from now. It replaces an earlier deadline."""
    token = _end.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _end.reset(token)


def left(most: float) -> float:
    """Return how many seconds a piece of work may take that takes `most` without a deadline.

    That is `most` or the time until the deadline, whichever is less; but GRACE_SECONDS are always allowed.
    """
    return min(most, max(_end.get() - time.monotonic(), GRACE_SECONDS))


def call(work: Callable[[], _Result], what: str, most: float) -> _Result:
    """Do work in a thread of its own and return its result. The work may hang in the kernel.

    It hangs if it touches the file system of a device whose cluster does not answer. `what` names the work, for the
    error. Raises Overdue after `most` seconds, or earlier at the request's deadline; the thread is left behind then and
    ends when the cluster answers. Raises what `work` raises.
    """
    return call_all((work,), what, most)[0]


def call_all(works: Sequence[Callable[[], _Result]], what: str, most: float) -> list[_Result]:
    """Do several pieces of work as `call` does, all at the same time, and return their results in order.

    Raises what `call` raises. If several fail, the first error is raised; threads that still work are left behind.
    """
    seconds = left(most)
    until = time.monotonic() + seconds
    results: dict[int, _Result] = {}
    errors: list[BaseException] = []

    def run(at: int) -> None:
        try:
            results[at] = works[at]()
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=task.carried(run), args=(at,), name=what, daemon=True) for at in range(len(works))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if errors:
        raise errors[0]
    if len(results) < len(works):
        raise Overdue(f"{what}: no answer from its file system within {seconds:.3g} s")
    return [results[at] for at in range(len(works))]
