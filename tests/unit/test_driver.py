"""driver.py: what Docker is told at once, and what is done in the background until it is done.

On a host and a pool in memory; what an archive holds is none of its business.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from plugin_client import wait_until
from unit.fake_host import FakeHost, refused
from unit.fakes import BASE_IMAGE, FakePool, failed, timed_out

import mounts
import rbdcli
from archive import transfer
from graph import driver as driver_module
from graph import reaper
from graph.driver import Driver
from host import background, deadline
from host.command import CommandError
from images import layer_state, options
from images.layers import LayerError
from mapped import host_layers
from mapped.file_systems import FileSystems, LayerLost
from mapped.unmounting import LayerBusy

Lives = Callable[[], Driver]


@pytest.fixture
def pool() -> FakePool:
    made = FakePool()
    made.add_base(size=options.DEFAULTS.basesize)
    return made


@pytest.fixture
def lives(pool: FakePool, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lives]:
    """Makes what a new process has, which has learned what the one before it left."""
    monkeypatch.setattr(driver_module, "pool_of", lambda _: pool.as_pool())
    monkeypatch.setattr(reaper, "REMOVE_SECONDS", 0.0)
    monkeypatch.setattr(background, "FIRST_RETRY_SECONDS", 0.1)
    owner = transfer.IdMaps((transfer.IdRange(0, os.geteuid(), 1),), (transfer.IdRange(0, os.getegid(), 1),))
    made: list[Driver] = []

    def begin() -> Driver:
        made.append(Driver(str(tmp_path / "home"), options.DEFAULTS, owner))
        made[-1].lifetime.learn()
        return made[-1]

    yield begin
    for life in made:
        life.lifetime.end()
    titles = {"removing layer", "unmapping layer", "deleting from the trash", "mapping layer", "reading layer"}
    wait_until(lambda: not titles & {thread.name for thread in threading.enumerate()}, "its threads have ended")


@pytest.fixture
def driver(lives: Lives) -> Driver:
    return lives()


def create(driver: Driver, layer: str, parent: str = "") -> str:
    driver.create(layer, parent, None)
    return layer


def chain(driver: Driver, *names: str) -> None:
    """Layers, each on the one before."""
    for parent, layer in zip(("", *names), names):
        create(driver, layer, parent)


def use(driver: Driver, *layers: str) -> None:
    """As Docker mounts a layer, and has done with it."""
    for layer in layers:
        driver.get(layer, "")
        driver.put(layer)


def gone(pool: FakePool, layer: str) -> Callable[[], bool]:
    return lambda: f"docker_image_{layer}" not in pool.images


# -- refused -------------------------------------------------------------------------------------


def test_a_layer_is_not_its_own_parent(driver: Driver) -> None:
    """It would wait for itself."""
    create(driver, "a")
    with pytest.raises(LayerError, match="layer a cannot be its own parent"):
        create(driver, "a", "a")


def test_another_host_s_layer_is_not_removed(driver: Driver, pool: FakePool) -> None:
    pool.add_layer("a", owner="another /home")
    with pytest.raises(LayerError, match="belongs to host another"):
        driver.remove("a")
    driver.lifetime.drain(5)
    assert "docker_image_a" in pool.images


def test_what_is_not_there_is_removed_already(driver: Driver, pool: FakePool) -> None:
    driver.remove("a")
    assert not pool.named("remove_slowly")


@pytest.mark.parametrize("layer", ["", ".", "..", "a/b", "-a", "a b", "a@b", "a" * 129, "base_image", "é", "a\n"])
def test_what_is_no_id_is_refused_by_every_call(driver: Driver, pool: FakePool, layer: str) -> None:
    """It becomes part of a path and of an image's name."""
    create(driver, "a")
    calls = len(pool.calls)
    asked: list[Callable[[], object]] = [
        lambda: create(driver, layer),
        *([lambda: create(driver, "b", layer)] if layer else []),
        *(lambda call=call: call(layer) for call in (driver.remove, driver.exists, driver.put, driver.metadata)),
        lambda: driver.get(layer, ""),
        lambda: driver.apply_diff(layer, io.BytesIO()),
        lambda: driver.changes(layer, ""),
        lambda: driver.diff_size(layer, ""),
        lambda: list(driver.diff(layer, "")),
        *([lambda: driver.changes("a", layer)] if layer else []),
    ]
    for ask in asked:
        with pytest.raises(LayerError, match="is not a layer id"):
            ask()
    assert len(pool.calls) == calls


