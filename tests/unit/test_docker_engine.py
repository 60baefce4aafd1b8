"""docker_engine.py: which Docker can use the driver, or the snapshotter, and how it must be configured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.doctored import outcome

from doctor import docker_engine, systemd_unit, tools
from doctor.docker_engine import DEPRECATED, DockerEngine
from doctor.finding import BROKEN, NOT_CHECKED, OK
from host.command import CommandMissing

DRIVER = {"experimental": True, "storage-driver": "ceph", "storage-opts": ["ceph.datapool=docker"]}


class Docker:
    """A Docker of some version, with a configuration; it does not run."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "daemon.json"
        self.version: str | None = "20.10.24+dfsg1"
        self.environment: list[str] = []
        self.words: list[str] = []
        self.engine = DockerEngine(str(self.config), "ceph")

    def configured(self, **said: Any) -> DockerEngine:
        said = {name.replace("_", "-"): value for name, value in said.items()}
        self.config.write_text(json.dumps({"data-root": str(self.config.parent), **said}), encoding="utf-8")
        return self.engine

    def driver(self, name: str = "docker configuration") -> tuple[str, str]:
        return outcome(self.engine.checks_for_driver(), name)

    def snapshotter(self) -> tuple[str, str]:
        return outcome(self.engine.checks_for_snapshotter(), "docker configuration")


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    made = Docker(tmp_path)

    def version(program: str) -> str:
        assert program == "dockerd"
        if made.version is None:
            raise CommandMissing((program,), None, "not found")
        return made.version

    monkeypatch.setattr(tools, "version", version)
    monkeypatch.setattr(systemd_unit, "environment", lambda _: made.environment)
    monkeypatch.setattr(systemd_unit, "command_line", lambda _: made.words)
    monkeypatch.setattr(docker_engine, "DATA_ROOT", str(tmp_path))
    return made


# -- of the driver ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "status", "word"),
    [
        ("20.10.24+dfsg1", OK, "has graph driver plugins"),
        ("26.1.5", OK, "has graph driver plugins"),
        ("1.13.1", OK, "has graph driver plugins"),
        ("1.12.6", BROKEN, "is too old"),
        ("27.5.1", BROKEN, f"Environment={DEPRECATED}=1"),
        ("28.5.2", BROKEN, "use the snapshotter"),
        ("29.0.0", BROKEN, "use the snapshotter"),
        ("master", NOT_CHECKED, "calls its version master"),
        (None, NOT_CHECKED, "there is no dockerd here"),
    ],
)
def test_versions(docker: Docker, version: str, status: str, word: str) -> None:
    docker.version = version
    said = docker.driver("docker")
    assert said[0] == status
    assert word in said[1]


def test_docker_27_with_what_it_needs_in_its_environment(docker: Docker) -> None:
    docker.version, docker.environment = "27.5.1", [f"{DEPRECATED}=1"]
    assert docker.driver("docker")[0] == OK


def test_a_docker_that_uses_the_driver(docker: Docker) -> None:
    docker.configured(**DRIVER)
    assert docker.driver() == (OK, "its storage driver is ceph, and experimental is on")
    assert docker.engine.storage_options() == ["ceph.datapool=docker"]
    assert docker.engine.names_us()


def test_what_its_command_line_says_counts_too(docker: Docker) -> None:
    docker.words = ["/usr/bin/dockerd", "--experimental", "-s", "ceph"]
    assert docker.driver()[0] == OK
    docker.words = ["/usr/bin/dockerd", "--experimental=true", "--storage-driver=overlay2"]
    assert "Docker uses the storage driver overlay2" in docker.driver()[1]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"experimental": False}, '"experimental": true'),
        ({"storage-driver": "overlay2"}, 'the storage driver overlay2; write into {}: "storage-driver": "ceph"'),
        ({"storage-driver": ""}, "a storage driver of its own"),
        ({"features": {"containerd-snapshotter": True}}, "turns containerd-snapshotter on"),
        ({"storage-opts": ["ceph.pool=x"]}, "unknown storage option 'ceph.pool'"),
    ],
)
def test_a_configuration_that_does_not_do(docker: Docker, change: dict[str, Any], word: str) -> None:
    docker.configured(**{**DRIVER, **change})
    status, text = docker.driver()
    assert status == BROKEN
    assert word.format(docker.config) in text


@pytest.mark.parametrize("text", ["{", "[]", '{"experimental": true,}', "\udcff"])
def test_a_configuration_that_is_damaged(docker: Docker, text: str) -> None:
    docker.config.write_text(text, encoding="utf-8", errors="surrogateescape")
    status, said = docker.driver()
    assert status == BROKEN
    assert "so dockerd does not start" in said
    assert (docker.engine.storage_options(), docker.engine.data_root()) == ((), str(docker.config.parent))


def test_no_docker_to_be_seen(docker: Docker) -> None:
    assert docker.driver()[0] == NOT_CHECKED


# -- of the snapshotter ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "features", "status", "word"),
    [
        ("26.1.5", {"containerd-snapshotter": True}, OK, "keeps its images in the snapshotter ceph"),
        ("28.5.2", {}, BROKEN, "containerd-snapshotter"),
        ("29.1.0", {}, OK, "keeps its images in the snapshotter ceph"),
        ("20.10.24", {"containerd-snapshotter": True}, BROKEN, "it takes 26 or newer"),
        (None, {}, NOT_CHECKED, "there is no dockerd here"),
    ],
)
def test_a_docker_with_the_snapshotter(
    docker: Docker, version: str, features: dict[str, bool], status: str, word: str
) -> None:
    docker.version = version
    docker.configured(storage_driver="ceph", features=features)
    said = docker.snapshotter()
    assert said[0] == status
    assert word in said[1]


def test_a_docker_that_has_nothing_to_do_with_it(docker: Docker) -> None:
    docker.version = None
    assert docker.snapshotter()[0] == OK
    docker.configured(storage_driver="overlay2")
    assert docker.snapshotter()[0] == OK


# -- one that runs ---------------------------------------------------------------------------------


@pytest.fixture
def process(docker: Docker) -> Iterator[int]:
    """A process that calls itself dockerd, with our data root."""
    script = "import sys; open('/proc/self/comm', 'w').write('dockerd'); print(flush=True); sys.stdin.read()"
    words = ["--data-root", str(docker.config.parent), "--experimental", "--storage-driver=ceph"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, DEPRECATED: "1"},
    ) as started:
        assert started.stdout
        started.stdout.readline()
        yield started.pid
        started.communicate()


def test_a_docker_that_runs(docker: Docker, process: int) -> None:
    """How it was started counts, and not how it would be."""
    found = docker.engine.process()
    assert found
    assert found.pid == process
    assert docker.driver()[0] == OK
    docker.version = "27.5.1"
    assert docker.driver("docker")[0] == OK
    other = DockerEngine(str(docker.config), "ceph")
    docker.configured()
    assert other.process() == found
    docker.config.write_text('{"data-root": "/nonexistent"}', encoding="ascii")
    assert other.process() is None


def test_a_process_by_its_name(process: int) -> None:
    assert docker_engine.running("dockerd")
    assert docker_engine.running("no such program") is None
