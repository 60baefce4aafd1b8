"""checkup.py: which checks there are, in which order, and the two that an Init makes beside its preconditions."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.doctored import DoctoredPool, outcome

from cluster import claim
from cluster.claim import CLAIM
from cluster.owner import Owner
from doctor import checkup, target
from doctor.finding import BROKEN, OK
from doctor.target import DOCKER, SNAPSHOTTER, Target, Wanted
from doctor.trial import Trial
from graph.preconditions import Check, Preconditions
from images.options import DEFAULTS


def of(front: str, directory: Path) -> Target:
    words = (front, str(directory / "s.sock"), "", str(directory / "root"), (), "/nonexistent", "/nonexistent", "/s")
    return target.find(Wanted(*words))


def checks(directory: Path, pool: DoctoredPool, front: str = DOCKER) -> list[Check]:
    found = of(front, directory)
    return checkup.checks(found, pool.as_pool(), Trial(pool.as_pool(), found.options, Owner("vm", "", "/home")))


@pytest.mark.parametrize(
    ("front", "own"), [(DOCKER, ["docker"]), (SNAPSHOTTER, ["containerd", "containerd configuration"])]
)
def test_each_stands_once_and_after_what_it_needs(tmp_path: Path, front: str, own: list[str]) -> None:
    pool = DoctoredPool()
    made = checks(tmp_path, pool, front)
    names = [check.name for check in made]
    assert len(set(names)) == len(names)
    optional = {"namespace", "object pool"}
    for at, check in enumerate(made):
        assert set(check.needs) <= optional | set(names[:at]), check.name
    assert names[-len(own) - 1 : -1] == own
    assert names[-1] == "docker configuration"
    assert [check.name for check in Preconditions(pool.as_pool(), DEFAULTS).checks() if check.name not in names] == []
    assert pool.calls == [], "it is looked when a check is made"


def test_another_machine_of_our_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the words of an Init."""
    monkeypatch.setattr(claim, "REBOOT_SECONDS", 0.0)
    pool = DoctoredPool()
    assert outcome(checks(tmp_path, pool), "host name", pool)[0] == OK
    ours = Owner.here(of(DOCKER, tmp_path).home).object(DEFAULTS.imageprefix)
    pool.objects.attributes[ours] = {}
    pool.objects.locks[(ours, CLAIM)] = {"client.9": "another boot"}
    pool.objects.watchers[ours] = ["10.0.0.2:0/7"]
    status, text = outcome(checks(tmp_path, pool), "host name", pool)
    assert status == BROKEN
    assert text.startswith("another driver lives as host ")
    assert "10.0.0.2:0/7" in text


def test_the_base_image(tmp_path: Path) -> None:
    pool = DoctoredPool()
    assert outcome(checks(tmp_path, pool), "base image", pool) == (OK, "there is none yet: the first start makes it")
    base = pool.add_base()
    assert outcome(checks(tmp_path, pool), "base image", pool) == (OK, "it fits the options")
    base.metadata["docker_graph_driver.fs"] = "ext4"
    status, text = outcome(checks(tmp_path, pool), "base image", pool)
    assert status == BROKEN
    assert text.startswith("ceph.fs=xfs, but docker_image_base_image in pool pool holds ext4; use ceph.fs=ext4")
    assert pool.named("create") == []
