"""task.py: each request has a number, and threads that work for it have it too."""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

from host import deadline, task


def test_requests_are_numbered_one_after_the_other() -> None:
    names = []
    for _ in range(3):
        with task.request() as request:
            assert task.name() == request.name
            assert task.spent() is request.spent
            names.append(int(request.name.lstrip("#")))
    assert names == [names[0], names[0] + 1, names[0] + 2]


def test_outside_of_all_work_it_is_the_thread() -> None:
    assert task.name() == threading.current_thread().name
    assert task.spent() is None


def test_what_nobody_waits_for_has_a_name_and_no_time() -> None:
    with task.request(), task.background("removing layer a"):
        assert (task.name(), task.spent()) == ("removing layer a", None)


def test_a_thread_with_the_context_of_a_request_works_for_it() -> None:
    with task.request() as request, ThreadPoolExecutor(1) as threads:
        assert threads.submit(contextvars.copy_context().run, task.name).result() == request.name
        assert threads.submit(task.name).result() != request.name


def test_work_can_be_carried_alone_without_the_deadline() -> None:
    with task.request() as request, deadline.within(0), ThreadPoolExecutor(1) as threads:
        found = threads.submit(task.carried(lambda most: (task.name(), deadline.left(most))), 100).result()
        assert found == (request.name, 100)
        assert threads.submit(task.name).result() != request.name, "the thread is as it was"


def test_who_works_for_nothing_carries_nothing() -> None:
    carried = task.carried(lambda _: task.name())
    with ThreadPoolExecutor(1, thread_name_prefix="other") as threads:
        assert threads.submit(carried, 0).result().startswith("other")


def test_what_may_hang_works_for_the_request_too() -> None:
    with task.request() as request:
        assert deadline.call(task.name, "a file system", 20) == request.name
