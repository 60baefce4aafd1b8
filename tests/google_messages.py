"""Message types of Google's package `protobuf`, made of the text of a .proto file by its own compiler."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import needs

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from grpc_tools import protoc  # type: ignore[import-untyped]
except ImportError:
    needs.requires(False, "grpcio-tools")


def message_class(proto: str, name: str) -> Any:
    """The class of a message of this file. `name` begins with the file's package."""
    return message_classes(proto, name)[0]


def message_classes(proto: str, *names: str) -> list[Any]:
    """The classes of these messages of one file, so that one may be a field of another."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "one.proto").write_text(proto, encoding="utf-8")
        assert protoc.main(["protoc", f"--proto_path={place}", f"--descriptor_set_out={place}/set", "one.proto"]) == 0
        files = descriptor_pb2.FileDescriptorSet.FromString((Path(place) / "set").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(files.file[0])
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names]
