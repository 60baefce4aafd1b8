"""figures.py: what a driver has, and what the cluster says of the pool, or that it says nothing."""

from __future__ import annotations

import re
import threading
from typing import Any
from unittest.mock import Mock

import pytest
from plugin_client import wait_until
from unit.fakes import FakePool
from unit.layered import chain

from cluster import rados_objects
from graph import figures, status
from graph.driver import Driver
from graph.figures import Figures
from graph.status import Space
from host import metrics
from host.background import Background
from host.command import CommandMissing, CommandTimeout


def shown() -> dict[str, float]:
    """All gauges, by name and labels without what all begin with."""
    found = re.findall(r"^docker_graph_driver_(.+) (\S+)$", metrics.text({}), re.MULTILINE)
    return {name: float(value) for name, value in found}


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that answers."""
    monkeypatch.setattr(rados_objects, "used", lambda *_: 3 << 30)
    monkeypatch.setattr(status, "space", lambda *_: Space(5 << 30, 0.25))


def asked(figures: Figures) -> dict[str, float]:
    """What is shown once the cluster has answered, or not."""
    figures.fill()
    wait_until(lambda: not figures._asking.locked(), "the cluster was asked")
    return shown()


def test_what_is_on_the_host(driver: Driver, pool: FakePool) -> None:
    chain(driver, "a", "b", "c")
    driver.lifetime.drain(60)
    driver.get("c", "")
    found = asked(driver.figures)
    assert found["mapped_devices"] == len(pool.devices) == 3
    assert found['mounts{kind="layer"}'] == 3
    assert found['mounts{kind="view"}'] == 1
    assert found['mounts{kind="client"}'] == 0
    assert {name for name in found if name.startswith("background_waiting")} == {
        f'background_waiting{{work="{work}"}}'
        for work in ("mapping layer", "unmapping layer", "removing layer", "deleting from the trash", "reading layer")
    }


def test_what_is_not_done_grows_old(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, began = threading.Event(), threading.Event()

    def work(_: str) -> bool:
        began.set()
        return hold.wait(20)

    works = [Background("waiting", work), Background("at work", work)]
    works[0].pause(0)
    for name, seconds in (("a", 0.0), ("b", 0.0), ("not due", 1000.0)):
        works[0].later(name, seconds)
    works[1].later("c", 0.0)
    began.wait(10)
    own = Figures(driver.figures._here, *works)
    found = asked(own)
    assert found['background_waiting{work="waiting"}'] == 2
    assert found['background_waiting{work="at work"}'] == 1
    oldest = found['background_oldest_seconds{work="at work"}']
    wait_until(lambda: asked(own)['background_oldest_seconds{work="at work"}'] > oldest, "it grows older")
    hold.set()
    works[1].drain(10)
    assert asked(own)['background_oldest_seconds{work="at work"}'] == 0
    for each in works:
        each.end()


def test_what_the_cluster_says(driver: Driver) -> None:
    chain(driver, "a", "b")
    found = asked(driver.figures)
    assert found["layers"] == 2
    assert found["pool_answers"] == 1
    assert found['pool_used_bytes{pool="pool"}'] == 3 << 30
    assert found['pool_available_bytes{pool="pool"}'] == 5 << 30
    assert found['pool_used_ratio{pool="pool"}'] == 0.25


def fails(error: Exception) -> Any:
    return Mock(side_effect=error)


def test_a_host_without_ceph_knows_the_rest(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "space", fails(CommandMissing(("ceph",), None, "not found")))
    found = asked(driver.figures)
    assert (found["pool_answers"], found['pool_used_bytes{pool="pool"}']) == (1, 3 << 30)
    assert not any(name.startswith("pool_available") for name in found)


@pytest.mark.parametrize(
    "error", [CommandTimeout(("rados",), None, "no answer"), KeyError("pools"), ValueError("JSON")]
)
def test_a_cluster_that_does_not_answer_is_told(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What it said before is not shown as if it were true."""
    asked(driver.figures)
    monkeypatch.setattr(rados_objects, "used", fails(error))
    monkeypatch.setattr(figures, "ASK_SECONDS", 0.0)
    found = asked(driver.figures)
    assert found["pool_answers"] == 0
    assert not any(name.startswith("pool_used_bytes") for name in found)


def test_a_defect_is_told_and_shows_nothing_that_was(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert asked(driver.figures)["layers"] == 0
    monkeypatch.setattr(rados_objects, "used", fails(ZeroDivisionError("oops")))
    monkeypatch.setattr(figures, "ASK_SECONDS", 0.0)
    found = asked(driver.figures)
    assert found["pool_answers"] == 0
    assert not any(name.startswith(("layers", "pool_used", "pool_available")) for name in found)
    assert [record.message for record in caplog.records if record.exc_info] == ["a defect of the driver"]


def test_without_a_thread_it_is_asked_the_next_time(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fails(RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError):
            driver.figures.fill()
    assert asked(driver.figures)["pool_answers"] == 1


def test_it_is_not_asked_at_the_end(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer would come too late, and a command would be left behind."""
    monkeypatch.setattr(rados_objects, "used", lambda *_: pytest.fail("it is asked"))
    driver.figures.fill(serving=False)
    assert not driver.figures._asking.locked()


def test_it_is_asked_rarely_and_never_waited_for(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, times = threading.Event(), []

    def used(*_: object) -> int:
        times.append(1)
        hold.wait(20)
        return 0

    monkeypatch.setattr(rados_objects, "used", used)
    driver.figures.fill()
    wait_until(lambda: times == [1], "it is asked")
    monkeypatch.setattr(figures, "ASK_SECONDS", 0.0)
    driver.figures.fill()
    driver.figures.fill()
    assert times == [1], "it has not answered yet"
    hold.set()
    monkeypatch.setattr(figures, "ASK_SECONDS", 1000.0)
    wait_until(lambda: not driver.figures._asking.locked(), "it has answered")
    asked(driver.figures)
    assert times == [1], "it was asked a moment ago"
