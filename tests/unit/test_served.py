"""served.py: what is said and counted of a request, by both front ends; a slow one tells where its time went."""

from __future__ import annotations

import importlib
import logging
import re
import threading
import time

import pytest

from host import command, metrics, served
from host.background import Background
from host.failure import Failure

log = logging.getLogger("test_served")


class Missing(Failure):
    """An error of these tests."""


class Told(Failure):
    """What it becomes for a caller."""


def sample(name: str, labels: str) -> float:
    """The value of a sample, 0 if it is not there."""
    found = re.search(rf"^docker_graph_driver_{name}{{{labels}}} (\S+)$", metrics.text({}), re.MULTILINE)
    return float(found[1]) if found else 0.0


def request(method: str, result: str = served.OK, error: Exception | None = None) -> None:
    with served.request() as one:
        if error:
            one.failed(result, error)
        one.end(log, logging.INFO, method, f"{method} a", str(error or ""))


def test_a_request_is_one_line_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "test_served")
    request("TestGet")
    request("TestGet")
    assert [re.sub(r"\d+ ms", "N ms", line) for line in caplog.messages] == ["TestGet a N ms"] * 2
    assert sample("requests_total", 'method="TestGet",result="ok"') == 2
    assert sample("request_duration_seconds_count", 'method="TestGet"') == 2


@pytest.mark.parametrize("result", [served.REFUSED, served.FAILED, served.DEFECT, served.GONE])
def test_a_failure_is_told_and_counted_by_its_kind(result: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "test_served")
    before = sample("errors_total", 'where="request",kind="Missing"')
    request(f"Test{result}", result, Missing("no such thing"))
    assert caplog.messages[0].endswith(" ms: no such thing")
    assert sample("requests_total", f'method="Test{result}",result="{result}"') == 1
    # What a caller may not ask for is no error of ours.
    more = sample("errors_total", 'where="request",kind="Missing"') - before
    assert more == (1 if result in (served.FAILED, served.DEFECT) else 0)


def kinds(base: type[Failure]) -> set[type[Failure]]:
    """A class of errors with all that are derived from it."""
    return {base}.union(*(kinds(kind) for kind in base.__subclasses__()))


def test_whose_making_each_failure_is() -> None:
    """Of the caller's is what is not there, what may not be, and a wrong call; an operator hears of the rest."""
    for front_end in ("docker_graph_driver", "snapshotter.front"):
        importlib.import_module(front_end)
    refusals = {f"{kind.__module__}.{kind.__name__}" for kind in kinds(Failure) - kinds(Refused) if kind.is_refusal}
    assert refusals == {
        "images.layers.LayerRefused",
        "images.options.OptionError",
        "protocol.request.BadRequest",
        "protocol.request.UnknownMethod",
        "snapshots.errors.AlreadyExists",
        "snapshots.errors.FailedPrecondition",
        "snapshots.errors.InvalidArgument",
        "snapshots.errors.NotFound",
        "wire.grpc_status.Refusal",
    }


class Refused(Failure):
    """An error of these tests that a caller has made."""

    is_refusal = True


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (Refused("no such thing"), served.REFUSED),
        (Missing("lost"), served.FAILED),
        (OSError(5, "lost"), served.FAILED),
        (KeyError("oops"), served.DEFECT),
    ],
)
def test_what_becomes_of_a_request_that_fails(error: Exception, result: str) -> None:
    assert served.result_of(error) == result


def test_the_kind_is_that_of_the_error_behind_it() -> None:
    """For containerd each error becomes a status."""
    error = Told("busy")
    error.__cause__ = Missing("busy")
    before = sample("errors_total", 'where="request",kind="Missing"')
    request("TestKind", served.FAILED, error)
    assert sample("errors_total", 'where="request",kind="Missing"') == before + 1
    assert sample("errors_total", 'where="request",kind="Told"') == 0


def test_errors_in_the_background_are_counted_apart() -> None:
    tried = threading.Event()

    def work(_: str) -> bool:
        if tried.is_set():
            return True
        tried.set()
        raise Missing("busy")

    before = sample("errors_total", 'where="background",kind="Missing"')
    jobs = Background("test", work)
    jobs.later("a", 0.0)
    assert jobs.wait_for("a", 10)
    jobs.end()
    assert sample("errors_total", 'where="background",kind="Missing"') == before + 1


def test_a_slow_one_tells_where_its_time_went(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "test_served")
    monkeypatch.setattr(served, "SLOW_SECONDS", 0.2)
    request("TestQuick")
    with served.request() as slow:
        command.run(["sleep", "0.2"], timeout=20)
        time.sleep(0.05)
        slow.end(log, logging.DEBUG, "TestSlow", "TestSlow a", "")
    assert len(caplog.messages) == 2, "the quick one, and what the slow one tells at info"
    assert re.fullmatch(
        r"slow: TestSlow a took 0\.\d\d s: commands 0\.\d\d s \(sleep 1 in 0\.\d\d s\), the rest 0\.\d\d s",
        caplog.messages[1],
    )


def test_it_costs_microseconds() -> None:
    """All that is done for a request beside its line in the log; the limit is for a busy machine."""
    log.setLevel(logging.WARNING)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(1000):
            request("TestCost")
        took.append((time.perf_counter() - began) / 1000)
    print(f"numbering, timing and counting a request: {1e6 * min(took):.2f} us")
    assert min(took) < 300e-6
