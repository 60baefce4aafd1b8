"""store.py: the rules of snapshots, as containerd's suite asks for them (snapshots/testsuite); a crash at any step."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from plugin_client import REPO

from snapshots.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, StoreFailed, StoreUnusable
from snapshots.info import Info, Kind, Snapshot, State, Usage, stored_labels
from snapshots.store import FILE, LAYER_LENGTH, Store

NOTHING = Usage(0, 0)
# A key of containerd's: namespace, number, key.
KEY = "default/1/extract-753446252-d9g0 sha256:f25a"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "root"))
    yield made
    made.close()


def hurry(store: Store) -> None:
    """Do not wait for the disk, where a test makes thousands."""
    store._database._writer.execute("PRAGMA synchronous = OFF")


def prepare(
    store: Store, key: str, parent: str = "", labels: dict[str, str] | None = None, kind: Kind = Kind.ACTIVE
) -> Snapshot:
    return store.prepared(store.begin_prepare(kind, key, parent, labels or {}).layer)


def view(store: Store, key: str, parent: str = "", labels: dict[str, str] | None = None) -> Snapshot:
    return prepare(store, key, parent, labels, Kind.VIEW)


def commit(store: Store, name: str, key: str, labels: dict[str, str] | None = None, usage: Usage = NOTHING) -> Snapshot:
    return store.committed(store.begin_commit(key, name, labels or {}).layer, usage)


def remove(store: Store, key: str) -> None:
    store.removed(store.begin_remove(key).layer)


def names(store: Store, *wanted: str) -> list[str]:
    return [info.name for info in store.walk(*wanted)]


# -- containerd's suite ----------------------------------------------------------------------------


def test_basic(store: Store) -> None:
    prepare(store, "preparing")
    commit(store, "committed", "preparing")
    one = store.stat("committed")
    assert (one.parent, one.kind) == ("", Kind.COMMITTED)
    with pytest.raises(NotFound):
        store.stat("preparing")
    prepare(store, "next", "committed")
    assert store.stat("next")[:3] == ("next", "committed", Kind.ACTIVE)
    commit(store, "committed-next", "next")
    two = store.stat("committed-next")
    assert (two.parent, two.kind) == ("committed", Kind.COMMITTED)
    assert list(store.walk()) == [one, two]
    view(store, "nextnext", "committed-next")
    remove(store, "nextnext")
    with pytest.raises(FailedPrecondition, match="remove"):
        store.begin_remove("committed")
    remove(store, "committed-next")
    remove(store, "committed")
    assert list(store.walk()) == []


def test_stat_of_active_and_committed(store: Store) -> None:
    prepare(store, KEY)
    assert store.stat(KEY)[:3] == (KEY, "", Kind.ACTIVE)
    commit(store, "committed", KEY)
    assert store.stat("committed")[:3] == ("committed", "", Kind.COMMITTED)


def test_transitivity(store: Store) -> None:
    prepare(store, "preparing")
    commit(store, "a", "preparing")
    prepare(store, "next", "a")
    commit(store, "b", "next")
    assert store.stat("a").parent == ""
    assert store.stat("b").parent == "a"
    assert store.stat(store.stat("b").parent).parent == ""


def test_a_key_serves_once(store: Store) -> None:
    """PreareViewFailingtest, and the one space of keys."""
    prepare(store, "preparing")
    commit(store, "a", "preparing")
    prepare(store, "active", "a")
    view(store, "view", "a")
    for key in ("active", "view", "a"):
        for kind in (Kind.ACTIVE, Kind.VIEW):
            with pytest.raises(AlreadyExists, match=f"'{key}' exists already"):
                store.begin_prepare(kind, key, "a", {})
    for name in ("active", "view", "a"):
        with pytest.raises(AlreadyExists):
            store.begin_commit("active", name, {})
    assert store.stat("active").kind == Kind.ACTIVE
    assert store.leftovers() == []


def base(store: Store) -> None:
    prepare(store, "c1-a")
    commit(store, "c1", "c1-a")
    prepare(store, "c2-a", "c1")
    commit(store, "c2", "c2-a")
    prepare(store, "a1", "c2")
    prepare(store, "a2")
    view(store, "v1", "c2")
    view(store, "v2")


def test_update(store: Store) -> None:
    first = time.time_ns()
    base(store)
    second = time.time_ns()
    kinds = {"c": Kind.COMMITTED, "a": Kind.ACTIVE, "v": Kind.VIEW}
    parents = {"c2": "c1", "a1": "c2", "v1": "c2"}
    for name in ("c1", "c2", "a1", "a2", "v1", "v2"):
        info = store.stat(name)
        assert first <= info.created == info.updated <= second
        assert info[:3] == (name, parents.get(name, ""), kinds[name[0]])
        before = time.time_ns()
        updated = store.update(name, {"l1": "v1", "l2": "v2", "l3": "v3", "root": "r"})
        assert before <= updated.updated <= time.time_ns()
        assert updated == info._replace(
            updated=updated.updated, labels={"l1": "v1", "l2": "v2", "l3": "v3", "root": "r"}
        )
        assert store.stat(name) == updated
        updated = store.update(name, {"l1": "updated", "l4": "v4"}, ["labels.l1", "labels.l2"])
        assert updated.labels == {"l1": "updated", "l3": "v3", "root": "r"}
        updated = store.update(name, {"l4": "v4", "root": "r"}, ["labels"])
        assert updated.labels == {"l4": "v4", "root": "r"}
        with pytest.raises(InvalidArgument, match="'parent'"):
            store.update(name, {"l4": "other"}, ["labels", "parent"])
        assert store.stat(name) == updated


def test_remove_and_use_again(store: Store) -> None:
    prepare(store, "committed-a")
    commit(store, "committed-1", "committed-a")
    prepare(store, "reuse-1", "committed-1")
    remove(store, "reuse-1")
    view(store, "reuse-1", "committed-1")
    remove(store, "reuse-1")
    prepare(store, "reuse-1")
    remove(store, "committed-1")
    commit(store, "committed-1", "reuse-1")
    assert names(store) == ["committed-1"]


def test_remove_from_the_middle(store: Store) -> None:
    base(store)
    with pytest.raises(FailedPrecondition, match=r"cannot remove snapshot 'c2': 'a1' and 1 more stands on it"):
        store.begin_remove("c2")
    for name in ("a1", "v1", "c2", "c1"):
        remove(store, name)
    assert names(store) == ["a2", "v2"]


ROOT = "containerd.io/gc.root"
WALKED = 'labels."containerd.io/gc.root"==check-walk'


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ((WALKED,), "a-np p a v p-wl a-wl v-wl a-np-wl"),
        ((f"kind==active,{WALKED}",), "a-np a a-wl a-np-wl"),
        ((f"kind==view,{WALKED}",), "v v-wl"),
        ((f"kind==committed,{WALKED}",), "p p-wl"),
        (("name==p", "name==a-np-wl"), "p a-np-wl"),
        (("name==a-wl,labels.l",), "a-wl"),
        (("parent==p",), "a v"),
        ((f'parent!="",{WALKED}',), "a v a-wl v-wl"),
        (("labels.l",), "p-wl a-wl v-wl a-np-wl"),
        (("labels.l==2",), "a-wl a-np-wl"),
    ],
)
def test_walk(store: Store, wanted: tuple[str, ...], found: str) -> None:
    def marked(value: str) -> dict[str, str]:
        return {"l": value, ROOT: "check-walk"}

    opt = {ROOT: "check-walk"}
    prepare(store, "a-np", labels=opt)
    prepare(store, "p-tmp", labels=opt)
    commit(store, "p", "p-tmp", opt)
    prepare(store, "a", "p", opt)
    view(store, "v", "p", opt)
    prepare(store, "p-wl-tmp", labels=opt)
    commit(store, "p-wl", "p-wl-tmp", marked("1"))
    prepare(store, "a-wl", "p-wl", marked("2"))
    view(store, "v-wl", "p-wl", marked("3"))
    prepare(store, "a-np-wl", labels=marked("2"))
    assert names(store, *wanted) == found.split()


def test_stat_in_walk(store: Store) -> None:
    base(store)
    assert [store.stat(info.name) for info in store.walk()] == list(store.walk())


# -- the rules beside it ---------------------------------------------------------------------------


def test_what_is_unknown(store: Store) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.stat("x"),
        lambda: store.find("x"),
        lambda: store.children("x"),
        lambda: store.update("x", {}),
        lambda: store.update("x", {}, ["parent"]),
        lambda: store.begin_remove("x"),
        lambda: store.begin_commit("x", "y", {}),
        lambda: store.begin_prepare(Kind.ACTIVE, "y", "x", {}),
        lambda: store.begin_prepare(Kind.VIEW, "y", "x", {}),
        lambda: store.prepared("x"),
        lambda: store.abandon("x"),
        lambda: store.committed("x", NOTHING),
        lambda: store.keep_active("x"),
        lambda: store.store_usage("x", NOTHING),
    ]
    for call in calls:
        with pytest.raises(NotFound, match="x"):
            call()
    store.removed("x")
    assert list(store.walk()) == []


def test_what_is_wrong(store: Store) -> None:
    prepare(store, "active")
    view(store, "view")
    for parent in ("active", "view"):
        with pytest.raises(InvalidArgument, match="is not committed"):
            store.begin_prepare(Kind.ACTIVE, "x", parent, {})
    with pytest.raises(InvalidArgument):
        store.begin_prepare(Kind.COMMITTED, "x", "", {})
    with pytest.raises(InvalidArgument):
        store.begin_prepare(Kind.ACTIVE, "", "", {})
    with pytest.raises(InvalidArgument):
        store.begin_commit("active", "", {})
    with pytest.raises(InvalidArgument, match="parse error"):
        store.walk("name=")  # at once, before the first one is taken
    commit(store, "committed", "active")
    for key in ("view", "committed"):
        with pytest.raises(FailedPrecondition, match="it is not active"):
            store.begin_commit(key, "x", {})
    assert store.leftovers() == []


def test_labels_are_not_inherited_and_none_is_empty(store: Store) -> None:
    prepare(store, "a", labels={"x": "1", "none": ""})
    assert store.stat("a").labels == {"x": "1"}
    commit(store, "c", "a", {"y": "2", "none": ""})
    assert store.stat("c").labels == {"y": "2"}


def test_commit_is_a_new_time_and_keeps_the_layer(store: Store) -> None:
    made = prepare(store, "a")
    before = time.time_ns()
    done = commit(store, "c", "a", usage=Usage(1 << 62, 7))
    assert before <= done.info.created == done.info.updated <= time.time_ns()
    assert done.layer == made.layer
    assert store.find("c") == done
    assert store.find("c").usage == (1 << 62, 7)


def test_usage_is_stored(store: Store) -> None:
    layer = prepare(store, "a").layer
    assert store.find("a").usage == NOTHING
    store.store_usage(layer, Usage(5, 6))
    assert store.find("a").usage == (5, 6)


def test_a_layer_has_a_name_that_we_make(store: Store) -> None:
    keys = ["../../etc", "a b@c:d/e", "x\0y", "new\nline", "\U0001f600", "k" * 100_000, "'; DROP TABLE snapshot"]
    layers = [prepare(store, key).layer for key in keys]
    assert len(set(layers)) == len(keys)
    assert [layer for layer in layers if not re.fullmatch(f"[a-z0-9]{{{LAYER_LENGTH}}}", layer)] == []
    assert names(store) == keys
    assert [store.find(key).layer for key in keys] == layers


def test_layers_go_down_to_the_root(store: Store) -> None:
    hurry(store)
    parent, layers = "", []
    for number in range(130):
        layers.append(prepare(store, "a", parent).layer)
        parent = commit(store, f"c{number}", "a").info.name
    top = view(store, "v", parent).layer
    assert store.images(top) == ["", *reversed(layers)]
    assert store.images(layers[0]) == layers[:1]


def test_children(store: Store) -> None:
    base(store)
    assert store.children("c1") == ["c2"]
    assert store.children("c2") == ["a1", "v1"]
    assert store.children("a1") == []
    store.begin_prepare(Kind.ACTIVE, "half", "c2", {})
    assert store.children("c2") == ["a1", "v1", "half"]


# -- states in between -----------------------------------------------------------------------------


def test_nobody_sees_what_is_being_prepared(store: Store) -> None:
    """stargz-snapshotter#188: a second caller was given a half-made snapshot."""
    commit(store, "c", prepare(store, "x").info.name)
    half = store.begin_prepare(Kind.ACTIVE, "half", "c", {})
    assert names(store) == ["c"]
    for look in (store.stat, store.find, store.children):
        with pytest.raises(NotFound):
            look("half")
    with pytest.raises(NotFound):
        store.update("half", {})
    with pytest.raises(AlreadyExists):
        store.begin_prepare(Kind.VIEW, "half", "", {})
    with pytest.raises(InvalidArgument):
        store.begin_prepare(Kind.VIEW, "v", "half", {})
    steps: list[Callable[[], object]] = [
        lambda: store.begin_remove("half"),
        lambda: store.begin_commit("half", "n", {}),
    ]
    for step in steps:
        with pytest.raises(FailedPrecondition, match="it is preparing"):
            step()
    with pytest.raises(FailedPrecondition, match="remove"):
        store.begin_remove("c")
    assert store.leftovers() == [half]
    assert store.prepared(half.layer).state == State.THERE
    assert names(store) == ["c", "half"]


