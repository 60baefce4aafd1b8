"""record.py: what stands in the metadata of a layer's image, and what it is read as."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.owner import Owner
from images.record import KEY, Record

# What a host, a home and a layer may be named.
WORDS = st.text(st.characters(min_codepoint=0x21, exclude_categories=["Cs"]), min_size=1)


@given(WORDS, WORDS, st.lists(WORDS).map(tuple))
def test_what_is_written_is_read(host: str, home: str, parents: tuple[str, ...]) -> None:
    record = Record(Owner.parse(f"{host} {home}"), parents)
    assert Record.parse(str(record)) == record


def test_a_home_may_have_blanks() -> None:
    record = Record(Owner("host", "1" * 32, "/my home/é\udcff"), ("b", "a"))
    assert Record.parse(str(record)) == record


def test_it_is_ascii_and_one_line() -> None:
    """It goes through a command line and omap."""
    said = str(Record(Owner("host", "", "/home/é\n"), ()))
    assert said.isascii()
    assert said.isprintable()


def test_an_image_without_one_was_never_made_to_its_end() -> None:
    assert Record.parse("") is None


@pytest.mark.parametrize(
    "text",
    [
        *("x", "{", "null", "[]", "1", '"text"', "{}", '{"owner": "a b"}', '{"parents": []}', "\n", "{}" * 2),
        *('{"owner": "a b", "parents": null}', '{"owner": "a b", "parents": 1}'),
    ],
)
def test_what_no_driver_wrote_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^{KEY} is .*, which no driver of this version wrote$"):
        Record.parse(text)


@given(st.text())
def test_any_text_is_a_record_or_said_in_a_line(text: str) -> None:
    try:
        Record.parse(text)
    except ValueError as error:
        assert "\n" not in str(error)


def test_a_long_one_is_cut() -> None:
    with pytest.raises(ValueError, match=KEY) as raised:
        Record.parse(json.dumps(["x" * 5000]))
    assert len(str(raised.value)) < 200


def test_one_that_is_shared_says_so_and_others_are_written_as_ever() -> None:
    record = Record(Owner("host", "", "/home"), ("a",))
    assert "shared" not in str(record)
    shared = Record(record.owner, record.parents, shared=True)
    assert Record.parse(str(shared)) == shared
    said = Record.parse(json.dumps({"owner": "host /home", "parents": [], "shared": "yes"}))
    assert said
    assert not said.shared


def test_the_note_of_a_snapshot_is_kept_as_it_is() -> None:
    record = Record(Owner("host", "", "/home"), ("a",), snapshot={"key": "default/1/é", "labels": {"a": "b"}})
    assert Record.parse(str(record)) == record
    assert "snapshot" not in str(Record(record.owner, record.parents))
    with pytest.raises(ValueError, match="which no driver of this version wrote"):
        Record.parse(json.dumps({"owner": "host /home", "parents": [], "snapshot": 1}))
