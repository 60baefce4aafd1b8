"""Who lists and then acts must expect that what was listed has gone, and that this is no failure.

The pool is a fake: only so can the moment be hit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
from docker_tree import DockerTree
from unit.fake_host import FakeHost
from unit.fakes import FakePool, failed, missing
from unit.layered import Life

import rbdcli
from cluster import rados_objects
from images import options
from images.layers import Layers
from maintenance import collector, docker_database, inspection
from maintenance.takeover import Takeover

LOCK = rbdcli.Lock("auto 1", "client.5", "127.0.0.1:0/9")


def layers_of(pool: FakePool) -> Layers:
    return Layers(pool.as_pool(), options.DEFAULTS, "/home")


# -- takeover ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [True, False])
def test_a_lock_that_goes_by_itself_leaves_no_layer_behind(gone: bool) -> None:
    """`rbd lock rm` ends with the same for a lock that has gone as for an image; what is there is not passed over."""
    pool = FakePool()
    image = pool.add_layer("a", owner="dead /home", locks=[LOCK])
    pool.fails["break_lock"] = [(missing(), True) if gone else missing()]
    Takeover(layers_of(pool), "docker_image", "dead", "", lambda line: None).run()
    assert (image.record.owner == layers_of(pool).owner()) is gone


def test_a_record_that_cannot_be_read_keeps_no_other_from_being_taken() -> None:
    pool = FakePool()
    image = pool.add_layer("a", owner="dead /home")
    pool.add_layer("b", owner="dead /home").metadata["docker_graph_driver.layer"] = "{"
    said: list[str] = []
    assert Takeover(layers_of(pool), "docker_image", "dead", "", said.append).run() == 1
    assert image.record.owner == layers_of(pool).owner()
    assert [line for line in said if line.startswith("left alone: layer b: ") and "docker_image_b" in line]


# -- gc ------------------------------------------------------------------------------------------


class Dead:
    """An inspection by which everything is still dead."""

    def still_dead(self, finding: inspection.Finding) -> bool:
        return True


def collect(finding: inspection.Finding, pool: FakePool) -> collector.Outcome:
    outcomes = collector.collect(
        [finding], cast(inspection.Inspection, Dead()), layers_of(pool), docker_database.DockerDatabase("/none", "ceph")
    )
    return outcomes[0]


@pytest.mark.parametrize("gone", [True, False])
def test_a_device_that_was_unmapped_meanwhile(gone: bool) -> None:
    pool = FakePool()
    pool.devices = {} if gone else {"docker_image_a": "/dev/rbd7"}
    if not gone:
        pool.fails["unmap"] = [failed(rbdcli.RbdError, 22)]
    finding = inspection.Finding(inspection.STALE_MAPPING, "a", "", "/dev/rbd7", dead=True)
    assert collect(finding, pool).removed is gone


def test_a_directory_in_which_somebody_is_at_work_did_not_go_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount point in it has gone, and the directory is there."""
    monkeypatch.setattr(os, "listdir", lambda path: ["docker"])
    finding = inspection.Finding(inspection.STALE_DIRECTORY, "a", "", str(tmp_path), dead=True)
    outcome = collect(finding, FakePool())
    assert outcome.removed is not tmp_path.exists()


def test_a_record_of_dockers_that_goes_meanwhile(tmp_path: Path) -> None:
    """A dockerd that starts removes it, too, and so does another gc."""
    docker = DockerTree(str(tmp_path), "ceph")
    record = docker.container(64 * "a", 64 * "b")
    database = docker_database.DockerDatabase(str(tmp_path), "ceph")
    database.forget(record)
    assert not os.path.exists(record)
    with pytest.raises(FileNotFoundError):
        database.forget(record)


# -- locks of the cluster's, devices -------------------------------------------------------------


def lock_info(*holders: str) -> str:
    lockers = ", ".join(f'{{"name": "client.{n}", "description": "{who}"}}' for n, who in enumerate(holders))
    return f'{{"lockers": [{lockers}]}}'


def take_again(pool: rbdcli.Pool, name: str, lock: str) -> bool:
    """Of an earlier life of the same holder."""
    return rados_objects.lock(pool, name, lock, "me", 5)


@pytest.mark.parametrize("call", [rados_objects.unlock, take_again])
@pytest.mark.parametrize("gone", [True, False])
def test_a_lock_that_ends_before_it_is_broken(call: Callable[..., object], gone: bool) -> None:
    """It has a duration of its own."""
    said = iter([lock_info("me"), lock_info() if gone else lock_info("me")])

    class Rados(FakePool):
        def rados(self, *words: str) -> str:
            if words[:2] == ("lock", "info"):
                return next(said)
            raise rbdcli.RbdError(("rados",), 1, "")

    pool = Rados().as_pool()
    if gone:
        assert not call(pool, "object", "rename")
    else:
        with pytest.raises(rbdcli.RbdError):
            call(pool, "object", "rename")


@pytest.mark.parametrize("removed", [True, False])
def test_a_device_that_goes_before_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    """A daemon's start looks at all that is mapped; it takes what has gone for what it is."""
    pool = FakePool()
    host = FakeHost.in_place(pool, monkeypatch, tmp_path / "content")
    pool.add_layer("a")
    pool.devices = {"docker_image_a": "/dev/nonexistent"}
    (tmp_path / "mnt" / "a" / "removed" if removed else tmp_path / "mnt" / "a" / "layer").mkdir(parents=True)
    mapped = pool.mappings

    def goes() -> Sequence[rbdcli.Mapping]:
        listed = mapped()
        pool.devices.clear()
        return listed

    object.__setattr__(pool, "mappings", goes)
    life = Life(tmp_path, pool)
    assert life.learn() == ([] if removed else ["a"])
    life.settle()
    life.unmap("a")
    assert (life.devices.device("a"), host.mounted) == (None, {})
    assert (tmp_path / "mnt" / "a" / "removed").exists() is removed
