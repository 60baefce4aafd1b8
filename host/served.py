"""A request that is served: its number, its line in the log, and what is counted of it. Both front ends use it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

from host import task
from host.failure import EXPECTED, Failure
from host.metrics import Counter, Histogram
from host.task import Task

# A request that takes longer tells where its time went.
SLOW_SECONDS = 1.0

# What became of a request. OK: it was done. REFUSED: the caller asked for what may not be, or for what is not there
# (Failure.is_refusal). FAILED: it could not be done. DEFECT: an error of ours. GONE: nobody waits for the answer.
OK, REFUSED, FAILED, DEFECT, GONE = "ok", "refused", "failed", "defect", "gone"

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

_REQUESTS = Counter(
    "docker_graph_driver_requests_total",
    "Requests of Docker or containerd that were answered, by method and by what became of them.",
    ("method", "result"),
)
_SECONDS = Histogram(
    "docker_graph_driver_request_duration_seconds",
    "How long requests of Docker or containerd took, by method.",
    ("method",),
    _BOUNDS,
)
_ERRORS = Counter(
    "docker_graph_driver_errors_total",
    "What failed, by where (request, background) and by the kind of the error, which is the name of its class.",
    ("where", "kind"),
)


def result_of(error: BaseException) -> str:
    """Return what becomes of a request by an error: REFUSED, FAILED or DEFECT."""
    if isinstance(error, Failure) and error.is_refusal:
        return REFUSED
    return FAILED if isinstance(error, EXPECTED) else DEFECT


class Served:
    """One request, from its begin to its answer."""

    def __init__(self, work: Task) -> None:
        self._began = time.monotonic()
        self._spent = work.spent
        self._result = OK

    def failed(self, result: str, error: BaseException) -> None:
        """Note that the request comes to no good end; `result` is REFUSED, FAILED, DEFECT or GONE."""
        self._result = result
        if result in (FAILED, DEFECT):
            _ERRORS.add("request", _kind(error))

    def end(self, log: logging.Logger, level: int, method: str, words: str, error: str) -> None:
        """Count the request, and log it in one line: `words`, its time, and the `error` ("": none) that its caller has.

        `method` is one of few. A slow request is told of in a second line, at info.
        """
        seconds = time.monotonic() - self._began
        _REQUESTS.add(method, self._result)
        _SECONDS.observe(seconds, method)
        log.log(level, "%s %.0f ms%s", words, 1000 * seconds, error and ": " + error)
        if seconds > SLOW_SECONDS and self._spent:
            log.info("slow: %s took %.2f s: %s", words, seconds, self._spent.told(seconds))


@contextlib.contextmanager
def request() -> Iterator[Served]:
    """Let the `with` block be a request; its end is the caller's to tell."""
    with task.request() as work:
        yield Served(work)


def failed_in_background(error: BaseException) -> None:
    """Count an error of work that nobody waits for."""
    _ERRORS.add("background", _kind(error))


def _kind(error: BaseException) -> str:
    # An error that was made for the caller's protocol says less than the one that it was made of.
    return type(error.__cause__ or error).__name__