def test_a_parent_that_is_not_there(driver: Driver, pool: FakePool) -> None:
    with pytest.raises(LayerError, match="layer b: its parent a does not exist: no image docker_image_a"):
        create(driver, "b", "a")
    with pytest.raises(LayerError, match="layer c: its parent c-init does not exist: no image docker_image_c-init"):
        create(driver, "c", "c-init")
    assert [*pool.images] == [BASE_IMAGE]


def test_a_parent_that_was_removed(driver: Driver) -> None:
    chain(driver, "a", "c-init")
    for layer in ("a", "c-init"):
        driver.lifetime.pause(5)
        driver.remove(layer)
        with pytest.raises(LayerError, match=f"layer {layer} does not exist: it was removed"):
            create(driver, "new", layer)
        driver.lifetime.resume()


def test_a_layer_that_is_not_there(driver: Driver, pool: FakePool) -> None:
    for ask in (lambda: driver.get("a", ""), lambda: driver.changes("a", "")):
        with pytest.raises(LayerError, match="layer a does not exist: no image docker_image_a"):
            ask()
    driver.put("a")


def test_a_layer_that_is_in_use_elsewhere(driver: Driver, pool: FakePool) -> None:
    pool.add_layer("a", watchers=["10.0.0.2:0/9"])
    for ask in (lambda: driver.get("a", ""), lambda: driver.create("b", "a", None)):
        pool.fails["map"] = [failed(rbdcli.ImageLocked, 30)]
        with pytest.raises(LayerError, match=r"layer a is in use elsewhere: .*it is open at 10\.0\.0\.2:0/9"):
            ask()


def test_a_parent_that_is_in_use_elsewhere_since_it_was_made(driver: Driver, pool: FakePool) -> None:
    """What is known of it is no reason not to say who has it; nor is it if the pool has gone."""
    create(driver, "a")
    pool.images["docker_image_a"].watchers = ["10.0.0.2:0/9"]
    pool.fails["map"] = [failed(rbdcli.ImageLocked, 30)]
    with pytest.raises(LayerError, match=r"layer a is in use elsewhere: .*it is open at 10\.0\.0\.2:0/9"):
        driver.create("b", "a", None)
    pool.fails.update({"map": [failed(rbdcli.ImageLocked, 30)], "info": [failed(rbdcli.PoolMissing, 2)]})
    with pytest.raises(rbdcli.PoolMissing):
        driver.create("b", "a", None)


# -- made ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", ["clone", "set_metadata", "resize", "map", "mount", "grow_mounted", "unmount", "unmap"]
)
@pytest.mark.parametrize("late", [False, True])
def test_a_create_that_fails_leaves_nothing(
    driver: Driver, pool: FakePool, host: FakeHost, step: str, late: bool
) -> None:
    """Whatever step it had reached, and whether that was done all the same."""
    fails = host.fails if step in ("mount", "grow_mounted", "unmount") else pool.fails
    failure: Any = timed_out() if late else refused() if fails is host.fails else failed(rbdcli.RbdError, 5)
    fails[step] = [(failure, True) if late else failure] * (2 if step == "unmount" and not late else 1)
    with pytest.raises((CommandError, LayerBusy)):
        driver.create("a", "", {"size": "20G"})
    assert driver.lifetime.drain(60)
    assert ([*pool.images], pool.devices, host.mounted) == ([BASE_IMAGE], {}, {})
    driver.create("a", "", {"size": "20G"})
    driver.get("a", "")


