"""`--default`: storage options for what dockerd does not say (a managed plugin's settings arrive so)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from images.options import DEFAULTS, OptionError, parse

PROGRAM = Path(__file__).parents[2] / "docker_graph_driver.py"


def test_dockerd_wins_over_a_default_and_a_default_over_the_built_in() -> None:
    defaults = parse(["ceph.datapool=docker", "ceph.client=docker", "ceph.mountopt=discard", "ceph.mountopt=nobarrier"])
    options = parse(["ceph.datapool=other", "ceph.mountopt=relatime"], defaults)
    assert (options.datapool, options.client, options.basesize) == ("other", "docker", DEFAULTS.basesize)
    # What is repeatable is one setting: dockerd's list takes the place of the defaults', it does not grow it.
    assert options.mountopt == ("relatime",)
    assert defaults.mountopt == ("discard", "nobarrier")


def test_without_a_word_of_dockerd_the_defaults_hold() -> None:
    defaults = parse(["ceph.devicetype=nbd"])
    assert parse(None, defaults) == parse([], defaults) == defaults


@pytest.mark.parametrize(
    ("default", "says"),
    [
        ("ceph.pool=x", "unknown storage option 'ceph.pool'; valid are"),
        ("ceph.fs=zfs", "'zfs' is not one of xfs, ext4"),
    ],
)
def test_a_bad_default_ends_the_driver_with_one_line(default: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=says):
        parse([default])
    argv = [sys.executable, str(PROGRAM), "--socket", str(tmp_path / "ceph.sock"), "--default", default]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert says in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
