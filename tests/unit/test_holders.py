"""holders.py: who uses what lies below a directory, which plays the mount point here."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.archives import needs_root

import mounts
from mapped import holders
from mounts import Mount

# mmap keeps a duplicate of the file open: that is closed, too.
MAP = """import mmap, os, sys, time
with open(sys.argv[1] + "/file", "rb") as f:
    m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
os.closerange(3, 100)
time.sleep(100)"""
LISTEN = """import socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1] + "/sock")
s.listen()
time.sleep(100)"""
# What a process does with the directory in $1, and what is said of it.
USES = {
    "file": ("sleep 100 <$1/file", "(sleep) has {}/file open"),
    "deleted": ("exec 5>$1/gone; rm $1/gone; sleep 100", " has {}/gone (deleted) open"),
    "directory": ("cd $1/sub; exec sleep 100", "(sleep) has its working directory in it"),
    "program": ("exec $1/program 100", "(program) runs a program of it"),
    "mapped": (f"exec python3 -c '{MAP}' $1", "(python3) has {}/file mapped"),
    "socket": (f"exec python3 -c '{LISTEN}' $1", "(python3) listens at {}/sock"),
}


@pytest.fixture
def point(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "file").write_bytes(b"content")
    shutil.copy("/bin/sleep", tmp_path / "program")
    (tmp_path.parent / f"{tmp_path.name}-beside").mkdir()
    return tmp_path


@pytest.fixture
def running() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended with all that they have started."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        os.killpg(process.pid, 9)
        process.wait(10)


def said_of(point: Path, expected: str) -> str:
    """What is said, once it says what is expected or the time for that is over."""
    until = time.monotonic() + 20
    while expected not in (said := holders.of_mount(str(point))) and time.monotonic() < until:
        time.sleep(0.05)
    return said


@pytest.mark.parametrize("use", USES)
def test_who_uses_a_mount_point_is_named(point: Path, running: list[subprocess.Popen[bytes]], use: str) -> None:
    script, words = USES[use]
    running.append(subprocess.Popen(["bash", "-c", script, "-", str(point)], start_new_session=True))
    expected = words.format(point)
    assert expected in said_of(point, expected)


@needs_root
def test_who_has_its_root_there_is_named(point: Path, running: list[subprocess.Popen[bytes]]) -> None:
    script = "import os, sys, time; os.chroot(sys.argv[1]); os.chdir('/'); time.sleep(100)"
    running.append(subprocess.Popen(["/usr/bin/python3", "-c", script, point], start_new_session=True))
    expected = f"process {running[0].pid} (python3) has its "
    assert expected in said_of(point, expected)


def test_who_has_a_view_is_found_in_whatever_mount_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's, when our own mount has gone with our mount namespace; each namespace is named once."""

    def gone() -> list[Mount]:
        raise FileNotFoundError

    ours, theirs = str(os.getpid()), str(os.getppid())
    view = Mount("0:90", "/", False, "", "overlay", "docker_image_a")
    tables: dict[str, list[Mount]] = {
        ours: [Mount("8:1", "/", False, "", "xfs", "docker_image_a")],
        theirs: [Mount("252:3", "/c", False, ""), view, view._replace(point="/bound")],
    }
    monkeypatch.setattr(holders, "_processes", lambda: [ours, theirs, "2147483647"])
    monkeypatch.setattr(os, "readlink", lambda path: path)
    monkeypatch.setattr(mounts, "table", lambda pid: tables.get(pid) or gone())
    found = holders.seen(lambda item: item.type == "overlay" and item.source == "docker_image_a")
    assert list(found) == [(theirs, view)]
    assert holders.mounted_by("252:3") == [f"{holders.process_name(theirs)} has it mounted at /c"]


def test_nobody_is_named_for_what_lies_beside(point: Path, running: list[subprocess.Popen[bytes]]) -> None:
    beside = f"{point}-beside"
    running.append(subprocess.Popen(["sleep", "100"], cwd=beside, start_new_session=True))
    assert "working directory" in said_of(Path(beside), "working directory")
    assert holders.of_mount(str(point)) == ""


def test_at_most_some_are_named(point: Path, running: list[subprocess.Popen[bytes]]) -> None:
    for _ in range(holders.MOST_NAMED + 2):
        running.append(subprocess.Popen(["sleep", "100"], cwd=point, start_new_session=True))
    said = said_of(point, "and 2 more")
    assert said.endswith("; and 2 more")
    assert said.count("(sleep)") == holders.MOST_NAMED


def test_what_hangs_costs_its_time_and_no_more(
    point: Path, running: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of a process's memory waits for a process that hangs in the kernel; what was found before is said."""
    running.append(subprocess.Popen(["sleep", "100"], cwd=point, start_new_session=True))
    assert "working directory" in said_of(point, "working directory")
    forever = threading.Event()

    def hang(_: str, __: str) -> Iterator[str]:
        forever.wait()
        return iter(())

    monkeypatch.setattr(holders, "SCAN_SECONDS", 0.5)
    monkeypatch.setattr(holders, "_open_files", hang)
    monkeypatch.setattr(holders, "_processes", lambda: [str(running[0].pid), str(os.getpid())])
    assert "working directory" in holders.of_mount(str(point))
    forever.set()
