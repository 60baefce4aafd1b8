"""family.py: who stands on a layer, whoever made it, and however the pool changes while it is looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
from unit.fakes import failed

import rbdcli
from images import family
from images.family import Family, parents_of


class Pool:
    """Layers and their parents; what was asked. `meanwhile[QUESTION]` is done once, after the answer is known."""

    def __init__(self) -> None:
        self.parents: dict[str, Sequence[str] | None] = {}
        self.lists = 0
        self.asked: list[str] = []
        self.meanwhile: dict[str, Callable[[], None]] = {}
        self.fails: dict[str, Exception] = {}

    def names(self) -> list[str]:
        self.lists += 1
        said = list(self.parents)
        self._happen("names")
        return said

    def ask(self, layer: str) -> Sequence[str] | None:
        self.asked.append(layer)
        said = self.parents.get(layer)
        self._happen(layer)
        return said

    def _happen(self, question: str) -> None:
        if question in self.fails:
            raise self.fails.pop(question)
        self.meanwhile.pop(question, lambda: None)()


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def made(pool: Pool) -> Family:
    return Family(pool.names, pool.ask)


@pytest.fixture
def outdated(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was listed is out of date at once."""
    monkeypatch.setattr(family, "LISTED_SECONDS", 0.0)


# -- what is known -------------------------------------------------------------------------------


def test_what_others_made_is_looked_for_once(pool: Pool, made: Family) -> None:
    pool.parents = {"a": (), "b": ("a",), "c": ("b", "a")}
    assert made.needing("a") == ["b", "c"]
    assert made.needing("b") == ["c"]
    assert made.needing("c") == []
    assert (pool.lists, sorted(pool.asked)) == (1, ["a", "b", "c"])


def test_what_we_made_is_known_at_once(pool: Pool, made: Family) -> None:
    assert made.needing("a") == []
    made.add("b", ("a",))
    assert made.needing("a") == ["b"]
    made.drop("b")
    assert made.needing("a") == []
    assert pool.lists == 1


@pytest.mark.usefixtures("outdated")
def test_what_others_make_later_is_found_and_nothing_asked_twice(pool: Pool, made: Family) -> None:
    """A takeover brings the layers of another host."""
    pool.parents = {"a": (), "b": ("a",)}
    made.add("ours", ("a",))
    pool.parents["ours"] = ("a",)
    assert made.needing("a") == ["b", "ours"]
    pool.parents["c"] = ("a",)
    assert made.needing("a") == ["b", "c", "ours"]
    assert sorted(pool.asked) == ["a", "b", "c"]


@pytest.mark.usefixtures("outdated")
def test_what_has_gone_is_forgotten(pool: Pool, made: Family) -> None:
    pool.parents = {"a": (), "b": ("a",)}
    assert made.needing("a") == ["b"]
    del pool.parents["b"]
    assert made.needing("a") == []


@pytest.mark.usefixtures("outdated")
def test_one_that_was_never_made_to_its_end_stands_on_nothing_until_it_says_so(pool: Pool, made: Family) -> None:
    pool.parents = {"a": (), "half": None}
    assert made.needing("a") == []
    pool.parents["half"] = ("a",)
    assert made.needing("a") == ["half"]


# -- what changes while the list is made ----------------------------------------------------------


@pytest.mark.usefixtures("outdated")
def test_one_that_is_made_meanwhile_is_not_forgotten(pool: Pool, made: Family) -> None:
    """The list was asked for before."""
    pool.parents = {"a": ()}
    pool.meanwhile["names"] = lambda: made.add("b", ("a",))
    assert made.needing("a") == ["b"]


@pytest.mark.parametrize("when", ["names", "b"])
def test_one_that_goes_meanwhile_does_not_stay(pool: Pool, made: Family, when: str) -> None:
    """Else it would keep what it stood on, although nothing does any more."""
    pool.parents = {"a": (), "b": ("a",)}
    pool.meanwhile[when] = lambda: made.drop("b")
    assert made.needing("a") == []
    assert pool.lists == 1


@pytest.mark.parametrize("when", ["names", "b"])
def test_one_that_is_made_anew_meanwhile_stands_on_what_it_was_made_on(pool: Pool, made: Family, when: str) -> None:
    pool.parents = {"a": (), "b": ("a",)}

    def anew() -> None:
        made.drop("b")
        made.add("b", ("c",))

    pool.meanwhile[when] = anew
    assert (made.needing("a"), made.needing("c")) == ([], ["b"])


@pytest.mark.usefixtures("outdated")
def test_one_that_went_while_a_list_was_made_is_found_by_the_next_if_it_is_there(pool: Pool, made: Family) -> None:
    """A removal that failed, and an image that another host has made by that name."""
    pool.parents = {"a": (), "b": ("a",)}
    pool.meanwhile["b"] = lambda: made.drop("b")
    assert made.needing("a") == []
    assert made.needing("a") == ["b"]


# -- what cannot be told -------------------------------------------------------------------------


@pytest.mark.parametrize("question", ["names", "b"])
def test_a_list_that_fails_tells_nothing(pool: Pool, made: Family, question: str) -> None:
    """Least of all that nobody stands on it."""
    pool.parents = {"a": (), "b": ("a",), "c": ("a",)}
    for _ in range(2):
        pool.fails[question] = failed(rbdcli.RbdError, 110)
        with pytest.raises(rbdcli.RbdError):
            made.needing("a")
    assert made.needing("a") == ["b", "c"]


def test_what_was_learned_until_one_does_not_answer_is_kept(pool: Pool, made: Family) -> None:
    """A thousand layers of other hosts are not asked for again and again, since one of them does not answer."""
    pool.parents = {"a": (), **{f"layer{at}": ("a",) for at in range(1000)}}
    tries = 50
    for _ in range(tries):
        pool.fails["layer0"] = failed(rbdcli.RbdError, 110)
        with pytest.raises(rbdcli.RbdError):
            made.needing("a")
    assert len(made.needing("a")) == 1000
    # But for those that are asked for at the same time.
    assert len([layer for layer in pool.asked if layer != "layer0"]) < 1001 + 8 * tries


def test_who_asks_while_a_list_is_made_waits_for_it(pool: Pool, made: Family) -> None:
    pool.parents = {"a": (), "b": ("a",)}
    go, said = threading.Event(), list[list[str]]()

    def wait() -> None:
        assert go.wait(300)

    pool.meanwhile["names"] = wait
    threads = [threading.Thread(target=lambda: said.append(made.needing("a"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    threads[-1].join(0.1)
    assert said == []
    go.set()
    for thread in threads:
        thread.join(60)
    assert (said, pool.lists) == ([["b"]] * 4, 1)


def test_the_parents_of_many_are_asked_for_at_once() -> None:
    """And of one that is gone nothing is said."""
    together = threading.Barrier(4, timeout=300)

    def ask(layer: str) -> Sequence[str] | None:
        together.wait()
        return None if layer == "gone" else (layer.upper(),)

    assert dict(parents_of(["a", "b", "c", "gone"], ask)) == {"a": ("A",), "b": ("B",), "c": ("C",)}
