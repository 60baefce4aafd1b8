"""whole_file.py: a file is there whole or as it was, with the permissions that were asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from host import whole_file


@pytest.fixture
def narrow_umask() -> Iterator[None]:
    """Of a process that leaves nothing to others."""
    before = os.umask(0o777)
    yield
    os.umask(before)


def test_it_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in ("first", "é"):
        whole_file.write(str(path), text)
        assert path.read_text(encoding="utf-8") == text
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.usefixtures("narrow_umask")
def test_its_permissions_are_right_also_if_a_crash_left_a_part_of_it(tmp_path: Path, left: bool) -> None:
    path = tmp_path / "file"
    if left:
        Path(f"{path}.new").write_text("a part that is longer than what comes", encoding="utf-8")
    whole_file.write(str(path), "secret", mode=0o600)
    assert (path.read_text(encoding="utf-8"), path.stat().st_mode & 0o777) == ("secret", 0o600)


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    whole_file.write(str(path), "old")

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        whole_file.write(str(path), "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_symbolic_link_is_replaced_and_never_followed(tmp_path: Path, is_there: bool) -> None:
    """In /tmp anybody may have made it, and it may name /etc/passwd."""
    of_others = tmp_path / "passwd"
    if is_there:
        of_others.write_text("root", encoding="ascii")
    path = tmp_path / "file"
    path.symlink_to(of_others)
    whole_file.write(str(path), "ours")
    assert (path.is_symlink(), path.read_text(encoding="ascii")) == (False, "ours")
    assert of_others.exists() == is_there
    assert not is_there or of_others.read_text(encoding="ascii") == "root"


@pytest.mark.parametrize("is_link", [True, False])
def test_a_link_in_place_of_the_part_is_not_followed_either(tmp_path: Path, is_link: bool) -> None:
    of_others = tmp_path / "passwd"
    of_others.write_text("root", encoding="ascii")
    path, part = tmp_path / "file", tmp_path / "file.new"
    if is_link:
        part.symlink_to(of_others)
    else:
        os.link(of_others, part)
    whole_file.write(str(path), "ours", mode=0o600)
    assert (path.read_text(encoding="ascii"), of_others.read_text(encoding="ascii")) == ("ours", "root")
    assert not path.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["file", "passwd"]


def test_a_part_that_comes_again_at_once_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody makes the link again between the removal and the open."""
    of_others, path, part = (tmp_path / name for name in ("passwd", "file", "file.new"))
    of_others.write_text("root", encoding="ascii")
    unlink = os.unlink

    def unlinked(name: str) -> None:
        unlink(name)
        part.symlink_to(of_others)

    part.symlink_to(of_others)
    monkeypatch.setattr(os, "unlink", unlinked)
    with pytest.raises(FileExistsError):
        whole_file.write(str(path), "ours")
    assert of_others.read_text(encoding="ascii") == "root"
    assert not path.exists()


@pytest.mark.parametrize("kind", ["directory", "fifo", "link to a fifo", "link into /proc"])
def test_what_is_no_plain_file_stays(tmp_path: Path, kind: str) -> None:
    """Such as /dev/null, and /dev/stdout, which is a link."""
    path, pipe = tmp_path / "there", tmp_path / "pipe"
    os.mkfifo(pipe)
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(pipe if kind == "link to a fifo" else "/proc/self/exe")
    before = stat.S_IFMT(os.lstat(path).st_mode)
    with pytest.raises(OSError, match=r"^/.*/there is no plain file$"):
        whole_file.write(str(path), "text")
    assert stat.S_IFMT(os.lstat(path).st_mode) == before
    assert sorted(os.listdir(tmp_path)) == ["pipe", "there"]
