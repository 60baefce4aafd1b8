"""Which labels tell of a user namespace, and what is wrong with the others."""

from __future__ import annotations

import pytest

from mapped.idmapped import Ids
from snapshots.errors import InvalidArgument
from snapshotter.id_labels import GID_LABEL, UID_LABEL, has_ids, ids_of

GOOD = "0:100000:65536"


@pytest.mark.parametrize("labels", [{}, {"a": "b"}, {UID_LABEL: "", GID_LABEL: ""}])
def test_none(labels: dict[str, str]) -> None:
    assert ids_of("key", labels) is None
    assert not has_ids(labels)


def test_ids() -> None:
    labels = {UID_LABEL: GOOD, GID_LABEL: "0:7:1,1:200000:65535"}
    found = ids_of("key", labels)
    assert found == Ids(((0, 100000, 65536),), ((0, 7, 1), (1, 200000, 65535)))
    assert found.root() == (100000, 7)
    assert has_ids(labels)
    assert ids_of("key", {UID_LABEL: "0:0:4294967295", GID_LABEL: "1:1:1,0:5:1"})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "the other one is not"),
        ("0", "not three numbers"),
        ("0:1", "not three numbers"),
        ("0:1:2:3", "not three numbers"),
        ("0:1:2,", "not three numbers"),
        ("0:-1:2", "not three numbers"),
        ("0: 1:2", "not three numbers"),
        ("0:1:\u0662", "not three numbers"),
        ("0:1:2\n", "not three numbers"),
        (f"0:1:{'9' * 5000}", "not three numbers"),
        ("0:1:0", "without ids"),
        ("0:4294967295:1", "do not exist"),
        ("0:1:4294967295", "do not exist"),
        ("0:1:5,4:9:1", "an id twice"),
        ("0:1:5,5:3:1", "an id twice"),
        ("1:1:5", "no root"),
        (",".join(f"{number}:{number}:1" for number in range(341)), "more than 340"),
    ],
)
@pytest.mark.parametrize("label", [UID_LABEL, GID_LABEL])
def test_wrong(label: str, text: str, fault: str) -> None:
    other = GID_LABEL if label == UID_LABEL else UID_LABEL
    with pytest.raises(InvalidArgument, match=fault) as caught:
        ids_of("some key", {label: text, other: GOOD})
    said = str(caught.value)
    assert "\n" not in said
    for words in ("'some key'", label, repr(text), GOOD):
        assert words in said


def test_one_alone_is_wrong_whatever_it_is() -> None:
    for labels in ({UID_LABEL: GOOD}, {GID_LABEL: GOOD}):
        assert has_ids(labels)
        with pytest.raises(InvalidArgument, match="the other one is not"):
            ids_of("key", labels)
