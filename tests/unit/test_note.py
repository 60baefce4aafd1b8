"""note.py: what the pool is told of a snapshot, and what that is read as."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshots import note
from snapshots.info import NOTHING, Info, Kind, Snapshot, State, Usage

NUMBERS = st.integers(0, (1 << 63) - 1)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


def snapshot(info: Info, usage: Usage = NOTHING, chain: str = "", image: str = "layer") -> Snapshot:
    """A snapshot that is there."""
    return Snapshot(info, "layer", State.THERE, usage, "", image, chain, shared=bool(chain), empty=NOTHING)


@given(WORDS.filter(bool), WORDS, st.booleans(), NUMBERS, NUMBERS, st.dictionaries(WORDS, WORDS, max_size=5), NUMBERS)
def test_what_is_written_is_read(
    key: str, parent: str, active: bool, created: int, updated: int, labels: dict[str, str], size: int
) -> None:
    kind = Kind.ACTIVE if active else Kind.COMMITTED
    noted = snapshot(Info(key, parent, kind, created, updated, labels), NOTHING if active else Usage(size, 7))
    assert note.read("layer", json.loads(json.dumps(note.written(noted)))) == noted


def test_what_was_told_has_its_layer_and_chain() -> None:
    noted = snapshot(Info("name", "", Kind.COMMITTED, 1, 1, {}), Usage(1, 2), "sha256:1", "theirs")
    assert note.read("layer", note.written(noted), image="theirs", chain="sha256:1") == noted


def test_long_labels_are_left_out_and_short_ones_kept() -> None:
    """It goes through a command line, where one word has 128 KiB at the most."""
    labels = {f"label {at}": "ß" * 2000 for at in range(30)} | {"short": "value"}
    written = note.written(snapshot(Info("key", "", Kind.ACTIVE, 1, 1, labels)))
    kept = note.read("layer", written).info.labels
    assert kept["short"] == "value"
    assert 1 < len(kept) < len(labels)
    assert len(json.dumps(written)) < 40 << 10


def test_a_key_that_no_command_line_takes_has_no_note() -> None:
    assert note.written(snapshot(Info("k" * 5000, "", Kind.ACTIVE, 1, 1, {}))) == {}
    assert note.written(snapshot(Info("key", "p" * 5000, Kind.ACTIVE, 1, 1, {}))) == {}


@pytest.mark.parametrize(
    "fields",
    [
        *({}, {"key": "x"}, {"key": "", "kind": "active", "created": 1}, {"key": "x", "kind": "view", "created": 1}),
        {"key": "x", "kind": "active", "created": -1},
        {"key": "x", "kind": "active", "created": 1 << 63},
        {"key": "x", "kind": "active", "created": 1, "labels": ["x"]},
    ],
)
def test_what_no_driver_wrote_is_said(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^the note of layer is .*, which no driver of this version wrote$"):
        note.read("layer", fields)
