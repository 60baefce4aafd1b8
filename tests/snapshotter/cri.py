#!/usr/bin/env python3
"""What a kubelet asks containerd about images, as a command (the ImageService of the Container Runtime Interface, v1).

    cri.py --address SOCKET pull IMAGE      prints the name by which the runtime knows it
    cri.py --address SOCKET status IMAGE    prints the image as JSON; exit status 1 if it is not there
    cri.py --address SOCKET list            prints the images, one line of JSON each
    cri.py --address SOCKET remove IMAGE
    cri.py --address SOCKET fs-info         prints the file systems of images, one line of JSON each

An error of the runtime is one line, "NAME OF THE STATUS: text", and the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_tools import protoc  # type: ignore[import-untyped]

# The parts of k8s.io/cri-api/pkg/apis/runtime/v1/api.proto that are used here; unknown fields are skipped.
PROTO = """
syntax = "proto3";
package runtime.v1;
message ImageSpec { string image = 1; map<string, string> annotations = 2; }
message Image {
    string id = 1;
    repeated string repo_tags = 2;
    repeated string repo_digests = 3;
    uint64 size = 4;
}
message PullImageRequest { ImageSpec image = 1; }
message PullImageResponse { string image_ref = 1; }
message ImageStatusRequest { ImageSpec image = 1; bool verbose = 2; }
message ImageStatusResponse { Image image = 1; map<string, string> info = 2; }
message ListImagesRequest {}
message ListImagesResponse { repeated Image images = 1; }
message RemoveImageRequest { ImageSpec image = 1; }
message RemoveImageResponse {}
message UInt64Value { uint64 value = 1; }
message FilesystemIdentifier { string mountpoint = 1; }
message FilesystemUsage {
    int64 timestamp = 1;
    FilesystemIdentifier fs_id = 2;
    UInt64Value used_bytes = 3;
    UInt64Value inodes_used = 4;
}
message ImageFsInfoRequest {}
message ImageFsInfoResponse { repeated FilesystemUsage image_filesystems = 1; }
"""


class ImageService:
    """The calls of one runtime."""

    def __init__(self, address: str, seconds: float) -> None:
        with tempfile.TemporaryDirectory() as place:
            Path(place, "cri.proto").write_text(PROTO, encoding="utf-8")
            command = ["protoc", f"--proto_path={place}", f"--descriptor_set_out={place}/set", "cri.proto"]
            assert protoc.main(command) == 0
            files = descriptor_pb2.FileDescriptorSet.FromString(Path(place, "set").read_bytes())
        self._pool = descriptor_pool.DescriptorPool()
        self._pool.Add(files.file[0])
        self._channel = grpc.insecure_channel(f"unix://{address}", options=[("grpc.default_authority", "localhost")])
        self._seconds = seconds

    def message(self, name: str, **fields: Any) -> Any:
        """Make a message."""
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"runtime.v1.{name}"))(**fields)

    def call(self, method: str, **fields: Any) -> Any:
        """Call a method with these fields in its request; a kubelet's calls have a deadline, as this one."""
        stub = self._channel.unary_unary(
            f"/runtime.v1.ImageService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=type(self.message(f"{method}Response")).FromString,
        )
        return stub(self.message(f"{method}Request", **fields), timeout=self._seconds, wait_for_ready=True)

    def image(self, name: str) -> Any:
        """Make the description of an image by its name."""
        return self.message("ImageSpec", image=name)


def shown(message: Any) -> str:
    """Return a message as one line of JSON. Numbers of 64 bits are strings in it."""
    return json.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True), sort_keys=True)


def run(service: ImageService, verb: str, image: str) -> int:
    """Do what the command line says; return the exit status."""
    if verb == "pull":
        print(service.call("PullImage", image=service.image(image)).image_ref)
    elif verb == "status":
        answer = service.call("ImageStatus", image=service.image(image))
        if not answer.HasField("image"):
            return 1
        print(shown(answer.image))
    elif verb == "list":
        for found in service.call("ListImages").images:
            print(shown(found))
    elif verb == "remove":
        service.call("RemoveImage", image=service.image(image))
    else:
        for file_system in service.call("ImageFsInfo").image_filesystems:
            print(shown(file_system))
    return 0


def main() -> int:
    """Read the command line and run it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", required=True, metavar="SOCKET", help="the socket of the runtime")
    parser.add_argument("--seconds", type=float, default=120, help="how long an answer may take")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("pull", "status", "remove"):
        verbs.add_parser(verb).add_argument("image")
    for verb in ("list", "fs-info"):
        verbs.add_parser(verb).set_defaults(image="")
    arguments = parser.parse_args()
    try:
        return run(ImageService(arguments.address, arguments.seconds), arguments.verb, arguments.image)
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
