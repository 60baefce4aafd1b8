"""names.py: which images are of a prefix, and which layers they are."""

from __future__ import annotations

import pytest

from images.names import BASE, Names

POOL = [
    *("docker_base_image", "docker_a", "docker_a-init"),
    *("docker_two_base_image", "docker_two_a"),
    *("dock_a", "other", "docker_base_image.0123456789ab"),
]


def test_an_image_is_its_prefix_and_its_layer() -> None:
    names = Names("docker_image")
    assert names.image("a") == "docker_image_a"
    assert names.layer("docker_image_a_b") == "a_b"


@pytest.mark.parametrize(
    ("prefix", "ours"),
    [
        ("docker", ["docker_base_image", "docker_a", "docker_a-init", "docker_base_image.0123456789ab"]),
        ("docker_two", ["docker_two_base_image", "docker_two_a"]),
        ("dock", ["dock_a"]),
        ("none", []),
    ],
)
def test_where_one_prefix_begins_another_the_longest_with_a_base_image_decides(prefix: str, ours: list[str]) -> None:
    assert Names(prefix).ours(POOL, POOL) == ours


def test_a_prefix_without_a_base_image_is_none() -> None:
    """`docker_two_a` may be layer two_a of `docker`."""
    existing = [name for name in POOL if name != f"docker_two_{BASE}"]
    assert "docker_two_a" in Names("docker").ours(POOL, existing)


def test_base_images_are_no_layers() -> None:
    names = Names("docker")
    assert names.layers(names.ours(POOL, POOL)) == ["a", "a-init"]
