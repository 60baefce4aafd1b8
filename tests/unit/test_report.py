"""What tree prints for programs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from unit.pooled import MIB, NOW, contents, example, layer

from overview import report
from overview.contents import Contents


def told(found: Contents) -> dict[str, Any]:
    said = json.loads(report.written(found))
    assert isinstance(said, dict)
    return said


def test_each_layer_is_there_once() -> None:
    found = example()
    said = told(found)
    assert sorted(item["id"] for item in said["layers"]) == sorted(found.layers)
    assert said["stored"] == said["base"] + sum(item["stored"] for item in said["layers"])
    in_images = [one for image in said["images"] for one in (*image["layers"], *image["containers"])]
    assert len(in_images) == len(set(in_images))


def test_fields_that_programs_know() -> None:
    """A change here is a change for those who read it: fields may come, and none may go."""
    said = told(example())
    top = "version pool namespace prefix host home at stored base names_missing images layers hosts"
    assert list(said) == top.split()
    image = "names layers containers stored on layers_below stored_below"
    assert {" ".join(item) for item in said["images"]} == {image}
    item = "id image kind stored created parents host machine home shared used_by open_at snapshot container"
    assert {" ".join(item) for item in said["layers"]} == {item}
    assert {" ".join(item) for item in said["hosts"]} == {"host machine home answers"}
    assert all(f"{word}" in (report.__doc__ or "") for word in f"{top} {image} {item} answers".split())


def test_what_is_said_of_an_image_and_a_container() -> None:
    said = told(example())
    [shop] = [image for image in said["images"] if "shop:2.1" in image["names"]]
    assert (shop["layers_below"], shop["stored_below"], shop["on"][0]) == (1, 52 * MIB, "a")
    [web] = [item for item in said["layers"] if item["container"] and item["container"]["name"] == "web"]
    assert (web["kind"], web["container"]["state"], web["open_at"]) == ("container", "running", ["node1"])


@pytest.mark.parametrize("created", [None, NOW - 0.12345])
def test_what_is_not_known_is_null(created: float | None) -> None:
    [item] = told(contents(layer("a", owner=None, created=created, open_at=None)))["layers"]
    assert (item["host"], item["open_at"], item["kind"]) == (None, None, "unfinished")
    assert item["created"] == (created and round(created, 3))


def test_it_is_ascii_whatever_names_hold() -> None:
    assert report.written(contents(layer("a", open_at=("\udc80ü",)))).isascii()
