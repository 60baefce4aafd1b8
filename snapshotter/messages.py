"""The messages of containerd.services.snapshots.v1 (containerd, api/services/snapshots/v1/snapshots.proto)."""

from __future__ import annotations

from dataclasses import dataclass

from mapped.handed_out import Told
from snapshots import info
from snapshots.info import Kind
from wire.protobuf import Message, enum, int32, int64, message, messages, string, string_map, strings

_NANOSECONDS = 10**9


@dataclass
class Empty(Message):
    """google.protobuf.Empty."""


@dataclass
class Timestamp(Message):
    """google.protobuf.Timestamp: since 1970."""

    seconds: int = int64(1)
    nanos: int = int32(2)


@dataclass
class FieldMask(Message):
    """google.protobuf.FieldMask."""

    paths: list[str] = strings(1)


@dataclass
class Mount(Message):
    """containerd.types.Mount."""

    type: str = string(1)
    source: str = string(2)
    target: str = string(3)
    options: list[str] = strings(4)


@dataclass
class Info(Message):
    """A snapshot."""

    name: str = string(1)
    parent: str = string(2)
    kind: int = enum(3)
    created_at: Timestamp | None = message(4, Timestamp)
    updated_at: Timestamp | None = message(5, Timestamp)
    labels: dict[str, str] = string_map(6)


@dataclass
class PrepareRequest(Message):
    """Of Prepare and of View."""

    key: str = string(2)
    parent: str = string(3)
    labels: dict[str, str] = string_map(4)


@dataclass
class KeyRequest(Message):
    """Of Mounts, Remove, Stat and Usage."""

    key: str = string(2)


@dataclass
class MountsResponse(Message):
    """Of Prepare, View and Mounts."""

    mounts: list[Mount] = messages(1, Mount)


@dataclass
class CommitRequest(Message):
    """A parent in it is for snapshotters that declare `rebase`: we do not."""

    name: str = string(2)
    key: str = string(3)
    labels: dict[str, str] = string_map(4)


@dataclass
class InfoResponse(Message):
    """Of Stat and Update. An answer without `info` ends a containerd of 2.x (core/snapshots/proxy/convert.go)."""

    info: Info | None = message(1, Info)


@dataclass
class UpdateRequest(Message):
    """Without a mask, all labels are replaced."""

    info: Info | None = message(2, Info)
    update_mask: FieldMask | None = message(3, FieldMask)


@dataclass
class ListRequest(Message):
    """Several filters: one of them must select a snapshot."""

    filters: list[str] = strings(2)


@dataclass
class ListResponse(Message):
    """One of a stream."""

    info: list[Info] = messages(1, Info)


@dataclass
class UsageResponse(Message):
    """Bytes and inodes."""

    size: int = int64(1)
    inodes: int = int64(2)


def info_of(snapshot: info.Info) -> Info:
    """Return the message for a snapshot."""
    return Info(
        snapshot.name,
        snapshot.parent,
        Kind(snapshot.kind).value,
        _timestamp(snapshot.created),
        _timestamp(snapshot.updated),
        dict(snapshot.labels),
    )


def mounts_of(told: list[Told]) -> MountsResponse:
    """Return the message for what a client is to mount."""
    return MountsResponse([Mount(one.type, one.source, "", list(one.options)) for one in told])


def _timestamp(nanoseconds: int) -> Timestamp:
    return Timestamp(*divmod(nanoseconds, _NANOSECONDS))
