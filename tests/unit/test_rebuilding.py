"""rebuilding.py: what a lost database is made anew of, and what is left out and said."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plugin_client import wait_until
from unit.fake_host import FakeHost
from unit.fakes import FakePool
from unit.snapshotting import Process, has_image, processes

from cluster import shared_layers
from cluster.owner import Owner
from cluster.told import Note
from graph import reaper
from images.record import Record
from snapshots import note
from snapshots.errors import AlreadyExists
from snapshots.info import NOTHING, Info, Kind, Snapshot, State
from snapshotter import chains, notes, rebuilding, sharing

Start = Callable[[str], Process]
HERE = Owner("here", "", "/root")
CHAINS = [f"sha256:{number:064x}" for number in range(4)]


# -- the plan --------------------------------------------------------------------------------------


def snapshot(layer: str, key: str, parent: str = "", kind: Kind = Kind.COMMITTED, created: int = 1) -> Snapshot:
    """A snapshot with a layer of this host."""
    info = Info(key, parent, kind, created, created, {"label": key})
    return Snapshot(info, layer, State.THERE, NOTHING, "", layer, "", shared=False, empty=NOTHING)


def record(*parents: str, of: Snapshot, shared: bool = False) -> Record:
    """The record of a layer."""
    return Record(HERE, parents, shared, note.written(of))


def plan(**ours: Record) -> rebuilding.Plan:
    """What is planned if the pool has these layers, and nothing else."""
    return rebuilding.plan(ours, {}, {})


def test_each_comes_after_its_parent_whatever_the_clock_says() -> None:
    below, middle = snapshot("a", "below", created=9), snapshot("b", "middle", "below", created=5)
    top = snapshot("c", "top", "middle", Kind.ACTIVE, created=1)
    made = plan(c=record("b", "a", of=top), b=record("a", of=middle), a=record(of=below))
    assert (made.snapshots, made.problems, made.unnoted) == ([below, middle, top], [], set())


def test_a_layer_on_which_another_stands_was_committed() -> None:
    made = plan(
        a=record(of=snapshot("a", "key", kind=Kind.ACTIVE)),
        b=record("a", of=snapshot("b", "above", "name", Kind.ACTIVE, created=2)),
    )
    assert [(each.info.name, each.info.kind) for each in made.snapshots] == [
        ("name", Kind.COMMITTED),
        ("above", Kind.ACTIVE),
    ]
    assert made.unnoted == {"a"}


def test_of_two_with_one_key_the_newer_one_counts() -> None:
    new = snapshot("a", "key", created=2)
    made = plan(b=record(of=snapshot("b", "key")), a=record(of=new))
    assert made.snapshots == [new]
    assert made.problems == ["layer b is left out: it is snapshot 'key', and so is a, which is newer"]


def test_what_stands_on_nothing_is_left_out_with_all_above_it() -> None:
    there = snapshot("a", "there")
    made = plan(
        a=record(of=there),
        b=record("gone", of=snapshot("b", "orphan", "nobody")),
        c=record("b", "gone", of=snapshot("c", "above", "orphan")),
    )
    assert made.snapshots == [there]
    assert made.problems == [
        "layer b is left out: the parent 'nobody' of snapshot 'orphan' is not there",
        "layer c is left out: the parent 'orphan' of snapshot 'above' is not there",
    ]


def test_a_parent_must_be_made_of_the_layers_that_are_below() -> None:
    made = plan(
        a=record(of=snapshot("a", "parent", created=1)),
        b=record("other", of=snapshot("b", "child", "parent", created=2)),
    )
    [line] = made.problems
    assert line == "layer b is left out: snapshot 'child' stands on other layers than its parent 'parent' is made of"


def test_nothing_stands_on_an_active_one() -> None:
    made = rebuilding.plan(
        {"a": record(of=snapshot("a", "active", kind=Kind.ACTIVE))},
        {"b": Note("x", CHAINS[1], note.written(snapshot("b", "told", "active")))},
        {"x": CHAINS[1]},
    )
    assert [each.layer for each in made.snapshots] == ["a"]
    assert made.problems == ["layer b is left out: the parent 'active' of snapshot 'told' is not there"]


@pytest.mark.parametrize("listed", [True, False])
def test_what_is_shared_has_its_chain(listed: bool) -> None:
    labelled = snapshot("a", "name")
    labelled = labelled._replace(info=labelled.info._replace(labels={chains.REF_LABEL: CHAINS[1]}))
    made = rebuilding.plan({"a": record(of=labelled, shared=True)}, {}, {"a": CHAINS[1]} if listed else {})
    assert [(each.chain, each.shared) for each in made.snapshots] == [(CHAINS[1], listed)]


@pytest.mark.parametrize("fields", [{"key": "x"}, {"key": 1, "kind": "active", "created": 1}, {"kind": "view"}])
def test_a_note_that_nobody_wrote_is_said(fields: dict[str, object]) -> None:
    made = plan(a=Record(HERE, (), snapshot=fields))
    assert made.snapshots == []
    [line] = made.problems
    assert line.startswith("layer a is left out: the note of a is ")
    assert line.endswith(", which no driver of this version wrote")


# -- with a pool -----------------------------------------------------------------------------------


@pytest.fixture
def start(pool: FakePool, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts the snapshotter of a root; each root is another host for the pool."""
    monkeypatch.setattr(sharing, "OFFER_SECONDS", 0.0)
    monkeypatch.setattr(notes, "NOTE_SECONDS", 0.0)
    monkeypatch.setattr(shared_layers, "LISTED_SECONDS", 0.0)
    monkeypatch.setattr(reaper, "REMOVE_SECONDS", 0.0)
    with processes() as made:

        def begin(root: str = "a") -> Process:
            made.append(Process(pool, tmp_path / root))
            return made[-1]

        yield begin