def test_what_is_abandoned_has_yet_to_go(store: Store) -> None:
    half = store.begin_prepare(Kind.ACTIVE, "half", "", {})
    assert store.abandon(half.layer).state == State.REMOVING
    other = prepare(store, "half")
    assert [(one.layer, one.info.name) for one in store.leftovers()] == [(half.layer, "")]
    store.removed(half.layer)
    assert store.leftovers() == []
    assert store.find("half") == other


def test_what_is_being_committed_is_still_active(store: Store) -> None:
    made = prepare(store, "a", labels={"x": "1"})
    begun = store.begin_commit("a", "c", {"y": "2"})
    assert (begun.state, begun.target, begun.info) == (State.COMMITTING, "c", made.info)
    assert list(store.walk()) == [made.info]
    assert store.find("a") == begun
    assert store.images(made.layer) == [made.layer]
    with pytest.raises(NotFound):
        store.stat("c")
    for name in ("a", "c"):
        with pytest.raises(AlreadyExists):
            store.begin_prepare(Kind.ACTIVE, name, "", {})
    other = prepare(store, "b")
    with pytest.raises(AlreadyExists):
        store.begin_commit("b", "c", {})
    steps: list[Callable[[], object]] = [lambda: store.begin_remove("a"), lambda: store.begin_commit("a", "d", {})]
    for step in steps:
        with pytest.raises(FailedPrecondition, match="it is committing"):
            step()
    assert store.update("a", {"x": "2"}).labels == {"x": "2"}
    assert store.keep_active(made.layer).info.labels == {"x": "2"}
    assert store.leftovers() == []
    commit(store, "c", "b")
    assert store.find("c").layer == other.layer


