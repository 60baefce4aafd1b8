"""What must exist: containers and images, each with the files below /data that a worker has put there.

A file's content is made from its seed, so that it can be told and made again; the model keeps its checksum.
"""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field

DATA = "data"
# Most files are small; some are large enough for the driver to clone what it would copy otherwise.
SMALL, LARGE, LARGE_SHARE = 64 << 10, 9 << 20, 0.06

# The files of a tree: path below DATA -> SHA-256.
Files = dict[str, str]


@dataclass
class Container:
    """A container by name: the image that it was made of, and its files."""

    name: str
    image: str
    files: Files


@dataclass
class Model:
    """What one worker has made and not removed."""

    containers: dict[str, Container] = field(default_factory=dict)
    images: dict[str, Files] = field(default_factory=dict)

    def unused_images(self) -> list[str]:
        """The images that no container was made of: the others cannot be removed."""
        used = {container.image for container in self.containers.values()}
        return sorted(set(self.images) - used)


def new_files(chance: random.Random, most: int) -> dict[str, bytes]:
    """Some files to be written: new ones, or new contents of old ones."""
    files = {}
    for _ in range(chance.randint(1, most)):
        path = f"{chance.randint(0, 3)}/{chance.randint(0, 30)}"
        size = LARGE if chance.random() < LARGE_SHARE else chance.randint(0, SMALL)
        files[path] = chance.randbytes(size)
    return files


def sums(files: Mapping[str, bytes]) -> Files:
    """The checksums of files."""
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


def pack(files: Mapping[str, bytes]) -> bytes:
    """An archive of files, as `docker cp -` takes it, with the directories on their way."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        directories = {DATA, *(f"{DATA}/{path.partition('/')[0]}" for path in files)}
        for name in sorted(directories):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for path, content in files.items():
            member = tarfile.TarInfo(f"{DATA}/{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def unpack(archive: bytes) -> Files:
    """The checksums of the files in an archive of DATA, as `docker cp` gives it."""
    found: Files = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as source:
        for member in source:
            if member.isreg():
                content = source.extractfile(member)
                assert content is not None
                found[member.name.partition("/")[2]] = hashlib.sha256(content.read()).hexdigest()
    return found


def differences(expected: Files, found: Files) -> list[str]:
    """One line for each file that is missing, wrong, or not expected."""
    lines = [f"{path} is missing" for path in sorted(expected.keys() - found.keys())]
    lines += [f"{path} was never written" for path in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    return lines + [f"{path} holds something else" for path in both if expected[path] != found[path]]
