"""init_state.py: what Init said is kept whole or not at all, and read as it was said."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from archive.transfer import IdMaps, IdRange
from images.base_image import FORMAT
from images.options import DEFAULTS, OptionError
from protocol import init_state
from protocol.init_state import Settings
from protocol.request import BadRequest, Request

RANGE = {"container_id": 0, "host_id": 100000, "size": 65536}
FIELDS = {"Home": "/home", "Opts": ["ceph.basesize=20G"], "UIDMaps": [RANGE], "GIDMaps": [{**RANGE, "host_id": 7}]}
SAID = Settings(
    "/home",
    dataclasses.replace(DEFAULTS, basesize=20 << 30),
    IdMaps((IdRange(0, 100000, 65536),), (IdRange(0, 7, 65536),)),
)


def init(**fields: Any) -> Request:
    """Init, as a daemon sends it."""
    return Request("Init", json.dumps(fields).encode())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where it is kept: what FIELDS say."""
    init_state.save(str(tmp_path / "state"), init(**FIELDS))
    return tmp_path / "state"


def write(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(fields), encoding="utf-8")


# -- what Init says --------------------------------------------------------------------------------


def test_settings_are_what_init_says_above_the_defaults() -> None:
    assert init_state.settings(init(**FIELDS), DEFAULTS) == SAID
    changed = dataclasses.replace(DEFAULTS, basesize=1 << 30, datapool="other")
    wanted = dataclasses.replace(changed, basesize=20 << 30)
    assert init_state.settings(init(**FIELDS), changed).options == wanted
    assert init_state.settings(init(Home="/home"), changed) == Settings("/home", changed, IdMaps((), ()))


def test_one_home_has_one_path() -> None:
    assert init_state.settings(init(Home="/data//./home/x/../"), DEFAULTS).home == "/data/home"


@pytest.mark.parametrize("home", ["home", "./home", "../home", "~/home"])
def test_a_home_that_depends_on_where_we_stand(home: str) -> None:
    with pytest.raises(BadRequest, match="is not an absolute path"):
        init_state.settings(init(Home=home), DEFAULTS)


# -- kept ------------------------------------------------------------------------------------------


def test_what_was_saved_is_read_again(path: Path) -> None:
    assert init_state.read(str(path), DEFAULTS) == SAID
    assert os.listdir(path.parent) == ["state"]


def test_what_init_says_last_is_kept(path: Path) -> None:
    """And nothing of what it said before."""
    init_state.save(str(path), init(Home="/other"))
    assert init_state.read(str(path), DEFAULTS) == Settings("/other", DEFAULTS, IdMaps((), ()))


def test_defaults_are_those_of_the_start_that_reads_it(path: Path) -> None:
    """Kept is what the daemon said, not what came of it."""
    changed = dataclasses.replace(DEFAULTS, datapool="other")
    assert init_state.read(str(path), changed).options == dataclasses.replace(SAID.options, datapool="other")


@pytest.mark.parametrize("step", ["half of it", "before it takes the place of the other"])
def test_nothing_is_half_written(path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The disk is full, or the power goes: what was kept before is still there, and the next Init is kept."""

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync" if step == "half of it" else "replace", fails)
        with pytest.raises(OSError, match="Input/output"):
            init_state.save(str(path), init(Home="/other"))
    assert init_state.read(str(path), DEFAULTS) == SAID
    init_state.save(str(path), init(Home="/other"))
    assert init_state.read(str(path), DEFAULTS).home == "/other"
    assert os.listdir(path.parent) == ["state"]


# -- what cannot be read ---------------------------------------------------------------------------


def test_nothing_was_kept(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        init_state.read(str(tmp_path / "state"), DEFAULTS)


def test_a_file_that_was_cut_off_anywhere(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadRequest, match="Init: the body is not JSON"):
            init_state.read(str(path), DEFAULTS)


@pytest.mark.parametrize("content", [b"[]", b"null", b"\xff", b"\0" * 100])
def test_a_file_that_is_none_of_ours(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(BadRequest):
        init_state.read(str(path), DEFAULTS)


@pytest.mark.parametrize("written", [{}, {"Format": None}, {"Format": ""}, {"Format": "1"}, {"Format": f"{FORMAT}0"}])
def test_what_another_version_has_written(path: Path, written: dict[str, Any]) -> None:
    """Whatever its Init said: its layers are none that we could mount. The first had no format."""
    write(path, **written, **FIELDS)
    with pytest.raises(
        BadRequest, match="it was written by version 1 of this driver, whose layers this version cannot"
    ):
        init_state.read(str(path), DEFAULTS)


def test_a_file_with_what_init_may_not_say(path: Path) -> None:
    """By whose hand ever: it is read as strictly as Init."""
    write(path, Format=FORMAT)
    with pytest.raises(BadRequest, match="Init: Home is missing"):
        init_state.read(str(path), DEFAULTS)
    write(path, Format=FORMAT, Home="/home", Opts=["ceph.x=1"])
    with pytest.raises(OptionError, match=r"unknown storage option 'ceph\.x'"):
        init_state.read(str(path), DEFAULTS)
    write(path, Format=FORMAT, Home="/home", GIDMaps=[{}])
    with pytest.raises(BadRequest, match="GIDMaps"):
        init_state.read(str(path), DEFAULTS)


def test_a_kept_file_that_is_of_no_use_says_what_to_do(path: Path) -> None:
    """What it is missing is told by its absence."""
    assert init_state.read_kept(str(path), DEFAULTS) == SAID
    path.write_text("{", encoding="ascii")
    with pytest.raises(init_state.NoUse, match=f"{path} is of no use, restart dockerd: Init: the body is not JSON"):
        init_state.read_kept(str(path), DEFAULTS)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        init_state.read_kept(str(path), DEFAULTS)
