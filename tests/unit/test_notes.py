"""notes.py: the pool has notes of the snapshots as they are, a moment after each change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_client import wait_until
from unit.fake_host import FakeHost
from unit.fakes import FakePool
from unit.snapshotting import Process, processes

from snapshots import note
from snapshotter import notes


@pytest.fixture
def process(pool: FakePool, host: FakeHost, tmp_path: Path) -> Iterator[Process]:
    """A snapshotter."""
    with processes() as made:
        made.append(Process(pool, tmp_path / "a"))
        yield made[0]


def noted(process: Process, layer: str) -> object:
    """What the pool has."""
    record = process.life.layers.record(layer)
    assert record
    return record.snapshot


def test_prepare_writes_the_first_one_with_the_record(process: Process, pool: FakePool) -> None:
    layer = process.prepare("key", label="value")
    assert noted(process, layer) == note.written(process.store.find("key"))
    assert not process.store.unnoted()


def test_a_commit_and_other_labels_are_noted_in_the_background(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "NOTE_SECONDS", 0.0)
    layer = process.commit("name")
    wait_until(lambda: not process.store.unnoted(), "it is noted")
    assert noted(process, layer) == note.written(process.store.find("name"))
    process.snapshotter.update("name", {"a": "b"}, ["labels.a"])
    wait_until(lambda: not process.store.unnoted(), "it is noted")
    assert note.read(layer, process.life.layers.record(layer).snapshot).info.labels == {"a": "b"}  # type: ignore[union-attr]


def test_what_a_process_leaves_the_next_one_notes(process: Process, pool: FakePool, tmp_path: Path) -> None:
    layer = process.commit("name")
    process.end()
    assert [each.layer for each in process.store.unnoted()] == [layer]
    process.store.close()
    with processes() as made:
        made.append(Process(pool, tmp_path / "a"))
        wait_until(lambda: not made[0].store.unnoted(), "it is noted")
        assert noted(made[0], layer) == note.written(made[0].store.find("name"))


def test_nothing_is_written_to_what_is_removed(process: Process) -> None:
    layer = process.commit("name")
    process.snapshotter.remove("name")
    assert process.notes._note(layer)


def test_a_layer_that_has_gone_is_said_once(process: Process, pool: FakePool, caplog: pytest.LogCaptureFixture) -> None:
    layer = process.commit("name")
    del pool.images[f"docker_image_{layer}"]
    assert process.notes._note(layer)
    assert f"snapshot {layer} is not noted" in caplog.text
