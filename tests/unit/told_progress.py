"""A progress that notes what it was told."""

from __future__ import annotations

from host.progress import Progress


class ToldProgress(Progress):
    """`told`: what was begun, in how many steps, and how many were done at once; `steps`: how many were counted."""

    def __init__(self, name: str = "", _: object = None) -> None:
        super().__init__(name)
        self.told: list[tuple[str, int, int]] = []
        self.steps: dict[str, int] = {}

    def begin(self, what: str, total: int = 0, done: int = 0) -> None:
        """Note it."""
        self.told.append((what, total, done))

    def advance(self) -> None:
        """Count it."""
        what = self.told[-1][0]
        self.steps[what] = self.steps.get(what, 0) + 1
