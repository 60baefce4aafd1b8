"""read_ahead_process.py: which files are asked for, and together with which."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from graph import read_ahead_process


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The sizes of the files that were asked for, in pieces of 100 bytes."""
    pieces: list[list[int]] = [[]]

    class Recorder:
        def add(self, file: int, size: int) -> bool:
            assert os.fstat(file).st_size == size
            pieces[-1].append(size)
            return sum(pieces[-1]) >= 100

        def ask(self) -> None:
            pieces.append([])

    monkeypatch.setattr(read_ahead_process, "_Together", Recorder)
    return pieces


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


def test_files_are_asked_for_as_they_stand_in_an_archive(tmp_path: Path, asked: list[list[int]]) -> None:
    for name, size in {"b": 1, "a": 2, "d/c/x": 4, "d/b": 5, "c/y": 3, "none": 0}.items():
        write(tmp_path / name, size)
    write(tmp_path / "large", read_ahead_process.LARGE + 1)
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "fifo")
    read_ahead_process.read_ahead(str(tmp_path), 1 << 30)
    assert asked == [[2, 1, 3, 5, 4], []]


def test_they_are_asked_for_piece_by_piece_up_to_a_limit(
    tmp_path: Path, asked: list[list[int]], capfd: pytest.CaptureFixture[str]
) -> None:
    for name in range(9):
        write(tmp_path / str(name), 60)
    read_ahead_process.read_ahead(str(tmp_path), 310)
    assert asked == [[60, 60], [60, 60], [60], []]
    assert capfd.readouterr().out == ".."


def test_a_real_one(tmp_path: Path) -> None:
    for name in range(40):
        write(tmp_path / f"directory/{name}", read_ahead_process.LARGE)

    def run(directory: Path) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, read_ahead_process.__file__, str(directory), "1"]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)

    done = run(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "..", "")
    done = run(tmp_path / "missing")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path}/missing: No such file or directory\n"
