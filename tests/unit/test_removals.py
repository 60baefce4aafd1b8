"""removals.py: what Docker was told is removed is remembered by this host until it is gone, whoever ends in between."""

from __future__ import annotations

import os

import pytest
from unit.fake_host import FakeHost
from unit.fakes import FakePool, timed_out
from unit.layered import Life, again, nothing_left

from host.command import CommandTimeout
from mapped.unmounting import LayerBusy


def test_nothing_is_removed_at_first(life: Life) -> None:
    life.learn()
    assert (list(life.removals), len(life.removals), "a" in life.removals) == ([], 0, False)


def test_what_is_noted_is_known_in_the_order_of_names(life: Life) -> None:
    for layer in "cab":
        life.removals.note(layer)
    life.removals.note("a")
    assert (list(life.removals), len(life.removals)) == (["a", "b", "c"], 3)
    assert "b" in life.removals
    assert 7 not in life.removals


def test_one_may_be_forgotten_while_they_are_looked_at(life: Life) -> None:
    """As they go in the background."""
    for layer in "abc":
        life.removals.note(layer)
    seen = []
    for layer in life.removals:
        seen.append(layer)
        life.removals.forget("b")
    assert seen == ["a", "b", "c"]


def test_the_next_life_knows_it(life: Life, host: FakeHost, pool: FakePool) -> None:
    """Of one that was never mapped, and of one that is."""
    life.get("a")
    life.put("a")
    life.removals.note("a")
    life.removals.note("b")
    again = Life(life.path, pool)
    assert list(again.removals) == []
    # Somebody else sees to it that they go.
    assert again.learn() == []
    assert list(again.removals) == ["a", "b"]
    for layer in "ab":
        again.unmap(layer)
        again.removals.forget(layer)
    assert nothing_left(again, host)
    last = Life(life.path, pool)
    last.learn()
    assert list(last.removals) == []


def test_a_note_stays_while_the_layer_is_unmapped(life: Life) -> None:
    life.get("a")
    life.put("a")
    life.removals.note("a")
    life.unmap("a")
    assert os.listdir(life.paths.directory("a")) == ["removed"]
    life.removals.forget("a")
    assert not os.path.exists(life.paths.directory("a"))


def test_a_removed_layer_that_a_container_has_is_not_unmapped(life: Life, host: FakeHost, pool: FakePool) -> None:
    """It goes with the container."""
    view = host.run_container(life.get("a"))
    life.put("a")
    life.removals.note("a")
    with pytest.raises(LayerBusy, match=r"process 1 \(sh\)"):
        life.unmap("a")
    again = Life(life.path, pool)
    again.learn()
    with pytest.raises(LayerBusy, match=r"process 1 \(sh\)"):
        again.unmap("a")
    del host.elsewhere[view]
    again.unmap("a")
    again.removals.forget("a")
    assert nothing_left(again, host)


def test_a_removed_layer_that_others_stand_on_is_mapped_for_them_still(
    life: Life, host: FakeHost, pool: FakePool
) -> None:
    """Its image is there until they are gone, too."""
    pool.add_layer("child", "a")
    life.removals.note("a")
    life.get("child")
    again = Life(life.path, pool)
    again.learn()
    assert again.systems.users("a") == {"child/docker"}
    again.unmap("a")
    assert again.devices.device("a")
    again.put("child")
    again.unmap("child", "a")
    again.removals.forget("a")
    assert nothing_left(again, host)


def test_forgetting_what_was_never_noted(life: Life) -> None:
    life.removals.forget("a")
    assert list(life.removals) == []


def test_what_lies_beside_the_layers_is_no_removal(life: Life) -> None:
    (life.path / "mnt" / "file").write_text("", encoding="ascii")
    (life.path / "mnt" / "a").mkdir()
    (life.path / "mnt" / "a" / "removed").write_text("", encoding="ascii")
    life.removals.learn()
    assert list(life.removals) == []


@pytest.mark.usefixtures("stack")
def test_a_new_life_goes_on_with_a_removal_whose_unmount_hung(life: Life, host: FakeHost) -> None:
    life.get("c")
    host.fails["unmount"] = [timed_out()]
    with pytest.raises(CommandTimeout):
        life.views.discard("c")
    life.removals.note("c")
    new = again(life)
    # The reaper lets it go.
    assert "c" not in new.learn()
    assert "c" not in new.settle()
    new.unmap("c")
    assert host.views() == {}
    new.removals.forget("c")
    new.unmap()
    assert nothing_left(new, host)
