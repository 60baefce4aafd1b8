"""What each call carries, and which code each error is for the caller."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from host import command, deadline, served
from images.layers import LayerError, LayerRefused
from images.options import OptionError
from mapped.file_systems import LayerLost
from mapped.handed_out import Told
from mapped.idmapped import CannotMapIds
from mapped.unmounting import LayerBusy
from snapshots import errors
from snapshots.info import Info, Kind, Usage
from snapshotter import messages as m
from snapshotter.service import LISTED_AT_ONCE, SERVICE, Service
from snapshotter.snapshotter import NotReady
from wire import grpc_status as grpc
from wire.grpc_status import Status
from wire.protobuf import Message

INFO = Info("name", "parent", Kind.COMMITTED, 1_500_000_000_000_000_007, 2_000_000_000, {"a": "b"})


class Asked:
    """A service whose snapshotter does nothing, and a client of it."""

    def __init__(self) -> None:
        self.snapshotter = Mock()
        self.seconds: list[float] = []
        bounds = SimpleNamespace(request=lambda: deadline.within(120))
        self._methods = Service(self.snapshotter, bounds).methods()  # type: ignore[arg-type]

    def call(self, name: str, request: Message, seconds: float = float("inf")) -> list[bytes]:
        """The octets of the answers."""
        call: Any = SimpleNamespace(deadline=time.monotonic() + seconds)
        with contextlib.closing(self._methods[f"/{SERVICE}/{name}"].answers(request.encode(), call)) as answers:
            return list(answers)

    def note_deadline(self, *_: object) -> Usage:
        """How long the work may take."""
        self.seconds.append(deadline.left(float("inf")))
        return Usage(1, 2)


@pytest.fixture
def asked() -> Asked:
    """One for each test."""
    return Asked()


def test_prepare(asked: Asked) -> None:
    asked.snapshotter.prepare.return_value = [Told("overlay", "x", ["a", "b=c"])]
    [answer] = asked.call("Prepare", m.PrepareRequest("key", "parent", {"l": "v"}))
    asked.snapshotter.prepare.assert_called_once_with(Kind.ACTIVE, "key", "parent", {"l": "v"})
    assert m.MountsResponse.decode(answer).mounts == [m.Mount("overlay", "x", "", ["a", "b=c"])]


def test_view_and_mounts(asked: Asked) -> None:
    asked.snapshotter.prepare.return_value = asked.snapshotter.mounts.return_value = [Told("bind", "x", [])]
    [view] = asked.call("View", m.PrepareRequest("key"))
    [mounts] = asked.call("Mounts", m.KeyRequest("key"))
    assert view == mounts
    asked.snapshotter.prepare.assert_called_once_with(Kind.VIEW, "key", "", {})


def test_commit_remove_cleanup(asked: Asked) -> None:
    assert asked.call("Commit", m.CommitRequest("name", "key", {"l": "v"})) == [b""]
    asked.snapshotter.commit.assert_called_once_with("key", "name", {"l": "v"})
    assert asked.call("Remove", m.KeyRequest("key")) == [b""]
    asked.snapshotter.remove.assert_called_once_with("key")
    assert asked.call("Cleanup", m.Empty()) == [b""]
    asked.snapshotter.clean_up.assert_called_once_with()


def test_stat_always_has_the_snapshot(asked: Asked) -> None:
    asked.snapshotter.store.stat.return_value = INFO
    [answer] = asked.call("Stat", m.KeyRequest("name"))
    found = m.InfoResponse.decode(answer).info
    assert found
    assert (found.name, found.parent, found.kind, found.labels) == ("name", "parent", 3, {"a": "b"})
    assert found.created_at == m.Timestamp(1_500_000_000, 7)
    assert found.updated_at == m.Timestamp(2, 0)


def test_update(asked: Asked) -> None:
    asked.snapshotter.update.return_value = INFO
    asked.call("Update", m.UpdateRequest(m.Info("name", labels={"x": "y"}), m.FieldMask(["labels.x"])))
    asked.snapshotter.update.assert_called_once_with("name", {"x": "y"}, ["labels.x"])
    asked.call("Update", m.UpdateRequest(m.Info("name")))
    assert asked.snapshotter.update.call_args.args == ("name", {}, ())
    with pytest.raises(Status) as refused:
        asked.call("Update", m.UpdateRequest())
    assert refused.value.code == grpc.INVALID_ARGUMENT


def test_usage(asked: Asked) -> None:
    asked.snapshotter.usage.return_value = Usage(5, 6)
    [answer] = asked.call("Usage", m.KeyRequest("key"))
    assert m.UsageResponse.decode(answer) == m.UsageResponse(5, 6)


@pytest.mark.parametrize("count", [0, 1, LISTED_AT_ONCE, 2 * LISTED_AT_ONCE + 1])
def test_list_in_parts(count: int, asked: Asked) -> None:
    asked.snapshotter.store.walk.return_value = (INFO._replace(name=str(number)) for number in range(count))
    answers = [m.ListResponse.decode(answer).info for answer in asked.call("List", m.ListRequest(["kind==view"]))]
    asked.snapshotter.store.walk.assert_called_once_with("kind==view")
    assert [info.name for answer in answers for info in answer] == [str(number) for number in range(count)]
    assert all(1 <= len(answer) <= LISTED_AT_ONCE for answer in answers)


def test_a_bad_filter(asked: Asked) -> None:
    asked.snapshotter.store.walk.side_effect = errors.InvalidArgument("no filter")
    with pytest.raises(Status) as refused:
        asked.call("List", m.ListRequest(["x=="]))
    assert refused.value.code == grpc.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("error", "code", "result"),
    [
        (errors.NotFound("it"), grpc.NOT_FOUND, served.REFUSED),
        (errors.AlreadyExists("it"), grpc.ALREADY_EXISTS, served.REFUSED),
        (errors.InvalidArgument("it"), grpc.INVALID_ARGUMENT, served.REFUSED),
        (OptionError("it"), grpc.INVALID_ARGUMENT, served.REFUSED),
        (errors.FailedPrecondition("it"), grpc.FAILED_PRECONDITION, served.REFUSED),
        (LayerRefused("it"), grpc.FAILED_PRECONDITION, served.REFUSED),
        (CannotMapIds("it"), grpc.FAILED_PRECONDITION, served.FAILED),
        (LayerBusy("it"), grpc.FAILED_PRECONDITION, served.FAILED),
        (LayerError("it"), grpc.FAILED_PRECONDITION, served.FAILED),
        (LayerLost("it"), grpc.FAILED_PRECONDITION, served.FAILED),
        (deadline.Overdue("it"), grpc.UNAVAILABLE, served.FAILED),
        (command.CommandTimeout(("rbd",), None, "it"), grpc.UNAVAILABLE, served.FAILED),
        (NotReady("it"), grpc.UNAVAILABLE, served.FAILED),
    ],
)
def test_errors(error: Exception, code: int, result: str, asked: Asked) -> None:
    asked.snapshotter.mounts.side_effect = error
    with pytest.raises(Status, match="it") as refused:
        asked.call("Mounts", m.KeyRequest("key"))
    assert refused.value.code == code
    assert served.result_of(refused.value) == result


@pytest.mark.parametrize(
    "error", [errors.StoreFailed("the disk"), OSError(28, "No space left on device"), ValueError()]
)
def test_other_errors_are_the_wires(error: Exception, asked: Asked) -> None:
    asked.snapshotter.mounts.side_effect = error
    with pytest.raises(type(error)):
        asked.call("Mounts", m.KeyRequest("key"))


@pytest.mark.parametrize(("seconds", "most"), [(5.0, 5.0), (1000.0, 120.0), (float("inf"), 120.0)])
def test_the_caller_may_give_up_before(seconds: float, most: float, asked: Asked) -> None:
    asked.snapshotter.usage.side_effect = asked.note_deadline
    asked.call("Usage", m.KeyRequest("key"), seconds)
    assert most - 1 < asked.seconds[0] <= most
