"""cluster_state.py: what the cluster tells of its health, its clocks, and a pool."""

from __future__ import annotations

from typing import Any

import pytest
from unit.doctored import DoctoredPool, outcome

from doctor.cluster_state import ClusterState
from doctor.finding import BROKEN, IMPROVE, NOT_CHECKED, OK
from host.command import CommandError, CommandMissing
from images.options import DEFAULTS

NAMES = ("cluster version", "health", "clocks of the monitors", "application", "space")
SKEW = {"MON_CLOCK_SKEW": {"summary": {"message": "clock skew"}, "detail": [{"message": "mon.b clock skew 2.1s"}]}}


def look(name: str, **answers: Any) -> tuple[str, str]:
    """What one check finds where `ceph` answers so; `_` stands for a blank."""
    pool = DoctoredPool()
    pool.answers.update({words.replace("_", " "): answer for words, answer in answers.items()})
    return outcome(ClusterState(pool.as_pool(), DEFAULTS).checks(), name, pool)


def test_all_is_well() -> None:
    assert [look(name) for name in NAMES] == [
        (OK, "Ceph 16.2.15 pacific"),
        (OK, "HEALTH_OK"),
        (OK, "they agree"),
        (OK, "pool: rbd"),
        (OK, "pool pool has 5GB left"),
    ]


def test_a_cluster_that_is_too_old() -> None:
    said = look("cluster version", version={"version": "ceph version 13.2.10 (564bdc4ae8) mimic (stable)"})
    assert said == (BROKEN, "the cluster is of Ceph 13.2.10 mimic; it takes 14 (Nautilus) or newer")


def test_health() -> None:
    checks = {"OSD_DOWN": {"summary": {"message": "1 osds down"}}}
    status, text = look("health", health_detail={"status": "HEALTH_WARN", "checks": checks})
    assert (status, text) == (IMPROVE, "the cluster says HEALTH_WARN: 1 osds down; see: ceph health detail")


def test_clocks() -> None:
    status, text = look("clocks of the monitors", health_detail={"status": "HEALTH_WARN", "checks": SKEW})
    assert status == IMPROVE
    assert text.startswith("mon.b clock skew 2.1s; let their hosts set their clocks")


@pytest.mark.parametrize(("said", "word"), [({}, "has none"), ({"cephfs": {}}, "is for cephfs")])
def test_application(said: Any, word: str) -> None:
    status, text = look("application", osd_pool_application_get=said)
    assert status == IMPROVE
    assert text == f"pool pool {word}; do: ceph osd pool application enable pool rbd"


def test_a_full_pool() -> None:
    full = [{"pool_name": "pool", "flags_names": "hashpspool,full,full_quota"}]
    status, text = look("space", osd_pool_ls_detail=full)
    assert status == BROKEN
    assert text.startswith("pool pool is full and takes no new data: remove images, add disks, or raise its quota")


@pytest.mark.parametrize(
    ("disks", "quota", "used", "status", "left"),
    [
        (5 << 30, 0, 0, OK, "5GB"),
        (1 << 20, 0, 0, IMPROVE, "1MB"),
        (5 << 30, 3 << 30, 1 << 30, OK, "2GB"),
        (5 << 30, 3 << 30, 3 << 30, IMPROVE, "0B"),
    ],
)
def test_space_by_the_disks_and_by_the_quota(disks: int, quota: int, used: int, status: str, left: str) -> None:
    said = look(
        "space",
        df={"pools": [{"name": "pool", "stats": {"max_avail": disks}}]},
        **{"osd pool get-quota": {"quota_max_bytes": quota, "current_num_bytes": used}},
    )
    assert said[0] == status
    assert f" {left} left" in said[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CommandMissing(("ceph",), None, "not found"), NOT_CHECKED),
        (CommandError(("ceph", "x"), 13, "access denied"), BROKEN),
        ({"another": "shape"}, NOT_CHECKED),
    ],
)
def test_what_the_cluster_does_not_tell(name: str, error: Any, status: str) -> None:
    pool = DoctoredPool()
    pool.answers = {"": error}
    found = outcome(ClusterState(pool.as_pool(), DEFAULTS).checks(), name, pool)
    if name == "application" and isinstance(error, dict):
        assert found[0] == IMPROVE
    else:
        assert found[0] == status
