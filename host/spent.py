"""Where the time of one request went: its commands, its waits for locks, and the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

# The most programs that are named, those that took the longest.
MOST_NAMED = 6


class Spent:
    """What the threads of one request have noted. Several may note at the same time.

    Commands may run beside each other. Then the seconds of a program are more than what the request waited for it; the
    sums over all programs, and the rest, are seconds of the clock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._commands: list[tuple[str, float, float]] = []
        self._waits: list[tuple[float, float]] = []

    def command(self, name: str, began: float) -> None:
        """Note a command that ends now; `began` by time.monotonic()."""
        with self._lock:
            self._commands.append((name, began, time.monotonic()))

    def wait(self, began: float) -> None:
        """Note a wait for a lock that ends now."""
        with self._lock:
            self._waits.append((began, time.monotonic()))

    def told(self, seconds: float) -> str:
        """Say in words where the time of a request of so many seconds went."""
        with self._lock:
            commands, waits = list(self._commands), list(self._waits)
        running = [(began, ended) for _, began, ended in commands]
        parts = []
        if commands:
            parts.append(f"commands {_covered(running):.2f} s ({', '.join(_by_name(commands))})")
        if waits:
            parts.append(f"waits for locks {_covered(waits):.2f} s")
        rest = max(0.0, seconds - _covered([*running, *waits]))
        return ", ".join([*parts, f"the rest {rest:.2f} s"])


def _by_name(commands: Iterable[tuple[str, float, float]]) -> list[str]:
    taken: dict[str, list[float]] = {}
    for name, began, ended in commands:
        taken.setdefault(name, []).append(ended - began)
    longest = sorted(taken.items(), key=lambda item: -sum(item[1]))
    words = [f"{name} {len(each)} in {sum(each):.2f} s" for name, each in longest[:MOST_NAMED]]
    left = [each for _, seconds in longest[MOST_NAMED:] for each in seconds]
    return [*words, f"others {len(left)} in {sum(left):.2f} s"] if left else words


def _covered(times: Iterable[tuple[float, float]]) -> float:
    """Return the seconds in which at least one of them was."""
    covered, reached = 0.0, 0.0
    for began, ended in sorted(times):
        covered += max(0.0, ended - max(reached, began))
        reached = max(reached, ended)
    return covered