def test_a_removed_layer_goes_later(store: Store) -> None:
    base(store)
    gone = [store.begin_remove(key) for key in ("a1", "v1", "c2", "c1")]
    assert names(store) == ["a2", "v2"]
    assert store.leftovers() == [gone[3], gone[2], gone[0], gone[1]]  # the oldest first
    base_again = prepare(store, "c1")
    for one in gone:
        store.removed(one.layer)
        store.removed(one.layer)
    assert store.leftovers() == []
    assert store.find("c1") == base_again


def test_a_step_is_of_its_state(store: Store) -> None:
    layer = prepare(store, "a").layer
    for step in (store.prepared, store.abandon, store.keep_active):
        with pytest.raises(NotFound):
            step(layer)
    with pytest.raises(NotFound):
        store.committed(layer, NOTHING)
    store.removed(layer)
    assert names(store) == ["a"]


# -- readers and writers at once -------------------------------------------------------------------


def test_a_walk_is_of_one_moment(store: Store) -> None:
    base(store)
    before = list(store.walk())
    walking = store.walk()
    seen = [next(walking)]
    prepare(store, "new")
    store.update("v2", {"x": "1"})
    remove(store, "a1")
    commit(store, "c3", "a2")
    assert [*seen, *walking] == before
    assert names(store) == ["c1", "c2", "c3", "v1", "v2", "new"]


