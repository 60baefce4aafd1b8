"""propagation.py: whether mounts are seen by who uses them, by a /proc of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unit.doctored import outcome

from doctor.finding import BROKEN, NOT_CHECKED, OK
from doctor.propagation import Propagation

HOME = "/var/lib/docker/ceph"


class Proc:
    """Processes with mount namespaces, and a table of mounts for each: by default one mount, at /."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mark = root / "mark"
        for pid in ("1", "self"):
            self.process(pid, "host", ("/", "shared:1"))

    def process(self, pid: str, namespace: str, *table: tuple[str, str]) -> None:
        place = self.root / pid
        (place / "ns").mkdir(parents=True, exist_ok=True)
        target = self.root / f"ns-{namespace}"
        target.touch()
        if (place / "ns/mnt").is_symlink():
            os.unlink(place / "ns/mnt")
        os.symlink(target, place / "ns/mnt")
        lines = [f"20 1 8:1 / {point} rw{' ' if how else ''}{how} - ext4 /dev/sda rw\n" for point, how in table]
        (place / "mountinfo").write_text("".join(lines), encoding="ascii")

    def look(self, server: int | None = None, client: int | None = None) -> tuple[str, str]:
        asked = Propagation(HOME, lambda: server, lambda: client, proc=str(self.root), marks=[str(self.mark)])
        return outcome(asked.checks(), "mount propagation")


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_one_mount_namespace(proc: Proc) -> None:
    assert proc.look() == (OK, "this process has the mount namespace of process 1")
    proc.process("5", "host")
    proc.process("6", "host")
    assert proc.look(5, 6) == (OK, "process 5, which serves, has the mount namespace of process 6")


@pytest.mark.parametrize(
    ("table", "status", "at"),
    [
        ([("/", ""), (HOME, "shared:7")], OK, HOME),
        ([("/", "shared:1"), ("/var/lib/docker", "master:3")], BROKEN, "/var/lib/docker"),
        ([("/", "shared:1"), ("/var/lib/dock", "")], OK, "/"),
        ([("/", "shared:1 master:2")], OK, "/"),
        ([("/", "shared:1"), ("/", "")], BROKEN, "/"),
    ],
)
def test_a_mount_namespace_of_its_own(proc: Proc, table: list[tuple[str, str]], status: str, at: str) -> None:
    """What counts is the mount on which the home lies."""
    proc.process("5", "own", *table)
    proc.process("6", "host")
    said = proc.look(5, 6)
    assert said[0] == status
    assert f"its mount at {at} is " in said[1]


def test_a_container_without_a_docker_to_be_seen(proc: Proc) -> None:
    """Its process 1 is its own."""
    proc.mark.touch()
    assert proc.look()[0] == OK
    proc.process("self", "host", ("/", ""))
    status, text = proc.look()
    assert status == NOT_CHECKED
    assert "bind-propagation=rshared" in text


def test_another_namespace_whose_user_does_not_run_yet(proc: Proc) -> None:
    proc.process("self", "own", ("/", ""))
    status, text = proc.look()
    assert status == NOT_CHECKED
    assert "which does not run here, is in another one" in text


def test_only_root_may_look(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Propagation, "_same", denied)
    assert proc.look()[0] == NOT_CHECKED
