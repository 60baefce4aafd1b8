"""Layers as people think of them: each is in one group, whatever the pool holds."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from unit.pooled import MIB, THERE, contents, example, layer

from overview.contents import Container, Contents, Layer, Names
from overview.groups import Group, grouped


def by_name(groups: list[Group]) -> dict[str, Group]:
    return {",".join(group.names): group for group in groups}


def test_a_layer_of_two_images_is_shown_once_and_referred_to() -> None:
    groups = by_name(grouped(example()))
    debian, shop, tools = groups["debian:12"], groups["shop:2.1,shop:latest"], groups["tools:latest"]
    assert shop.on is debian
    assert tools.on is debian
    assert (shop.layers_below, shop.stored_below) == (1, 52 * MIB)
    assert [item.id[0] for item in shop.layers] == ["c", "b"]
    assert debian.on is None


def test_names_come_first_and_what_has_no_place_last() -> None:
    groups = grouped(example())
    assert [group.names[:1] for group in groups] == [
        ("debian:12",),
        ("registry/app:1",),
        ("shop:2.1",),
        ("tools:latest",),
        (),
    ]
    assert [item.id[0] for item in groups[-1].rest] == ["g"]


def test_a_container_stands_on_its_image_with_its_init_layer() -> None:
    debian = by_name(grouped(example()))["debian:12"]
    [standing] = debian.containers
    assert standing.init
    assert standing.init.id == f"{standing.layer.id}-init"
    assert standing.on is debian.top
    assert standing.stored == standing.layer.stored + standing.init.stored
    assert debian.stored == 52 * MIB + standing.stored


def test_a_container_within_an_image_is_told_on_which_layer_it_stands() -> None:
    low, high = layer("low"), layer("high", "low")
    found = contents(low, high, layer("c", "low"), layer("c-init", "low"), names=Names({"high": ("image:1",)}))
    [group] = grouped(found)
    assert group.top is high
    assert group.containers[0].on is low


def test_the_image_of_another_host_ends_where_a_container_stands() -> None:
    pod = layer("pod", "low", owner=THERE, snapshot=("k8s.io/1/pod", "active"))
    groups = grouped(contents(layer("low", owner=THERE), layer("high", "low", owner=THERE), pod))
    assert sorted(group.layers[0].id for group in groups) == ["high", "low"]
    assert [group.on.layers[0].id for group in groups if group.on] == ["low"]


def test_what_is_below_and_has_gone_is_left_out() -> None:
    groups = grouped(contents(layer("high", "gone", "low"), layer("low"), layer("c", "gone"), layer("c-init", "gone")))
    assert [item.id for group in groups for item in group.layers] == ["high", "low"]
    assert groups[-1].containers[0].on is None


IDS = [f"{letter}{number}" for letter in "abc" for number in range(4)]


@st.composite
def pools(draw: st.DrawFn) -> Contents:
    """Pools with layers of all kinds, on parents that are there or not, as records of any age may tell them."""
    layers: list[Layer] = []
    for name in draw(st.lists(st.sampled_from([*IDS, *(f"{name}-init" for name in IDS)]), unique=True)):
        parents = draw(st.lists(st.sampled_from([item for item in IDS if item < name] or ["gone"]), unique=True))
        owner = None if draw(st.integers(0, 9)) == 0 else THERE
        kind = draw(st.sampled_from(["", "active", "committed"]))
        called = draw(st.sampled_from(["", "image:1", "image:2"]))
        layers.append(layer(name, *parents, owner=owner, snapshot=(name, kind), called=called))
    tops = draw(st.lists(st.sampled_from(IDS), unique=True))
    containers = draw(st.lists(st.sampled_from(IDS), unique=True))
    names = Names({top: (f"tag-{top}",) for top in tops}, {item: Container(item, "running") for item in containers})
    return contents(*layers, names=names)


@given(pools())
def test_each_layer_is_in_one_group(found: Contents) -> None:
    groups = grouped(found)
    counted = Counter(item.id for group in groups for item in group.all)
    assert counted == Counter(found.layers.keys())
    assert sum(group.stored for group in groups) + found.base == found.stored
