"""tools.py: who we are, and which programs are there. The programs are fakes that a test takes away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unit.doctored import DoctoredPool, outcome

from doctor import tools
from doctor.finding import BROKEN, IMPROVE, OK
from host import command, programs
from images.options import DEFAULTS, Options


def look(name: str, options: Options = DEFAULTS, pool: DoctoredPool | None = None) -> tuple[str, str]:
    pool = pool or DoctoredPool()
    return outcome(tools.Tools(pool.as_pool(), options).checks(), name, pool)


@pytest.mark.parametrize(("number", "status"), [(0, OK), (1000, IMPROVE)])
def test_user(monkeypatch: pytest.MonkeyPatch, number: int, status: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: number)
    assert look("user")[0] == status


def test_programs_that_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find", lambda name: f"/usr/bin/{name}")
    assert look("other programs") == (OK, "bsdtar, ceph are there")
    monkeypatch.setattr(command, "find", lambda name: None if name == "ceph" else f"/usr/bin/{name}")
    status, text = look("other programs")
    assert status == IMPROVE
    assert text.startswith("ceph is not installed, so takeover fails, and ")
    assert text.endswith("install the package ceph-common (Debian's name)")


def test_each_program_that_is_of_use_says_what_for() -> None:
    assert set(tools.WITHOUT) == {item.name for item in programs.PROGRAMS if item.when == programs.IF_THERE}


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that tell a version, each in its own way."""
    texts = {
        "mkfs.xfs": "mkfs.xfs version 6.1.0",
        "mkfs.ext4": "mke2fs 1.47.0 (5-Feb-2023)' >&2; exit 1; '",
        "mount": "mount from util-linux 2.38.1 (libmount 2.38.1: selinux)",
        "bsdtar": "bsdtar 3.6.2 - libarchive 3.6.2",
        "dockerd": "Docker version 20.10.24+dfsg1, build 5d6db84",
        "containerd": "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
        "silent": "",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{text}'\n", encoding="ascii")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("said")
def test_versions() -> None:
    assert look("versions") == (OK, "rbd 16.2.15 pacific, mkfs.xfs 6.1.0, mount 2.38.1, bsdtar 3.6.2")
    assert "mkfs.ext4 1.47.0" in look("versions", Options(fs="ext4"))[1]
    assert [tools.version(name) for name in ("dockerd", "containerd", "silent")] == [
        "20.10.24+dfsg1",
        "1.6.20~ds1",
        "unknown",
    ]


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize(("release", "status"), [("14.2.22 nautilus", OK), ("13.2.10 mimic", BROKEN), ("odd", OK)])
def test_an_rbd_that_is_too_old(monkeypatch: pytest.MonkeyPatch, release: str, status: str) -> None:
    pool = DoctoredPool()
    monkeypatch.setattr(DoctoredPool, "client_version", lambda _: release)
    assert look("versions", pool=pool)[0] == status
