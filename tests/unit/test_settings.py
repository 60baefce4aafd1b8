"""settings.py: what a snapshotter was started with is read as it was said, by what reads Docker's settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from archive.transfer import IdMaps
from images.options import DEFAULTS
from protocol import init_state
from snapshotter import settings


def test_what_is_kept_is_read(tmp_path: Path) -> None:
    settings.save(f"{tmp_path}/", ["ceph.datapool=docker", "ceph.basesize=20G"])
    path = tmp_path / settings.FILE
    wanted = dataclasses.replace(DEFAULTS, datapool="docker", basesize=20 << 30)
    assert init_state.read(str(path), DEFAULTS) == (str(tmp_path), wanted, IdMaps((), ()))
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_last_start_counts(tmp_path: Path) -> None:
    for words in (["ceph.datapool=old"], []):
        settings.save(str(tmp_path), words)
    assert init_state.read(str(tmp_path / settings.FILE), DEFAULTS).options == DEFAULTS
