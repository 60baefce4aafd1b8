"""diagnosis.py: one question to a sick cluster, whoever fails.

A fake `ceph` that is first on PATH counts its calls; what real clusters say is tested in tests/faults/test_sick.py.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import diagnosis
from host import command
from rbdcli import Pool, RbdError


def health(directory: Path, status: str) -> Path:
    """Let `ceph` say this, slowly; return the file that has a line for each call."""
    calls, program = directory / "calls", directory / "ceph"
    said = f'{{"status": "{status}", "checks": {{}}}}'
    program.write_text(f"#!/bin/sh\necho called >>{calls}\nsleep 0.5\necho '{said}'\n", encoding="utf-8")
    program.chmod(0o755)
    return calls


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Pool("pool", "", tmp_path.name, "/etc/c.conf", 10.0, "krbd", ())


def test_many_who_fail_at_once_share_one_answer(pool: Pool, tmp_path: Path) -> None:
    calls = health(tmp_path, "HEALTH_WARN")
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(diagnosis.why, [pool] * 8))
    assert all("HEALTH_WARN" in answer for answer in answers)
    assert calls.read_text(encoding="utf-8") == "called\n"


def test_who_fails_later_gets_a_new_answer(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "FRESH_SECONDS", 0)
    health(tmp_path, "HEALTH_WARN")
    assert "HEALTH_WARN" in diagnosis.why(pool)
    health(tmp_path, "HEALTH_ERR")
    assert "HEALTH_ERR" in diagnosis.why(pool)


@pytest.mark.parametrize(
    "said", ["[]", '{"checks": []}', '{"checks": {"SLOW": "words"}}', "{}", '{"checks": {"A": 1}}']
)
def test_words_of_another_version_are_no_reason_to_hide_an_error(pool: Pool, tmp_path: Path, said: str) -> None:
    (tmp_path / "ceph").write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
    (tmp_path / "ceph").chmod(0o755)
    assert "not understood" in diagnosis.why(pool) or "HEALTH" in diagnosis.why(pool)


POOLS = '[{"pool_name": "other", "flags_names": "full"}, {"pool_name": "pool", "flags_names": "%s"}]'


@pytest.mark.parametrize(
    ("said", "full"),
    [
        (POOLS % "hashpspool,full,full_quota", True),
        (POOLS % "hashpspool,nearfull", False),
        ("[]", False),
        ("{}", False),
        ('["pool"]', False),
        ("null", False),
        ("words", False),
    ],
)
def test_a_full_pool(pool: Pool, tmp_path: Path, said: str, full: bool) -> None:
    (tmp_path / "ceph").write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
    (tmp_path / "ceph").chmod(0o755)
    assert diagnosis.is_full(pool) is full


NBD = ("rbd", "device", "map", "--device-type", "nbd", "--pool", "rbd")


@pytest.mark.parametrize(
    ("argv", "status", "reason", "sick"),
    [
        (("rbd", "info"), 110, "Connection timed out", True),
        (("rbd", "info"), 1, "Operation not permitted", True),
        (("/usr/bin/rbd", "device", "map", "--device-type", "krbd"), 110, "rbd: map failed", True),
        (("rbd", "info"), 2, "No such file or directory", False),
        (NBD, 1, "rbd: rbd-nbd failed with error: /usr/bin/rbd-nbd: exit status: 1", False),
        (("mkfs.xfs", "/dev/rbd0"), 1, "mkfs.xfs: pwrite failed: Input/output error", False),
        (("mount", "-t", "xfs"), 1, "only root can do that", False),
        (("resize2fs", "/dev/rbd0"), 1, "Permission denied to resize filesystem", False),
        (("rados", "stat", "x"), 1, "error opening pool rbd: (110) Connection timed out", True),
        (("rados", "lock", "get"), 1, "ERROR: failed locking: (16) Device or resource busy", False),
        (("rados", "getomapval"), 1, "No such key: x", False),
    ],
)
def test_what_a_program_ends_with_says_something_of_the_cluster_only_if_it_is_an_errno(
    argv: tuple[str, ...], status: int, reason: str, sick: bool
) -> None:
    assert diagnosis.is_sick(RbdError(argv, status, reason)) is sick


def test_what_did_not_answer_may_be_the_clusters_fault() -> None:
    assert diagnosis.is_sick(command.CommandTimeout(("mkfs.xfs",), None, "no answer within 5 s"))
