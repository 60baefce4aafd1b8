"""claim.py: who may live under a name, by what a cluster in memory tells of others."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from unit.fakes import FakePool, timed_out

from cluster import claim
from cluster.claim import CLAIM, CLAIMING, Claim, OwnerTaken
from cluster.owner import Owner, boot_id
from host.command import CommandTimeout

OURS = Owner("vm", "1" * 32, "/home")
NAMESAKE = Owner("vm", "2" * 32, "/home")
THERE, LATER = "10.0.0.2:0/7", "10.0.0.3:0/8"


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> FakePool:
    monkeypatch.setattr(claim, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(claim, "REBOOT_SECONDS", 0.1)
    return FakePool()


def of(pool: FakePool, owner: Owner = OURS) -> Claim:
    return Claim(pool.as_pool(), "p", owner)


def watching(pool: FakePool, owner: Owner = OURS) -> Callable[[], None]:
    """What begins to watch."""
    return lambda: pool.objects.watchers.setdefault(owner.object("p"), []).append("10.0.0.1:0/1")


def lives(pool: FakePool, owner: Owner, boot: str, address: str = THERE) -> None:
    """Another driver has claimed a name and watches."""
    pool.objects.attributes.setdefault(owner.object("p"), {})
    pool.objects.locks[(owner.object("p"), CLAIM)] = {"client.9": boot}
    pool.objects.watchers[owner.object("p")] = [address]


def holders(pool: FakePool, owner: Owner = OURS) -> list[str]:
    return [*pool.objects.locks.get((owner.object("p"), CLAIM), {}).values()]


def test_the_first_one(pool: FakePool) -> None:
    of(pool).wait_alone()
    of(pool).take(watching(pool))
    assert holders(pool) == [boot_id()]
    assert not pool.objects.locks[(OURS.object("p"), CLAIMING)]
    assert pool.objects.watchers == {OURS.object("p"): ["10.0.0.1:0/1"]}


def test_an_earlier_life_of_one_boot(pool: FakePool) -> None:
    """Also while it still watches: a daemon's second Init."""
    of(pool).take(watching(pool))
    of(pool).wait_alone()
    of(pool).take(watching(pool))
    assert holders(pool) == [boot_id()]


def test_an_earlier_boot(pool: FakePool) -> None:
    lives(pool, OURS, "earlier")
    pool.objects.watchers.clear()
    of(pool).wait_alone()
    of(pool).take(watching(pool))
    assert holders(pool) == [boot_id()]


def test_a_reboot_while_the_cluster_takes_it_for_living(pool: FakePool) -> None:
    lives(pool, OURS, "earlier")
    threading.Timer(0.03, pool.objects.watchers.clear).start()
    of(pool).wait_alone()
    of(pool).take(watching(pool))
    assert holders(pool) == [boot_id()]


def test_a_clone_that_lives(pool: FakePool) -> None:
    lives(pool, OURS, "another")
    with pytest.raises(OwnerTaken, match=f"host vm with home /home: it answers from {THERE}, .*{'1' * 32}.*setup"):
        of(pool).wait_alone()
    with pytest.raises(OwnerTaken):
        of(pool).take(watching(pool))
    with pytest.raises(OwnerTaken):
        of(pool).wait_single()
    assert holders(pool) == ["another"]
    assert pool.objects.watchers == {OURS.object("p"): [THERE]}
    assert not pool.objects.locks[(OURS.object("p"), CLAIMING)]


def test_a_clone_that_begins_to_watch_anew_is_not_waited_for(pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """We before a reboot cannot."""
    monkeypatch.setattr(claim, "REBOOT_SECONDS", 1000.0)
    lives(pool, OURS, "another")
    threading.Timer(0.03, lives, (pool, OURS, "another", LATER)).start()
    with pytest.raises(OwnerTaken, match=LATER):
        of(pool).wait_alone()


def test_two_of_one_boot(pool: FakePool) -> None:
    """One memory image goes on twice: each watches with the claim of the other."""
    lives(pool, OURS, boot_id())
    of(pool).wait_alone()
    of(pool).take(watching(pool))
    with pytest.raises(OwnerTaken, match=THERE):
        of(pool).wait_single()
    pool.objects.watchers[OURS.object("p")].remove(THERE)
    of(pool).wait_single()


def test_machines_of_one_name_do_not_mind_each_other(pool: FakePool) -> None:
    for owner in (OURS, NAMESAKE):
        of(pool, owner).wait_alone()
        of(pool, owner).take(watching(pool, owner))
    of(pool).wait_single()
    assert set(claim.machines(pool.as_pool(), "p", OURS)) == {OURS, NAMESAKE}
    claim.forget(pool.as_pool(), "p", NAMESAKE)
    assert claim.machines(pool.as_pool(), "p", OURS) == [OURS]


def test_one_without_a_machine_id_lives(pool: FakePool) -> None:
    """Or one of an older version: its layers would be ours."""
    pool.objects.attributes[OURS.by_name.object("p")] = {}
    pool.objects.watchers[OURS.by_name.object("p")] = [THERE]
    with pytest.raises(OwnerTaken, match=THERE):
        of(pool).wait_alone()


def test_we_have_no_machine_id_and_one_that_has_lives(pool: FakePool) -> None:
    of(pool).take(watching(pool))
    lives(pool, OURS, "another")
    with pytest.raises(OwnerTaken, match=f"{THERE}.*no machine-id"):
        of(pool, OURS.by_name).wait_alone()
    pool.objects.watchers.clear()
    of(pool, OURS.by_name).wait_alone()
    of(pool, OURS.by_name).take(watching(pool, OURS.by_name))
    of(pool, OURS.by_name).wait_single()


def test_gc_on_the_host_of_a_plugin_that_sees_no_machine_id(pool: FakePool) -> None:
    of(pool, OURS.by_name).take(watching(pool, OURS.by_name))
    of(pool).wait_single()
    lives(pool, OURS.by_name, "another")
    with pytest.raises(OwnerTaken):
        of(pool).wait_single()


def test_who_comes_second_waits_until_the_first_watches(pool: FakePool) -> None:
    """In between, the claim looks like that of somebody who has gone."""
    began: list[bool] = []
    pool.objects.rados("lock", "get", OURS.object("p"), CLAIMING, "--lock-description", "first")

    def watches() -> None:
        lives(pool, OURS, "first")
        del pool.objects.locks[(OURS.object("p"), CLAIMING)]

    threading.Timer(0.05, watches).start()
    with pytest.raises(OwnerTaken):
        of(pool).take(lambda: began.append(True))
    assert not began


def test_what_cannot_be_written_leaves_no_lock(pool: FakePool) -> None:
    def fails() -> None:
        raise timed_out()

    with pytest.raises(CommandTimeout):
        of(pool).take(fails)
    assert not pool.objects.locks[(OURS.object("p"), CLAIMING)]
    of(pool).take(watching(pool))
