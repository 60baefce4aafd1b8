"""chain_entry.py: what stands in the list of shared layers, and what it is read as."""

from __future__ import annotations

import pytest

from cluster.chain_entry import Entry
from cluster.owner import Owner

A, B = "sha256:" + 64 * "a", "sha256:" + 64 * "b"
ENTRY = Entry(B, "layer-b", A, "layer-a", Owner("host", "1" * 32, "/my home/é"), 1700000000, 5, 2)


@pytest.mark.parametrize("entry", [ENTRY, ENTRY.deleted_by(ENTRY.owner)])
def test_what_is_written_is_read(entry: Entry) -> None:
    assert Entry.parse(entry.key, str(entry)) == entry
    assert str(entry).isascii()
    assert str(entry).isprintable()


def test_one_that_is_being_deleted_names_who_deletes_it() -> None:
    mark = ENTRY.deleted_by(Owner("other", "", "/home"))
    assert mark.key == f"deleting {ENTRY.key} {Owner('other', '', '/home').digest[:16]}"
    assert mark.standing() == ENTRY


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("", str(ENTRY)),
        (A, str(ENTRY)),
        (f"{B} a/b", str(ENTRY)),
        (f"deleting {ENTRY.key}", str(ENTRY)),
        (f"{ENTRY.key} {16 * '0'}", str(ENTRY)),
        (ENTRY.key, ""),
        (ENTRY.key, "[]"),
        (ENTRY.key, "{}"),
        (ENTRY.key, str(ENTRY).replace(A, "")),
        (ENTRY.key, str(ENTRY).replace(A, "hello")),
        (ENTRY.key, str(ENTRY).replace("1700000000", "Infinity")),
        (ENTRY.key, 5000 * "["),
        ("x\n" * 999, "\n\x00"),
    ],
)
def test_what_no_driver_of_this_version_wrote(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"^.{1,900} is .*, which no driver of this version wrote$") as caught:
        Entry.parse(key, value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="is no layer of a chain"):
        Entry("sha256:1", "a", "", "", ENTRY.owner, 0, 0, 0)
    with pytest.raises(ValueError, match="is no layer of a chain"):
        Entry(A, "a", B, "", ENTRY.owner, 0, 0, 0)