def test_a_layer_grows_before_it_is_used(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    """Then nobody need have it mapped so that it can."""
    driver.create("a", "", {"size": "20G"})
    assert (len(host.grown), pool.devices) == (1, {})
    create(driver, "b")
    assert len(host.grown) == 1
    with pytest.raises(options.OptionError, match="sise"):
        driver.create("c", "", {"sise": "20G"})


def test_what_is_below_a_new_layer_is_mapped_ahead(
    driver: Driver, pool: FakePool, lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes next needs it."""
    monkeypatch.setattr(host_layers, "MAPPED_SECONDS", 300.0)
    chain(driver, "a", "b", "c", "other")
    driver.lifetime.drain(60)
    again = lives()
    create(again, "d", "c")
    wait_until(lambda: len(pool.devices) == 3, "what is below it is mapped")
    assert {pool.devices[f"docker_image_{layer}"] for layer in "ab"} <= pool.read_only


def test_nothing_is_mapped_ahead_for_a_daemon_that_has_ended(driver: Driver, lives: Lives) -> None:
    """It lets go of its data root, and the next one would mount that above."""
    chain(driver, "a", "b", "c")
    driver.lifetime.drain(60)
    again = lives()
    again.lifetime.pause(60)
    create(again, "d", "b")
    again.lifetime.cleanup()
    assert again._here.mapping.is_stopped()


def test_what_a_daemon_asks_for_while_it_ends_is_mounted_no_more_when_it_has(
    driver: Driver, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build goes on to the last. What the next daemon asks for is mounted."""
    create(driver, "a")
    with contextlib.ExitStack() as asked:
        monkeypatch.setattr(driver.lifetime, "drain", lambda _: asked.enter_context(driver.bounds.request()))
        driver.lifetime.cleanup()
        with pytest.raises(LayerBusy, match="layer a is not mounted: the daemon that asked for it has ended"):
            driver.get("a", "")
    with driver.bounds.request():
        driver.get("a", "")
    driver.put("a")


def test_a_put_that_cannot_have_the_layer_in_time_counts_all_the_same(driver: Driver, pool: FakePool) -> None:
    """A sick cluster holds up a request that came before it."""
    create(driver, "a")
    driver.get("a", "")
    with driver._home.locks.hold("a"), deadline.within(0.05), pytest.raises(deadline.Overdue):
        driver.put("a")
    driver.lifetime.drain(60)
    assert pool.devices == {}


def test_a_finished_layer_is_got_after_a_restart_without_the_cluster(
    driver: Driver, lives: Lives, pool: FakePool
) -> None:
    """What is mounted needs no cluster; to read ahead is a favour."""
    chain(driver, "a", "b")
    driver.get("a", "")
    driver.lifetime.end()
    again = lives()
    pool.fails.update(dict.fromkeys(("metadata", "data", "info"), [timed_out()] * 9))
    again.get("a", "")
    pool.fails.clear()


def test_what_reads_a_layer_and_cannot_die_keeps_nobody_from_removing_it(
    driver: Driver, host: FakeHost, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(driver, "a")
    use(driver, "a")
    host.fails["unmount"] = [refused("target is busy")] * 4
    with pytest.raises(LayerBusy):
        driver.remove("a")
    host.fails["unmount"] = [refused("target is busy")] * 2
    monkeypatch.setattr(driver._ahead, "hangs", lambda layer: layer == "a")
    driver.remove("a")
    assert not driver.exists("a")
    wait_until(gone(pool, "a"), "its image is gone")


# -- finished, or broken ---------------------------------------------------------------------------


def says(pool: FakePool, layer: str) -> layer_state.LayerState:
    """What the note of a layer says."""
    said = layer_state.read(str(pool.files(f"docker_image_{layer}")), 60)
    assert said
    return said


def test_a_layer_is_finished_by_its_first_child(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    create(driver, "a")
    use(driver, "a")
    assert not says(pool, "a").finished
    create(driver, "b", "a")
    assert says(pool, "a").finished
    for _ in range(2):
        assert host.mounted[driver.get("a", "")].read_only
        driver.put("a")
        with pytest.raises(LayerError, match="layer a is finished: it had its archive, or has children"):
            driver.apply_diff("a", io.BytesIO())
        driver.lifetime.drain(60)


def test_layers_that_nobody_ever_mounted_have_children(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    """Each gets its note, and the attributes of what is below it, when it gets its first child."""
    create(driver, "a")
    os.chmod(pool.files("docker_image_a") / "rootfs", 0o711)
    for parent, layer in zip("abc", "bcd"):
        create(driver, layer, parent)
        driver.lifetime.drain(60)
        assert (host.mounted, pool.devices) == ({}, {})
    assert [says(pool, layer) for layer in "abc"] == [
        layer_state.LayerState("a", (), finished=True),
        layer_state.LayerState("b", ("a",), finished=True),
        layer_state.LayerState("c", ("b", "a"), finished=True),
    ]
    assert (pool.files("docker_image_c") / "rootfs").stat().st_mode & 0o777 == 0o711


def test_a_parent_that_is_mounted_is_not_built_upon(driver: Driver, pool: FakePool) -> None:
    """Docker makes layers of what it has put."""
    create(driver, "a")
    create(driver, "c-init")
    for layer in ("a", "c-init"):
        driver.get(layer, "")
        with pytest.raises(LayerError, match=f"its parent {layer} is mounted writable; put it first"):
            create(driver, "new", layer)
        driver.put(layer)
    create(driver, "new", "a")
    create(driver, "other", "c-init")


def test_a_parent_that_was_put_in_a_former_life(driver: Driver, lives: Lives) -> None:
    create(driver, "a")
    driver.get("a", "")
    again = lives()
    create(again, "b", "a")


@pytest.mark.parametrize("step", ["finish", "write", "_prepare"])
def test_a_parent_that_cannot_be_finished_has_no_child(
    driver: Driver, pool: FakePool, host: FakeHost, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    create(driver, "a")

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(f"mapped.overlays.{step}" if step == "_prepare" else f"images.layer_state.{step}", fails)
        with pytest.raises(OSError, match="Input/output error"):
            create(driver, "b", "a")
    assert "docker_image_b" not in pool.images
    driver.lifetime.drain(60)
    assert (host.mounted, pool.devices) == ({}, {})
    create(driver, "b", "a")


class Applied(NamedTuple):
    """What archive.apply was called with."""

    root: str
    mounted: mounts.Mount
    note: layer_state.LayerState


@pytest.fixture
def applied(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> list[Applied]:
    """Archives are laid down by nobody; `fail` as their content cuts one off."""
    seen: list[Applied] = []

    def apply(root: str, stream: io.BytesIO, *_: object) -> int:
        content = stream.read()
        said = layer_state.read(os.path.join(os.path.dirname(root), "layer"), 60)
        assert said
        seen.append(Applied(root, host.mounted[root], said))
        if content == b"fail":
            raise transfer.ArchiveError("cut off")
        return len(content)

    monkeypatch.setattr(transfer, "apply", apply)
    return seen


def test_what_fails_before_an_archive_is_begun_may_be_tried_again(
    driver: Driver, pool: FakePool, applied: list[Applied], lives: Lives
) -> None:
    """After a restart the size of the image is not known, and the cluster may be sick just then."""
    create(driver, "a")
    driver.lifetime.drain(60)
    again = lives()
    pool.fails["info"] = [failed(rbdcli.RbdError, 5)]
    with pytest.raises(rbdcli.RbdError):
        again.apply_diff("a", io.BytesIO(b"12345"))
    assert again.apply_diff("a", io.BytesIO(b"12345")) == 5


def test_an_archive_is_laid_down_in_a_view_of_our_own(
    driver: Driver, pool: FakePool, host: FakeHost, applied: list[Applied]
) -> None:
    chain(driver, "a", "b")
    assert driver.apply_diff("b", io.BytesIO(b"12345")) == 5
    [call] = applied
    assert call.root.endswith("/mnt/b/driver")
    assert not call.mounted.read_only
    # Cut off from here on it is broken, and not half a layer that nobody knows of.
    assert call.note.applying
    assert says(pool, "b") == layer_state.LayerState("b", ("a",), finished=True)
    assert host.views() == {}
    # The next layer of a load stands on it.
    assert "docker_image_b" in pool.devices
    assert host.mounted[driver.get("b", "")].read_only


def test_a_layer_takes_one_archive(driver: Driver, applied: list[Applied], lives: Lives) -> None:
    """After a lost answer Docker sends the call again with an empty stream."""
    create(driver, "a")
    driver.apply_diff("a", io.BytesIO(b"1"))
    again = lives()
    for life in (driver, again):
        with pytest.raises(LayerError, match=r"layer a (is finished|takes one archive)"):
            life.apply_diff("a", io.BytesIO())
    assert len(applied) == 1


def test_a_layer_that_docker_has_mounted_takes_its_archive_there(driver: Driver, applied: list[Applied]) -> None:
    """Two views on the same directories would spoil both."""
    create(driver, "a")
    root = driver.get("a", "")
    driver.apply_diff("a", io.BytesIO(b"1"))
    assert [call.root for call in applied] == [root]
    driver.put("a")


@pytest.mark.usefixtures("applied")
def test_a_layer_whose_archive_failed_is_broken_for_good(
    driver: Driver, pool: FakePool, host: FakeHost, lives: Lives
) -> None:
    """Only Remove is left, also in the next life."""
    for layer in ("a", "c-init"):
        create(driver, layer)
        with pytest.raises(transfer.ArchiveError, match="cut off"):
            driver.apply_diff(layer, io.BytesIO(b"fail"))
    again = lives()
    for life in (driver, again):
        calls: Mapping[str, Callable[[], object]] = {
            "get": lambda life=life: life.get("a", ""),  # type: ignore[misc]
            "apply": lambda life=life: life.apply_diff("a", io.BytesIO()),  # type: ignore[misc]
            "changes": lambda life=life: life.changes("a", ""),  # type: ignore[misc]
            "child": lambda life=life: create(life, "b", "a"),  # type: ignore[misc]
            "container": lambda life=life: create(life, "c", "c-init"),  # type: ignore[misc]
        }
        for call in calls.values():
            with pytest.raises(
                LayerError,
                match=r"layer .* broken.*; remove it",
            ):
                call()
    again.remove("a")
    again.remove("c-init")
    again.lifetime.drain(60)
    assert ([*pool.images], pool.devices, host.mounted) == ([BASE_IMAGE], {}, {})


# -- containers ----------------------------------------------------------------------------------


def test_a_container_is_made_of_an_init_layer_that_is_in_the_cluster(
    driver: Driver, pool: FakePool, host: FakeHost
) -> None:
    """A copy of what is mounted would have a log to be written out, and not all that was written."""
    chain(driver, "a", "c-init")
    use(driver, "c-init")
    copied: list[list[str]] = []
    copying = pool.deep_copy

    def copy(*words: Any) -> None:
        copied.append([point for point in host.mounted if "/c-init/" in point])
        copying(*words)

    object.__setattr__(pool, "deep_copy", copy)
    create(driver, "c", "c-init")
    assert copied == [[]]
    root = driver.get("c", "")
    view = host.views()[root]
    assert view.lower[0] == "../mnt/c/layer/init"
    assert says(pool, "c") == layer_state.LayerState("c", ("a",), init="c-init")
    # It may be used again, and be the init layer of another.
    use(driver, "c-init")
    create(driver, "d", "c-init")


def test_an_init_layer_that_was_never_mounted(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    chain(driver, "a", "c-init", "c")
    root = driver.get("c", "")
    view = host.views()[root]
    assert len(view.lower) == 1
    assert says(pool, "c") == layer_state.LayerState("c", ("a",))


# -- compared ------------------------------------------------------------------------------------


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, bool]]:
    """The trees that were compared, and whether the first is only what the layer brought."""
    seen: list[tuple[str, str | None, bool]] = []

    def changes(root: str, parent: str | None, seconds: float, *, own: bool) -> list[transfer.Change]:
        seen.append((root, parent, own))
        return []

    def size(root: str, parent: str | None, seconds: float, *, own: bool) -> int:
        return len(changes(root, parent, seconds, own=own))

    def diff(root: str, parent: str | None, ids: object, seconds: float, *, own: bool) -> Iterator[bytes]:
        yield from (b"one", b"two")
        changes(root, parent, seconds, own=own)

    for name, function in {"changes": changes, "size": size, "diff": diff}.items():
        monkeypatch.setattr(transfer, name, function)
    return seen


def ask_all(driver: Driver, layer: str, parent: str) -> None:
    driver.changes(layer, parent)
    driver.diff_size(layer, parent)
    assert list(driver.diff(layer, parent)) == [b"one", b"two"]


# What is compared for a layer and a parent: a directory, what it is compared with, and whether the first is only what
# the layer brought.
COMPARED = {
    # Docker asks so of all but a few: nothing else of the layers need be looked at.
    ("b", "a"): ("b/layer/rootfs", "b/below", True),
    ("c", "c-init"): ("c/layer/rootfs", "c/below", True),
    ("c-init", "b"): ("c-init/layer/rootfs", "c-init/below", True),
    ("a", ""): ("a/layer/rootfs", None, True),
    # Against any other layer, two views.
    ("b", "c"): ("b/driver", "c/driver", False),
    ("c", "b"): ("c/driver", "b/driver", False),
    ("a", "b"): ("a/driver", "b/driver", False),
    ("b", ""): ("b/driver", None, False),
}


def test_what_is_compared_with_what(
    driver: Driver, host: FakeHost, pool: FakePool, compared: list[tuple[str, str | None, bool]], tmp_path: Path
) -> None:
    """By every call that compares; afterwards nothing of it is mounted."""
    chain(driver, "a", "b", "c-init")
    use(driver, "c-init")
    create(driver, "c", "c-init")
    home = tmp_path / "home" / "mnt"
    for (layer, parent), (root, below, own) in COMPARED.items():
        ask_all(driver, layer, parent)
        assert compared == [(f"{home}/{root}", below and f"{home}/{below}", own)] * 3
        assert host.views() == {}
        compared.clear()
    driver.lifetime.drain(60)
    assert (host.mounted, pool.devices) == ({}, {})


def test_a_container_that_runs_is_compared_as_it_is(
    driver: Driver, host: FakeHost, compared: list[tuple[str, str | None, bool]], tmp_path: Path
) -> None:
    chain(driver, "a", "c-init")
    use(driver, "c-init")
    create(driver, "c", "c-init")
    root = driver.get("c", "")
    driver.changes("c", "c-init")
    driver.changes("c", "a")
    home = tmp_path / "home" / "mnt"
    assert compared == [
        (f"{home}/c/layer/rootfs", f"{home}/c/below", True),
        (root, f"{home}/a/driver", False),
    ]
    assert [*host.views()] == [root]
    assert not host.mounted[root].read_only


@pytest.mark.parametrize("parent", ["a", ""])
@pytest.mark.usefixtures("compared")
def test_who_ends_a_diff_early_leaves_nothing_mounted(driver: Driver, host: FakeHost, parent: str) -> None:
    chain(driver, "a", "b")
    answer = driver.diff("b", parent)
    assert next(answer) == b"one"
    assert host.views() != {}
    answer.close()  # type: ignore[attr-defined]
    assert host.views() == {}


def test_a_comparison_that_fails_says_why_and_leaves_nothing_mounted(
    driver: Driver, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it cannot be unmounted: that is tried again."""
    chain(driver, "a", "b")

    def fails(*_: object, **__: object) -> None:
        host.fails["unmount"] = [refused("target is busy")] * 2
        raise transfer.ArchiveError("it broke off")

    monkeypatch.setattr(transfer, "changes", fails)
    with pytest.raises(transfer.ArchiveError, match="it broke off"):
        driver.changes("b", "a")
    driver.lifetime.drain(60)
    assert host.mounted == {}


# -- what is told --------------------------------------------------------------------------------


def test_what_docker_inspect_shows(driver: Driver, pool: FakePool) -> None:
    chain(driver, "a", "b", "c-init", "c")
    said = driver.metadata("b")
    assert (said["Image"], said["Parent"], said["Depth"]) == ("docker_image_b", "docker_image_a", "1")
    assert (said["Device"], said["MountPoint"], said["Size"]) == ("", "", str(options.DEFAULTS.basesize))
    # Its init layer is in its own.
    assert driver.metadata("c")["Parent"] == "docker_image_b"
    assert driver.metadata("a")["Parent"] == ""
    root = driver.get("c", "")
    said = driver.metadata("c")
    assert (said["Device"], said["MountPoint"]) == (pool.devices["docker_image_c"], root)


def test_what_docker_has_put_is_unmapped_after_a_while(
    driver: Driver, pool: FakePool, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain(driver, "a", "b", "c")
    driver.lifetime.drain(60)
    driver.get("c", "")
    monkeypatch.setattr(host_layers, "MAPPED_SECONDS", 0.0)
    driver.lifetime.resume()
    driver.put("c")
    wait_until(lambda: not pool.devices and not host.mounted, "all of it is unmapped")


def test_what_took_long_to_map_stays_mapped_for_longer(
    driver: Driver, pool: FakePool, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where everything takes long, Docker's next call comes later, too."""
    chain(driver, "a")
    driver.lifetime.drain(60)
    took = iter([100.0])
    monkeypatch.setattr(FileSystems, "cost", lambda self, layer: next(took, 0.0) if layer == "a" else 0.0)
    monkeypatch.setattr(host_layers, "MAPPED_SECONDS", 0.0)
    driver.lifetime.resume()
    driver.get("a", "")
    driver.put("a")
    create(driver, "other")
    driver.get("other", "")
    driver.put("other")
    wait_until(lambda: "docker_image_other" not in pool.devices, "one that was mapped at once is unmapped")
    assert "docker_image_a" in pool.devices
    driver.get("a", "")
    driver.put("a")
    wait_until(lambda: not pool.devices, "all of it is unmapped")


def test_a_dead_device_of_a_parent_is_named_to_who_needs_it(driver: Driver, host: FakeHost) -> None:
    chain(driver, "a", "b", "c", "d")
    driver.get("d", "")
    host.die("a")
    create(driver, "e", "c")
    with pytest.raises(LayerLost, match=r"layer a: its device .* is gone .*stop what uses it \(d\): "):
        driver.get("e", "")
    driver.put("d")
    driver.get("e", "")


def test_two_who_need_the_same_layers_at_once(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    chain(driver, "a", "b", "c")
    for number in range(8):
        create(driver, f"d{number}", "c")
    driver.lifetime.drain(60)
    driver.lifetime.resume()
    together, failures = threading.Barrier(8, timeout=300), list[BaseException]()

    def work(layer: str) -> None:
        together.wait()
        try:
            for _ in range(5):
                use(driver, layer)
            driver.get(layer, "")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"d{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert failures == []
    assert len(host.views()) == 8
    assert len([point for point in host.systems() if point.split("/")[-2] in "abc"]) == 3
    for number in range(8):
        driver.put(f"d{number}")
    driver.lifetime.drain(60)
    assert (host.mounted, pool.devices) == ({}, {})


# -- removed, whatever is in the way ---------------------------------------------------------------


@pytest.mark.parametrize(
    "failure", [timed_out(), failed(rbdcli.RbdError, errno.ETIMEDOUT), failed(rbdcli.PoolMissing, errno.ENOENT)]
)
def test_a_sick_cluster_keeps_no_remove(driver: Driver, pool: FakePool, failure: Exception) -> None:
    """Whose a layer is was never asked in this life: that is asked before its image goes."""
    pool.add_layer("a")
    pool.fails["metadata"] = [failure]
    driver.remove("a")
    assert not driver.exists("a")
    wait_until(gone(pool, "a"), "its image is gone")


@pytest.mark.parametrize(
    "failure", [RuntimeError("a defect"), OSError(errno.EIO, "lost"), timed_out(), failed(rbdcli.ImageBusy, 16)]
)
def test_a_removal_is_done_when_it_is_done(driver: Driver, pool: FakePool, failure: Exception) -> None:
    create(driver, "a")
    pool.fails["remove_slowly"] = [failure, failure]
    driver.remove("a")
    wait_until(gone(pool, "a"), "its image is gone")
    wait_until(lambda: driver.lifetime.drain(1) and not pool.devices, "nothing is left to do")


def test_an_unmount_that_hangs_keeps_no_remove(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    """The kernel still writes to what nobody wants any more."""
    create(driver, "a")
    driver.get("a", "")
    host.fails["unmount"] = [timed_out()]
    driver.remove("a")
    with pytest.raises(LayerError, match="layer a does not exist"):
        driver.get("a", "")
    wait_until(gone(pool, "a"), "its image is gone")
    assert (host.mounted, pool.devices) == ({}, {})


def test_what_cannot_be_unmapped_makes_room_in_a_full_pool(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    """It fills the pool, which takes neither what is still to be written nor the end of the image's lock."""
    create(driver, "a")
    use(driver, "a")
    pool.images["docker_image_a"].used = 3 << 18
    pool.fails["unmap"] = [timed_out(), timed_out()]
    driver.remove("a")
    wait_until(gone(pool, "a"), "its image is gone")
    deleted = [words for name, *words in pool.calls if name == "rados" and words[:2] == ["--force-full", "rm"]]
    assert sorted({name for words in deleted for name in words[2:]}) == [
        f"rbd_data.id2.{number:016x}" for number in range(3)
    ]


def test_an_image_stays_until_nothing_stands_on_it_whatever_the_order(driver: Driver, pool: FakePool) -> None:
    """Docker, BuildKit or a crash removes a layer before its children: it is gone for Docker all the same."""
    chain(driver, "a", "b", "c-init", "c")
    create(driver, "d", "b")
    for layer in ("a", "b", "c-init"):
        driver.remove(layer)
        assert not driver.exists(layer)
    wait_until(gone(pool, "c-init"), "nothing stands on an init layer: what it brought is in its container")
    driver.get("c", "")
    driver.get("d", "")
    driver.put("d")
    driver.remove("d")
    wait_until(gone(pool, "d"), "its image is gone")
    driver.lifetime.drain(60)
    assert {"docker_image_a", "docker_image_b"} <= {*pool.images}
    driver.put("c")
    driver.remove("c")
    wait_until(lambda: [*pool.images] == [BASE_IMAGE], "all of them are gone")


def test_what_another_host_made_on_a_layer_keeps_it(
    driver: Driver, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a takeover leaves it, and whatever Docker here knows."""
    monkeypatch.setattr("images.family.LISTED_SECONDS", 0.0)
    create(driver, "a")
    pool.add_layer("theirs", "a", owner="another /home")
    driver.remove("a")
    driver.lifetime.drain(60)
    assert "docker_image_a" in pool.images
    del pool.images["docker_image_theirs"]
    driver.lifetime.resume()
    wait_until(gone(pool, "a"), "its image is gone")


def test_a_removed_layer_that_others_stand_on_does_not_stay_mapped(lives: Lives, pool: FakePool) -> None:
    """Not even if it was mapped, for whatever reason, when the driver ended."""
    before = lives()
    create(before, "a")
    before.get("a", "")
    pool.add_layer("theirs", "a", owner="another /home")
    before.lifetime.end()
    before.remove("a")
    assert "docker_image_a" in pool.devices
    again = lives()
    again.lifetime.start()
    wait_until(lambda: pool.devices == {}, "it is unmapped")
    assert "docker_image_a" in pool.images
    del pool.images["docker_image_theirs"]


@pytest.mark.parametrize("verb", ["list", "rados"])
def test_a_pool_that_does_not_tell_what_stands_on_a_layer_loses_none(driver: Driver, pool: FakePool, verb: str) -> None:
    create(driver, "a")
    pool.add_layer("theirs", "a", owner="another /home")
    pool.fails[verb] = [failed(rbdcli.RbdError, 110)] * 3
    driver.remove("a")
    driver.lifetime.drain(60)
    assert "docker_image_a" in pool.images


def test_a_layer_that_was_removed_with_its_parents_is_no_reason_to_keep_them(
    driver: Driver, pool: FakePool, lives: Lives
) -> None:
    """Nor in the next life, which asks the pool."""
    chain(driver, "a", "b", "c")
    driver.lifetime.pause(5)
    for layer in "abc":
        driver.remove(layer)
    again = lives()
    again.lifetime.start()
    wait_until(lambda: [*pool.images] == [BASE_IMAGE], "all of them are gone")


def slow_removal(pool: FakePool, layer: str) -> threading.Event:
    """The removal of this layer's image takes until the event is set."""
    go, remove = threading.Event(), pool.remove_slowly

    def slowly(image: str, give_up: Callable[[], bool]) -> None:
        if image == f"docker_image_{layer}":
            # Longer than anybody waits.
            assert go.wait(300)
        remove(image, give_up)

    object.__setattr__(pool, "remove_slowly", slowly)
    return go


def test_a_slow_removal_keeps_nobody(driver: Driver, pool: FakePool) -> None:
    """Neither other removals, nor a call for the same layer."""
    for layer in "abc":
        create(driver, layer)
    go = slow_removal(pool, "a")
    driver.remove("a")
    driver.remove("b")
    wait_until(gone(pool, "b"), "the other image is gone")
    with pytest.raises(LayerError, match="does not exist: it was removed"):
        driver.get("a", "")
    driver.put("a")
    driver.remove("a")
    driver.get("c", "")
    assert "docker_image_a" in pool.images
    go.set()
    wait_until(gone(pool, "a"), "its image is gone")
    driver.remove("c")


def test_a_layer_does_not_wait_for_a_removed_one_that_stands_on_it(
    driver: Driver, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose image may take hours to go, and is listed until then."""
    monkeypatch.setattr("images.family.LISTED_SECONDS", 0.0)
    chain(driver, "a", "b")
    go = slow_removal(pool, "b")
    driver.remove("b")
    driver.remove("a")
    wait_until(gone(pool, "a"), "its image is gone")
    assert "docker_image_b" in pool.images
    go.set()
    wait_until(gone(pool, "b"), "the other one's is gone, too")


def test_a_layer_that_is_still_being_removed_is_made_anew_after_it(driver: Driver, pool: FakePool) -> None:
    create(driver, "a")
    first = pool.images["docker_image_a"].image_id
    go = slow_removal(pool, "a")
    driver.remove("a")
    made: list[Any] = []
    creating = threading.Thread(target=lambda: made.append(create(driver, "a")))
    creating.start()
    creating.join(0.2)
    assert made == []
    go.set()
    creating.join(60)
    assert made == ["a"]
    assert pool.images["docker_image_a"].image_id != first


# -- one object after another --------------------------------------------------------------------


def test_a_driver_that_is_paused_begins_nothing_and_goes_on_after_it(driver: Driver, pool: FakePool) -> None:
    create(driver, "a")
    driver.lifetime.pause(5)
    driver.remove("a")
    pool.calls.clear()
    assert not driver.lifetime.drain(0.3)
    assert not pool.named("remove_slowly")
    driver.lifetime.resume()
    wait_until(gone(pool, "a"), "its image is gone")


def test_the_next_life_removes_what_was_removed(driver: Driver, pool: FakePool, lives: Lives, host: FakeHost) -> None:
    create(driver, "a")
    driver.lifetime.pause(5)
    driver.remove("a")
    again = lives()
    assert not again.exists("a")
    again.lifetime.start()
    wait_until(gone(pool, "a"), "its image is gone")


def test_what_undoes_a_create_does_not_hide_why(driver: Driver, pool: FakePool, host: FakeHost) -> None:
    """And it is one short command: somebody waits for it."""
    host.fails["mount"] = [failed(rbdcli.RbdError, 32)]
    pool.fails["remove"] = [timed_out()]
    with pytest.raises(rbdcli.RbdError) as raised:
        driver.create("a", "", {"size": "20G"})
    assert raised.value.status == 32
    assert pool.named("remove") == ["docker_image_a"]
    assert not pool.named("remove_slowly")
