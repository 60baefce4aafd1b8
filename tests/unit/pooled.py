"""The contents of a pool, made up: what tree shows of it, without asking anybody."""

from __future__ import annotations

from cluster.owner import Owner
from overview.contents import Container, Contents, Host, Layer, Names

HERE = Owner("node1", "", "/var/lib/docker/ceph")
THERE = Owner("node2", "", "/var/lib/docker/ceph")
NOW = 1_800_000_000.0
MIB = 1 << 20


def layer(name: str, *parents: str, stored: int = MIB, owner: Owner | None = HERE, **fields: object) -> Layer:
    """A layer that was made an hour ago."""
    made: dict[str, object] = {"created": NOW - 3600, "parents": parents, **fields}
    return Layer(name, f"docker_image_{name}", stored, owner=owner, **made)  # type: ignore[arg-type]


def contents(*layers: Layer, names: Names | None = None, hosts: tuple[Host, ...] = (), base: int = 2 * MIB) -> Contents:
    """A pool with these layers, as node1 sees it."""
    by_id = {item.id: item for item in layers}
    known = hosts or (Host(HERE, True),)
    return Contents("rbd", "", "docker_image", HERE, NOW, base, by_id, known, names or Names())


def example() -> Contents:
    """A Docker's images and containers, beside what another host has: all kinds that there are."""
    digits = {name: (name + "0123456789abcdef" * 4)[:64] for name in "abcdefg"}
    a, b, c, d, e, f, g = digits.values()
    shared = {"shared": True, "used_by": ("node1", "node2")}
    ref = "registry/app:1"
    return contents(
        layer(a, stored=52 * MIB, created=NOW - 26 * 3600, open_at=("node1",)),
        layer(b, a, stored=9 * MIB),
        layer(c, b, a, stored=4 * MIB, open_at=None),
        layer(d, a, stored=21 * MIB),
        layer(e, a, stored=3 * MIB, open_at=("node1",)),
        layer(f"{e}-init", a, stored=600 << 10),
        layer(f, c, b, a, stored=14 * MIB, created=NOW - 70),
        layer(f"{f}-init", c, b, a, stored=600 << 10, created=NOW - 70),
        layer(g, stored=7 * MIB, owner=None),
        layer("low", stored=30 * MIB, owner=THERE, called=ref, **shared),
        layer("high", "low", stored=12 * MIB, owner=THERE, called=ref, **shared),
        layer(
            "pod", "high", "low", stored=6 * MIB, owner=THERE, snapshot=("k8s.io/9/pod", "active"), open_at=("node2",)
        ),
        names=Names(
            {a: ("debian:12",), c: ("shop:2.1", "shop:latest"), d: ("tools:latest",)},
            {e: Container("web", "running"), f: Container("nightly", "stopped")},
        ),
        hosts=(Host(HERE, True), Host(THERE, None)),
    )
