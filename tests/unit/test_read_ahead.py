"""read_ahead.py: which layers are read ahead, and for how long they are kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plugin_client import wait_until
from unit.fake_host import FakeHost, refused
from unit.fakes import FakePool
from unit.layered import Life, nothing_left

from graph.read_ahead import ReadAhead
from host import command
from mapped.states import State


class Reads:
    """What is read ahead: layers, in turn. `hanging`: those that are read until nobody wants them."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.hanging: set[str] = set()
        self.given_up: list[str] = []

    def run_on(self, argv: tuple[str, ...], *, timeout: float, give_up: Callable[[], bool]) -> None:
        layer = Path(argv[-2]).parent.parent.name
        assert Path(argv[-2]).is_dir()
        self.begun.append(layer)
        if layer in self.hanging:
            wait_until(give_up, "nobody wants it")
            self.given_up.append(layer)
            raise command.CommandGivenUp(argv, None, "given up")


@pytest.fixture
def pool() -> FakePool:
    made = FakePool()
    made.add_base()
    return made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    made = Reads()
    monkeypatch.setattr(command, "run_on", made.run_on)
    return made


@pytest.fixture
def life(pool: FakePool, host: FakeHost, tmp_path: Path) -> Life:
    made = Life(tmp_path / "home", pool)
    for parent, layer in ((None, "a"), ("a", "b"), ("b", "c"), (None, "other")):
        made.layers.create(layer, parent, None)
        made.get(layer)
        made.put(layer)
    for layer in "abc":
        made.states.set(layer, State.FINISHED)
    made.unmap()
    return made


@pytest.fixture
def ahead(pool: FakePool, reads: Reads, tmp_path: Path, life: Life) -> Iterator[ReadAhead]:
    made = ReadAhead(life)
    yield made
    made.reading.end()
    wait_until(lambda: "reading layer" not in {thread.name for thread in threading.enumerate()}, "its threads ended")


def get(life: Life, ahead: ReadAhead, layer: str) -> None:
    """As Docker does to save it."""
    life.get(layer, finished=True)
    ahead.got(layer)


def users(life: Life, layer: str) -> Callable[[], bool]:
    return lambda: f"{layer}/ahead" in life.systems.users(layer)


def settled(ahead: ReadAhead) -> None:
    """All that was asked for is done."""
    for layer in "abc":
        assert ahead.reading.wait_for(layer, 10)


def is_read(reads: Reads, *layers: str) -> None:
    wait_until(lambda: reads.begun == [*layers], f"{layers} are read")


def test_a_walk_reads_the_next_layer_too(life: Life, ahead: ReadAhead, reads: Reads, host: FakeHost) -> None:
    get(life, ahead, "a")
    is_read(reads, "a", "b")
    wait_until(users(life, "b"), "it is kept until Docker gets it")
    life.put("a")
    get(life, ahead, "b")
    is_read(reads, "a", "b", "b", "c")
    life.put("b")
    wait_until(lambda: not users(life, "b")() and not users(life, "c")(), "what nobody came for is left")
    life.unmap()
    assert nothing_left(life, host)


def test_who_gets_one_layer_makes_no_walk(life: Life, ahead: ReadAhead, reads: Reads) -> None:
    get(life, ahead, "b")
    life.states.set("other", State.FINISHED)
    life.get("other", finished=True)
    ahead.got("other")
    wait_until(lambda: sorted(reads.begun) == ["b", "other"], "both are read")
    settled(ahead)
    assert len(reads.begun) == 2
    assert life.systems.users("c") == set()


def test_who_gets_them_from_above_makes_no_walk(life: Life, ahead: ReadAhead, reads: Reads) -> None:
    """As docker push does, several at once; the next one is one that it has had."""
    for layer in "cba":
        get(life, ahead, layer)
    settled(ahead)
    assert sorted(reads.begun) == ["a", "b", "c"]


@pytest.mark.parametrize("other", ["open", "two", "container"])
def test_a_layer_that_may_not_be_the_next(life: Life, ahead: ReadAhead, reads: Reads, other: str) -> None:
    if other == "open":
        life.states.set("b", State.OPEN)
    if other == "two":
        life.layers.create("d", "a", None)
        life.states.set("d", State.FINISHED)
    if other == "container":
        # Its layers are none; the image's is.
        life.layers.create("box-init", "a", None)
        life.layers.create("box", "box-init", None)
    get(life, ahead, "a")
    if other == "container":
        is_read(reads, "a", "b")
    else:
        settled(ahead)
        assert reads.begun == ["a"]


def test_reading_ends_with_the_put(life: Life, ahead: ReadAhead, reads: Reads, host: FakeHost) -> None:
    reads.hanging = {"a"}
    get(life, ahead, "a")
    is_read(reads, "a")
    life.put("a")
    wait_until(lambda: reads.given_up == ["a"], "it has ended")
    settled(ahead)
    assert reads.begun == ["a"]
    # It may not have died.
    assert ahead.hangs("a")
    assert not ahead.hangs("b")
    life.unmap()
    assert nothing_left(life, host)


def test_the_next_layer_is_removed(life: Life, ahead: ReadAhead, reads: Reads) -> None:
    reads.hanging = {"b"}
    get(life, ahead, "a")
    is_read(reads, "a", "b")
    life.removals.note("b")
    wait_until(lambda: reads.given_up == ["b"] and not users(life, "b")(), "nothing holds it")


def test_the_next_layer_cannot_be_mounted(life: Life, ahead: ReadAhead, reads: Reads, host: FakeHost) -> None:
    assert ahead.reading.pause(10)
    get(life, ahead, "a")
    host.fails["mount"] = [refused("bad superblock")] * 2
    ahead.reading.resume()
    wait_until(lambda: not host.fails["mount"], "it was tried")
    settled(ahead)
    assert reads.begun == ["a"]
    assert not users(life, "b")()


def test_nothing_is_kept_for_one_who_ends(life: Life, ahead: ReadAhead, reads: Reads) -> None:
    get(life, ahead, "a")
    is_read(reads, "a", "b")
    wait_until(users(life, "b"), "it is kept until Docker gets it")
    assert ahead.reading.pause(10)
    assert not users(life, "b")()


def test_a_layer_that_docker_reads_for_long_keeps_no_other(
    life: Life, ahead: ReadAhead, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph.read_ahead.KEPT_SECONDS", 0.0)
    get(life, ahead, "a")
    is_read(reads, "a", "b")
    settled(ahead)
    assert not users(life, "b")()