def test_a_walk_that_is_left_holds_nothing(store: Store) -> None:
    base(store)
    for _ in range(10):
        walking = store.walk()
        next(walking)
        walking.close()
    assert len(store._database._idle) == 1
    with store._database.write() as database:
        database.execute("DELETE FROM snapshot WHERE key = 'v2'")
    # The log can be emptied: nobody reads what is before it.
    assert store._database._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)


def test_32_threads(store: Store) -> None:
    hurry(store)
    commit(store, "root", prepare(store, "x").info.name)
    together = threading.Barrier(32)

    def work(number: int) -> int:
        together.wait(30)
        won = 0
        for turn in range(10):
            key = f"{number}-{turn}"
            prepare(store, key, "root", {"n": str(number)})
            with contextlib.suppress(AlreadyExists):
                prepare(store, f"shared-{turn}", "root")
                won += 1
            assert store.stat(key).labels == {"n": str(number)}
            assert all(info.parent in ("", "root") for info in store.walk(f"labels.n=={number}"))
            commit(store, f"c-{key}", key)
            remove(store, f"c-{key}")
        return won

    with ThreadPoolExecutor(32) as threads:
        assert sum(threads.map(work, range(32))) == 10
    assert sorted(names(store)) == ["root", *(f"shared-{turn}" for turn in range(10))]
    assert store.leftovers() == []


