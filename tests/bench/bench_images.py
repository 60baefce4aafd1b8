"""The images of the benchmark as archives for docker load, made without a registry and kept in a cache directory.

small       busybox, one layer
tiny-N      busybox and N - 1 layers of three small files each
big         Debian's minbase, and nine layers on it: about 716 MB and 20,000 files
depth-N     one layer of busybox and a file /bottom of 100 MB, and N - 1 tiny layers; all N in one archive
many        busybox and a layer of 200,000 empty files
huge        busybox and a layer of one file of 1 GB, /huge

An archive can also be had as what a registry keeps of it (`published`).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence

import make_image
from plugin_client import REPO

CACHE = os.environ.get("BENCH_CACHE", "/var/cache/docker-graph-driver-tests/bench")
MB = 1_000_000
BIG_BYTES, BIG_FILES, BIG_LAYERS = 716 * MB, 20_000, 10
BOTTOM_BYTES = 100 * MB
MANY_FILES, MANY_PER_DIRECTORY = 200_000, 200
HUGE_MEGABYTES = 1000
# A different recipe needs a different name in the cache.
RECIPE = "1"


def small() -> str:
    """Path of the archive with the image `bench:small`."""
    path = _cached("small")
    if not os.path.exists(path):
        _write(path, {"bench:small": [_busybox()]})
    return path


def tiny(layers: int) -> str:
    """Path of the archive with the image `bench:tiny-LAYERS`."""
    path = _cached(f"tiny-{layers}")
    if not os.path.exists(path):
        _write(path, {f"bench:tiny-{layers}": [_busybox(), *_small_layers(layers - 1)]})
    return path


def big() -> str:
    """Path of the archive with the image `bench:big`."""
    path = _cached("big")
    if not os.path.exists(path):
        base = _debian()
        with tarfile.open(fileobj=io.BytesIO(base)) as archive:
            sizes = [member.size for member in archive if member.isreg()]
        size, files = (BIG_BYTES - sum(sizes)) // (BIG_LAYERS - 1), (BIG_FILES - len(sizes)) // (BIG_LAYERS - 1)
        _write(path, {"bench:big": [base, *(_big_layer(number, size, files) for number in range(1, BIG_LAYERS))]})
    return path


def depth(depths: Sequence[int]) -> str:
    """Path of an archive with an image `bench:depth-N` for each N; they share their layers."""
    path = _cached("depth-" + "-".join(map(str, depths)))
    if not os.path.exists(path):
        buffer = io.BytesIO(_busybox())
        with tarfile.open(fileobj=buffer, mode="a") as archive:
            make_image.add(archive, "bottom", random.Random(0).randbytes(BOTTOM_BYTES))
        layers = [buffer.getvalue(), *_small_layers(max(depths) - 1)]
        _write(path, {f"bench:depth-{number}": layers[:number] for number in depths})
    return path


def many() -> str:
    """Path of the archive with the image `bench:many`."""
    path = _cached("many")
    if not os.path.exists(path):
        names = (f"opt/{index // MANY_PER_DIRECTORY}/{index}" for index in range(MANY_FILES))
        _write(path, {"bench:many": [_busybox(), _layer((name, b"") for name in names)]})
    return path


def huge() -> str:
    """Path of the archive with the image `bench:huge`."""
    path = _cached("huge")
    if not os.path.exists(path):
        content = random.Random(0).randbytes(MB) * HUGE_MEGABYTES
        _write(path, {"bench:huge": [_busybox(), _layer([("huge", content)])]})
    return path


def published(archive: str, name: str) -> str:
    """Directory with an archive's first image as tests/registry.py keeps it: `name`:latest, its layers compressed."""
    target = archive.rpartition(".tar")[0] + ".registry"
    if os.path.exists(target):
        return target
    shutil.rmtree(target + ".new", ignore_errors=True)
    os.mkdir(target + ".new")

    def blob(kind: str, data: bytes, file: str = "") -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        for each in (digest, file) if file else (digest,):
            with open(os.path.join(target + ".new", each), "wb") as out:
                out.write(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": len(data)}

    with tarfile.open(archive) as image:
        layers = [
            blob("layer.v1.tar+gzip", gzip.compress(_member(image, layer), 1, mtime=0)) for layer in _layer_names(image)
        ]
        config = blob("config.v1+json", _member(image, json.loads(_member(image, "manifest.json"))[0]["Config"]))
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    }
    blob("manifest.v1+json", json.dumps(manifest).encode(), f"{name}_latest")
    os.rename(target + ".new", target)
    return target


