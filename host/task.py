"""What a thread works for: a request, by its number, or work in the background, by its name. The log shows it.

It is a context variable, as the deadline of a request is (deadline.py). A request that hands work to other threads
gives them its context (contextvars.copy_context), or its task alone (`carried`). Then their lines and commands are the
request's, too.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from host.spent import Spent


class Task(NamedTuple):
    """`name`: as the log shows it. `spent`: where its time goes, None for work that nobody waits for."""

    name: str
    spent: Spent | None = None


_Given = TypeVar("_Given")
_Result = TypeVar("_Result")

_numbers = itertools.count(1)
_current: contextvars.ContextVar[Task | None] = contextvars.ContextVar("task", default=None)


@contextlib.contextmanager
def request() -> Iterator[Task]:
    """Let the `with` block be a request, with the next number of this process."""
    with _entered(Task(f"#{next(_numbers)}", Spent())) as task:
        yield task


@contextlib.contextmanager
def background(name: str) -> Iterator[None]:
    """Let the `with` block be work in the background."""
    with _entered(Task(name)):
        yield


def carried(work: Callable[[_Given], _Result]) -> Callable[[_Given], _Result]:
    """Return `work` for another thread: it does it for what this thread works for now. The deadline is not carried."""
    task = _current.get()

    def run(given: _Given) -> _Result:
        with contextlib.nullcontext() if task is None else _entered(task):
            return work(given)

    return run


@contextlib.contextmanager
def _entered(task: Task) -> Iterator[Task]:
    token = _current.set(task)
    try:
        yield task
    finally:
        _current.reset(token)


def name() -> str:
    """Name what this thread works for; the thread itself if it works for nothing in particular."""
    task = _current.get()
    return task.name if task else threading.current_thread().name


def spent() -> Spent | None:
    """Return where the time of this thread's request goes; None if it works for none."""
    task = _current.get()
    return task.spent if task else None