# -- any order of calls ----------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "d"])
PARENTS = st.one_of(st.just(""), NAMES)
LABELS = st.dictionaries(st.sampled_from(["x", "y.z"]), st.sampled_from(["", "1", "2"]), max_size=2)
MASKS = st.lists(st.sampled_from(["labels", "labels.x", "labels.y.z", "labels.none", "parent"]), max_size=2)


@dataclass
class Remembered:
    """A snapshot of the model."""

    key: str
    parent: str
    kind: Kind
    labels: dict[str, str]
    state: State = State.PREPARING
    target: str = ""
    target_labels: dict[str, str] = field(default_factory=dict)


class Model(RuleBasedStateMachine):
    """The store does what a list in memory does by the rules of containerd, and forgets nothing in a restart."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.layers: dict[str, Remembered] = {}
        self.open()

    def open(self) -> None:
        self.store = Store(self.directory.name)
        hurry(self.store)

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    def of(self, key: str) -> Remembered | None:
        return next((one for one in self.layers.values() if one.key == key and key), None)

    def shown(self, key: str) -> Remembered | None:
        one = self.of(key)
        return one if one and one.state != State.PREPARING else None

    def in_use(self, key: str) -> bool:
        return any(key in (one.key, one.target) for one in self.layers.values())

    def layer_of(self, key: str) -> str:
        return next((layer for layer, one in self.layers.items() if one.key == key), "none")

    def wrong_prepare(self, key: str, parent: str) -> type[Exception] | None:
        below = self.of(parent)
        if parent and not below:
            return NotFound
        if below and below.kind != Kind.COMMITTED:
            return InvalidArgument
        return AlreadyExists if self.in_use(key) else None

    @rule(kind=st.sampled_from([Kind.ACTIVE, Kind.VIEW]), key=NAMES, parent=PARENTS, labels=LABELS)
    def begin_prepare(self, kind: Kind, key: str, parent: str, labels: dict[str, str]) -> None:
        with expected(self.wrong_prepare(key, parent)):
            layer = self.store.begin_prepare(kind, key, parent, labels).layer
            self.layers[layer] = Remembered(key, parent, kind, stored_labels(labels))

    @rule(key=NAMES, whole=st.booleans())
    def end_prepare(self, key: str, whole: bool) -> None:
        one = self.of(key)
        with expected(None if one and one.state == State.PREPARING else NotFound):
            (self.store.prepared if whole else self.store.abandon)(self.layer_of(key))
            assert one
            one.state = State.THERE
            if not whole:
                one.state, one.key, one.parent = State.REMOVING, "", ""

    @rule(key=NAMES, name=NAMES, labels=LABELS)
    def begin_commit(self, key: str, name: str, labels: dict[str, str]) -> None:
        one = self.of(key)
        wrong: type[Exception] | None = None
        if self.in_use(name):
            wrong = AlreadyExists
        elif not one:
            wrong = NotFound
        elif one.state != State.THERE or one.kind != Kind.ACTIVE:
            wrong = FailedPrecondition
        with expected(wrong):
            self.store.begin_commit(key, name, labels)
            assert one
            one.state, one.target, one.target_labels = State.COMMITTING, name, stored_labels(labels)

    @rule(key=NAMES, whole=st.booleans())
    def end_commit(self, key: str, whole: bool) -> None:
        one, layer = self.of(key), self.layer_of(key)
        with expected(None if one and one.state == State.COMMITTING else NotFound):
            if whole:
                self.store.committed(layer, NOTHING)
                assert one
                one.key, one.labels, one.kind = one.target, one.target_labels, Kind.COMMITTED
            else:
                self.store.keep_active(layer)
            assert one
            one.state, one.target = State.THERE, ""

    @rule(key=NAMES)
    def begin_remove(self, key: str) -> None:
        one = self.of(key)
        wrong: type[Exception] | None = None if one else NotFound
        if one and (one.state != State.THERE or any(other.parent == key for other in self.layers.values())):
            wrong = FailedPrecondition
        with expected(wrong):
            self.store.begin_remove(key)
            assert one
            one.state, one.key, one.parent = State.REMOVING, "", ""

    @rule()
    def removed(self) -> None:
        layer = next((layer for layer, one in self.layers.items() if one.state == State.REMOVING), "none")
        self.store.removed(layer)
        self.layers.pop(layer, None)

    @rule(key=NAMES, labels=LABELS, mask=MASKS)
    def update(self, key: str, labels: dict[str, str], mask: list[str]) -> None:
        one = self.shown(key)
        with expected(NotFound if not one else InvalidArgument if "parent" in mask else None):
            info = self.store.update(key, labels, mask)
            assert one
            one.labels = info.labels
            assert mask or info.labels == stored_labels(labels)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.open()

    @invariant()
    def it_is_all_there(self) -> None:
        shown = [(one.key, one.parent, one.kind, one.labels) for one in self.layers.values() if self.shown(one.key)]
        walked = list(self.store.walk())
        assert [(info.name, info.parent, info.kind, info.labels) for info in walked] == shown
        assert [self.store.stat(info.name) for info in walked] == walked
        left = [(layer, one.state, one.target) for layer, one in self.layers.items() if one.state != State.THERE]
        assert [(one.layer, one.state, one.target) for one in self.store.leftovers()] == left


@contextlib.contextmanager
def expected(wrong: type[Exception] | None) -> Iterator[None]:
    """The block raises this error, or none."""
    with pytest.raises(wrong) if wrong else contextlib.nullcontext():
        yield


TestAnyOrder = Model.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


# -- crashes and disks -----------------------------------------------------------------------------

# A life of snapshots. It is killed when SQLite begins the statement of this number: between steps, and within them.
LIFE = """
import os, signal, sys
from snapshots.info import Kind, Usage
from snapshots.store import Store
store, left = Store(sys.argv[1]), int(sys.argv[2])
def count(statement):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
store._database._writer.set_trace_callback(count)
def done(what):
    print(what, flush=True)
