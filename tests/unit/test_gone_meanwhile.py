"""Who lists and then acts must expect that what was listed has gone, and that this is no failure.

The pool is a fake: only so can the moment be hit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

import dockerdb
import garbage
import inspection
import objects
import options
import rbdcli
from layers import OWNER_KEY, Layers
from mounted import MountedLayers
from takeover import Takeover

LOCK = rbdcli.Lock("auto 1", "client.5", "127.0.0.1:0/9")


def missing() -> rbdcli.RbdError:
    """What a command of rbd's ends with that asks for what has gone."""
    return rbdcli.ImageMissing(("rbd",), 2, "No such file or directory")


class FakePool:
    """What is called in a test is set there; all else is an error."""

    name, namespace, client, timeout, device_type = "pool", "", "me", 5.0, "krbd"

    def __init__(self, **methods: Callable[..., Any]) -> None:
        for name, method in methods.items():
            setattr(self, name, method)


def layers_of(pool: FakePool) -> Layers:
    return Layers(cast(rbdcli.Pool, pool), options.DEFAULTS, "/home")


# -- takeover ------------------------------------------------------------------------------------


def take(locks: Sequence[rbdcli.Lock]) -> list[str]:
    """Take over one image whose lock cannot be broken; `locks` is what it has by then. Returns what was set on it."""
    changed: list[str] = []

    def break_lock(image: str, lock: rbdcli.Lock) -> None:
        raise missing()

    asked = iter([[LOCK], locks])
    pool = FakePool(
        list=lambda: ["docker_image_a"],
        metadata=lambda image: {OWNER_KEY: "dead /home"},
        watchers=lambda image: [],
        locks=lambda image: next(asked),
        blocklist=lambda address, seconds: None,
        break_lock=break_lock,
        set_metadata=lambda image, key, value: changed.append(key),
        trash=lambda image: (_ for _ in ()).throw(missing()),
        rados=lambda *words: "",
    )
    Takeover(layers_of(pool), "docker_image", "dead", "", lambda line: None).run()
    return changed


def test_a_lock_that_goes_by_itself_leaves_no_layer_behind() -> None:
    """`rbd lock rm` ends with the same for a lock that has gone as for an image."""
    assert OWNER_KEY in take([])


def test_a_lock_that_is_still_there_is_not_passed_over() -> None:
    assert take([LOCK]) == []


# -- the trash -----------------------------------------------------------------------------------


def test_one_image_that_another_driver_is_busy_with_does_not_keep_the_rest_of_the_trash() -> None:
    trash = {"1": "docker_image_a", "2": "docker_image_b"}

    def remove_trashed(image_id: str, give_up: Callable[[], bool]) -> None:
        if image_id == "1":
            raise rbdcli.ImageHasChildren(("rbd",), 39, "")
        del trash[image_id]

    def remove_snapshots(image_id: str) -> int:
        raise rbdcli.ImageLocked(("rbd",), 30, "Read-only file system")

    pool = FakePool(
        trashed=lambda: [rbdcli.Trashed(*item) for item in trash.items()],
        remove_trashed=remove_trashed,
        remove_snapshots_of_trashed=remove_snapshots,
    )
    layers_of(pool).reap()
    assert list(trash.values()) == ["docker_image_a"]


# -- gc ------------------------------------------------------------------------------------------


class Dead:
    """An inspection by which everything is still dead."""

    def still_dead(self, finding: inspection.Finding) -> bool:
        return True


def collect(finding: inspection.Finding, pool: FakePool) -> garbage.Outcome:
    pool.trashed = list  # type: ignore[attr-defined]
    outcomes = garbage.collect(
        [finding], cast(inspection.Inspection, Dead()), layers_of(pool), dockerdb.DockerDatabase("/none", "ceph")
    )
    return outcomes[0]


@pytest.mark.parametrize("gone", [True, False])
def test_a_device_that_was_unmapped_meanwhile(gone: bool) -> None:
    def fails(*words: str) -> str:
        raise rbdcli.RbdError(("rbd", *words), 22, "not a mapped image")

    left = [] if gone else [rbdcli.Mapping("docker_image_a", "/dev/rbd7")]
    pool = FakePool(_rbd=fails, _device_type=tuple, mappings=lambda: left)
    pool.unmap = lambda device: rbdcli.Pool.unmap(cast(rbdcli.Pool, pool), device)  # type: ignore[attr-defined]
    finding = inspection.Finding(inspection.STALE_MAPPING, "a", "", "/dev/rbd7", dead=True)
    outcome = collect(finding, pool)
    assert outcome.removed is gone


def test_a_directory_in_which_somebody_is_at_work_did_not_go_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount point in it has gone, and the directory is there."""
    monkeypatch.setattr(os, "listdir", lambda path: ["docker"])
    finding = inspection.Finding(inspection.STALE_DIRECTORY, "a", "", str(tmp_path), dead=True)
    outcome = collect(finding, FakePool())
    assert outcome.removed is not tmp_path.exists()


def test_a_record_of_dockers_from_which_a_file_goes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "record"
    record.mkdir()
    (record / "init-id").write_text("x", encoding="ascii")
    monkeypatch.setattr(os, "listdir", lambda path: ["mount-id", "init-id"])
    dockerdb.DockerDatabase(str(tmp_path), "ceph").forget(str(record))
    assert not record.exists()


# -- locks of the cluster's, devices -------------------------------------------------------------


def lock_info(*holders: str) -> str:
    lockers = ", ".join(f'{{"name": "client.{n}", "description": "{who}"}}' for n, who in enumerate(holders))
    return f'{{"lockers": [{lockers}]}}'


def take_again(pool: rbdcli.Pool, name: str, lock: str) -> bool:
    """Of an earlier life of the same holder."""
    return objects.lock(pool, name, lock, "me", 5)


@pytest.mark.parametrize("call", [objects.unlock, take_again])
@pytest.mark.parametrize("gone", [True, False])
def test_a_lock_that_ends_before_it_is_broken(call: Callable[..., object], gone: bool) -> None:
    """It has a duration of its own."""
    said = iter([lock_info("me"), lock_info() if gone else lock_info("me")])

    def rados(*words: str) -> str:
        if words[:2] == ("lock", "info"):
            return next(said)
        raise rbdcli.RbdError(("rados",), 1, "")

    pool = cast(rbdcli.Pool, FakePool(rados=rados))
    if gone:
        assert not call(pool, "object", "rename")
    else:
        with pytest.raises(rbdcli.RbdError):
            call(pool, "object", "rename")


def test_a_device_that_goes_before_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon's start looks for what builders have left on the devices that it has mapped."""
    pool = FakePool(mappings=lambda: [rbdcli.Mapping("docker_image_a", "/dev/nonexistent")])
    (tmp_path / "a" / "removed").mkdir(parents=True)
    mounted = MountedLayers(cast(rbdcli.Pool, pool), str(tmp_path), layers_of(pool), "xfs", ())
    mounted.learn()
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    mounted.settle()
