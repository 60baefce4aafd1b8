"""bounds.py: a request ends in time, works for one daemon, and says what is wrong with the cluster if that is why."""

from __future__ import annotations

import errno
import threading
import time
from contextlib import AbstractContextManager

import pytest
from unit.fakes import FakePool, failed, timed_out

import rbdcli
from cluster import diagnosis
from graph.bounds import Bounds
from host import deadline
from host.command import CommandError
from images import options
from images.layers import LayerError
from mapped.home import Home
from mapped.unmounting import LayerBusy

WHY = "cluster: HEALTH_ERR (full)"
SICK = [
    timed_out(),
    failed(rbdcli.RbdError, errno.ETIMEDOUT),
    failed(rbdcli.ImageMissing, errno.EPERM),
    failed(rbdcli.PoolMissing, errno.ENOENT),
]
# None of these is the cluster's fault.
OTHERS = [
    failed(rbdcli.ImageMissing, errno.ENOENT),
    failed(rbdcli.ImageBusy, errno.EBUSY),
    CommandError(("mount",), 32, "wrong fs type"),
    LayerError("layer a is broken"),
    LayerBusy("layer a: process 1 has it mounted"),
    OSError(errno.EIO, "Input/output error"),
    RuntimeError("a defect"),
    KeyboardInterrupt(),
]


@pytest.fixture
def home() -> Home:
    return Home("/home", options.DEFAULTS, FakePool().as_pool())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[rbdcli.Pool]:
    """The pools that were asked what is wrong with them."""
    found: list[rbdcli.Pool] = []

    def why(pool: rbdcli.Pool) -> str:
        found.append(pool)
        return WHY

    monkeypatch.setattr(diagnosis, "why", why)
    return found


def bound(home: Home, kind: str) -> AbstractContextManager[None]:
    """A request, or that of an archive."""
    bounds = Bounds(home)
    return bounds.request() if kind == "request" else bounds.explaining()


KINDS = pytest.mark.parametrize("kind", ["request", "archive"])


# -- what an error says ----------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("error", SICK)
def test_an_error_that_may_be_the_cluster_s_says_what_is_wrong(
    home: Home, asked: list[rbdcli.Pool], kind: str, error: CommandError
) -> None:
    """It stays of its kind: who calls may know that one."""
    with pytest.raises(type(error)) as raised, bound(home, kind):
        raise error
    assert str(raised.value).startswith(str(error))
    assert str(raised.value).endswith(WHY)
    assert asked == [home.pool]


@KINDS
def test_what_did_not_come_in_time_says_what_is_wrong(home: Home, asked: list[rbdcli.Pool], kind: str) -> None:
    with (
        pytest.raises(deadline.Overdue, match=r"^layer a: no answer; cluster: HEALTH_ERR \(full\)$"),
        bound(home, kind),
    ):
        raise deadline.Overdue("layer a: no answer")
    assert asked == [home.pool]


@KINDS
@pytest.mark.parametrize("error", OTHERS)
def test_another_error_is_told_as_it_is(home: Home, asked: list[rbdcli.Pool], kind: str, error: BaseException) -> None:
    """A sick cluster would answer late, and that it is sick is not why."""
    with pytest.raises(type(error)) as raised, bound(home, kind):
        raise error
    assert raised.value is error
    assert str(raised.value).find(WHY) == -1
    assert asked == []


# -- how long it may take --------------------------------------------------------------------------


def test_a_request_has_the_time_of_two_commands(home: Home) -> None:
    """And whoever comes after it has his own."""
    with bound(home, "request"):
        assert home.timeout < deadline.left(3600) <= 2 * home.timeout
    assert deadline.left(3600) == 3600


def test_an_archive_has_no_deadline(home: Home) -> None:
    with bound(home, "archive"):
        assert deadline.left(3600) == 3600


def test_a_request_that_hangs_ends_at_its_deadline(
    home: Home, asked: list[rbdcli.Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "GRACE_SECONDS", 0.05)
    home.timeout = 0.05
    answer, began = threading.Event(), time.monotonic()
    said = r"layer a: no answer from its file system within [0-9.]+ s; cluster: "
    with pytest.raises(deadline.Overdue, match=said), bound(home, "request"):
        deadline.call(lambda: answer.wait(300), "layer a", 300)
    answer.set()
    assert time.monotonic() - began < 60
    assert asked == [home.pool]


# -- for which daemon ------------------------------------------------------------------------------


@KINDS
def test_a_request_works_for_the_daemon_that_sent_it(home: Home, kind: str) -> None:
    with bound(home, kind):
        home.daemon.refuse_if_ended("a")
        home.daemon.end()
        with pytest.raises(LayerBusy, match="the daemon that asked for it has ended"):
            home.daemon.refuse_if_ended("a")
    # What is done in the background is for none, and the next request for the next one.
    home.daemon.refuse_if_ended("a")
    with bound(home, kind):
        home.daemon.refuse_if_ended("a")
