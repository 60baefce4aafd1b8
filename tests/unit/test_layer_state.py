"""layer_state.py: how far a layer has come, as its own file system tells it, whatever a crash left of that."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from host import deadline
from images import layer_state
from images.layer_state import LayerState

SECONDS = 60.0
MADE = LayerState("layer", ("b", "a"))


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path)


def names(directory: str) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_layer_that_was_never_mounted_has_none(directory: str) -> None:
    assert layer_state.read(directory, SECONDS) is None


@pytest.mark.parametrize(
    "made",
    [
        MADE,
        LayerState("layer", ()),
        MADE._replace(init="layer-init"),
        MADE._replace(finished=True),
        LayerState("é\udcff", ("x",)),
    ],
)
def test_what_is_written_is_read(directory: str, made: LayerState) -> None:
    layer_state.write(directory, made, SECONDS)
    assert layer_state.read(directory, SECONDS) == made
    assert names(directory) == [layer_state.NAME]


def test_the_states_of_a_layer(directory: str) -> None:
    layer_state.write(directory, MADE, SECONDS)
    layer_state.begin(directory, SECONDS)
    assert layer_state.read(directory, SECONDS) == MADE._replace(applying=True)
    layer_state.finish(directory, MADE, SECONDS)
    assert layer_state.read(directory, SECONDS) == MADE._replace(finished=True)
    assert names(directory) == [layer_state.NAME]


def test_an_archive_that_is_begun_again_is_marked_still(directory: str) -> None:
    layer_state.write(directory, MADE, SECONDS)
    layer_state.begin(directory, SECONDS)
    layer_state.begin(directory, SECONDS)
    said = layer_state.read(directory, SECONDS)
    assert said
    assert said.applying


def test_a_layer_without_an_archive_is_finished_all_the_same(directory: str) -> None:
    """By its first child."""
    layer_state.finish(directory, MADE, SECONDS)
    assert layer_state.read(directory, SECONDS) == MADE._replace(finished=True)


def test_the_power_took_what_was_in_it(directory: str) -> None:
    """The name of a file may be there before its content: as if it had never been written."""
    Path(directory, layer_state.NAME).write_bytes(b"")
    assert layer_state.read(directory, SECONDS) is None
    layer_state.write(directory, MADE, SECONDS)
    assert layer_state.read(directory, SECONDS) == MADE


def test_the_power_took_what_was_in_it_and_not_the_mark_of_an_archive(directory: str) -> None:
    Path(directory, layer_state.NAME).write_bytes(b"")
    layer_state.begin(directory, SECONDS)
    said = layer_state.read(directory, SECONDS)
    assert said
    assert (said.layer, said.applying) == ("", True)


def test_half_a_note_that_a_crash_left_beside_it_is_no_matter(directory: str) -> None:
    layer_state.write(directory, MADE, SECONDS)
    Path(directory, f"{layer_state.NAME}.new").write_bytes(b'{"layer"')
    assert layer_state.read(directory, SECONDS) == MADE
    layer_state.finish(directory, MADE, SECONDS)
    assert layer_state.read(directory, SECONDS) == MADE._replace(finished=True)
    assert names(directory) == [layer_state.NAME]


@pytest.mark.parametrize(
    "said",
    [
        *(b"{", b"\0" * 40, b"\xff", b"null", b"[]", b"1", b"{}", b'{"layer": "a"}', b'{"parents": []}'),
        *(b'{"layer": "a", "parents": null}', b'{"layer": "a", "parents": 1}'),
    ],
)
def test_what_no_driver_wrote_is_none_of_ours(directory: str, said: bytes) -> None:
    Path(directory, layer_state.NAME).write_bytes(said)
    with pytest.raises(ValueError, match=layer_state.NAME):
        layer_state.read(directory, SECONDS)


def test_all_of_a_layer_is_in_the_cluster_before_its_state_says_so(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the state itself, and that the mark is gone, when it is told to be finished."""
    layer_state.write(directory, MADE, SECONDS)
    layer_state.begin(directory, SECONDS)
    seen: list[str] = []

    def says(step: str) -> None:
        said = layer_state._read(directory)
        assert said
        seen.append(f"{step}{' finished' * said.finished}{' applying' * said.applying}")

    monkeypatch.setattr(layer_state, "_flush", lambda opened: says("flushed"))
    monkeypatch.setattr(os, "fsync", lambda opened: says("synced"))
    layer_state.finish(directory, MADE, SECONDS)
    assert seen == ["flushed applying", "synced finished"]


@pytest.mark.parametrize("init", ["", "layer-init"])
def test_a_container_s_note_is_never_lost_to_a_power_cut(
    directory: str, monkeypatch: pytest.MonkeyPatch, init: str
) -> None:
    """It takes the place of its init layer's, and nothing else tells that what that brought is in the layer."""
    Path(directory, layer_state.NAME).write_text("that of its init layer", encoding="ascii")
    synced: list[str] = []

    def sync(opened: int) -> None:
        written = os.readlink(f"/proc/self/fd/{opened}")
        assert os.path.getsize(written) > 0
        synced.append(f"{os.path.basename(written)}, {Path(directory, layer_state.NAME).read_text(encoding='ascii')}")

    monkeypatch.setattr(os, "fsync", sync)
    layer_state.write(directory, MADE._replace(init=init), SECONDS)
    assert synced == ([f"{layer_state.NAME}.new, that of its init layer"] if init else [])


def test_the_mark_of_an_archive_is_there_for_good(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything of the archive is laid down; and so is the state, without which nobody looks for the mark."""
    layer_state.write(directory, MADE, SECONDS)
    synced: list[tuple[str, list[str]]] = []

    def sync(opened: int) -> None:
        synced.append((os.path.basename(os.readlink(f"/proc/self/fd/{opened}")), names(directory)))

    monkeypatch.setattr(os, "fsync", sync)
    layer_state.begin(directory, SECONDS)
    both = [layer_state.MARK, layer_state.NAME]
    assert synced == [(layer_state.NAME, [layer_state.NAME]), (os.path.basename(directory), both)]


def test_a_layer_whose_content_cannot_be_written_out_is_not_finished(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer_state.write(directory, MADE, SECONDS)
    layer_state.begin(directory, SECONDS)

    def lost(opened: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(layer_state, "_flush", lost)
    with pytest.raises(OSError, match="Input/output error"):
        layer_state.finish(directory, MADE, SECONDS)
    assert layer_state.read(directory, SECONDS) == MADE._replace(applying=True)


def test_a_file_system_that_does_not_answer_is_left_after_its_time(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "GRACE_SECONDS", 0.1)
    answer = threading.Event()

    def hangs(_: str) -> None:
        answer.wait(300)

    monkeypatch.setattr(layer_state, "_read", hangs)
    with pytest.raises(deadline.Overdue, match=directory):
        layer_state.read(directory, 0.1)
    answer.set()


def test_all_that_is_in_memory_is_written_out(directory: str) -> None:
    """Of the file system that the directory is in; a real one, here that of the tests."""
    layer_state.flush(directory)
    with pytest.raises(FileNotFoundError):
        layer_state.flush(os.path.join(directory, "missing"))