a = store.begin_prepare(Kind.ACTIVE, "a", "", {"l": "1"}); done("begin_prepare a")
store.prepared(a.layer); done("prepared a")
store.begin_commit("a", "c", {"l": "2"}); done("begin_commit a")
store.committed(a.layer, Usage(1, 2)); done("committed c")
b = store.begin_prepare(Kind.ACTIVE, "b", "c", {}); done("begin_prepare b")
store.prepared(b.layer); done("prepared b")
store.update("b", {"l": "3"}); done("update b")
store.begin_remove("b"); done("begin_remove b")
store.removed(b.layer); done("removed b")
h = store.begin_prepare(Kind.ACTIVE, "h", "c", {}); done("begin_prepare h")
store.abandon(h.layer); done("abandon h")
store.removed(h.layer); done("removed h")
store.begin_remove("c"); done("begin_remove c")
store.removed(a.layer); done("removed c")
"""
# What there is after each step: (name, labels) of what is shown, (name, target, state) of what is not ended.
C = ("c", {"l": "2"})
AFTER = {
    "": ([], []),
    "begin_prepare a": ([], [("a", "", State.PREPARING)]),
    "prepared a": ([("a", {"l": "1"})], []),
    "begin_commit a": ([("a", {"l": "1"})], [("a", "c", State.COMMITTING)]),
    "committed c": ([C], []),
    "begin_prepare b": ([C], [("b", "", State.PREPARING)]),
    "prepared b": ([C, ("b", {})], []),
    "update b": ([C, ("b", {"l": "3"})], []),
    "begin_remove b": ([C], [("", "", State.REMOVING)]),
    "removed b": ([C], []),
    "begin_prepare h": ([C], [("h", "", State.PREPARING)]),
    "abandon h": ([C], [("", "", State.REMOVING)]),
    "removed h": ([C], []),
    "begin_remove c": ([], [("", "", State.REMOVING)]),
    "removed c": ([], []),
}


def life(root: Path, kill_at: int) -> str:
    """Live until the statement; return the last step that the process told of."""
    process = subprocess.run(
        [sys.executable, "-c", LIFE, str(root), str(kill_at)], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert process.returncode in (0, -signal.SIGKILL), process.stderr
    if process.returncode == 0:
        return "ended"
    return (["", *process.stdout.splitlines()])[-1]


def end_what_was_left(store: Store) -> None:
    """What a start does: the layers are made and removed by others."""
    for one in store.leftovers():
        if one.state == State.PREPARING:
            store.abandon(one.layer)
        elif one.state == State.COMMITTING:
            store.keep_active(one.layer)
    for one in store.leftovers():
        assert one.state == State.REMOVING
        store.removed(one.layer)


def test_killed_at_every_step(tmp_path: Path) -> None:
    steps, seen = list(AFTER), set()
    for kill_at in range(1, 200):
        root = tmp_path / str(kill_at)
        last = life(root, kill_at)
        if last == "ended":
            break
        store = Store(str(root))
        shown = [(info.name, info.labels) for info in store.walk()]
        left = [(one.info.name, one.target, one.state) for one in store.leftovers()]
        # The step that was told is there. The next one is there wholly, or not at all.
        both = [last, *steps[steps.index(last) + 1 :][:1]]
        found = [step for step in both if AFTER[step] == (shown, left)]
        assert found, (kill_at, last, shown, left)
        seen.add(found[0])
        end_what_was_left(store)
        for key in ("a", "b", "h"):
            if key not in names(store):
                prepare(store, key)
        store.close()
    else:
        pytest.fail("it never ended")
    print(f"killed at {kill_at - 1} statements of {len(steps) - 1} steps")
    assert seen >= set(steps[:-1])


def test_a_restart_finds_all(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    base(store)
    half = store.begin_prepare(Kind.VIEW, "half", "c1", {"x": "1"})
    before = list(store.walk())
    store.close()
    store = Store(str(tmp_path))
    assert list(store.walk()) == before
    assert store.leftovers() == [half]


def test_a_full_disk(store: Store) -> None:
    base(store)
    before = list(store.walk())
    store._database._writer.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StoreFailed, match="full"):
        prepare(store, "x" * 100_000)
    with pytest.raises(StoreFailed, match="full"):
        store.update("a1", {"x": "y" * 100_000})
    assert list(store.walk()) == before
    assert store.leftovers() == []
    # The file has room for that; on a disk that is wholly full the log has none, and a Remove fails as well.
    remove(store, "a1")
    assert "a1" not in names(store)


def test_labels_that_are_damaged(store: Store) -> None:
    prepare(store, "a")
    with store._database.write() as database:
        database.execute("UPDATE snapshot SET labels = '{'")
    with pytest.raises(StoreUnusable, match=f"{FILE} is damaged at the layer"):
        store.stat("a")


def test_the_directory_is_made_for_its_owner_only(tmp_path: Path) -> None:
    Store(str(tmp_path / "a" / "b")).close()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


# -- how fast --------------------------------------------------------------------------------------


def test_how_fast_with_10000(store: Store) -> None:
    """Printed only: what a Stat, a List and a Prepare take (`pytest -s`)."""
    begin = time.perf_counter()
    with store._database.write() as database:
        database.executemany(
            "INSERT INTO snapshot (key, parent, kind, state, layer, labels, created, updated)"
            " VALUES (?, ?, ?, 2, ?, ?, 1, 1)",
            (
                (
                    f"default/{number}/sha256:{number:064x}",
                    number if number % 100 else None,
                    3 if number % 100 < 99 else 2,
                    f"{number:020d}",
                    json.dumps({"containerd.io/snapshot.ref": f"sha256:{number:064x}", "number": str(number % 7)}),
                )
                for number in range(10_000)
            ),
        )
    print(f"\nmade 10,000: {time.perf_counter() - begin:.2f} s")

    def timed(what: str, work: Callable[[int], object], times: int) -> None:
        taken = []
        for turn in range(times):
            begin = time.perf_counter()
            work(turn)
            taken.append(1000 * (time.perf_counter() - begin))
        print(f"{what}: {statistics.median(taken):.3f} ms, at the most {max(taken):.3f} ms")

    def key(number: int) -> str:
        return f"default/{number}/sha256:{number:064x}"

    ref = 'labels."containerd.io/snapshot.ref"==sha256:x,parent==y'
    timed("stat", lambda turn: store.stat(key(7 * turn)), 1000)
    timed("layers, of 99 below", lambda turn: store.images(store.find(key(100 * turn + 99)).layer), 100)
    timed("list all", lambda _: list(store.walk()), 5)
    timed("list by snapshot.ref and parent", lambda _: list(store.walk(ref)), 5)
    timed("list by regular expression", lambda _: list(store.walk("name~=/sha256:0*1+$/")), 5)
    timed("prepare, both steps, on the disk", lambda turn: prepare(store, f"new {turn}"), 20)
    root = store._database.path.rpartition("/")[0]
    store.close()
    timed("open", lambda _: Store(root).close(), 5)


# -- what the pool tells ---------------------------------------------------------------------------


def test_a_new_store_is_whole_once_it_was_told_what_was_before(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert not store.is_whole()
    there = (State.THERE, NOTHING, "")
    below = Snapshot(Info("below", "", Kind.COMMITTED, 1, 2, {"a": "b"}), "l1", *there, "l1", "", False, NOTHING)
    top = Snapshot(Info("top", "below", Kind.ACTIVE, 3, 3, {}), "l2", *there, "l2", "", False, NOTHING)
    with pytest.raises(NotFound):
        store.restore([below, top._replace(info=top.info._replace(parent="nobody"))])
    assert (store.is_whole(), list(store.walk())) == (False, []), "all of it or nothing"
    store.restore([below, top], unnoted={"l2"})
    store.close()
    store = Store(str(tmp_path))
    assert (store.is_whole(), [store.find("below"), store.find("top")]) == (True, [below, top])
    assert store.unnoted() == [top]
    store.noted(top)
    assert store.unnoted() == []
    changed = store.update("top", {"x": "y"})
    store.noted(top)
    assert [each.info for each in store.unnoted()] == [changed], "it has changed since"
    store.close()
