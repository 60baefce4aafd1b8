"""uses.py: which hosts use which layers, and since when nobody does."""

from __future__ import annotations

import json
import time

import pytest
from unit.fakes import FakePool, timed_out

from cluster.owner import Owner
from cluster.uses import Uses
from host import command

HERE, THERE = Owner("here", "", "/home"), Owner("there", "1" * 32, "/my home")
NAME = "docker_image_uses"


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


def uses(pool: FakePool, owner: Owner = HERE) -> Uses:
    """A life of an owner."""
    return Uses(pool.as_pool(), "docker_image", owner)


def test_all_hosts_see_who_uses_what(pool: FakePool) -> None:
    here, there = uses(pool), uses(pool, THERE)
    here.note(["a", "b"])
    there.note(["b"])
    assert there.all().users == {"a": {HERE}, "b": {HERE, THERE}}
    assert here.all().owners == {HERE, THERE}
    began = int(time.time())
    here.end(["b", "never"])
    seen = there.all()
    assert seen.users == {"a": {HERE}, "b": {THERE}}
    assert began <= seen.ended["b"] <= time.time()


def test_two_lives_of_one_owner_both_count(pool: FakePool) -> None:
    first, second = uses(pool), uses(pool)
    second.note(["b"])
    first.load()
    second.note(["c"])
    assert first.own() == {"b"}
    assert uses(pool, THERE).all().users.keys() == {"b", "c"}


def test_what_came_to_nothing_is_as_before(pool: FakePool) -> None:
    here = uses(pool)
    here.note(["a"])
    here.end(["a"])
    (ended,) = here.all().ended.values()
    here.note(["a", "b"])
    here.take_back(["a", "b"])
    assert here.all().ended == {"a": ended}
    here.forget(["a"])
    here.write()
    assert [json.loads(value)["uses"] for value in pool.objects.omaps[NAME].values()] == [{}]


def test_the_uses_of_earlier_lives_are_kept_if_they_cannot_be_written(pool: FakePool) -> None:
    uses(pool).note(["a"])
    again = uses(pool)
    pool.fails["rados"] = [None, timed_out()]
    with pytest.raises(command.CommandTimeout):
        again.own()
    assert again.own() == {"a"}
    assert len(pool.objects.omaps[NAME]) == 1


@pytest.mark.parametrize(
    "value", ["", "{}", "[]", '{"owner": "here /home", "uses": [1]}', '{"owner": "x", "uses": {}}']
)
def test_uses_that_cannot_be_read_are_said_and_left(pool: FakePool, value: str) -> None:
    key = f"{HERE.digest} {12 * '0'}"
    pool.objects.omaps[NAME] = {key: value}
    here = uses(pool)
    here.note(["a"])
    assert pool.objects.omaps[NAME][key] == value
    (line,) = here.all().unreadable
    assert "which no driver of this version wrote; if that host is gone: rados rmomapkey" in line


def test_many_uses(pool: FakePool) -> None:
    """More than a command line takes."""
    many = [f"{number:064x}" for number in range(3000)]
    uses(pool).note(many)
    assert uses(pool, THERE).all().users.keys() == set(many)
