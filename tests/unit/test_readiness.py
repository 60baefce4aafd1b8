"""readiness.py: what is missing is named, with how to get it. The programs are fakes that a test lets fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import rbdcli
import readiness
from options import Options
from readiness import NotReady


class Host:
    """A host with these programs and a cluster that has these pools."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "ceph.conf").write_text("[global]\n", encoding="ascii")
        for program in ("mkfs.xfs", "xfs_growfs", "mount", "umount"):
            self.has(program, "exit 1")
        self.has("rados", 'case "$*" in *lspools*) echo other; echo pool ;; esac')
        self.has("rbd", "echo '[]'")

    def has(self, program: str, script: str) -> None:
        path = self.directory / program
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        path.chmod(0o755)

    def check(self, **changes: str) -> None:
        options = Options(**{"datapool": "pool", "configfile": str(self.directory / "ceph.conf"), **changes})  # type: ignore[arg-type]
        pool = rbdcli.Pool(options.datapool, options.namespace, "me", options.configfile, 10.0, "krbd", ())
        readiness.check(pool, options)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Host(tmp_path)


def test_all_is_there(host: Host) -> None:
    host.check()
    host.check(namespace="space")


def test_a_configuration_that_is_missing(host: Host) -> None:
    with pytest.raises(NotReady, match=r"/nonexistent does not exist: .*ceph\.configfile"):
        host.check(configfile="/nonexistent")


def test_a_cluster_that_does_not_answer(host: Host) -> None:
    host.has("rados", "echo 'no such key' >&2; exit 1")
    with pytest.raises(NotReady, match=r"no Ceph cluster answers client\.admin with .*: no such key"):
        host.check()


def test_a_pool_that_is_missing(host: Host) -> None:
    with pytest.raises(NotReady, match="pool third does not exist; make it with: ceph osd pool create third && rbd"):
        host.check(datapool="third")


def test_a_pool_that_was_not_made_for_images(host: Host) -> None:
    missing = "error stat-ing pool/rbd_info: (2) No such file or directory"
    host.has("rados", f'case "$*" in *lspools*) echo pool ;; *) echo "{missing}" >&2; exit 1 ;; esac')
    with pytest.raises(NotReady, match="pool pool is not made for images; do: rbd pool init pool"):
        host.check()


def test_a_pool_that_does_not_answer_in_time_is_not_taken_for_one_that_was_not_made(host: Host) -> None:
    """It answers again by the time that `rbd` asks."""
    late = "error stat-ing pool/rbd_info: (110) Connection timed out"
    host.has("rados", f'case "$*" in *lspools*) echo pool ;; *) echo "{late}" >&2; exit 1 ;; esac')
    with pytest.raises(rbdcli.RbdError, match="Connection timed out"):
        host.check()


def test_a_pool_that_the_key_may_not_use_is_not_taken_for_one_that_was_not_made(host: Host) -> None:
    host.has("rados", 'case "$*" in *lspools*) echo pool ;; *) exit 1 ;; esac')
    host.has("rbd", "echo 'rbd: (1) Operation not permitted' >&2; exit 1")
    with pytest.raises(rbdcli.RbdError, match="Operation not permitted"):
        host.check()


@pytest.mark.parametrize("is_made", ["exit 0", "exit 1"])
def test_a_namespace_that_is_missing(host: Host, is_made: str) -> None:
    host.has("rados", f'case "$*" in *lspools*) echo pool ;; *) {is_made} ;; esac')
    host.has("rbd", "echo 'rbd: namespace does not exist' >&2; exit 2")
    with pytest.raises(NotReady, match="pool pool has no namespace space; do: rbd namespace create pool/space"):
        host.check(namespace="space")
