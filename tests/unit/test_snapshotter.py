"""Snapshots as layers: each call, its failure, and what a new process makes of what it finds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plugin_client import wait_until
from unit.fake_host import FakeHost, refused
from unit.fakes import FakePool, failed, timed_out
from unit.snapshotting import Process, has_image, processes

import rbdcli
from graph import reaper
from host import background, command, deadline
from images import layer_state
from images.options import OptionError
from mapped.handed_out import HandedOut
from mapped.idmapped import CannotMapIds
from snapshots.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from snapshots.info import Kind, State
from snapshotter import snapshotter as module
from snapshotter.id_labels import GID_LABEL, UID_LABEL
from snapshotter.snapshotter import NotReady


@pytest.fixture
def start(
    pool: FakePool, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Process]]:
    """Starts a process, which finds what the one before has left."""
    monkeypatch.setattr(reaper, "REMOVE_SECONDS", 0.0)
    monkeypatch.setattr(background, "FIRST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.1)
    with processes() as made:

        def begin() -> Process:
            for old in made:
                old.end()
            made.append(Process(pool, tmp_path / "home"))
            return made[-1]

        yield begin


@pytest.fixture
def process(start: Callable[[], Process]) -> Process:
    """The first one."""
    return start()


def test_prepare_makes_a_layer(process: Process, pool: FakePool) -> None:
    layer = process.prepare("a key: with/odd @ letters")
    assert has_image(pool, layer)
    info = process.store.stat("a key: with/odd @ letters")
    assert (info.kind, info.parent) == (Kind.ACTIVE, "")


def test_layers_stand_on_layers(process: Process, pool: FakePool) -> None:
    one = process.commit("one")
    two = process.commit("two", "one")
    three = process.prepare("three", "two")
    record = process.life.layers.record(three)
    assert record
    assert record.parents == (two, one)


def test_commit_finishes_the_layer(process: Process, host: FakeHost) -> None:
    layer = process.commit("one")
    said = layer_state.read(process.life.paths.point(layer), 60)
    assert said
    assert said.finished
    info = process.store.stat("one")
    assert (info.kind, info.name) == (Kind.COMMITTED, "one")
    with pytest.raises(NotFound):
        process.store.stat("one-key")
    assert process.life.handed_out.names() == [], "nobody needs it now"


def test_a_commit_that_cannot_be_written_out(process: Process, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = process.prepare("key")
    with monkeypatch.context() as patch:
        patch.setattr(layer_state, "finish", failing(OSError(5, "no")))
        with pytest.raises(OSError, match="no"):
            process.snapshotter.commit("key", "name", {})
    assert process.store.stat("key").kind is Kind.ACTIVE
    process.write(layer, "later")
    process.snapshotter.commit("key", "name", {})
    assert process.store.stat("name").kind is Kind.COMMITTED


def failing(error: BaseException) -> Callable[..., None]:
    """A function that fails."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_view_has_no_image(process: Process, pool: FakePool) -> None:
    process.commit("one")
    before = sorted(pool.images)
    [told] = process.snapshotter.prepare(Kind.VIEW, "v", "one", {})
    assert "ro" in told.options
    assert sorted(pool.images) == before
    assert process.snapshotter.usage("v") == (0, 0)
    process.snapshotter.prepare(Kind.VIEW, "nothing", "", {})
    assert process.snapshotter.mounts("nothing") == process.snapshotter.mounts("nothing")
    for key in ("v", "nothing"):
        process.snapshotter.remove(key)
    assert process.life.handed_out.names() == []
    assert process.store.leftovers() == []


def test_mounts_are_the_same(process: Process) -> None:
    process.commit("one")
    told = process.snapshotter.prepare(Kind.ACTIVE, "key", "one", {})
    assert process.snapshotter.mounts("key") == told
    with pytest.raises(FailedPrecondition, match="committed"):
        process.snapshotter.mounts("one")
    with pytest.raises(NotFound):
        process.snapshotter.mounts("none")


def test_remove(process: Process, pool: FakePool, host: FakeHost) -> None:
    layer = process.prepare("key")
    flushed = [*host.flushed]
    process.snapshotter.remove("key")
    with pytest.raises(NotFound):
        process.store.stat("key")
    wait_until(lambda: not has_image(pool, layer) and not process.store.leftovers(), "it goes")
    assert host.flushed == flushed, "what nobody wants is not written out"


def test_a_key_is_free_at_once(process: Process, pool: FakePool) -> None:
    pool.fails["remove_slowly"] = [failed(rbdcli.RbdError, 1)]
    first = process.prepare("key")
    process.snapshotter.remove("key")
    assert process.prepare("key") != first
    wait_until(lambda: not has_image(pool, first), "it is tried again")