def settle(process: Process) -> None:
    """Wait until the pool has notes of all."""
    wait_until(lambda: not process.store.unnoted() and not process.store.unoffered(), "all is noted")


def lost(process: Process) -> None:
    """End a process, and lose its database."""
    settle(process)
    process.end()
    process.store.close()
    for path in process.life.path.glob("snapshots.db*"):
        path.unlink()


def unpack(process: Process, number: int, parent: str = "") -> str:
    """Unpack a layer of an image, or find it; the name of its snapshot."""
    key, name, labels = f"extract-1-a {CHAINS[number]}", CHAINS[number], {chains.REF_LABEL: CHAINS[number]}
    try:
        process.snapshotter.prepare(Kind.ACTIVE, key, parent, labels)
    except AlreadyExists:
        return next(info.name for info in process.store.walk(f'labels."{chains.REF_LABEL}"=={CHAINS[number]}'))
    process.snapshotter.commit(key, name, labels)
    wait_until(lambda: process.store.find(name).shared, "it is offered")
    process.life.unmap()
    return name


def again(process: Process, start: Start, root: str) -> Process:
    """Lose the database of a process: the next one has the same, but for the view."""
    before = list(process.store.walk())
    process.snapshotter.prepare(Kind.VIEW, "view", before[0].name, {})
    lost(process)
    after = start(root)
    assert sorted(after.store.walk()) == sorted(before)
    assert (after.problems, after.store.unnoted()) == ([], [])
    assert {each.layer for each in after.store.told()} == after.told.names()
    return after


def test_all_but_views_is_there_again(start: Start, pool: FakePool) -> None:
    a = start("a")
    top = unpack(a, 2, unpack(a, 1))
    a.commit("imported", top)
    a.prepare("container", "imported", label="value")
    a.snapshotter.update("imported", {"later": "x"}, ["labels.later"])
    after = again(a, start, "a")
    assert [after.store.find(name).shared for name in (CHAINS[1], CHAINS[2], "imported")] == [True, True, False]
    for name in ("container", "imported", CHAINS[2], CHAINS[1]):
        after.snapshotter.remove(name)
    after.life.unmap()
    wait_until(lambda: not [name for name in pool.images if "base" not in name], "nothing is left")


def test_what_was_told_is_there_again(start: Start) -> None:
    a, b = start("a"), start("b")
    unpack(a, 2, unpack(a, 1))
    unpack(b, 2, unpack(b, 1))
    images = {each.layer: each.image for each in b.store.told()}
    after = again(b, start, "b")
    assert {each.layer: each.image for each in after.store.told()} == images
    assert len(images) == 2


def test_what_another_host_uses_and_this_one_gave_back_stays_theirs(start: Start, pool: FakePool) -> None:
    a, b = start("a"), start("b")
    name = unpack(a, 1)
    layer = a.layer(name)
    unpack(b, 1)
    a.snapshotter.remove(name)
    wait_until(lambda: not a.store.leftovers(), "it is given back")
    lost(a)
    again = start("a")
    assert list(again.store.walk()) == []
    assert has_image(pool, layer)


def test_what_is_removed_here_does_not_come_back(start: Start, pool: FakePool) -> None:
    a = start("a")
    layer = a.commit("name")
    settle(a)
    a.life.removals.note(layer)
    lost(a)
    assert list(start("a").store.walk()) == []


def test_what_was_told_is_forgotten_with_it(start: Start) -> None:
    a, b = start("a"), start("b")
    unpack(a, 1)
    name = unpack(b, 1)
    settle(b)
    assert b.told.names()
    b.snapshotter.remove(name)
    wait_until(lambda: not b.store.leftovers(), "it is given back")
    assert not b.told.names()


def test_a_clone_of_a_machine_gets_nothing_of_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    a = start("a")
    a.commit("name")
    lost(a)
    here = Owner.here
    monkeypatch.setattr(Owner, "here", staticmethod(lambda home: Owner("clone", here(home).machine, home)))
    assert list(start("a").store.walk()) == []


def test_a_root_of_nobody_is_whole_and_empty(start: Start) -> None:
    process = start("a")
    assert process.store.is_whole()
    assert os.path.exists(process.life.path / "snapshots.db")
