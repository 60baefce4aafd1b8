"""The dockerd of a data root, known by its name and by the locks that it holds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maintenance import dockerd_process
from maintenance.dockerd_process import Dockerd

# Takes the lock of a database as it is told, under the name that it is told.
PROCESS = """
import fcntl, sys
path, name, how = sys.argv[1:]
database = open(path, "rb")
if how != "none":
    fcntl.flock(database, {"ours": fcntl.LOCK_EX, "shared": fcntl.LOCK_SH}[how])
open("/proc/self/comm", "w").write(name)
print(flush=True)
sys.stdin.read()
"""
Start = Callable[..., int]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with BuildKit's databases."""
    for directory in ("buildkit", "containers", "other"):
        (tmp_path / directory).mkdir()
    (tmp_path / "buildkit/snapshots.db").touch()
    (tmp_path / "other/snapshots.db").touch()
    return tmp_path


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    """Start a process of that kind; its pid."""
    started: list[subprocess.Popen[bytes]] = []

    def process(database: str = "buildkit/snapshots.db", name: str = "dockerd", how: str = "ours") -> int:
        argv = [sys.executable, "-c", PROCESS, str(root / database), name, how]
        started.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert started[-1].stdout
        assert started[-1].stdout.readline() == b"\n"
        return started[-1].pid

    yield process
    for each in started:
        each.communicate()


def test_it_is_found_with_its_root_and_its_age(root: Path, start: Start) -> None:
    before = time.time()
    pid = start()
    found = dockerd_process.running(str(root))
    assert found
    assert (found.pid, found.root) == (pid, str(root))
    # To a tick, and what the clock was set meanwhile.
    assert before - 1 < found.started < time.time() + 1


@pytest.mark.parametrize(
    "words",
    [{"name": "docker"}, {"how": "none"}, {"how": "shared"}, {"database": "other/snapshots.db"}],
    ids=lambda words: next(iter(words.values())),
)
def test_what_is_none_of_this_root(root: Path, start: Start, words: dict[str, str]) -> None:
    start(**words)
    assert dockerd_process.running(str(root)) is None


def test_where_none_runs(root: Path) -> None:
    assert dockerd_process.running(str(root)) is None


def here(root: Path) -> Dockerd:
    """Ourselves in its place: what it sees is what we see."""
    return Dockerd(os.getpid(), str(root), time.time())


def test_a_directory_that_both_see(root: Path) -> None:
    assert here(root).shares(str(root / "containers"))


@pytest.mark.parametrize("change", ["symlink", "another", "missing", "white space", "gone"])
def test_a_directory_of_which_nothing_is_known(root: Path, change: str) -> None:
    directory = root / "containers"
    dockerd = here(root)
    if change == "symlink":
        directory.rename(root / "away")
        directory.symlink_to(root / "away")
    elif change == "another":
        directory = root / "other/containers"
        directory.mkdir()
    elif change == "missing":
        directory.rmdir()
    elif change == "white space":
        (root / "a b").mkdir()
        directory.rename(root / "a b/containers")
        directory, dockerd = root / "a b/containers", here(root / "a b")
    else:
        ended = subprocess.Popen(["true"])
        ended.wait()
        dockerd = dockerd._replace(pid=ended.pid)
    assert not dockerd.shares(str(directory))
