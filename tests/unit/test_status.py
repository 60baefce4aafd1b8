"""status.py: each row says what the cluster told, or why it told nothing; no row fails the others."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from cluster import rados_objects
from graph import status
from host.command import CommandError, CommandMissing
from images import options

ANSWERS: dict[str, Any] = {
    "health": {"status": "HEALTH_OK"},
    "version": {"version": "ceph version 16.2.15 (618f440892) pacific (stable)"},
    "df": {"pools": [{"name": "rbd", "stats": {"max_avail": 5 << 30}}]},
}


def rows(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> dict[str, str]:
    """The rows of a pool where `ceph` answers so; an exception is raised."""

    def ceph(verb: str, *_: str) -> Any:
        answer = {**ANSWERS, **answers}[verb]
        if isinstance(answer, Exception):
            raise answer
        return answer

    pool = Mock(ceph=ceph, namespace="", client_version=lambda: "16.2.15 pacific")
    pool.name = "rbd"
    monkeypatch.setattr(rados_objects, "used", lambda *_: 3 << 20)
    return dict(status.rows(pool, options.DEFAULTS, lambda: 7, lambda: 2))


def test_what_the_cluster_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(monkeypatch)
    assert found["Ceph Health"] == "HEALTH_OK"
    assert found["Ceph Cluster"] == "16.2.15 pacific"
    assert (found["Pool Used"], found["Pool Available"]) == ("3MB", "5GB")
    assert (found["Layers"], found["Mapped Devices"]) == ("7", "2")
    assert found["Namespace"] == "(default)"


@pytest.mark.parametrize(
    ("health", "row"),
    [
        (CommandError(("ceph", "health"), None, "no answer within 5 s"), "unknown (ceph health: no answer within 5 s)"),
        (CommandMissing(("ceph",), None, "not found"), "unknown (ceph is not installed)"),
        ({}, "unknown ('status')"),
        ([], "unknown (list indices must be integers or slices, not str)"),
    ],
)
def test_what_it_does_not_tell_is_said_in_its_row(monkeypatch: pytest.MonkeyPatch, health: Any, row: str) -> None:
    found = rows(monkeypatch, health=health)
    assert found["Ceph Health"] == row
    assert found["Layers"] == "7"


def test_a_version_of_another_form_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows(monkeypatch, version={"version": "ceph 99"})["Ceph Cluster"] == "ceph 99"
