"""Who may be taken over, and in which order: nobody who lives, and no layer before its writers are shut out.

The pool is a fake; two real hosts are in tests/integration/test_two_hosts.py.
"""

from __future__ import annotations

import pytest
from unit.fakes import FakeImage, FakePool, failed

import rbdcli
from cluster.owner import Owner
from images import options
from images.layers import Layers
from maintenance.takeover import Refused, Takeover

LOCK = rbdcli.Lock("auto 1", "client.5", "127.0.0.1:0/9")
DEAD = Owner("dead", "", "/home")


@pytest.fixture
def pool() -> FakePool:
    """A pool with a layer of the dead host, which it still has locked."""
    pool = FakePool()
    pool.add_layer("a", owner=DEAD, locks=[LOCK])
    return pool


def layers_of(pool: FakePool) -> Layers:
    return Layers(pool.as_pool(), options.DEFAULTS, "/home")


def take(pool: FakePool, host: str = "dead", home: str = "") -> tuple[int, list[str]]:
    """How many were taken, and what was said."""
    said: list[str] = []
    return Takeover(layers_of(pool), "docker_image", host, home, said.append).run(), said


def image(pool: FakePool) -> FakeImage:
    return pool.images["docker_image_a"]


def test_its_clients_are_shut_out_then_its_locks_go_then_its_layers_are_ours(pool: FakePool) -> None:
    taken, said = take(pool)
    assert taken == 1
    verbs = [call[0] for call in pool.calls if call[0] in ("blocklist", "break_lock", "set_metadata")]
    assert verbs == ["blocklist", "break_lock", "set_metadata", "set_metadata"]
    assert image(pool).locks == []
    assert image(pool).record.owner == layers_of(pool).owner()
    assert image(pool).metadata["docker_graph_driver.taken_over"] == "docker_image_a"
    assert [line.split()[0] for line in said] == ["fenced", "broke", "took"]


def is_untouched(pool: FakePool) -> bool:
    return (image(pool).locks, image(pool).record.owner, pool.named("blocklist")) == ([LOCK], DEAD, [])


def test_one_whose_driver_answers_lives(pool: FakePool) -> None:
    name = DEAD.object("docker_image")
    pool.objects.attributes[name] = {}
    pool.objects.watchers[name] = ["10.0.0.9:0/7"]
    with pytest.raises(Refused, match=r"^dead lives: its driver answers from 10\.0\.0\.9:0/7"):
        take(pool)
    assert is_untouched(pool)


def test_one_who_has_an_image_open_lives(pool: FakePool) -> None:
    image(pool).watchers.append("10.0.0.9:0/7")
    with pytest.raises(Refused, match=r"^dead lives: docker_image_a is open at 10\.0\.0\.9:0/7"):
        take(pool)
    assert is_untouched(pool)


def test_one_who_opens_an_image_meanwhile_lives(pool: FakePool) -> None:
    locks = pool.locks
    image(pool).locks.clear()

    def opens(name: str) -> list[rbdcli.Lock]:
        found = list(locks(name))
        image(pool).locks[:] = [LOCK]
        return found

    object.__setattr__(pool, "locks", opens)
    with pytest.raises(Refused, match=r"^dead lives: docker_image_a has just been opened at 127\.0\.0\.1:0/9"):
        take(pool)
    assert is_untouched(pool)


def test_a_key_that_may_not_shut_out_takes_nothing(pool: FakePool) -> None:
    pool.fails["blocklist"] = [failed(rbdcli.RbdError, 13, "Permission denied")]
    with pytest.raises(Refused, match=r"client\.me may not blocklist 127\.0\.0\.1:0/9.*ceph auth caps client\.me"):
        take(pool)
    assert (image(pool).locks, image(pool).record.owner) == ([LOCK], DEAD)


def test_a_call_that_failed_is_gone_on_with(pool: FakePool) -> None:
    pool.fails["set_metadata"] = [failed(rbdcli.RbdError, 110)]
    with pytest.raises(rbdcli.RbdError):
        take(pool)
    assert image(pool).record.owner == DEAD
    assert take(pool)[0] == 1
    assert image(pool).record.owner == layers_of(pool).owner()


def test_only_the_home_that_is_named(pool: FakePool) -> None:
    other = pool.add_layer("b", owner=Owner("dead", "", "/another"))
    assert take(pool, home="/another")[0] == 1
    assert (other.record.owner, image(pool).record.owner) == (layers_of(pool).owner(), DEAD)


def test_a_host_that_has_no_layers_is_told_who_has(pool: FakePool) -> None:
    taken, said = take(pool, "nobody")
    assert (taken, said) == (0, ["no layer of nobody is in this pool; there are layers of: dead"])
    assert is_untouched(pool)


def test_this_very_host_is_refused(pool: FakePool) -> None:
    with pytest.raises(Refused, match="is this very host"):
        take(pool, layers_of(pool).owner().host)
