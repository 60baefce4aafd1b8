"""Several calls at once, and calls whose caller does not wait for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from changes import file
from client import ALREADY_EXISTS, CANCELLED, DEADLINE_EXCEEDED, NOT_FOUND, Info, Refused, Snapshots
from plugin_client import wait_until
from services import Service
from work import Work

THREADS = 8


def outcome(call: Callable[[], object]) -> str:
    """How a call ended: OK, or the code of its error."""
    try:
        call()
    except Refused as error:
        return error.code
    return "OK"


def at_once(*calls: Callable[[], object]) -> list[str]:
    """The sorted outcomes of calls that begin together."""
    barrier = threading.Barrier(len(calls))

    def begin(call: Callable[[], object]) -> str:
        barrier.wait(120)
        return outcome(call)

    with ThreadPoolExecutor(len(calls)) as threads:
        return sorted(threads.map(begin, calls))


def test_one_of_many_gets_the_key(snapshots: Snapshots, work: Work) -> None:
    work.layer("below", "", file("f"))
    for at in range(5):
        key = f"key {at}"
        made = at_once(*[lambda key=key: snapshots.prepare(key, "below")] * THREADS)
        assert made == [ALREADY_EXISTS] * (THREADS - 1) + ["OK"]
        assert work.names(snapshots.mounts(key)) == ["f"]


def test_one_of_many_gets_the_name(snapshots: Snapshots, work: Work) -> None:
    """The others keep what they have."""
    for at in range(THREADS):
        work.change(snapshots.prepare(f"key {at}"), file(f"of {at}"))
    calls = [lambda at=at: snapshots.commit("name", f"key {at}") for at in range(THREADS)]
    assert at_once(*calls) == [ALREADY_EXISTS] * (THREADS - 1) + ["OK"]
    left = {info.name for info in snapshots.list("kind==active")}
    [winner] = {f"key {at}" for at in range(THREADS)} - left
    assert work.names(snapshots.view("view", "name")) == [winner.replace("key", "of")]
    for key in left:
        assert work.names(snapshots.mounts(key)) == [key.replace("key", "of")]


def test_one_of_many_removes(snapshots: Snapshots) -> None:
    snapshots.prepare("key")
    assert at_once(*[lambda: snapshots.remove("key")] * THREADS) == [NOT_FOUND] * (THREADS - 1) + ["OK"]


def test_many_on_one_parent(snapshots: Snapshots, work: Work) -> None:
    """As containers of one image start: each has all of it, and its own."""
    work.layer("below", "", file("f"))
    assert at_once(*[lambda at=at: snapshots.prepare(f"{at}", "below") for at in range(THREADS)]) == ["OK"] * THREADS
    for at in range(THREADS):
        work.change(snapshots.mounts(f"{at}"), file(f"of {at}"))
    for at in range(THREADS):
        assert work.names(snapshots.mounts(f"{at}")) == ["f", f"of {at}"]


def test_a_child_and_the_end_of_its_parent(snapshots: Snapshots) -> None:
    """Either there is a child with its parent, or neither."""
    for at in range(5):
        snapshots.prepare("key")
        snapshots.commit("parent", "key")
        codes = at_once(lambda: snapshots.prepare("child", "parent"), lambda: snapshots.remove("parent"))
        assert codes in (["FAILED_PRECONDITION", "OK"], ["NOT_FOUND", "OK"]), f"round {at}"
        found = {info.name for info in snapshots.list()}
        assert found in (set(), {"child", "parent"})
        for name in sorted(found):
            snapshots.remove(name)


def test_list_is_consistent_while_others_write(service: Service, snapshots: Snapshots, work: Work) -> None:
    """Whatever it shows, a parent is there with its child, and what nobody touches is there as it is."""
    work.layer("kept", "")
    kept = snapshots.stat("kept")
    done = threading.Event()

    def write(number: int) -> int:
        client, rounds = service.client(), 0
        while not done.is_set():
            for name, parent in ((f"{number} one", "kept"), (f"{number} two", f"{number} one")):
                client.prepare(f"{name} key", parent)
                client.commit(name, f"{name} key", {"l": name})
            client.update(f"{number} one", {"l": "x"})
            client.remove(f"{number} two")
            client.remove(f"{number} one")
            rounds += 1
        client.close()
        return rounds

    with ThreadPoolExecutor(3) as threads:
        writers = [threads.submit(write, number) for number in range(3)]
        try:
            for _ in range(60):
                check_set(list(snapshots.list()), kept)
        finally:
            done.set()
        assert all(writer.result(60) for writer in writers)


def check_set(found: list[Info], kept: Info) -> None:
    names = [info.name for info in found]
    assert len(set(names)) == len(names)
    assert kept in found
    for info in found:
        assert info.parent in ("", *names), f"{info.name} without its parent"
        # A commit is one step: the key and the name are never there at the same time.
        assert f"{info.name} key" not in names


def test_a_list_that_is_read_slowly_holds_up_nobody(snapshots: Snapshots) -> None:
    """Its answer is larger than what a connection takes before the client has read it."""
    # Views, because they are made fast.
    for at in range(150):
        snapshots.view(f"{at}", "", {"containerd.io/snapshot/large": "x" * 1000})
    slow = iter(snapshots.list())
    names = [next(slow).name]
    snapshots.view("meanwhile")
    snapshots.update("0", {})
    snapshots.remove("meanwhile")
    names += [info.name for info in slow]
    assert {f"{at}" for at in range(150)} <= set(names)


def test_what_the_caller_does_not_wait_for_is_whole_or_not_there(
    service: Service, snapshots: Snapshots, work: Work
) -> None:
    """A deadline that ends in the middle: then the key is there and can be mounted, or is free."""
    work.layer("below", "", file("f"))
    for at in range(10):
        hasty = service.client(timeout=0.005 * at)
        said = outcome(lambda at=at, hasty=hasty: hasty.prepare(f"{at}", "below"))  # type: ignore[misc]
        assert said in ("OK", DEADLINE_EXCEEDED, CANCELLED)
        hasty.close()
        # What was begun may still go on; the key is free in the end, or taken for good.
        wait_until(lambda at=at: settled(snapshots, f"{at}"), "the key is there or free", 60)
        assert work.names(snapshots.mounts(f"{at}")) == ["f"]


def settled(snapshots: Snapshots, key: str) -> bool:
    """Whether the key can be used: as it is, or made now."""
    if outcome(lambda: snapshots.prepare(key, "below")) == "OK":
        return True
    return outcome(lambda: snapshots.mounts(key)) == "OK"


def test_many_clients(service: Service, snapshots: Snapshots) -> None:
    """Each with a connection of its own, and all of them at once."""
    clients = [service.client() for _ in range(16)]
    assert at_once(*[lambda c=c, at=at: c.prepare(f"{at}") for at, c in enumerate(clients)]) == ["OK"] * 16
    for client in clients:
        client.close()
    assert len(list(snapshots.list())) == 16
