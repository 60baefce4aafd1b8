"""Which layers all hosts share: nobody loses a layer that he was told of, in whichever order the commands come.

A real cluster, and its full pool, are in tests/integration/test_shared_layers.py.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import pytest
from unit.fakes import timed_out
from unit.stepped import PREFIX, Actor, Host, Scene, World, chain, every_order, some_order

from cluster import shared_layers
from cluster.chain_entry import Entry
from cluster.owner import Owner
from host import command

CHAINS, USES = f"{PREFIX}_chains", f"{PREFIX}_uses"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who offers tries once for the lock; what nobody asked for is used no more once a host tidies."""
    monkeypatch.setattr(shared_layers, "AHEAD_SECONDS", -1.0)
    monkeypatch.setattr(shared_layers, "OFFER_SECONDS", -1.0)
    monkeypatch.setattr(shared_layers, "LISTED_SECONDS", 3600.0)


def scene(*works: tuple[str, Callable[[Host], object]], layers: str = "a", users: str = "") -> Scene:
    """Actors of a pool in which `first` has offered layers, one on the other, that only the hosts `users` use."""

    def begin() -> tuple[World, Sequence[Actor]]:
        world = World()
        first = Host(world, "first")
        below: Entry | None = None
        for digit in layers:
            below = first.offer(digit, f"layer-{digit}", below)
        hosts = {name: Host(world, name) for name, _ in works}
        for name, host in hosts.items():
            host.lives()
            host.seen = host.shared.all()
            if name in users.split():
                for digit in layers:
                    assert host.find(digit)
        first.release(*(f"layer-{digit}" for digit in layers))
        return world, [Actor(hosts[name], functools.partial(work, hosts[name])) for name, work in works]

    return begin


def collects(host: Host) -> None:
    """Delete what nobody uses."""
    host.collect()


def deletes(digit: str) -> Callable[[Host], None]:
    """Delete a layer that seemed to be unused a while ago."""

    def work(host: Host) -> None:
        host.delete(next(item for item in host.seen if item.layer == f"layer-{digit}"))

    return work


def finds(digits: str) -> Callable[[Host], None]:
    """Ask for chains, from the bottom up."""

    def work(host: Host) -> None:
        for digit in digits:
            if host.find(digit) is None:
                break

    return work


def releases(digits: str) -> Callable[[Host], None]:
    """Use layers no more."""
    return lambda host: host.release(*(f"layer-{digit}" for digit in reversed(digits)))


def offers(digit: str, layer: str) -> Callable[[Host], object]:
    """Offer a layer on nothing."""
    return lambda host: host.offer(digit, layer)


def settled(world: World) -> bool:
    """Those that live tidy and delete what is unused: nothing is left half done, nor lost to its users."""
    living = [host for host in world.hosts if not host.is_killed]
    last = Host(world, "last")
    for host in world.hosts:
        if host.is_killed:
            last.shared.forget_host(host.owner)
    for host in living:
        host.shared.tidy()
    for host in (*living, last):
        host.collect()
    listed = last.shared.all()
    assert not [entry for entry in listed if entry.deleting]
    told = set().union(*world.told.values())
    assert {entry.layer for entry in listed} <= world.images & told
    assert last.shared.uses().users.keys() == told
    assert world.broken == []
    return True


# -- every order -----------------------------------------------------------------------------------


def test_one_asks_while_another_deletes() -> None:
    ends = set()
    for world in every_order(scene(("asks", finds("a")), ("deletes", collects))):
        told = "layer-a" in world.told.get("asks", ())
        assert told <= ("layer-a" in world.images)
        ends.add((told, "layer-a" in world.images))
        assert settled(world)
    assert ends >= {(True, True), (False, False)}


def test_two_ask_and_one_releases_while_another_deletes() -> None:
    works = (("asks", finds("a")), ("too", finds("a")), ("leaves", releases("a")), ("deletes", deletes("a")))
    assert sum(settled(world) for world in every_order(scene(*works, users="leaves"))) > 50


def test_two_delete_while_one_asks() -> None:
    """There are too many orders for all of them."""
    works = (("deletes", deletes("a")), ("too", deletes("a")), ("asks", finds("a")))
    for seed in range(200):
        assert settled(some_order(scene(*works), seed, crashes=0.0)), seed


def test_one_asks_for_two_layers_while_another_deletes_both() -> None:
    for world in every_order(scene(("asks", finds("ab")), ("deletes", collects), layers="ab")):
        told = world.told.get("asks", set())
        assert "layer-b" not in told or "layer-a" in told
        assert settled(world)


def test_one_offers_on_a_layer_while_another_deletes() -> None:
    def builds(host: Host) -> None:
        below = host.find("a")
        if below and host.offer("b", "layer-b", below):
            host.release("layer-b", "layer-a")

    for world in every_order(scene(("builds", builds), ("deletes", collects))):
        assert settled(world)


