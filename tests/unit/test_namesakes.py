"""Whose a layer is, by its owner's name and machine: what may be mounted, is dead, taken over. In a pool in memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from docker_tree import DockerTree
from unit.fakes import FakePool, recorded

import rbdcli
from cluster import owner
from cluster.claim import MACHINE_ATTRIBUTE
from cluster.owner import Owner
from images.layers import TAKEN_KEY, LayerError, Layers
from images.options import DEFAULTS
from images.record import Record
from maintenance.docker_database import DockerDatabase
from maintenance.inspection import MIN_AGE_SECONDS, Finding, Inspection
from maintenance.takeover import Refused, Takeover

M, N = "1" * 32, "2" * 32
PREFIX = DEFAULTS.imageprefix
LAYER = "a" * 64
IMAGE = f"{PREFIX}_{LAYER}"
PARENTS = ("b" * 64, "c" * 64)
HERE = "10.0.0.1:0/7"


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> FakePool:
    be(monkeypatch, "vm", M)
    return FakePool()


def be(monkeypatch: pytest.MonkeyPatch, host: str, machine: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    monkeypatch.setattr(owner, "machine_id", lambda: machine)


def layers(pool: FakePool, home: str = "/home") -> Layers:
    return Layers(pool.as_pool(), DEFAULTS, home)


def add(pool: FakePool, whose: str) -> None:
    pool.add(IMAGE, metadata=recorded(whose, *PARENTS), created=0.0)


def lives(pool: FakePool, whose: str) -> None:
    name = Owner.parse(whose).object(PREFIX)
    pool.objects.attributes[name] = {}
    pool.objects.watchers[name] = ["10.0.0.2:0/7"]


# -- what may be mounted, built upon and removed ---------------------------------------------------


@pytest.mark.parametrize("whose", [f"vm/{M} /home", "vm /home", f"vm/{M} /other", f"former/{M} /home"])
def test_what_is_ours(pool: FakePool, whose: str) -> None:
    add(pool, whose)
    layers(pool).check_owner(LAYER, lease=0)
    layers(pool).check_owner_of_removed(LAYER)


@pytest.mark.parametrize(
    ("whose", "named"),
    [
        (f"vm/{N} /home", f"vm/{N}"),
        (f"other/{N} /home", "other"),
        ("other /home", "other"),
        (f"former/{M} /another", "former"),
    ],
)
def test_what_is_not(pool: FakePool, whose: str, named: str) -> None:
    add(pool, whose)
    said = rf"belongs to host {named} \(/\w+\).*takeover --host {named}$"
    with pytest.raises(LayerError, match=said):
        layers(pool).check_owner(LAYER, lease=0)
    with pytest.raises(LayerError, match=said):
        layers(pool).check_owner_of_removed(LAYER)


def test_a_clone_with_another_name_that_lives(pool: FakePool) -> None:
    """Its machine-id is ours, and its layers are not."""
    whose = f"sibling/{M} /home"
    add(pool, whose)
    lives(pool, whose)
    with pytest.raises(LayerError, match="belongs to host sibling"):
        layers(pool).check_owner(LAYER, lease=0)


@pytest.mark.parametrize(
    ("whose", "ours"), [(f"vm/{M} H", True), (f"new/{M} H", True), (f"vm/{N} H", False), ("", False)]
)
def test_what_is_mapped_here_may_be_taken(pool: FakePool, whose: str, ours: bool, tmp_path: Path) -> None:
    home = str(tmp_path)
    os.makedirs(os.path.join(home, "mnt", LAYER))
    add(pool, whose.replace("H", home))
    assert layers(pool, home).is_abandoned(LAYER) is ours
    assert not layers(pool, "/another").is_abandoned(LAYER)
    os.rmdir(os.path.join(home, "mnt", LAYER))
    assert layers(pool, "/another").is_abandoned(LAYER) is ours


# -- what is dead --------------------------------------------------------------------------------


def find(pool: FakePool, tmp_path: Path) -> Finding | None:
    """What is found of a layer that Docker does not know."""
    home = str(tmp_path / "home")
    DockerTree(str(tmp_path), "home")
    look = Inspection(layers(pool, home), PREFIX, home, DockerDatabase(str(tmp_path), "home"))
    return next((finding for finding in look.findings() if finding.id == LAYER), None)


@pytest.mark.parametrize(
    ("whose", "why"),
    [
        (f"vm/{M} H", None),
        ("vm H", None),
        (f"former/{M} H", "it was made by host former, of which this one may be a clone"),
    ],
)
def test_what_docker_here_would_know(pool: FakePool, whose: str, why: str | None, tmp_path: Path) -> None:
    add(pool, whose.replace("H", str(tmp_path / "home")))
    found = find(pool, tmp_path)
    assert found
    assert found.age
    assert found.age > MIN_AGE_SECONDS
    assert (found.dead, found.why.startswith(why or "Docker knows no such layer")) == (why is None, True)


@pytest.mark.parametrize("whose", [f"vm/{N} H", f"vm/{M} /other", "other H"])
def test_what_docker_here_knows_nothing_of(pool: FakePool, whose: str, tmp_path: Path) -> None:
    add(pool, whose.replace("H", str(tmp_path / "home")))
    assert find(pool, tmp_path) is None


def test_what_an_older_version_made_may_be_a_namesakes(pool: FakePool, tmp_path: Path) -> None:
    """Both wrote the same."""
    home = str(tmp_path / "home")
    add(pool, f"vm {home}")
    name = Owner("vm", "", home).object(PREFIX)
    pool.objects.attributes[name] = {MACHINE_ATTRIBUTE + M: "", MACHINE_ATTRIBUTE + N: ""}
    found = find(pool, tmp_path)
    assert found
    assert (found.dead, found.why) == (
        False,
        f"an older version made it, and there are more machines of this name: {N}",
    )


def test_without_a_machine_id_what_has_one_may_be_a_namesakes(
    pool: FakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(monkeypatch, "vm", "")
    add(pool, f"vm/{N} {tmp_path}/home")
    found = find(pool, tmp_path)
    assert found
    assert not found.dead


# -- takeover ------------------------------------------------------------------------------------


def take(pool: FakePool, host: str, home: str = "") -> int:
    return Takeover(layers(pool), PREFIX, host, home, lambda line: None).run()


@pytest.mark.parametrize("whose", [f"vm/{N} /home", f"dead/{N} /home", f"dead/{M} /home", "dead /home"])
def test_what_is_taken_over(pool: FakePool, whose: str) -> None:
    add(pool, whose)
    assert take(pool, Owner.parse(whose).host) == 1
    # A gc here must not take it for dead: Docker here does not know it.
    assert pool.images[IMAGE].metadata[TAKEN_KEY] == IMAGE
    # What is below it stays what it was.
    assert pool.images[IMAGE].record == Record(Owner("vm", M, "/home"), PARENTS)


def test_of_two_machines_of_one_name_one_is_taken_over(pool: FakePool) -> None:
    add(pool, f"dead/{N} /home")
    assert take(pool, f"dead/{'3' * 32}") == 0
    assert take(pool, f"dead/{N}") == 1


@pytest.mark.parametrize("host", ["vm", f"vm/{M}"])
@pytest.mark.parametrize("whose", [f"vm/{M} /home", "vm /home", f"other/{N} /home"])
def test_our_own_is_not_taken_over(pool: FakePool, host: str, whose: str) -> None:
    add(pool, whose)
    with pytest.raises(Refused, match=f"{host} is this very host"):
        take(pool, host)


@pytest.mark.parametrize(
    ("whose", "living"),
    [
        (f"dead/{N} /home", f"dead/{N} /home"),
        # It has come to tell its machine-id since it made the layer, or tells it no more.
        ("dead /home", f"dead/{N} /home"),
        (f"dead/{N} /home", "dead /home"),
        (f"dead/{M} /home", f"dead/{M} /home"),
        (f"vm/{N} /home", f"vm/{N} /home"),
    ],
)
def test_who_lives_is_left_alone(pool: FakePool, whose: str, living: str) -> None:
    add(pool, whose)
    lives(pool, living)
    pool.objects.attributes.setdefault(Owner("dead", "", "/home").object(PREFIX), {})[MACHINE_ATTRIBUTE + N] = ""
    with pytest.raises(Refused, match=r"lives: its driver answers from 10\.0\.0\.2"):
        take(pool, Owner.parse(whose).host)


def test_who_was_taken_over_is_no_machine_of_that_name_any_more(pool: FakePool) -> None:
    """Else what an older version made would be kept for ever."""
    add(pool, f"vm/{N} /home")
    name = Owner("vm", "", "/home").object(PREFIX)
    pool.objects.attributes[name] = {MACHINE_ATTRIBUTE + N: ""}
    take(pool, "vm")
    assert pool.objects.attributes[name] == {}


@pytest.mark.parametrize("let_go", [False, True])
def test_an_image_that_docker_here_maps_meanwhile_is_not_fenced(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch, let_go: bool
) -> None:
    """This host's layers by a former name may be in use here; all that is mapped here has one address."""
    add(pool, f"former/{M} /home")
    image, lock = pool.images[IMAGE], rbdcli.Lock("auto 1", "client.7", HERE)
    if let_go:
        image.locks.append(lock)

    def meanwhile(image_name: str) -> list[str]:
        image.locks[:] = [] if let_go else [lock]
        return []

    monkeypatch.setattr(FakePool, "watchers", lambda self, name: meanwhile(name))
    if let_go:
        assert take(pool, "former") == 1
    else:
        with pytest.raises(Refused, match=f"{IMAGE} has just been opened at {HERE}"):
            take(pool, "former")
    assert not pool.named("blocklist")


def test_a_former_name_in_use_is_told_as_one(pool: FakePool) -> None:
    add(pool, f"former/{M} /home")
    pool.images[IMAGE].watchers.append(HERE)
    with pytest.raises(Refused, match="that is a former name of this host: stop the containers that use it first"):
        take(pool, "former")


def test_a_host_that_died_before_it_had_a_layer(pool: FakePool) -> None:
    """Its half-made base image goes, though its machine-id is not named."""
    name = Owner("dead", "", "/home").object(PREFIX)
    pool.objects.attributes[name] = {MACHINE_ATTRIBUTE + N: ""}
    scratch = layers(pool).scratch(Owner("dead", N, "/home"))
    pool.add(scratch)
    assert take(pool, "dead", "/home") == 0
    assert scratch not in pool.images
