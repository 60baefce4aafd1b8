"""Trees that are removed: of any depth, and nothing that they lead to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from archive.tree_removal import remove_directory


@pytest.fixture(autouse=True)
def same_place() -> Iterator[None]:
    """It leaves the working directory at "/"."""
    before = os.getcwd()
    yield
    assert os.getcwd() == "/"
    os.chdir(before)


def test_all_kinds_go_and_what_a_symlink_leads_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    top = tmp_path / "top"
    (top / "a/b").mkdir(parents=True)
    (top / "a/file").touch()
    os.mkfifo(top / "a/b/fifo")
    (top / "directory").symlink_to(outside)
    (top / "a/nowhere").symlink_to("nowhere")
    remove_directory(os.fsencode(top))
    assert sorted(os.listdir(tmp_path)) == ["outside"]
    assert os.listdir(outside) == ["kept"]


def test_deeper_than_a_path_and_than_recursion(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    os.chdir(tmp_path / "top")
    for _ in range(2000):
        os.mkdir("deeper")
        os.chdir("deeper")
    remove_directory(os.fsencode(tmp_path / "top"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "symlink", "nothing"])
def test_what_is_no_directory_is_not_removed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "file":
        path.touch()
    elif kind == "symlink":
        path.symlink_to("nowhere")
    with pytest.raises(OSError, match=r"No such file|Not a directory"):
        remove_directory(os.fsencode(path))
    assert os.path.lexists(path) is (kind != "nothing")