def test_two_offer_one_chain_while_another_asks_for_it() -> None:
    works = (("one", offers("c", "layer-1")), ("two", offers("c", "layer-2")), ("asks", finds("c")))
    count = 0
    for world in every_order(scene(*works)):
        listed = [key for key in world.objects.omaps[CHAINS] if key.startswith(chain("c"))]
        assert len(listed) == 1
        told = set().union(*(layers for host, layers in world.told.items() if host != "first"))
        assert told == {listed[0].split()[1]}
        count += 1
    assert count > 10


def test_one_offers_what_another_deletes() -> None:
    works = (("offers", offers("a", "layer-new")), ("deletes", collects))
    assert sum(settled(world) for world in every_order(scene(*works))) > 10


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_all_at_once_with_crashes(first: int) -> None:
    works = (
        *(("asks", finds("ab")), ("too", finds("a")), ("leaves", releases("ab"))),
        *(("offers", offers("a", "layer-new")), ("deletes", collects)),
    )
    for seed in range(first, first + 100):
        assert settled(some_order(scene(*works, layers="ab", users="leaves"), seed)), seed


# -- one host after the other ----------------------------------------------------------------------


class Pool(World):
    """A pool whose commands are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        rados = self.objects.rados

        def counted(*words: str) -> str:
            self.count += 1
            return rados(*words)

        object.__setattr__(self.objects, "rados", counted)

    def commands(self, work: Callable[[], object]) -> int:
        """How many commands something takes."""
        before = self.count
        work()
        return self.count - before


@pytest.fixture
def pool() -> Pool:
    """A pool of four shared layers, each on the one before, which `maker` uses."""
    pool = Pool()
    maker = Host(pool, "maker")
    below: Entry | None = None
    for digit in "abcd":
        below = maker.offer(digit, f"layer-{digit}", below)
    return pool


def maker(pool: Pool) -> Host:
    return pool.hosts[0]


def test_an_image_costs_two_commands_and_a_miss_none(pool: Pool) -> None:
    host = Host(pool, "host")
    host.shared.all()
    assert pool.commands(lambda: host.find("a")) == 2
    assert pool.commands(lambda: [host.find(digit) for digit in "bcd"]) == 0
    assert pool.commands(lambda: host.find("e")) == 0
    assert host.shared.own() == {"layer-a", "layer-b", "layer-c", "layer-d"}


def test_a_miss_asks_once_the_hint_is_old(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(pool, "host")
    host.shared.all()
    monkeypatch.setattr(shared_layers, "LISTED_SECONDS", -1.0)
    assert pool.commands(lambda: host.find("e")) == 1
    maker(pool).offer("e", "layer-e")
    assert host.find("e"), "it is seen, too"


def test_what_is_told_of_a_layer(pool: Pool) -> None:
    found = Host(pool, "host").find("b")
    assert found
    assert (found.layer, found.parent, found.below) == ("layer-b", chain("a"), "layer-a")
    assert (found.owner, found.size, found.inodes) == (maker(pool).owner, 5, 2)


def test_what_is_below_is_used_too(pool: Pool) -> None:
    host = Host(pool, "host")
    assert host.find("c")
    maker(pool).release(*maker(pool).own())
    host.shared.tidy()
    assert host.shared.own() == {"layer-a", "layer-b", "layer-c"}, "and nothing that nobody asked for"
    assert maker(pool).collect() == ["layer-d"]


def test_a_second_offer_is_told_of_the_first(pool: Pool) -> None:
    host = Host(pool, "host")
    below = host.find("a")
    stands = host.offer("b", "layer-mine", below)
    assert stands
    assert stands.layer == "layer-b"
    assert host.offer("c", "layer-other", below) is None, "what stands is on another parent"


def test_nothing_is_offered_on_what_is_not_shared(pool: Pool) -> None:
    host = Host(pool, "host")
    below = host.find("d")
    host.release("layer-d")
    assert host.offer("e", "layer-e", below) is None


def test_a_lock_of_another_lets_an_offer_wait(pool: Pool) -> None:
    pool.objects.rados("lock", "get", CHAINS, chain("e"), "--lock-description", "another")
    assert maker(pool).offer("e", "layer-e") is None


def test_of_two_that_are_listed_the_first_stands(pool: Pool) -> None:
    """Who held the lock for too long has written all the same."""
    late = Entry(chain("a"), "layer-2", "", "", maker(pool).owner, int(time.time()) + 9, 1, 1)
    pool.objects.omaps[CHAINS][late.key] = str(late)
    found = Host(pool, "host").find("a")
    assert found
    assert found.layer == "layer-a"


def test_unused_layers_go_from_the_top_the_oldest_first(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    maker(pool).offer("e", "layer-e")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 100)
    maker(pool).release("layer-d", "layer-c", "layer-b", "layer-a")
    monkeypatch.setattr(time, "time", lambda: now + 200)
    maker(pool).release("layer-e")
    assert maker(pool).shared.unused(150) == []
    monkeypatch.setattr(time, "time", lambda: now + 280)
    assert [item.layer for item in maker(pool).shared.unused(150)] == ["layer-d", "layer-c", "layer-b", "layer-a"]
    assert [item.layer for item in maker(pool).shared.unused(0)][-1] == "layer-e"
    assert maker(pool).collect() == ["layer-d", "layer-c", "layer-b", "layer-a", "layer-e"]
    assert pool.objects.omaps[CHAINS] == {}


def test_a_clock_that_is_years_ahead_keeps_nothing(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e8)
    maker(pool).release(*maker(pool).own())
    monkeypatch.setattr(time, "time", lambda: now)
    assert len(maker(pool).shared.unused(3600)) == 4


def test_a_new_life_goes_on_with_the_uses_of_the_one_before(pool: Pool) -> None:
    again = Host(pool, "maker")
    assert again.shared.own() == {"layer-a", "layer-b", "layer-c", "layer-d"}
    assert len(pool.objects.omaps[USES]) == 1
    assert pool.commands(lambda: again.find("d")) <= 2
    again.release("layer-d")
    assert again.collect() == ["layer-d"]


def test_a_command_beside_a_driver_takes_no_uses_from_it(pool: Pool) -> None:
    before = dict(pool.objects.omaps[USES])
    beside = shared_layers.SharedLayers(maker(pool).shared._pool, PREFIX, maker(pool).owner, beside=True)
    assert len(beside.all()) == 4
    beside.forget_host(Owner("dead", "", "/home"))
    assert pool.objects.omaps[USES] == before


def test_a_host_that_is_dead_is_forgotten_and_some_of_its_uses_are_ours(pool: Pool) -> None:
    heir = Host(pool, "heir")
    heir.shared.forget_host(maker(pool).owner, ["layer-a", "layer-b", "not-shared"])
    assert heir.shared.uses().owners == {heir.owner}
    assert heir.shared.own() == {"layer-a", "layer-b"}
    assert heir.collect() == ["layer-d", "layer-c"]


def test_a_deletion_that_was_cut_off_is_gone_on_with_once_its_host_is_dead(pool: Pool) -> None:
    host, last = Host(pool, "host"), Host(pool, "last")
    host.lives()
    maker(pool).release(*maker(pool).own())
    assert host.shared.begin_delete(host.shared.unused(0)[0])
    assert last.find("d") is None
    assert last.shared.unused(0) == [], "who deletes it lives"
    host.dies()
    assert last.collect()[0] == "layer-d"
    assert last.shared.all() == []


def test_what_cannot_be_read_deletes_nothing_and_is_said_in_one_line(pool: Pool) -> None:
    maker(pool).release(*maker(pool).own())
    entries = maker(pool).shared.unused(0)
    pool.objects.omaps[CHAINS]["hello"] = "x"
    pool.objects.omaps[CHAINS][f"{chain('f')} layer-f"] = "{}"
    assert len(maker(pool).shared.all()) == 4
    assert len(maker(pool).shared.problems()) == 2
    assert maker(pool).shared.make_room() == []
    pool.objects.omaps[USES]["hello"] = "x"
    assert maker(pool).shared.unused(0) == []
    assert not maker(pool).shared.begin_delete(entries[0])
    (line,) = maker(pool).shared.uses().unreadable
    assert line.endswith("if that host is gone: rados rmomapkey docker_image_uses 'hello'")


def test_what_could_not_be_written_is_known_and_written_later(pool: Pool) -> None:
    """A full pool."""
    host = maker(pool)
    fake = host.shared._pool
    before = pool.objects.omaps[USES].copy()
    pool.objects.rados, rados = (lambda *words: (_ for _ in ()).throw(timed_out())), pool.objects.rados  # type: ignore
    with pytest.raises(command.CommandTimeout):
        host.release("layer-d")
    pool.objects.rados = rados  # type: ignore[method-assign]
    assert fake is host.shared._pool
    assert pool.objects.omaps[USES] == before
    assert [item.layer for item in host.shared.unused(0)] == ["layer-d"]
    host.shared.tidy()
    assert pool.objects.omaps[USES] != before


def test_a_full_pool_gets_room_and_what_is_used_is_listed_again(pool: Pool) -> None:
    user = Host(pool, "user")
    assert user.find("b")
    user.shared.tidy()
    maker(pool).release(*maker(pool).own())
    assert [item.layer for item in maker(pool).shared.make_room()] == ["layer-d", "layer-c"]
    assert CHAINS not in pool.objects.omaps
    assert Host(pool, "new").find("a") is None
    user.shared.tidy()
    found = Host(pool, "later").find("b")
    assert found
    assert found.layer == "layer-b"


@pytest.mark.parametrize("name", ["", "sha256:a", "sha256:" + 64 * "A", f"deleting {chain('a')}"])
def test_what_is_no_chain_id(pool: Pool, name: str) -> None:
    with pytest.raises(ValueError, match="is no chain id"):
        maker(pool).shared.find(name)
