"""request.py: the fields of a call have the types that they are read with; absent and null ones are empty."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from archive.transfer import IdRange
from protocol.request import BadRequest, Request


def call(**fields: Any) -> Request:
    """A call with these fields."""
    return Request("Get", json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"{} {}", "is not JSON"),
        (b'{"ID":"\xff"}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"null", "is not a JSON object"),
        (b'["ID"]', "is not a JSON object"),
        (b'"ID"', "is not a JSON object"),
    ],
)
def test_a_body_that_is_no_object(body: bytes, why: str) -> None:
    with pytest.raises(BadRequest, match=rf"^Get: the body {why}"):
        Request("Get", body)


def test_a_string() -> None:
    assert call(ID="a").text("ID") == call(ID="a").text("ID", needed=True) == "a"
    assert [call().text("ID"), call(ID=None).text("ID"), call(ID="").text("ID")] == [""] * 3


@pytest.mark.parametrize("fields", [{}, {"ID": None}, {"ID": ""}])
def test_a_string_that_is_needed(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=r"^Get: ID is missing or not a string$"):
        call(**fields).text("ID", needed=True)


@pytest.mark.parametrize("value", [0, 1, False, [], ["a"], {}, 1.5])
@pytest.mark.parametrize("needed", [True, False])
def test_what_is_no_string(value: object, needed: bool) -> None:
    with pytest.raises(BadRequest, match="ID is missing or not a string"):
        call(ID=value).text("ID", needed=needed)


def test_a_list_of_strings() -> None:
    assert call(Opts=["a", ""]).texts("Opts") == ["a", ""]
    assert [call().texts("Opts"), call(Opts=None).texts("Opts"), call(Opts=[]).texts("Opts")] == [[]] * 3


@pytest.mark.parametrize("value", ["a", "", 0, False, {}, {"a": "b"}, [1], ["a", None], [["a"]]])
def test_what_is_no_list_of_strings(value: object) -> None:
    with pytest.raises(BadRequest, match=r"^Get: Opts is not a list of strings$"):
        call(Opts=value).texts("Opts")


def test_an_object_of_strings() -> None:
    """Docker's `--storage-opt`: that there is none is another thing than none of them."""
    assert call(StorageOpt={"size": "1G"}).pairs("StorageOpt") == {"size": "1G"}
    assert call(StorageOpt={}).pairs("StorageOpt") == {}
    assert call().pairs("StorageOpt") is call(StorageOpt=None).pairs("StorageOpt") is None


@pytest.mark.parametrize("value", ["size", "", 0, False, [], ["size"], {"size": 1}, {"size": None}, {"size": ["1G"]}])
def test_what_is_no_object_of_strings(value: object) -> None:
    with pytest.raises(BadRequest, match=r"^Get: StorageOpt is not an object of strings$"):
        call(StorageOpt=value).pairs("StorageOpt")


def test_what_is_kept_is_as_it_came() -> None:
    """Whatever it is, and no more than was asked for."""
    said = call(Home=1, Opts=["a"], Other="b").kept(("Home", "Opts", "UIDMaps"))
    assert said == {"Home": 1, "Opts": ["a"], "UIDMaps": None}


RANGE = {"container_id": 0, "host_id": 100000, "size": 65536}


def test_id_maps() -> None:
    more = {**RANGE, "container_id": 65536, "other": "x"}
    assert call(UIDMaps=[RANGE, more]).id_ranges("UIDMaps") == (
        IdRange(0, 100000, 65536),
        IdRange(65536, 100000, 65536),
    )
    assert [call().id_ranges("UIDMaps"), call(UIDMaps=None).id_ranges("UIDMaps")] == [(), ()]
    assert call(UIDMaps=[]).id_ranges("UIDMaps") == ()


@pytest.mark.parametrize(
    "value",
    [
        RANGE,
        "0:100000:65536",
        1,
        [1],
        [RANGE, None],
        [[0, 100000, 65536]],
        *([{**RANGE, key: wrong}] for key in RANGE for wrong in ("1", None, 1.0, True)),
        *([{name: value for name, value in RANGE.items() if name != key}] for key in RANGE),
    ],
)
def test_what_is_no_id_map(value: object) -> None:
    """`true` is a number to Python, and none to us."""
    words = re.escape("Get: UIDMaps is not a list of objects with container_id, host_id, size")
    with pytest.raises(BadRequest, match=rf"^{words}$"):
        call(UIDMaps=value).id_ranges("UIDMaps")