def test_a_removed_layer_that_a_client_still_has(process: Process, pool: FakePool, host: FakeHost) -> None:
    layer = process.prepare("key")
    device = process.life.devices.device(layer)
    assert device
    host.held.add(device)
    process.snapshotter.remove("key")
    wait_until(lambda: not host.mounted, "our own mount goes")
    assert has_image(pool, layer)
    host.held.clear()
    process.snapshotter.clean_up()
    wait_until(lambda: not has_image(pool, layer), "it goes after that")


def test_a_prepare_that_fails(process: Process, pool: FakePool, host: FakeHost) -> None:
    for calls in (["clone"], ["map"], ["set_metadata"]):
        pool.fails[calls[0]] = [failed(rbdcli.RbdError, 1)]
        with pytest.raises(command.CommandError):
            process.prepare("key")
        with pytest.raises(NotFound):
            process.store.stat("key")
    host.fails["mount"] = [refused()]
    with pytest.raises(command.CommandError):
        process.prepare("key")
    wait_until(lambda: sorted(pool.images) == ["docker_image_base_image"], f"nothing is left: {pool.images}")
    wait_until(lambda: not process.store.leftovers(), "nothing is remembered")
    process.prepare("key")


def test_a_map_that_hangs(process: Process, pool: FakePool) -> None:
    pool.fails["map"] = [timed_out()]
    with pytest.raises(command.CommandError):
        process.prepare("key")
    wait_until(lambda: sorted(pool.images) == ["docker_image_base_image"], "nothing is left")


def test_a_size(process: Process, pool: FakePool) -> None:
    layer = process.prepare("key", **{module.SIZE_LABEL: "20G"})
    assert pool.images[f"docker_image_{layer}"].size == 20 << 30
    with pytest.raises(OptionError, match="size"):
        process.prepare("other", **{module.SIZE_LABEL: "much"})
    with pytest.raises(NotFound):
        process.store.stat("other")


def test_before_the_cluster_has_answered(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READY_SECONDS", 0.0)
    monkeypatch.setattr(deadline, "GRACE_SECONDS", 0.0)
    process.snapshotter._ready.clear()
    process.snapshotter.why_not_ready = "no cluster"
    with pytest.raises(NotReady, match="no cluster"):
        process.prepare("key")
    with pytest.raises(NotFound):
        process.store.stat("key")


def test_a_prepare_waits_for_the_cluster_after_a_start(process: Process) -> None:
    process.snapshotter._ready.clear()
    threading.Timer(0.1, process.snapshotter.set_ready).start()
    process.prepare("key")


def test_a_key_in_use(process: Process, pool: FakePool) -> None:
    process.prepare("key")
    before = sorted(pool.images)
    with pytest.raises(AlreadyExists):
        process.prepare("key")
    assert sorted(pool.images) == before


# -- usage -------------------------------------------------------------------------------------


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch, process: Process) -> list[tuple[int, int]]:
    """What the kernel says next."""
    said = [(1000, 10)]
    monkeypatch.setattr(process.life.systems, "usage", lambda *_, **__: said[-1])
    return said


def test_usage_is_what_was_written(process: Process, used: list[tuple[int, int]]) -> None:
    process.prepare("key")
    assert process.snapshotter.usage("key") == (0, 0)
    used.append((5000, 13))
    assert process.snapshotter.usage("key") == (4000, 3)
    process.snapshotter.commit("key", "name", {})
    used.append((9000, 99))
    assert process.snapshotter.usage("name") == (4000, 3)


def test_usage_of_what_is_not_mounted(process: Process, used: list[tuple[int, int]]) -> None:
    layer = process.prepare("key")
    used.append((5000, 13))
    process.snapshotter._note_usage(layer)
    process.life.handed_out.take_back(layer)
    process.life.unmap(layer)
    used.append((9000, 99))
    assert process.snapshotter.usage("key") == (4000, 3)


def test_usage_is_never_below_nothing(process: Process, used: list[tuple[int, int]]) -> None:
    process.prepare("key")
    used.append((10, 1))
    assert process.snapshotter.usage("key") == (0, 0)


# -- from before -------------------------------------------------------------------------------


def test_a_new_process_goes_on(process: Process, start: Callable[[], Process]) -> None:
    process.commit("one")
    told = process.snapshotter.prepare(Kind.ACTIVE, "key", "one", {})
    new = start()
    assert new.life.handed_out.names() == [new.layer("key")]
    assert new.snapshotter.mounts("key") == told
    new.snapshotter.commit("key", "two", {})


def test_after_a_reboot(process: Process, start: Callable[[], Process], host: FakeHost, pool: FakePool) -> None:
    process.commit("one")
    told = process.snapshotter.prepare(Kind.ACTIVE, "key", "one", {})
    host.end_namespace()
    pool.devices.clear()
    new = start()
    assert new.life.handed_out.names() == []
    assert new.snapshotter.mounts("key") == told
    assert new.upper("key").is_dir()


