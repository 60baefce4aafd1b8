"""The lines that tree prints: what they tell, and that they fit."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.pooled import HERE, MIB, NOW, THERE, contents, example, layer

from host.terminal import Terminal, columns
from overview import listing
from overview.contents import Container, Contents, Host, Names

PLAIN = Terminal(100, colours=False, draws=True)


def lines(found: Contents, terminal: Terminal = PLAIN) -> list[str]:
    return list(listing.lines(found, terminal))


def line_with(found: Contents, word: str) -> str:
    [line] = [line for line in lines(found) if word in line]
    return " ".join(line.split())


def test_what_is_told() -> None:
    found = example()
    assert lines(found)[0] == "pool rbd, images docker_image_*"
    assert line_with(found, "stored") == (
        "4 images, 3 containers, 12 layers; 161M stored, of which 2.0M is the base image"
    )
    assert line_with(found, "container web") == "├─ container web running; open at node1 1h0m 3.6M"
    assert line_with(found, "nightly") == "├─ container nightly stopped 1m10s 14.6M"
    assert line_with(found, "layer low") == "└─ layer low shared, used by node1 and node2 1h0m 30.0M"
    assert line_with(found, "pod") == "├─ container pod of node2; open at node2 1h0m 6.0M"
    assert line_with(found, "shop") == "shop:2.1, shop:latest and 52.0M below 27.6M"
    assert line_with(found, "c0123") == "├─ layer c0123456789a not known where it is open 1h0m 4.0M"
    assert line_with(found, "g0123").startswith("└─ layer g0123456789a never made to its end")
    assert [line for line in lines(found) if "on 1 layer of debian:12" in line] == ["└─ on 1 layer of debian:12"] * 2
    assert line_with(found, "this host") == (
        "├─ node1 /var/lib/docker/ceph answers, this host; layers: 8 own, 2 shared, 2 open"
    )
    assert line_with(found, "not asked") == "└─ node2 /var/lib/docker/ceph not asked; layers: 1 own, 2 shared, 1 open"


@pytest.mark.parametrize("width", [20, 40, 59, 60, 80, 200])
@pytest.mark.parametrize("draws", [True, False])
def test_no_line_is_wider_and_each_size_is_there(width: int, draws: bool) -> None:
    wide = lines(example())
    told = lines(example(), Terminal(width, colours=False, draws=draws))
    assert max(map(columns, told)) <= width
    sizes = re.compile(r"[\d.]+[BKMG]$")
    assert [found[0] for line in told[3:] if (found := sizes.search(line))] == [
        found[0] for line in wide[3:] if (found := sizes.search(line))
    ]
    assert draws or all(line.isascii() for line in told)


def test_colours_add_nothing_but_colours() -> None:
    coloured = lines(example(), Terminal(80, colours=True, draws=True))
    assert [re.sub(r"\033\[\d+m", "", line) for line in coloured] == lines(example(), Terminal(80, False, True))
    assert any("\033[" in line for line in coloured)


@given(st.text(max_size=60), st.text(max_size=60), st.integers(20, 120), st.booleans())
def test_names_of_any_letters_command_nothing_and_fit(image: str, container: str, width: int, draws: bool) -> None:
    names = Names({"a": (image,)}, {"c": Container(container, "running")})
    found = contents(layer("a"), layer("c", "a", open_at=(image,)), names=names)
    for line in lines(found, Terminal(width, colours=False, draws=draws)):
        assert line.isprintable()
        assert columns(line) <= width


def test_an_empty_pool() -> None:
    assert lines(contents(base=0))[1] == "0 images, 0 containers, 0 layers; 0B stored, of which 0B is the base image"


def test_why_there_are_no_names() -> None:
    assert (
        lines(contents(names=Names(missing="/var/lib/docker does not exist")))[-1] == "/var/lib/docker does not exist"
    )


def test_an_image_without_a_name_and_what_stands_on_it() -> None:
    names = Names({"high": ("image:1",), "other": ("image:2",)})
    found = contents(layer("low"), layer("high", "low"), layer("other", "low"), names=names)
    assert [line for line in lines(found) if "low" in line.split()] != []
    alone = contents(layer("low", created=None), layer("high", "low"), layer("other", "low"))
    assert [line for line in lines(alone) if line.startswith("image without a name")] != []
    assert line_with(alone, "layer low") == "└─ layer low - 1.0M"
    assert line_with(alone, "on 1 layer of") == "└─ on 1 layer of layer high"


def test_a_host_that_does_not_answer() -> None:
    found = contents(layer("a", owner=THERE), hosts=(Host(HERE, True), Host(THERE, False)))
    assert line_with(found, "node2 /").endswith("no driver answers; layers: 1 own")
    assert line_with(found, "image of node2") == "image of node2 1.0M"
    assert line_with(found, "layer a") == "└─ layer a 1h0m 1.0M"


def test_whose_a_layer_is_that_stands_on_what_all_share() -> None:
    """Its name does not tell whose the image is."""
    shared = layer("a", shared=True, owner=THERE)
    found = contents(shared, layer("c", "a", owner=THERE, snapshot=("k8s.io/1/pod", "active")))
    assert line_with(found, "container pod") == "├─ container pod of node2 1h0m 1.0M"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (1023, "1023B"), (1536, "1.5K"), (600 << 10, "600K"), (52 * MIB, "52.0M")]
)
def test_sizes(size: int, text: str) -> None:
    assert listing.size_of(size) == text


def test_a_pool_with_a_namespace() -> None:
    found = Contents("rbd", "team", "docker", HERE, NOW, 0, {}, (), Names())
    assert listing.title(found) == "pool rbd, namespace team, images docker_*"


def test_what_an_image_without_a_name_is_called() -> None:
    found = contents(layer("a", owner=THERE), layer("b", shared=True), layer("c"))
    heads = [line.split("  ")[0] for line in lines(found) if line.startswith("image ")]
    assert sorted(heads) == ["image of node2", "image that hosts share", "image without a name"]


def test_an_init_layer_whose_container_is_not_there() -> None:
    found = contents(layer("a-init", open_at=("node1",)))
    assert (
        line_with(found, "a-init")
        == "└─ layer a-init prepared for a container that is not there; open at node1 1h0m 1.0M"
    )