def content(archive: str) -> tuple[int, int]:
    """Bytes and number of the regular files in all layers of an archive's first image."""
    size = files = 0
    with tarfile.open(archive) as image:
        for name in _layer_names(image):
            member = image.extractfile(name)
            assert member is not None
            with tarfile.open(fileobj=member) as layer:
                sizes = [item.size for item in layer if item.isreg()]
            size, files = size + sum(sizes), files + len(sizes)
    return size, files


def _layer_names(image: tarfile.TarFile) -> list[str]:
    return list(json.loads(_member(image, "manifest.json"))[0]["Layers"])


def _member(image: tarfile.TarFile, name: str) -> bytes:
    member = image.extractfile(name)
    assert member is not None
    return member.read()


def _cached(name: str) -> str:
    os.makedirs(CACHE, exist_ok=True)
    return os.path.join(CACHE, f"{name}.{RECIPE}.tar")


def _shell(script: str) -> bytes:
    """What a function of tests/lib.bash prints."""
    return subprocess.run(["bash", "-euc", script, "bash", REPO], capture_output=True, check=True).stdout


def _busybox() -> bytes:
    """Busybox as a root file system; one for the whole cache, so that all images have the same first layer."""
    path = _cached("busybox-root")
    if not os.path.exists(path):
        _save(path, _shell('source "$1/tests/lib.bash"; busybox_image'))
    with open(path, "rb") as source:
        return source.read()


def _debian() -> bytes:
    """Debian's minbase, which the end-to-end tests use too."""
    path = _shell('source "$1/tests/lib.bash"; debian_image').decode().strip()
    with open(path, "rb") as source:
        return source.read()


def _small_layers(number: int) -> list[bytes]:
    return [make_image.small_layer(layer) for layer in range(1, number + 1)]


def _big_layer(number: int, size: int, files: int) -> bytes:
    """`files` files of `size` bytes together: one has a third of them, the others are of 1 byte to 4 times the mean."""
    chance = random.Random(number)
    shares = [chance.random() ** 2 for _ in range(files - 1)]
    small = size - size // 3
    sizes = [size // 3, *(int(small * share / sum(shares)) + 1 for share in shares)]
    names = (f"opt/layer{number}/{index % 64:02}/{index}" for index in range(files))
    return _layer((name, chance.randbytes(length)) for name, length in zip(names, sizes))


def _layer(files: Iterable[tuple[str, bytes]]) -> bytes:
    """The archive of a layer that brings these files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files:
            make_image.add(archive, name, data)
    return stream.getvalue()


def _write(path: str, images: Mapping[str, Sequence[bytes]]) -> None:
    """Write an archive of images whose common layers are in it once."""
    manifest, written = [], set[str]()
    with tarfile.open(path + ".new", "w") as archive:
        for name, layers in images.items():
            digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
            for digest, layer in zip(digests, layers):
                if digest not in written:
                    make_image.add(archive, f"{digest}/layer.tar", layer)
                written.add(digest)
            config = _config(digests)
            config_name = f"{hashlib.sha256(config).hexdigest()}.json"
            make_image.add(archive, config_name, config)
            paths = [f"{digest}/layer.tar" for digest in digests]
            manifest.append({"Config": config_name, "RepoTags": [name], "Layers": paths})
        make_image.add(archive, "manifest.json", json.dumps(manifest).encode())
    os.replace(path + ".new", path)


def _config(digests: Sequence[str]) -> bytes:
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        }
    ).encode()


def _save(path: str, data: bytes) -> None:
    with open(path + ".new", "wb") as target:
        target.write(data)
    os.replace(path + ".new", path)
