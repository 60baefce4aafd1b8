"""A cluster in memory as a doctor asks it, and what it finds by one check."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
from unit.fakes import FakePool

from doctor import trial
from doctor.examination import examine
from doctor.finding import Finding
from graph.preconditions import Check

HEALTHY: dict[str, Any] = {
    "version": {"version": "ceph version 16.2.15 (618f440892) pacific (stable)"},
    "health detail": {"status": "HEALTH_OK", "checks": {}},
    "osd pool application get": {"rbd": {}},
    "osd pool ls detail": [{"pool_name": "pool", "flags_names": "hashpspool,selfmanaged_snaps"}],
    "osd pool get-quota": {"quota_max_bytes": 0, "current_num_bytes": 0},
    "df": {"pools": [{"name": "pool", "stats": {"max_avail": 5 << 30}}]},
}


class DoctoredPool(FakePool):
    """A pool in a cluster. `answers`: what `ceph` tells, by its first words; an exception is raised."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Any] = dict(HEALTHY)
        self.said: dict[str, str] = {}

    def __hash__(self) -> int:
        return id(self)

    def ceph(self, *words: str) -> Any:
        line = " ".join(words)
        answer = next(answer for begin, answer in self.answers.items() if line.startswith(begin))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def rados_of_cluster(self, *words: str) -> str:
        return "other\npool\n"

    def rados_of_pool(self, *words: str) -> str:
        return ""

    def overrides(self) -> dict[str, str]:
        return self.said

    def has_namespace(self) -> bool:
        return True

    def client_version(self) -> str:
        return "16.2.15 pacific"


def found(checks: Sequence[Check], pool: FakePool | None = None) -> dict[str, Finding]:
    """What the checks find, each by its name, in their order."""
    return {finding.check: finding for finding in examine(checks, (pool or DoctoredPool()).as_pool())}


def outcome(checks: Sequence[Check], name: str, pool: FakePool | None = None) -> tuple[str, str]:
    """The status and the words of one check, whatever it needs."""
    [check] = [check for check in checks if check.name == name]
    finding = found([check], pool)[name]
    return finding.status, finding.text


def let_trials_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a trial think that it is root's, on a FakeHost, whose overlays are no directories to write to."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    make = trial._make_directories

    def in_layers(point: str, names: tuple[str, ...], timeout: float) -> None:
        if os.path.basename(point) == "layer":
            make(point, names, timeout)

    monkeypatch.setattr(trial, "_make_directories", in_layers)
