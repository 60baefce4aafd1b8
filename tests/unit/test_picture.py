"""The picture of a pool: it is XML, its areas are the bytes, and no words leave their box."""

from __future__ import annotations

import itertools
import math
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.pooled import contents, example, layer

from overview import picture
from overview.contents import Container, Contents, Names

NS = "{http://www.w3.org/2000/svg}"


def leaves(found: Contents) -> list[ET.Element]:
    return [item for item in ET.fromstring(picture.drawn(found)).iter(f"{NS}svg") if item.get("class") == "leaf"]


def area(leaf: ET.Element) -> float:
    return float(leaf.get("width", "")) * float(leaf.get("height", ""))


def title(leaf: ET.Element) -> str:
    return leaf.findtext(f"{NS}title") or ""


def test_each_layer_is_drawn_and_its_area_is_its_bytes() -> None:
    found = example()
    drawn = leaves(found)
    assert len(drawn) == len(found.layers) + 1
    for leaf in drawn:
        size = re.search(r"\((\d+) bytes\)", title(leaf))
        assert size
        assert area(leaf) / sum(map(area, drawn)) == pytest.approx(int(size[1]) / found.stored, rel=1e-3)


def test_what_is_pointed_at_is_told_in_whole() -> None:
    [web] = [leaf for leaf in leaves(example()) if title(leaf).startswith("container web\n")]
    assert title(web).split("\n")[1:] == [
        "running; open at node1",
        "3.0M (3145728 bytes), 1h0m old",
        "of debian:12",
        f"docker_image_e{'0123456789abcdef' * 4}"[:77],
    ]


def test_an_image_is_named_above_its_layers() -> None:
    words = [item.text for item in ET.fromstring(picture.drawn(example())).findall(f"{NS}text")]
    assert "debian:12, 55.6M" in words
    assert "shop:2.1, shop:latest, 27.6M" in words


@pytest.mark.parametrize(
    ("room", "title"),
    [
        (400, "registry/team/shopping:2, 5M"),
        (220, "registry/team/shopping:2"),
        (110, "…/shopping:2"),
        (90, "shopping:2"),
        (55, "…ing:2"),
        (40, ""),
    ],
)
def test_of_a_name_its_end_is_shown_where_there_is_little_room(room: float, title: str) -> None:
    assert picture._title("registry/team/shopping:2, 5M", "registry/team/shopping:2", room, 13.0) == title


def test_the_legend_has_what_there_is() -> None:
    words = [item.text for item in ET.fromstring(picture.drawn(example())).findall(f"{NS}text")]
    assert "layer of an image: 86.0M" in words
    assert "base image, made once: 2.0M" in words
    few = [item.text for item in ET.fromstring(picture.drawn(contents(layer("a"), base=0))).findall(f"{NS}text")]
    assert [word for word in few if word and "base image, made" in word] == []


def test_dark_words_on_light_colours() -> None:
    """Of a contrast of 7 at the least (WCAG 2, AAA)."""
    for colour, _ in picture._KINDS.values():
        assert (_luminance(colour) + 0.05) / (_luminance("#1a1a1a") + 0.05) >= 7


# How red, green and blue are seen: by all cones, without those for green, and for red (Viénot and others, 1999).
SIGHTS = {
    "all": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no green": ((0.29275, 0.70725, 0), (0.29275, 0.70725, 0), (-0.02234, 0.02234, 1)),
    "no red": ((0.11238, 0.88762, 0), (0.11238, 0.88762, 0), (0.00401, -0.00401, 1)),
}


@pytest.mark.parametrize("sight", SIGHTS)
def test_kinds_differ_for_the_colour_blind(sight: str) -> None:
    """By 15 at the least, where 2 can just be seen (CIE 1976)."""
    seen = [_lab([_sum(row, _linear(colour)) for row in SIGHTS[sight]]) for colour, _ in picture._KINDS.values()]
    assert min(math.dist(one, other) for one, other in itertools.combinations(seen, 2)) > 15


def _lab(linear: Sequence[float]) -> tuple[float, float, float]:
    rows = ((0.4339, 0.3762, 0.1899), (0.2126, 0.7152, 0.0722), (0.0177, 0.1095, 0.8729))
    x, y, z = (max(0.0, _sum(row, linear)) ** (1 / 3) for row in rows)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _sum(weights: Sequence[float], parts: Sequence[float]) -> float:
    return sum(weight * part for weight, part in zip(weights, parts))


def _linear(colour: str) -> list[float]:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def _luminance(colour: str) -> float:
    return _sum((0.2126, 0.7152, 0.0722), _linear(colour))


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80), st.text(max_size=80), st.lists(st.integers(0, 2**40), min_size=2, max_size=12))
def test_names_of_any_letters_and_layers_of_any_size(image: str, container: str, sizes: list[int]) -> None:
    layers = [layer(f"{at}", stored=size) for at, size in enumerate(sizes)]
    names = Names({"0": (image,)}, {"1": Container(container, "running")})
    for leaf in leaves(contents(*layers, names=names)):
        room = float(leaf.get("width", "")) - 12
        places = [float(item.get("y", "")) for item in leaf.iter(f"{NS}text")]
        assert all(place <= float(leaf.get("height", "")) for place in places)
        # One below the other, none on another one.
        assert all(later - place >= 13 for place, later in zip(places, places[1:]))
        for item in leaf.iter(f"{NS}text"):
            assert len(item.text or "") * 13 * 0.6 <= room + 1


def test_nothing_is_stored() -> None:
    assert "nothing is stored" in picture.drawn(contents(base=0))
    assert leaves(contents(base=0)) == []


# -- the file ---------------------------------------------------------------------------------


def test_it_is_written_in_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "pool.svg"
    path.write_text("of before", encoding="ascii")
    link = tmp_path / "link.svg"
    link.symlink_to(path)
    picture.save(os.fspath(link), example())
    assert path.read_text(encoding="ascii") == "of before", "root never follows the link of somebody else"
    picture.save(os.fspath(path), example())
    for each in (path, link):
        assert not each.is_symlink()
        assert each.read_text(encoding="utf-8") == picture.drawn(example())
    assert sorted(os.listdir(tmp_path)) == ["link.svg", "pool.svg"]


def test_it_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pool.svg"
    path.write_text("of before", encoding="ascii")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        picture.save(os.fspath(path), example())
    assert path.read_text(encoding="ascii") == "of before"
    assert os.listdir(tmp_path) == ["pool.svg"]
