"""What tree asks the pool for, what it makes of the answers, and that what goes meanwhile is left out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from unit.fakes import FakePool, failed, missing, timed_out

import rbdcli
from cluster.owner import Owner
from cluster.uses import Uses
from host.progress import Progress
from images import options
from images.layers import Layers
from images.record import KEY, Record
from overview import gathering
from overview.contents import CONTAINER, IMAGE, UNFINISHED, Contents, Layer, Names
from overview.gathering import Gathering

PREFIX = options.DEFAULTS.imageprefix
OTHER = Owner("node2", "", "/home")
HERE = Owner.here("/home")


def look(pool: FakePool) -> Contents:
    layers = Layers(pool.as_pool(), options.DEFAULTS, "/home")
    return Gathering(layers, PREFIX, Names(), Progress("tree", io.StringIO())).look()


def answers(pool: FakePool, owner: Owner, *addresses: str) -> None:
    """Let the driver of a host live."""
    name = owner.object(PREFIX)
    pool.objects.attributes[name] = {}
    pool.objects.watchers[name] = list(addresses)


def test_what_is_there() -> None:
    pool = FakePool()
    pool.add_base(used=7)
    pool.add_layer("low", used=30, created=1000.25)
    pool.add_layer("c", "low", used=5)
    pool.add_layer("c-init", "low", used=6)
    pool.add(f"{PREFIX}_half", used=2)
    pool.add("another_image", used=100)
    found = look(pool)
    assert (found.base, found.stored) == (7, 50)
    assert {name: found.kind(item) for name, item in found.layers.items()} == {
        "low": IMAGE,
        "c": CONTAINER,
        "c-init": "init",
        "half": UNFINISHED,
    }
    low = found.layers["low"]
    assert low.created == pytest.approx(1000.25)
    assert (low.stored, low.owner, low.image) == (30, HERE, f"{PREFIX}_low")
    assert found.layers["c"].parents == ("low",)


def test_few_commands_for_many_layers() -> None:
    """One for all, two for each layer, and a few for what there is once."""
    pool = FakePool()
    for number in range(100):
        pool.add_layer(f"layer{number}")
    look(pool)
    names = [call[0] for call in pool.calls]
    assert names.count("usage") == 1
    assert len([call for call in pool.calls if call[0] == "rados"]) <= 2 * 100 + 5
    assert len(pool.calls) <= 2 * 100 + 10


def test_an_empty_pool() -> None:
    found = look(FakePool())
    assert (found.layers, found.stored) == ({}, 0)
    assert [host.owner for host in found.hosts] == [HERE]


def test_a_record_that_cannot_be_read_is_no_failure() -> None:
    pool = FakePool()
    pool.add_layer("a", used=3).metadata[KEY] = "{"
    found = look(pool)
    assert found.kind(found.layers["a"]) == UNFINISHED


def test_snapshots_tell_names_and_cannot_command_a_terminal() -> None:
    pool = FakePool()
    note = {"key": "k8s.io/1/\033[1mpod", "kind": "active", "labels": {"containerd.io/snapshot/cri.image-ref": "a\nb"}}
    pool.add_layer("a").metadata[KEY] = str(Record(OTHER, (), snapshot=note))
    item = look(pool).layers["a"]
    assert item.snapshot == ("k8s.io/1/\\x1b[1mpod", "active")
    assert item.called == "a\\nb"


@pytest.mark.parametrize("labels", ["none", None, 3])
def test_labels_that_are_none(labels: object) -> None:
    pool = FakePool()
    pool.add_layer("a").metadata[KEY] = str(Record(OTHER, (), snapshot={"key": "a", "labels": labels}))
    assert look(pool).layers["a"].called == ""


# -- hosts -----------------------------------------------------------------------------------------


def test_who_uses_a_shared_layer() -> None:
    pool = FakePool()
    pool.add_layer("a").metadata[KEY] = str(Record(HERE, (), shared=True))
    for owner in (HERE, OTHER):
        Uses(pool.as_pool(), PREFIX, owner).note(["a"])
    item = look(pool).layers["a"]
    assert item.shared
    assert set(item.used_by) == {HERE.host, "node2"}


def test_uses_that_cannot_be_read_are_told(caplog: pytest.LogCaptureFixture) -> None:
    pool = FakePool()
    pool.objects.omaps[f"{PREFIX}_uses"] = {"damaged": "{"}
    look(pool)
    assert "not known in whole" in caplog.text


def test_where_layers_are_open() -> None:
    pool = FakePool()
    answers(pool, OTHER, "10.0.0.2:0/77")
    pool.add_layer("theirs", owner=OTHER, watchers=["10.0.0.2:0/5", "10.0.0.2:0/6"])
    pool.add_layer("nobody", watchers=["10.0.0.9:0/5"])
    pool.add_layer("ours")
    pool.add_layer("free")
    # Read-only: Linux does not watch it.
    pool.devices[f"{PREFIX}_ours"] = "/dev/rbd0"
    found = look(pool)
    opened = {name: item.open_at for name, item in found.layers.items()}
    assert opened == {"theirs": ("node2",), "nobody": ("10.0.0.9",), "ours": (HERE.host,), "free": ()}
    assert {host.owner: host.answers for host in found.hosts} == {HERE: False, OTHER: True}


def test_an_address_of_several_hosts_is_told_as_it_is() -> None:
    pool = FakePool()
    for host in ("one", "two"):
        answers(pool, Owner(host, "", "/home"), "127.0.0.1:0/7")
        pool.add_layer(f"of-{host}", owner=f"{host} /home", watchers=["127.0.0.1:0/9"])
    assert look(pool).layers["of-one"].open_at == ("127.0.0.1",)


def test_where_it_is_too_late_to_ask_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "WATCHING_SECONDS", -1.0)
    pool = FakePool()
    pool.add_layer("a", watchers=["10.0.0.9:0/5"])
    pool.add_layer("ours")
    pool.devices[f"{PREFIX}_ours"] = "/dev/rbd0"
    found = look(pool)
    assert (found.layers["a"].open_at, found.layers["ours"].open_at) == (None, (HERE.host,))
    assert [host.answers for host in found.hosts] == [None]


def test_after_one_question_without_an_answer_nobody_asks_where_layers_are_open() -> None:
    class Silent(FakePool):
        asked = 0

        def rados(self, *words: str) -> str:
            if words[0] == "listwatchers":
                self.asked += 1
                raise timed_out()
            return super().rados(*words)

    pool = Silent()
    pool.add_layer("a")
    found = look(pool)
    assert found.layers["a"].open_at is None
    assert pool.asked == 1


def test_without_a_list_of_devices_the_watchers_tell() -> None:
    pool = FakePool()
    pool.fails["mappings"] = [failed(rbdcli.RbdError, 1)]
    pool.add_layer("a", watchers=["10.0.0.9:0/5"])
    assert look(pool).layers["a"].open_at == ("10.0.0.9",)


# -- what goes meanwhile ---------------------------------------------------------------------------


class Vanishing(FakePool):
    """A pool from which a layer goes before some command."""

    def __init__(self, moment: str) -> None:
        super().__init__()
        self._moment = moment
        for name in ("low", "high"):
            self.add_layer(name, *(["low"] if name == "high" else []), used=3)

    def _called(self, name: str, method: Any, *words: Any, **options: Any) -> Any:
        if self._moment in (name, words[0] if words else ""):
            self.images.pop(f"{PREFIX}_low", None)
        return super()._called(name, method, *words, **options)


@pytest.mark.parametrize("moment", ["usage", "listomapvals", "listwatchers", "mappings"])
def test_a_layer_that_goes_while_it_looks_is_left_out_or_told(moment: str) -> None:
    found = look(Vanishing(moment))
    assert "high" in found.layers
    if moment in ("usage", "listomapvals"):
        assert "low" not in found.layers
    assert found.stored == 3 * len(found.layers)


def test_a_layer_that_goes_while_all_are_measured_costs_another_try() -> None:
    pool = FakePool()
    pool.add_layer("a", used=3)
    pool.fails["usage"] = [missing(), failed(rbdcli.RbdError, 5)]
    assert look(pool).stored == 3
    assert [call for call in pool.calls if call[0] == "usage"] == [("usage",)] * 3


def test_where_layers_go_all_the_time_each_is_measured_alone() -> None:
    pool = FakePool()
    for name in ("a", "b"):
        pool.add_layer(name, used=3)
    pool.fails["usage"] = [failed(rbdcli.RbdError, 2)] * 3 + [missing()]
    found = look(pool)
    assert len(found.layers) == 1
    assert found.stored == 3


# -- a cluster that does not answer ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["list", "usage"])
def test_a_cluster_that_does_not_answer(method: str) -> None:
    pool = FakePool()
    pool.add_layer("a")
    pool.fails[method] = [timed_out()]
    with pytest.raises(type(timed_out())):
        look(pool)


def test_after_a_failure_nobody_else_is_asked() -> None:
    class Sick(FakePool):
        asked: Sequence[str] = ()

        def rados(self, *words: str) -> str:
            if words[1].startswith("rbd_header."):
                self.asked = [*self.asked, words[1]]
                raise timed_out()
            return super().rados(*words)

    pool = Sick()
    for number in range(200):
        pool.add_layer(f"layer{number}")
    with pytest.raises(type(timed_out())):
        look(pool)
    assert len(pool.asked) < 100


def test_a_machine_of_any_address() -> None:
    assert [gathering._machine(text) for text in ("10.0.0.1:0/1", "[fd00::1]:0/2")] == ["10.0.0.1", "fd00::1"]
    assert Layer("a", "image", 1).open_at == ()
