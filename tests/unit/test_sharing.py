"""Two hosts of one pool: what one has unpacked the other one need not, and nothing goes that somebody uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plugin_client import wait_until
from unit.fake_host import FakeHost
from unit.fakes import FakePool, failed
from unit.snapshotting import Process, has_image, processes

import rbdcli
from cluster import diagnosis, shared_layers
from cluster.chain_entry import Entry
from graph import reaper
from host import background
from mapped import host_layers
from snapshots.errors import AlreadyExists, NotFound
from snapshots.info import Kind
from snapshotter import chains, sharing

Start = Callable[..., Process]


@pytest.fixture
def start(pool: FakePool, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts the snapshotter of a root; each root is another host for the pool."""
    monkeypatch.setattr(reaper, "REMOVE_SECONDS", 0.0)
    monkeypatch.setattr(background, "FIRST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(sharing, "SWEEP_SOON_SECONDS", 0.0)
    monkeypatch.setattr(sharing, "OFFER_SECONDS", 0.0)
    monkeypatch.setattr(sharing, "SWEEP_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(shared_layers, "LISTED_SECONDS", 0.0)
    monkeypatch.setattr(host_layers, "MAPPED_SECONDS", 0.0)
    with processes() as made:

        def begin(root: str = "a", **options: object) -> Process:
            made.append(Process(pool, tmp_path / root, **options))  # type: ignore[arg-type]
            return made[-1]

        yield begin


def chain(number: int) -> str:
    """A chain id."""
    return f"sha256:{number:064x}"


def ask(process: Process, number: int, parent: str = "", space: str = "default") -> str:
    """Prepare as a client does that is about to unpack a layer of an image. Return the key."""
    key = f"{space}/1/extract-5-a {chain(number)}"
    process.snapshotter.prepare(Kind.ACTIVE, key, parent, {chains.REF_LABEL: chain(number)})
    return key


def unpack(process: Process, number: int, parent: str = "", space: str = "default") -> str:
    """Unpack a layer that the pool does not have; return the name of its snapshot."""
    key, name = ask(process, number, parent, space), f"{space}/2/{chain(number)}"
    process.write(process.layer(key), str(number))
    process.snapshotter.commit(key, name, {chains.REF_LABEL: chain(number)})
    return name


def told(process: Process, number: int, parent: str = "", space: str = "default") -> str:
    """Ask for a layer that the pool has; return the name that containerd finds, by the filter that it uses."""
    with pytest.raises(AlreadyExists):
        ask(process, number, parent, space)
    found = process.store.walk(f'labels."{chains.REF_LABEL}"=={chain(number)},parent=={parent!r}'.replace("'", '"'))
    [name] = [info.name for info in found if info.kind is Kind.COMMITTED]
    return name


def shared(process: Process, *names: str) -> bool:
    """Tell whether others can find these snapshots."""
    return all(process.store.find(name).shared for name in names)


def pull(process: Process, *numbers: int) -> str:
    """Unpack layers, one on the other, and wait until others can find them; return the topmost snapshot."""
    name = ""
    for number in numbers:
        name = unpack(process, number, name)
    wait_until(lambda: shared(process, name), "it is offered")
    assert process.life.layers.is_shared(process.store.find(name).image)
    # In memory, an image is mapped on one host at a time.
    process.life.unmap()
    return name


def test_what_one_host_unpacks_another_one_finds(start: Start, pool: FakePool) -> None:
    a, b = start("a"), start("b")
    top = pull(a, 1, 2)
    images = sorted(pool.images)
    one = told(b, 1)
    two = told(b, 2, one)
    assert sorted(pool.images) == images, "nothing was made"
    assert b.store.find(two).usage == a.store.find(top).usage
    b.snapshotter.prepare(Kind.ACTIVE, "container", two, {})
    lower = b.upper("container").parents[3] / "l"
    assert sorted(path.name for link in lower.iterdir() for path in link.iterdir()) == ["1", "2"]


def test_what_is_told_twice_is_the_same(start: Start) -> None:
    a, b = start("a"), start("b")
    pull(a, 1)
    assert told(b, 1) == told(b, 1, space="k8s.io")


def test_on_another_parent_it_is_another_snapshot(start: Start) -> None:
    a, b = start("a"), start("b")
    pull(a, 1, 2)
    mine = b.commit("default/9/imported")
    assert mine
    one, two = told(b, 1), told(b, 2, "default/9/imported")
    assert told(b, 2, one) != two


def test_nobody_is_told_of_what_is_not_shared(start: Start) -> None:
    a, b = start("a"), start("b")
    a.commit(f"default/2/{chain(1)}")
    ask(b, 1)


@pytest.mark.parametrize("who", ["offers", "asks"])
def test_sharing_turned_off(who: str, start: Start) -> None:
    a, b = start("a", shares=who != "offers"), start("b", shares=who != "asks")
    name = unpack(a, 1)
    if who == "asks":
        wait_until(lambda: shared(a, name), "it is offered")
    ask(b, 1)


def test_what_stands_on_a_private_layer_stays_private(start: Start) -> None:
    a, b = start("a"), start("b")
    a.commit("default/9/imported")
    name = unpack(a, 2, "default/9/imported")
    assert a.store.find(name).chain == ""
    ask(b, 2)


def test_two_hosts_unpack_at_the_same_time(start: Start, pool: FakePool) -> None:
    a, b = start("a"), start("b")
    keys = {process: ask(process, 1) for process in (a, b)}
    names = {}
    for process, key in keys.items():
        names[process] = f"default/2/{chain(1)}"
        process.write(process.layer(key), "1")
        process.snapshotter.commit(key, names[process], {chains.REF_LABEL: chain(1)})
        wait_until(lambda: not process.store.unoffered(), "it is offered, or not")  # noqa: B023
    assert sorted(shared(process, names[process]) for process in (a, b)) == [False, True]
    for process in (a, b):
        process.snapshotter.prepare(Kind.ACTIVE, "container", names[process], {})
        # What stands on it is offered by the first one only, and both go on.
        unpack(process, 2, names[process]) if process is a else told_or_unpacked(process, 2, names[process])
    c = start("c")
    told(c, 1)
    assert pool.images


def told_or_unpacked(process: Process, number: int, parent: str) -> str:
    """The snapshot of a layer, wherever it comes from."""
    try:
        return unpack(process, number, parent)
    except AlreadyExists:
        return told(process, number, parent)


# -- when it goes ------------------------------------------------------------------------------


def test_it_goes_with_its_last_user(start: Start, pool: FakePool) -> None:
    a, b = start("a"), start("b")
    top = pull(a, 1, 2)
    layer = a.store.find(top).image
    one = told(b, 1)
    two = told(b, 2, one)
    bottom = a.store.find(f"default/2/{chain(1)}").image
    for name in (top, f"default/2/{chain(1)}"):
        a.snapshotter.remove(name)
    wait_until(lambda: not a.store.leftovers(), "the first host has given it back")
    b.snapshotter.prepare(Kind.ACTIVE, "container", two, {})
    assert has_image(pool, layer)
    assert has_image(pool, bottom)
    for name in ("container", two, one):
        b.snapshotter.remove(name)
    wait_until(lambda: not has_image(pool, layer) and not has_image(pool, bottom), f"it goes: {sorted(pool.images)}")
    wait_until(lambda: not b.shared.all(), "it is listed no more")
    assert not b.store.leftovers()


def test_it_can_be_kept(start: Start, pool: FakePool) -> None:
    a, b = start("a", keep=1000.0), start("b", keep=1000.0)
    top = pull(a, 1)
    layer = a.store.find(top).image
    a.snapshotter.remove(top)
    wait_until(lambda: not a.store.leftovers(), "it is given back")
    assert has_image(pool, layer)
    told(b, 1)


def test_it_stays_as_long_as_it_is_mounted_here(start: Start, pool: FakePool, host: FakeHost) -> None:
    a = start("a")
    top = pull(a, 1)
    layer = a.store.find(top).image
    a.snapshotter.prepare(Kind.VIEW, "view", top, {})
    device = a.life.devices.device(layer)
    assert device
    host.held.add(device)
    a.snapshotter.remove("view")
    a.snapshotter.remove(top)
    wait_until(lambda: not host.mounted, "our own mount goes")
    assert a.shared.uses().users, "the pool is not told yet"
    host.held.clear()
    a.sharing.works.wake()
    wait_until(lambda: not has_image(pool, layer), "it goes after that")


def test_what_is_given_back_while_others_are_looked_for_goes_soon(
    start: Start, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = start("a")
    first, second = unpack(a, 1), unpack(a, 2)
    wait_until(lambda: shared(a, first, second), "both are offered")
    layer = a.store.find(second).image
    unused = a.shared.unused

    def slow(older_than: float) -> list[Entry]:
        found = unused(older_than)
        monkeypatch.setattr(a.shared, "unused", unused)
        a.snapshotter.remove(second)
        wait_until(lambda: not a.store.leftovers(), "it is given back")
        return found

    a.life.unmap()
    monkeypatch.setattr(a.shared, "unused", slow)
    a.snapshotter.remove(first)
    wait_until(lambda: not has_image(pool, layer), "it goes", 10)


def test_what_is_below_goes_soon_after(start: Start, pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "REMOVE_SECONDS", 0.3)
    a = start("a")
    top = pull(a, 1, 2)
    for name in (top, f"default/2/{chain(1)}"):
        a.snapshotter.remove(name)
    wait_until(lambda: not a.shared.all(), "both go", 10)


def test_what_is_removed_makes_room_in_a_full_pool(
    start: Start, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = start("a"), start("b")
    theirs, ours = (a.store.find(pull(a, number)).image for number in (1, 2))
    used = told(b, 1)
    omap = pool.objects._omap

    def full(verb: str, name: str, *words: str) -> str:
        if verb in ("setomapval", "rmomapkey"):
            raise failed(rbdcli.RbdError, 1, "timed out (exit 1)")
        return omap(verb, name, *words)

    monkeypatch.setattr(pool.objects, "_omap", full)
    monkeypatch.setattr(diagnosis, "is_full", lambda _: True)
    pool.fails["set_header"] = [failed(rbdcli.RbdError, 1)] * 1000
    for number in (2, 1):
        a.snapshotter.remove(f"default/2/{chain(number)}")
    wait_until(lambda: not has_image(pool, ours), "it makes room", 20)
    assert has_image(pool, theirs), "the other host uses it"
    monkeypatch.setattr(pool.objects, "_omap", omap)
    monkeypatch.setattr(diagnosis, "is_full", lambda _: False)
    pool.fails.clear()
    wait_until(lambda: not a.store.leftovers(), "it is given back", 20)
    b.snapshotter.prepare(Kind.ACTIVE, "container", used, {})


def test_one_of_two_names_is_removed(start: Start, pool: FakePool) -> None:
    a, b = start("a"), start("b")
    pull(a, 1, 2)
    b.commit("default/9/imported")
    one = told(b, 1)
    first, second = told(b, 2, one), told(b, 2, "default/9/imported")
    b.snapshotter.remove(first)
    wait_until(lambda: not b.store.leftovers(), "it is removed")
    b.snapshotter.prepare(Kind.ACTIVE, "container", second, {})
    assert b.layer("container")


@pytest.mark.parametrize("step", ["before it belongs to all", "after that"])
def test_what_was_never_offered_goes_as_others_do(
    step: str, start: Start, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = start("a")
    if step == "after that":
        monkeypatch.setattr(a.shared, "offer", lambda *_, **__: None)
    else:
        pool.fails["set_header"] = [failed(rbdcli.RbdError, 1)] * 1000
    name = unpack(a, 1)
    layer = a.layer(name)
    if step == "after that":
        wait_until(lambda: a.life.layers.is_shared(layer), "it belongs to all")
    a.snapshotter.remove(name)
    pool.fails.clear()
    wait_until(lambda: not has_image(pool, layer) and not a.store.leftovers(), "it goes")


# -- from before -------------------------------------------------------------------------------


def test_an_offer_goes_on_after_a_restart(start: Start, pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    a = start("a")
    a.sharing.works.pause(10)
    name = unpack(a, 1)
    a.end()
    new = start("a")
    wait_until(lambda: shared(new, name), "it is offered")
    told(start("b"), 1)


def test_a_use_that_the_store_does_not_know_ends(start: Start, pool: FakePool) -> None:
    a = start("a")
    top = pull(a, 1)
    b = start("b")
    b.shared.find(chain(1))
    b.end()
    new = start("b")
    wait_until(lambda: len(new.shared.uses().users[a.store.find(top).image]) == 1, "only one host uses it")


def test_a_layer_that_has_gone_is_told_of_in_the_log(
    start: Start, pool: FakePool, caplog: pytest.LogCaptureFixture
) -> None:
    a = start("a")
    top = pull(a, 1)
    a.end()
    pool.objects.omaps.clear()
    new = start("a")
    assert f"the shared layer {new.store.find(top).image} has gone" in caplog.text
    new.snapshotter.remove(top)
    wait_until(lambda: not new.store.leftovers(), "it can be removed")


def test_what_a_full_pool_has_unlisted_is_listed_again_after_a_restart(start: Start, pool: FakePool) -> None:
    a = start("a")
    pull(a, 1, 2)
    below = told(b := start("b"), 1)
    told(b, 2, below)
    listed = {entry.key for entry in a.shared.all()}
    for process in (a, b):
        process.end()
    del pool.objects.omaps[next(name for name in pool.objects.omaps if name.endswith("_chains"))]
    new = start("b")
    wait_until(lambda: {entry.key for entry in new.shared.all()} == listed, "it is listed again")
    c = start("c")
    told(c, 2, told(c, 1))


def test_a_layer_is_whole_on_its_device_before_others_find_it(start: Start, pool: FakePool) -> None:
    a = start("a")
    name = unpack(a, 1)
    # A client may mount it at once: then it is not unmapped.
    a.snapshotter.prepare(Kind.VIEW, "view", name, {})
    wait_until(lambda: shared(a, name), "it is offered")
    entry = a.life.devices.get(a.store.find(name).image)
    assert entry and not entry.writable


def test_removed_while_it_was_away(start: Start, pool: FakePool) -> None:
    a = start("a")
    top = pull(a, 1)
    layer = a.store.find(top).image
    a.sharing.works.pause(10)
    a.snapshotter.remove(top)
    a.end()
    new = start("a")
    wait_until(lambda: not has_image(pool, layer) and not new.store.leftovers(), "it goes")
    with pytest.raises(NotFound):
        new.store.stat(top)


def test_what_is_swept_from_time_to_time_is_not_behind(start: Start) -> None:
    one = start()

    def waits_for_the_next_time() -> bool:
        number = sum(waiting.number for waiting in one.sharing.works.waiting())
        return number == 0 and sharing._REGULARLY in one.sharing._sweeping._jobs

    wait_until(waits_for_the_next_time, "it has swept, and is to sweep again")
