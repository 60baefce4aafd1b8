"""What many tests do: mount snapshots somewhere, make layers, compare a chain of them with a plain directory."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from changes import Change, all_of, files
from client import Info, Mount, Refused, Snapshots
from mounting import mounted


class Work:
    """A directory to mount in, and the snapshots that are mounted there."""

    def __init__(self, snapshots: Snapshots, directory: str) -> None:
        self.snapshots = snapshots
        self.directory = directory
        self._numbers = itertools.count()

    def new_directory(self) -> str:
        """An empty one, as a snapshot without a parent must look."""
        path = os.path.join(self.directory, str(next(self._numbers)))
        os.mkdir(path)
        os.chmod(path, 0o755)
        return path

    @contextlib.contextmanager
    def mounted(self, mounts: Sequence[Mount]) -> Iterator[str]:
        """Mount them at a new directory, and unmount them at the end."""
        with mounted(mounts, self.new_directory()) as directory:
            yield directory

    def change(self, mounts: Sequence[Mount], *changes: Change) -> None:
        """Do something to the files of a snapshot."""
        with self.mounted(mounts) as directory:
            all_of(*changes)(directory)

    def files(self, mounts: Sequence[Mount]) -> list[dict[str, object]]:
        """What a user sees in a snapshot."""
        with self.mounted(mounts) as directory:
            return files(directory)

    def names(self, mounts: Sequence[Mount]) -> list[str]:
        """The names in its root."""
        with self.mounted(mounts) as directory:
            return sorted(os.listdir(directory))

    def layer(self, name: str, parent: str, *changes: Change, labels: Mapping[str, str] | None = None) -> str:
        """Make a committed snapshot, as a layer of an image is made."""
        key = f"extract {name}"
        mounts = self.snapshots.prepare(key, parent)
        if changes:
            self.change(mounts, *changes)
        self.snapshots.commit(name, key, labels)
        return name

    def check_chain(self, *layers: Change) -> None:
        """Make layers one upon the other; a view of each must look as if all was done in one directory."""
        flat = self.new_directory()
        parent = ""
        number = next(self._numbers)
        for at, layer in enumerate(layers):
            parent = self.layer(f"chain {number} layer {at}", parent, layer)
            layer(flat)
            view = f"view of {parent}"
            assert self.files(self.snapshots.view(view, parent)) == files(flat), f"layer {at}"
            self.snapshots.remove(view)


def refused(code: str, call: Callable[..., object], *words: Any, **more: Any) -> str:
    """A call that must be answered with an error of this code, of one line; its text."""
    with pytest.raises(Refused) as caught:
        call(*words, **more)
    assert caught.value.code == code, caught.value
    assert "\n" not in caught.value.text
    return caught.value.text


def depths(found: Iterable[Info]) -> dict[str, int]:
    """How many parents stand below each snapshot."""
    parents = {info.name: info.parent for info in found}
    known: dict[str, int] = {"": -1}
    for name in parents:
        line, member = [], name
        while member not in known:
            line.append(member)
            member = parents[member]
        for depth, below in enumerate(reversed(line), known[member] + 1):
            known[below] = depth
    del known[""]
    return known
