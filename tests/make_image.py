#!/usr/bin/env python3
"""Writes an image of many small layers as an archive that `docker load` takes, without a registry or a daemon.

    make_image.py --base ROOT.tar --layers N [--attribute NAME] NAME OUT.tar

The first layer is ROOT.tar, a root file system. Layer K of the others adds the file /layers/K, writes its number into
/last, makes /only-in-K and deletes what the layer before made so: the image has additions, changes and deletions.
All files of the others have the extended attribute NAME.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile


def add(archive: tarfile.TarFile, name: str, content: bytes, attribute: str = "") -> None:
    """Add a regular file of a fixed time, so that the same arguments give the same image."""
    member = tarfile.TarInfo(name)
    if attribute:
        member.pax_headers = {f"SCHILY.xattr.{attribute}": "value"}
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def small_layer(number: int, attribute: str = "") -> bytes:
    """Return the archive of layer `number` (from 1: the root file system is 0)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in (f"layers/{number}", "last", f"only-in-{number}"):
            add(archive, name, b"%d\n" % number, attribute)
        if number > 1:
            add(archive, f".wh.only-in-{number - 1}", b"")
    return stream.getvalue()


def write_image(name: str, layers: list[bytes], path: str) -> None:
    """Write the archive: a manifest, a configuration, and the layers (image-spec v1.2 of Docker)."""
    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
            "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{digest}/layer.tar" for digest in digests]}]
    with tarfile.open(path, "w") as archive:
        for digest, layer in zip(digests, layers):
            add(archive, f"{digest}/layer.tar", layer)
        add(archive, config_name, config)
        add(archive, "manifest.json", json.dumps(manifest).encode())


def main() -> None:
    """Read the command line and write the image."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", required=True, metavar="ROOT.tar", help="the first layer")
    parser.add_argument("--layers", required=True, type=int, metavar="N", help="how many layers, the first included")
    parser.add_argument("--attribute", default="", metavar="NAME", help="an extended attribute of files")
    parser.add_argument("name", help="name:tag of the image")
    parser.add_argument("out", help="the archive to write")
    arguments = parser.parse_args()
    with open(arguments.base, "rb") as source:
        base = source.read()
    layers = [small_layer(number, arguments.attribute) for number in range(1, arguments.layers)]
    write_image(arguments.name, [base, *layers], arguments.out)


if __name__ == "__main__":
    main()
