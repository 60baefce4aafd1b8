"""baseimage.py: one whole base image, whatever became of it; in a pool in memory."""

from __future__ import annotations

import logging

import pytest
from unit.fakes import FakePool

import options
from baseimage import FORMAT, FORMAT_KEY, FS_KEY, BaseImage
from layers import BASE, LayerError, Layers

BASE_IMAGE = f"docker_image_{BASE}"
WHOLE = {FORMAT_KEY: FORMAT, FS_KEY: "xfs"}


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def layers(pool: FakePool) -> Layers:
    return Layers(pool.as_pool(), options.DEFAULTS, "/home")


def ensure(layers: Layers) -> None:
    BaseImage(layers, options.DEFAULTS, "/nonexistent").ensure()


def test_one_that_is_whole_stays_as_it_is(pool: FakePool, layers: Layers) -> None:
    pool.add(BASE_IMAGE, metadata=WHOLE, snapshots={"depth0": "empty"})
    ensure(layers)
    assert not pool.named("snapshot")


def test_a_snapshot_that_has_gone_is_taken_anew(
    pool: FakePool, layers: Layers, caplog: pytest.LogCaptureFixture
) -> None:
    """`rbd snap purge`: nobody has written to the base image since it was made."""
    pool.add(BASE_IMAGE, metadata=WHOLE, held="empty")
    with caplog.at_level(logging.WARNING):
        ensure(layers)
    assert pool.images[BASE_IMAGE].snapshots == {"depth0": "empty"}
    [record] = caplog.records
    assert f"{BASE_IMAGE} has lost its snapshot depth0" in record.message
    assert layers.create("a", None, None, leaf=False).depth == 1


def test_another_snapshot_is_not_taken_for_it(pool: FakePool, layers: Layers) -> None:
    pool.add(BASE_IMAGE, metadata=WHOLE, held="empty", snapshots={"backup": "empty"})
    ensure(layers)
    assert [*pool.images[BASE_IMAGE].snapshots] == ["backup", "depth0"]


def test_a_snapshot_that_goes_while_the_driver_runs(
    pool: FakePool, layers: Layers, caplog: pytest.LogCaptureFixture
) -> None:
    pool.add(BASE_IMAGE, metadata=WHOLE, held="empty", snapshots={"depth0": "empty"})
    layers.create("a", None, None, leaf=False)
    pool.images[BASE_IMAGE].snapshots.clear()
    with caplog.at_level(logging.WARNING):
        assert layers.create("b", None, None, leaf=False).depth == 1
    assert [*pool.images[BASE_IMAGE].snapshots] == ["depth0"]
    assert [record.message for record in caplog.records if "has lost its snapshot" in record.message]


def test_a_base_image_that_goes_while_the_driver_runs(pool: FakePool, layers: Layers) -> None:
    pool.add(BASE_IMAGE, metadata=WHOLE, held="empty", snapshots={"depth0": "empty"})
    layers.create("a", None, None, leaf=False)
    del pool.images[BASE_IMAGE]
    with pytest.raises(LayerError, match=f"layer b: image {BASE_IMAGE} does not exist .*restart dockerd"):
        layers.create("b", None, None, leaf=False)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, f"{FORMAT_KEY} is missing, expected 1"),
        ({**WHOLE, FORMAT_KEY: "2"}, f"{FORMAT_KEY} is 2, expected 1"),
        ({**WHOLE, FS_KEY: "ext4"}, "holds ext4; use ceph.fs=ext4 or"),
    ],
)
def test_one_that_does_not_fit(pool: FakePool, layers: Layers, metadata: dict[str, str], said: str) -> None:
    pool.add(BASE_IMAGE, metadata=metadata, snapshots={"depth0": "empty"})
    with pytest.raises(LayerError, match=said):
        ensure(layers)
    # A full pool does not answer it.
    assert not pool.named("metadata")
