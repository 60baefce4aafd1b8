"""What a layer is, and what it is called, by all that is known of it."""

from __future__ import annotations

import pytest
from unit.pooled import MIB, contents, example, layer

from overview.contents import CONTAINER, IMAGE, INIT, UNFINISHED, Container, Contents, Layer, Names


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        (layer("a"), IMAGE),
        (layer("a", owner=None), UNFINISHED),
        (layer("a-init"), INIT),
        (layer("with"), CONTAINER),
        (layer("known"), CONTAINER),
        (layer("a", snapshot=("key", "active")), CONTAINER),
        (layer("a", snapshot=("key", "committed")), IMAGE),
        (layer("lately", snapshot=("key", "active")), IMAGE),
    ],
)
def test_the_kind_of_a_layer(item: Layer, kind: str) -> None:
    names = Names(containers={"known": Container("web", "running")}, committed=frozenset(["lately"]))
    assert contents(item, layer("with-init"), names=names).kind(item) == kind


def test_what_is_stored() -> None:
    assert contents(layer("a", stored=MIB), layer("b", stored=3), base=7).stored == MIB + 10


@pytest.mark.parametrize(
    ("key", "container"),
    [
        ("k8s.io/12/pod", Container("pod", "")),
        ("pod", Container("pod", "")),
        ("k8s.io/12/extract-1-a sha256:1", Container("extract-1-a sha256:1", "being unpacked")),
        ("", Container("0123456789ab", "")),
    ],
)
def test_a_container_is_called_by_the_pool_where_its_host_is_another_one(key: str, container: Container) -> None:
    item = layer("0123456789abcdef", snapshot=(key, "active"))
    assert contents(item).container(item) == container


def test_an_image_is_called_at_its_top_layer_only() -> None:
    """containerd labels each of its layers."""
    low, high, other = layer("low", called="image:1"), layer("high", "low", called="image:1"), layer("other", "low")
    found = contents(low, high, other)
    assert [found.image_names(item) for item in (low, high, other)] == [(), ("image:1",), ()]


def test_what_is_below_and_is_there() -> None:
    found: Contents = contents(layer("high", "gone", "low"), layer("low"))
    assert [item.id for item in found.below(found.layers["high"])] == ["low"]
    assert example().below(example().layers["pod"])[0].id == "high"
