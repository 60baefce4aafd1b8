#!/usr/bin/env python3
"""Pulls an image as a kubelet does, and says what of it was fetched. For demo.sh: with Debian's python3-grpcio.

    pull.py --address SOCKET --registry DIR IMAGE    SOCKET: containerd's; DIR: that of registry.py, which has the image

`ctr image pull` of containerd 1.x does not ask the snapshotter for layers that are there; a kubelet's pull does. This
writes its one request itself. (tests/snapshotter/cri.py has more of them, and needs more for that.)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import grpc

# Of the Container Runtime Interface, k8s.io/cri-api/pkg/apis/runtime/v1/api.proto.
METHOD = "/runtime.v1.ImageService/PullImage"


def field(value: bytes) -> bytes:
    """Encode field 1 of a protobuf message, which is a text or another message."""
    size = len(value)
    head = bytearray([1 << 3 | 2])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + value


def pull(address: str, image: str, seconds: float) -> None:
    """Have containerd pull an image: PullImageRequest{image: ImageSpec{image: NAME}}. Raises grpc.RpcError."""
    with grpc.insecure_channel(f"unix://{address}", options=[("grpc.default_authority", "localhost")]) as channel:
        # Without serializers: bytes as they are.
        channel.unary_unary(METHOD, None, None)(field(field(image.encode())), timeout=seconds, wait_for_ready=True)


def layers_of(registry: Path, image: str) -> list[str]:
    """Name the layers of an image that the registry has."""
    name = image.partition("/")[2].replace("/", "_").replace(":", "_")
    return [layer["digest"] for layer in json.loads((registry / name).read_bytes())["layers"]]


def fetched_from(registry: Path) -> list[tuple[str, int]]:
    """Return what was fetched from the registry up to now, with the number of bytes."""
    log = registry / "fetched"
    lines = log.read_text(encoding="ascii").splitlines() if log.exists() else []
    return [(digest, int(size)) for digest, size in map(str.split, lines)]


def main() -> int:
    """Read the command line, pull, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", required=True, metavar="SOCKET", help="the socket of containerd")
    parser.add_argument("--registry", required=True, type=Path, metavar="DIR", help="the directory of the registry")
    parser.add_argument("--seconds", type=float, default=120, help="how long it may take")
    parser.add_argument("image")
    arguments = parser.parse_args()
    layers, before = layers_of(arguments.registry, arguments.image), len(fetched_from(arguments.registry))
    begin = time.monotonic()
    try:
        pull(arguments.address, arguments.image, arguments.seconds)
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - begin
    sizes = [size for digest, size in fetched_from(arguments.registry)[before:] if digest in layers]
    print(f"pulled in {seconds:.1f} s: {len(sizes)} of {len(layers)} layers fetched, {sum(sizes):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
