"""The kernel's part in memory, for the tests of what is decided by it: devices, mounts, who holds what.

Put in the place of the functions of mounts.py; what a real kernel does is seen in tests/integration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from unit.fakes import FakePool

import busy
import holders
import mounts


class FakeHost:
    """Devices that the pool's images are mapped as, and what is mounted of them: mount point -> device.

    `held`: devices that a container has mounted in a namespace of its own; `writing`: those that the kernel writes back
    to, so that they are in use although nobody has them mounted. `fails[FUNCTION]`: raised by its next calls, one after
    the other; in a pair with True after it has done its work.
    """

    def __init__(self, pool: FakePool) -> None:
        self.pool = pool
        self.mounted: dict[str, mounts.Mount] = {}
        self.read_only: set[str] = set()
        self.held: set[str] = set()
        self.writing: set[str] = set()
        self.fails: dict[str, list[Any]] = {}

    @classmethod
    def in_place(cls, pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
        """Make one, and put it in the kernel's place. Nobody comes to let go of anything while it is waited for."""
        made = cls(pool)
        for name in dir(made):
            for module in (mounts, holders):
                if not name.startswith("_") and callable(getattr(module, name, None)):
                    monkeypatch.setattr(module, name, getattr(made, name))
        monkeypatch.setattr(busy, "until_free", lambda seconds=0.0: iter([None, None]))
        return made

    @contextlib.contextmanager
    def _maybe_failing(self, name: str) -> Iterator[None]:
        failure = self.fails[name].pop(0) if self.fails.get(name) else None
        if failure is not None and not isinstance(failure, tuple):
            raise failure
        yield
        if failure is not None:
            raise failure[0]

    def mount(
        self, fs: str, device: str, point: str, options: Sequence[str], *, read_only: bool, label: str, timeout: float
    ) -> None:
        with self._maybe_failing("mount"):
            self.mounted[point] = mounts.Mount(device, point, read_only, label)

    def bind(self, source: str, point: str, *, timeout: float) -> None:
        self.mounted[point] = self.mounted[source]._replace(point=point)

    def unmount(self, point: str, *, timeout: float) -> None:
        with self._maybe_failing("unmount"):
            del self.mounted[point]

    def make_writable(self, point: str, *, timeout: float) -> None:
        self.mounted[point] = self.mounted[point]._replace(read_only=False)

    def table(self, pid: str = "self") -> list[mounts.Mount]:
        return list(self.mounted.values())

    def device_number(self, device: str) -> str:
        return device

    def device_path(self, number: str) -> str:
        return number

    def is_read_only(self, device: str) -> bool:
        return device in self.read_only

    def in_use(self, device: str) -> bool:
        return device in self.held | self.writing or any(item.device_number == device for item in self.table())

    def mounted_by(self, number: str) -> list[str]:
        held = number in self.held or any(item.device_number == number for item in self.table())
        return ["process 1 (sh) has it mounted"] if held else []

    def written(self, device: str) -> int:
        return 0

    def merge_writes(self, device: str) -> None:
        """Nothing to merge."""

    def limit_retries(self, fs: str, device: str, seconds: float) -> None:
        """Nothing is tried again."""

    def give_back_log(self, device: str, granule: int, *, timeout: float) -> None:
        """There is no log."""