def test_what_was_being_prepared_goes(process: Process, start: Callable[[], Process], pool: FakePool) -> None:
    snapshot = process.store.begin_prepare(Kind.ACTIVE, "key", "", {})
    process.life.layers.create(snapshot.layer, None, None)
    new = start()
    with pytest.raises(NotFound):
        new.store.stat("key")
    wait_until(lambda: not has_image(pool, snapshot.layer) and not new.store.leftovers(), "it goes")


def test_what_was_being_committed_is_active(process: Process, start: Callable[[], Process]) -> None:
    layer = process.prepare("key")
    process.store.begin_commit("key", "name", {})
    process.snapshotter._flush(layer)
    new = start()
    assert new.store.stat("key").kind is Kind.ACTIVE
    new.snapshotter.mounts("key")
    new.write(layer, "more")
    new.snapshotter.commit("key", "name", {})


def test_what_was_being_removed_goes(process: Process, start: Callable[[], Process], pool: FakePool) -> None:
    layer = process.prepare("key")
    process.store.begin_remove("key")
    assert process.store.of_layer(layer).state is State.REMOVING
    new = start()
    wait_until(lambda: not has_image(pool, layer) and not new.store.leftovers(), "it goes")


def test_one_that_cannot_be_taken_over_does_not_keep_the_others(
    process: Process, start: Callable[[], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    process.prepare("bad")
    good = process.prepare("good")
    bad = process.layer("bad")
    adopt = HandedOut.adopt

    def some(self: HandedOut, stack: object) -> bool:
        if getattr(stack, "layer", "") == bad:
            raise OSError(5, "no")
        return adopt(self, stack)  # type: ignore[arg-type]

    monkeypatch.setattr(HandedOut, "adopt", some)
    new = start()
    assert new.life.handed_out.names() == [good]
    assert new.store.stat("bad").kind is Kind.ACTIVE


def test_nothing_is_told_before_it_is_known_what_there_was(process: Process) -> None:
    process.snapshotter._is_whole = False
    process.snapshotter.why_not_ready = "no monitor"
    with pytest.raises(
        NotReady, match=r"^the database is new, and what was in it before is not known yet: no monitor$"
    ):
        process.snapshotter.check_whole()
    process.snapshotter.set_whole()
    process.snapshotter.check_whole()


# -- for a user namespace --------------------------------------------------------------------------

IDS = {UID_LABEL: "0:100000:65536", GID_LABEL: "0:100000:65536"}


def idmapped(process: Process) -> list[str]:
    """The stacks with mapped layers."""
    return process.life.handed_out._idmapped.stacks()


@pytest.fixture
def no_chown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root of a layer goes to nobody else: that takes root's rights."""
    monkeypatch.setattr("mapped.overlays.Overlays.give_root", lambda *_: None)


@pytest.mark.usefixtures("no_chown")
def test_a_snapshot_for_a_user_namespace(start: Callable[[], Process]) -> None:
    process = start()
    process.commit("one")
    layer = process.prepare("key", "one", **IDS)
    [told] = process.snapshotter.mounts("key")
    assert f"lowerdir={process.life.paths.idmapped(layer)}/0/rootfs" in told.options
    process = start()
    assert process.snapshotter.mounts("key") == [told]
    assert idmapped(process) == [layer]
    process.snapshotter.remove("key")
    assert idmapped(process) == []


@pytest.mark.usefixtures("no_chown")
def test_what_a_crash_left_for_a_user_namespace_goes(start: Callable[[], Process], host: FakeHost) -> None:
    process = start()
    process.commit("one")
    process.prepare("key", "one", **IDS)
    process.store.begin_remove("key")
    process = start()
    assert idmapped(process) == []
    assert not [point for point in host.mounted if "/idmapped/" in point]


@pytest.mark.usefixtures("no_chown")
def test_a_host_that_cannot_map_ids_leaves_nothing(process: Process, host: FakeHost) -> None:
    process.commit("one")
    host.fails["overlay"] = [refused()]
    with pytest.raises(CannotMapIds, match=r"'the key': .*Linux 5\.19"):
        process.prepare("the key", "one", **IDS)
    with pytest.raises(NotFound):
        process.store.stat("the key")
    assert idmapped(process) == []


def test_labels_that_are_wrong_leave_nothing(process: Process, pool: FakePool) -> None:
    before = set(pool.images)
    with pytest.raises(InvalidArgument, match=r"'the key'.*not three numbers"):
        process.prepare("the key", "", **{**IDS, UID_LABEL: "0"})
    with pytest.raises(NotFound):
        process.store.stat("the key")
    assert set(pool.images) == before
