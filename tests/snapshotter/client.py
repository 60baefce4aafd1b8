"""A client of containerd's snapshots service, made of Google's packages: nothing of the code under test is in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import needs
from google_messages import message_classes
from plugin_client import SLOWNESS

try:
    import grpc
except ImportError:
    needs.requires(False, "grpcio")

SERVICE = "containerd.services.snapshots.v1.Snapshots"
# The fields' names are our own, their numbers and types are the protocol's. Google's Empty, FieldMask and Timestamp are
# messages like others, so there are some of these shapes here.
PROTO = """
syntax = "proto3";
package snapshots;
message Nothing {}
message Paths { repeated string paths = 1; }
message Time { int64 seconds = 1; int32 nanos = 2; }
message Mount { string type = 1; string source = 2; string target = 3; repeated string options = 4; }
message Info {
  string name = 1; string parent = 2; int32 kind = 3; Time created_at = 4; Time updated_at = 5;
  map<string, string> labels = 6;
}
message Create { string snapshotter = 1; string key = 2; string parent = 3; map<string, string> labels = 4; }
message Commit { string snapshotter = 1; string name = 2; string key = 3; map<string, string> labels = 4; }
message Key { string snapshotter = 1; string key = 2; }
message Update { string snapshotter = 1; Info info = 2; Paths update_mask = 3; }
message List { string snapshotter = 1; repeated string filters = 2; }
message Mounts { repeated Mount mounts = 1; }
message One { Info info = 1; }
message Several { repeated Info info = 1; }
message Usage { int64 size = 1; int64 inodes = 2; }
"""
_NAMES = ["Nothing", "Create", "Commit", "Key", "Update", "List", "Mounts", "One", "Several", "Usage"]
_Nothing, _Create, _Commit, _Key, _Update, _List, _Mounts, _One, _Several, _Usage = message_classes(
    PROTO, *(f"snapshots.{name}" for name in _NAMES)
)
_KINDS = {1: "view", 2: "active", 3: "committed"}

# As the errors' texts name them.
NOT_FOUND = "NOT_FOUND"
ALREADY_EXISTS = "ALREADY_EXISTS"
FAILED_PRECONDITION = "FAILED_PRECONDITION"
INVALID_ARGUMENT = "INVALID_ARGUMENT"
CANCELLED = "CANCELLED"
DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
UNIMPLEMENTED = "UNIMPLEMENTED"
UNAVAILABLE = "UNAVAILABLE"


class Refused(Exception):
    """A call was answered with an error: the name of its code, and its text."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        self.text = text
        super().__init__(f"{code}: {text}")


@dataclass(frozen=True)
class Mount:
    """What to mount: the answer of Prepare, View and Mounts is a list of them."""

    type: str
    source: str
    target: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Info:
    """What is known of a snapshot. Times are in nanoseconds since 1970."""

    name: str
    parent: str = ""
    kind: str = ""
    created: int = 0
    updated: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """What a snapshot takes without its parents, in bytes and in files."""

    size: int
    inodes: int


class Snapshots:
    """The calls of the service, for the snapshotter of this name.

    `namespace` is needed at containerd's own socket, where each namespace has its own snapshots. Every call has a
    deadline of `timeout` seconds. All of them raise Refused.
    """

    def __init__(self, address: str, snapshotter: str, namespace: str | None = None, timeout: float = 60) -> None:
        self.snapshotter = snapshotter
        self._metadata = (("containerd-namespace", namespace),) if namespace else ()
        self._timeout = timeout * SLOWNESS
        # A connection of its own for each client, and new tries soon: the tests stop and start services.
        options = (
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.max_receive_message_length", 16 << 20),
        )
        self._channel = grpc.insecure_channel(f"unix:{address}", options=options)

    def close(self) -> None:
        """Close the connection; may be called twice."""
        self._channel.close()

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Make an active snapshot."""
        return _mounts(self._call("Prepare", _Create(key=key, parent=parent, labels=labels or {}), _Mounts))

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Make a snapshot that is only looked at."""
        return _mounts(self._call("View", _Create(key=key, parent=parent, labels=labels or {}), _Mounts))

    def mounts(self, key: str) -> list[Mount]:
        """What to mount for an active snapshot or a view."""
        return _mounts(self._call("Mounts", _Key(key=key), _Mounts))

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        """Make a committed snapshot `name` of the active one `key`."""
        self._call("Commit", _Commit(name=name, key=key, labels=labels or {}), _Nothing)

    def remove(self, key: str) -> None:
        """Remove a snapshot of any kind."""
        self._call("Remove", _Key(key=key), _Nothing)

    def stat(self, key: str) -> Info:
        """What is known of a snapshot."""
        return self._one(self._call("Stat", _Key(key=key), _One))

    def update(self, name: str, labels: Mapping[str, str], *paths: str, parent: str = "") -> Info:
        """Change labels: all of them, or those that `paths` name ("labels.KEY"). `parent` is what no one can change."""
        request = _Update(info={"name": name, "labels": labels, "parent": parent})
        if paths:
            request.update_mask.paths.extend(paths)
        return self._one(self._call("Update", request, _One))

    def list(self, *filters: str) -> Iterator[Info]:
        """The snapshots that any of the filters matches, as they arrive."""
        call = self._channel.unary_stream(f"/{SERVICE}/List", _List.SerializeToString, _Several.FromString)
        request = _List(snapshotter=self.snapshotter, filters=filters)
        with _refusals():
            for answer in call(request, timeout=self._timeout, metadata=self._metadata):
                yield from map(_info, answer.info)

    def usage(self, key: str) -> Usage:
        """What a snapshot takes."""
        found = self._call("Usage", _Key(key=key), _Usage)
        return Usage(found.size, found.inodes)

    def cleanup(self) -> None:
        """Free what removed snapshots left behind."""
        self._call("Cleanup", _Key(), _Nothing)

    def _call(self, method: str, request: Any, answer: Any) -> Any:
        request.snapshotter = self.snapshotter
        call = self._channel.unary_unary(f"/{SERVICE}/{method}", type(request).SerializeToString, answer.FromString)
        with _refusals():
            return call(request, timeout=self._timeout, metadata=self._metadata)

    @staticmethod
    def _one(answer: Any) -> Info:
        assert answer.HasField("info"), "an answer without info ends containerd itself"
        return _info(answer.info)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise Refused(error.code().name, error.details() or "") from None


def _mounts(answer: Any) -> list[Mount]:
    return [Mount(one.type, one.source, one.target, tuple(one.options)) for one in answer.mounts]


def _info(one: Any) -> Info:
    return Info(
        one.name,
        one.parent,
        _KINDS.get(one.kind, f"kind {one.kind}"),
        _nanoseconds(one.created_at),
        _nanoseconds(one.updated_at),
        dict(one.labels),
    )


def _nanoseconds(at: Any) -> int:
    return int(at.seconds) * 10**9 + int(at.nanos)
