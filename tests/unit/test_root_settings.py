"""root_settings.py: what the snapshotter of a root was started with, or in one line why that is not known."""

from __future__ import annotations

from pathlib import Path

import pytest

from images.options import DEFAULTS, OptionError
from maintenance import root_settings
from maintenance.root_settings import NeverStarted, NoHome
from snapshotter import settings


def test_what_it_was_started_with(tmp_path: Path) -> None:
    settings.save(str(tmp_path), ["ceph.datapool=docker"])
    home, wanted = root_settings.read(str(tmp_path), DEFAULTS)
    assert (home, wanted.datapool) == (str(tmp_path), "docker")


def test_what_is_not_known(tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(NeverStarted, match="no snapshotter was ever started with --root"):
        root_settings.read(root, DEFAULTS)
    (tmp_path / settings.FILE).write_text("{", encoding="ascii")
    with pytest.raises(NoHome, match=r"is damaged .*; the next start of the snapshotter writes it anew"):
        root_settings.read(root, DEFAULTS)
    settings.save(root, ["ceph.nothing=1"])
    with pytest.raises(OptionError):
        root_settings.read(root, DEFAULTS)
    (tmp_path / "moved").mkdir()
    settings.save(root, [])
    (tmp_path / settings.FILE).rename(tmp_path / "moved" / settings.FILE)
    with pytest.raises(NoHome, match=f"is of a snapshotter with --root {root}: mount it there"):
        root_settings.read(str(tmp_path / "moved"), DEFAULTS)
