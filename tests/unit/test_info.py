"""info.py: how an Update changes labels (containerd, snapshots/storage/bolt.go UpdateInfo)."""

from __future__ import annotations

import pytest

from snapshots.errors import InvalidArgument
from snapshots.info import changed_labels

OLD = {"a": "1", "b.c": "2"}


@pytest.mark.parametrize(
    ("new", "mask", "wanted"),
    [
        ({"x": "9"}, (), {"x": "9"}),
        ({}, (), {}),
        ({"x": "9", "a": ""}, (), {"x": "9"}),
        ({"x": "9"}, ("labels",), {"x": "9"}),
        ({"a": "9", "x": "9"}, ("labels.a",), {"a": "9", "b.c": "2"}),
        ({"x": "9"}, ("labels.x",), {"a": "1", "b.c": "2", "x": "9"}),
        ({"b.c": "9"}, ("labels.b.c",), {"a": "1", "b.c": "9"}),
        ({"a": ""}, ("labels.a",), {"b.c": "2"}),
        ({}, ("labels.a", "labels.absent"), {"b.c": "2"}),
        ({"a": "9", "x": "9"}, ("labels.a", "labels"), {"a": "9", "x": "9"}),
    ],
)
def test_what_a_mask_changes(new: dict[str, str], mask: tuple[str, ...], wanted: dict[str, str]) -> None:
    assert changed_labels(OLD, new, mask) == wanted
    assert OLD == {"a": "1", "b.c": "2"}


@pytest.mark.parametrize(
    "path", ["parent", "name", "kind", "created_at", "updated_at", "", "label", "labelsx", "Labels"]
)
def test_nothing_else_changes(path: str) -> None:
    with pytest.raises(InvalidArgument, match="only labels"):
        changed_labels(OLD, {}, ("labels.a", path))
