"""The service that containerd calls: what each call carries, and which code each of our errors is for the caller.

containerd, api/services/snapshots/v1/snapshots.proto; for the errors, errdefs/grpc.go.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from graph.bounds import Bounds
from host import command, deadline
from host.failure import Failure
from images.layers import LayerError
from images.options import OptionError
from mapped.file_systems import LayerLost
from mapped.idmapped import CannotMapIds
from mapped.unmounting import LayerBusy
from snapshots.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from snapshots.info import Kind
from snapshotter import messages as m
from snapshotter.snapshotter import NotReady, Snapshotter
from wire import grpc_status as grpc
from wire.grpc_call import Call, Method, streaming, unary
from wire.grpc_status import Refusal, Status
from wire.protobuf import Message

SERVICE = "containerd.services.snapshots.v1.Snapshots"
# So many snapshots are in one message of a List's answer: a message has 16 MiB at the most, a snapshot some KiB.
LISTED_AT_ONCE = 100
# The first that fits counts.
_CODES: tuple[tuple[type[Failure], int], ...] = (
    (NotFound, grpc.NOT_FOUND),
    (AlreadyExists, grpc.ALREADY_EXISTS),
    (InvalidArgument, grpc.INVALID_ARGUMENT),
    (OptionError, grpc.INVALID_ARGUMENT),
    (FailedPrecondition, grpc.FAILED_PRECONDITION),
    # containerd's collector goes on after this one only.
    (LayerBusy, grpc.FAILED_PRECONDITION),
    (LayerError, grpc.FAILED_PRECONDITION),
    (LayerLost, grpc.FAILED_PRECONDITION),
    (CannotMapIds, grpc.FAILED_PRECONDITION),
    (deadline.Overdue, grpc.UNAVAILABLE),
    (command.CommandError, grpc.UNAVAILABLE),
    (NotReady, grpc.UNAVAILABLE),
)

_Request = TypeVar("_Request", bound=Message)


class Service:
    """The calls of the service, each with its time and its errors. `methods` has one entry for each."""

    def __init__(self, snapshotter: Snapshotter, bounds: Bounds) -> None:
        self._snapshotter, self._bounds = snapshotter, bounds

    def methods(self) -> Mapping[str, Method]:
        """Return the table for GrpcServer. What a kubelet asks every few seconds is logged for debugging only."""
        calls = {
            "Prepare": unary(m.PrepareRequest, self._bounded(self._prepare)),
            "View": unary(m.PrepareRequest, self._bounded(self._view)),
            "Mounts": unary(m.KeyRequest, self._bounded(self._mounts), logging.DEBUG),
            "Commit": unary(m.CommitRequest, self._bounded(self._commit)),
            "Remove": unary(m.KeyRequest, self._bounded(self._remove)),
            "Stat": unary(m.KeyRequest, self._bounded(self._stat), logging.DEBUG),
            "Update": unary(m.UpdateRequest, self._bounded(self._update)),
            "Usage": unary(m.KeyRequest, self._bounded(self._usage), logging.DEBUG),
            "Cleanup": unary(m.Empty, self._bounded(self._cleanup)),
            "List": streaming(m.ListRequest, self._list, logging.DEBUG),
        }
        return {f"/{SERVICE}/{name}": method for name, method in calls.items()}

    # -- each call ---------------------------------------------------------------------------

    def _prepare(self, request: m.PrepareRequest) -> Message:
        return m.mounts_of(self._snapshotter.prepare(Kind.ACTIVE, request.key, request.parent, request.labels))

    def _view(self, request: m.PrepareRequest) -> Message:
        return m.mounts_of(self._snapshotter.prepare(Kind.VIEW, request.key, request.parent, request.labels))

    def _mounts(self, request: m.KeyRequest) -> Message:
        return m.mounts_of(self._snapshotter.mounts(request.key))

    def _commit(self, request: m.CommitRequest) -> Message:
        self._snapshotter.commit(request.key, request.name, request.labels)
        return m.Empty()

    def _remove(self, request: m.KeyRequest) -> Message:
        self._snapshotter.remove(request.key)
        return m.Empty()

    def _stat(self, request: m.KeyRequest) -> Message:
        return m.InfoResponse(m.info_of(self._snapshotter.store.stat(request.key)))

    def _update(self, request: m.UpdateRequest) -> Message:
        if request.info is None:
            raise InvalidArgument("an Update needs the snapshot that is to change")
        mask = request.update_mask.paths if request.update_mask else ()
        changed = self._snapshotter.update(request.info.name, request.info.labels, mask)
        return m.InfoResponse(m.info_of(changed))

    def _usage(self, request: m.KeyRequest) -> Message:
        return m.UsageResponse(*self._snapshotter.usage(request.key))

    def _cleanup(self, _: m.Empty) -> Message:
        self._snapshotter.clean_up()
        return m.Empty()

    def _list(self, request: m.ListRequest, call: Call) -> Iterator[Message]:
        """Yield the snapshots in messages of LISTED_AT_ONCE. A client that does not read is the wire's business."""
        with self._errors(call):
            self._snapshotter.check_whole()
            found = self._snapshotter.store.walk(*request.filters)
        with contextlib.closing(found):
            part: list[m.Info] = []
            for snapshot in found:
                part.append(m.info_of(snapshot))
                if len(part) == LISTED_AT_ONCE:
                    yield m.ListResponse(part)
                    part = []
            if part:
                yield m.ListResponse(part)

    # -- what all have in common -------------------------------------------------------------

    def _bounded(self, work: Callable[[_Request], Message]) -> Callable[[_Request, Call], Message]:
        def handler(request: _Request, call: Call) -> Message:
            with self._errors(call), self._bounds.request(), self._until(call):
                self._snapshotter.check_whole()
                return work(request)

        return handler

    @contextlib.contextmanager
    def _until(self, call: Call) -> Iterator[None]:
        """Let a call end when its caller has given up, if that is before our own deadline."""
        seconds = call.deadline - time.monotonic()
        with deadline.within(seconds) if seconds < deadline.left(float("inf")) else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def _errors(self, call: Call) -> Iterator[None]:
        try:
            yield
        except Failure as error:
            status = Refusal if error.is_refusal else Status
            for kind, code in _CODES:
                if isinstance(error, kind):
                    raise status(code, str(error)) from error
            raise
