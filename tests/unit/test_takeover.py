"""Who may be taken over, and in which order: nobody who lives, and no layer before its writers are shut out.

The pool is a fake; two real hosts are in tests/integration/test_two_hosts.py.
"""

from __future__ import annotations

from collections.abc import Collection

import pytest
from unit.fakes import FakeImage, FakePool, failed
from unit.told_progress import ToldProgress

import rbdcli
from cluster.owner import Owner
from cluster.shared_layers import SharedLayers
from images import options
from images.layers import Layers
from images.record import KEY, Record
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


def take(
    pool: FakePool, host: str = "dead", home: str = "", named: Collection[str] | None = None
) -> tuple[int, list[str]]:
    """How many were taken, and what was said."""
    said: list[str] = []
    return Takeover(layers_of(pool), "docker_image", host, home, said.append).run(named), said


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


def test_it_tells_how_far_it_is(pool: FakePool) -> None:
    progress = ToldProgress()
    assert Takeover(layers_of(pool), "docker_image", "dead", "", lambda line: None).run(None, progress) == 1
    assert ("taking layers", 1, 0) in progress.told
    assert progress.steps == {"taking layers": 1}


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


# -- the layers of a snapshotter, and those of all hosts -----------------------------------------------

OTHER = Owner("other", "", "/home")
OWN = "0123456789abcdefghij"


def host_of(pool: FakePool, owner: Owner) -> SharedLayers:
    """What a host does with the layers of all hosts."""
    return SharedLayers(pool.as_pool(), "docker_image", owner)


def add_shared(pool: FakePool, *layers: str) -> None:
    """Let the dead host have shared layers, each on the one before, which it uses."""
    dead, below = host_of(pool, DEAD), None
    for at, layer in enumerate(layers):
        pool.add_layer(layer).metadata[KEY] = str(Record(DEAD, layers[:at][::-1], shared=True))
        below = dead.offer(f"sha256:{at:064x}", layer, below, size=1, inodes=1)


def users(pool: FakePool) -> dict[str, set[Owner]]:
    """Who uses which layers."""
    return host_of(pool, OTHER).uses().users


def test_what_it_shared_belongs_to_all_hosts_and_stays_as_it_is(pool: FakePool) -> None:
    add_shared(pool, "shared")
    assert take(pool)[0] == 1
    assert pool.images["docker_image_shared"].record == Record(DEAD, (), shared=True)
    assert "docker_graph_driver.taken_over" not in pool.images["docker_image_shared"].metadata


def test_its_uses_are_forgotten_and_those_of_others_are_not(pool: FakePool) -> None:
    add_shared(pool, "one", "two")
    host_of(pool, OTHER).find(f"sha256:{0:064x}")
    other = users(pool)["one"]
    taken, said = take(pool, named=())
    assert (taken, users(pool).get("one")) == (1, other - {DEAD})
    assert "forgot that dead /home used 2 shared layers, of which snapshots here need 0" in said


def test_a_host_that_has_nothing_but_uses_is_known(pool: FakePool) -> None:
    del pool.images["docker_image_a"]
    add_shared(pool, "shared")
    assert take(pool)[0] == 0
    assert users(pool) == {}


def test_one_that_uses_shared_layers_and_answers_lives(pool: FakePool) -> None:
    del pool.images["docker_image_a"]
    add_shared(pool, "shared")
    name = DEAD.object("docker_image")
    pool.objects.attributes[name] = {}
    pool.objects.watchers[name] = ["10.0.0.9:0/7"]
    with pytest.raises(Refused, match=r"^dead lives"):
        take(pool)
    assert users(pool) == {"shared": {DEAD}}


def test_what_our_database_names_is_used_by_us(pool: FakePool) -> None:
    """The root of the dead host was brought here: nothing that it needs may go before the snapshotter starts."""
    add_shared(pool, "one", "two", "three")
    pool.add_layer(OWN, "two", "one", owner=DEAD)
    ours = layers_of(pool).owner()
    taken, said = take(pool, named=[OWN, "one", "two"])
    assert (taken, users(pool)) == (2, {"one": {ours}, "two": {ours}})
    assert said[-1] == "forgot that dead /home used 3 shared layers, of which snapshots here need 2"
    assert not [line for line in said if "of no snapshot here" in line]


def test_what_our_snapshotter_uses_already_is_left_to_it(pool: FakePool) -> None:
    """It lives, and would not know of another use: that would last until its next start."""
    add_shared(pool, "one")
    ours = host_of(pool, layers_of(pool).owner())
    ours.find(f"sha256:{0:064x}")
    take(pool, named=["one"])
    assert users(pool) == {"one": {layers_of(pool).owner()}}
    ours.release(["one"])
    assert users(pool) == {}


@pytest.mark.parametrize("named", [None, ()])
def test_nothing_is_used_for_layers_that_nobody_can_use(pool: FakePool, named: Collection[str] | None) -> None:
    """Those of a snapshotter without its database, whose parents nobody would ever give back."""
    add_shared(pool, "one")
    pool.add_layer(OWN, "one", owner=DEAD)
    taken, said = take(pool, named=named)
    assert (taken, users(pool)) == (2, {})
    whose = "a snapshotter's, which Docker cannot use" if named is None else "of no snapshot here"
    assert len([line for line in said if line.startswith(f"1 of them are {whose}")]) == 1
