"""What is mapped and mounted for clients that mount it themselves, and how long."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from unit.fake_host import FakeHost
from unit.fakes import FakePool
from unit.layered import Life, again, finish, nothing_left

import mounts
from images import layer_state
from images.layers import LayerError
from mapped import handed_out
from mapped.file_systems import LayerLost
from mapped.handed_out import HandedOut, Stack, Told

pytestmark = pytest.mark.usefixtures("stack")

C = Stack("c", "c", ("b", "a"))
VIEW = Stack("v", "", ("b", "a"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets some seconds pass."""
    now = [1000.0]
    monkeypatch.setattr(handed_out, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


@pytest.fixture
def handed(life: Life) -> HandedOut:
    """What a process hands out that has handed out nothing yet."""
    life.home.clients_mount = True
    return life.handed_out


def words(told: list[Told]) -> dict[str, str]:
    """The options of the one mount that was told, by their names."""
    [one] = told
    assert one.type == "overlay"
    return dict(option.partition("=")[::2] for option in one.options)


def mount(host: FakeHost, told: list[Told]) -> str:
    """A client mounts what it was told, and a container takes it into a namespace of its own."""
    [one] = told
    host.elsewhere[one.source] = mounts.Mount("0:99", "/", False, "", "overlay", one.source)
    return one.source


def mapped(life: Life) -> list[str]:
    """What is mapped and has a user."""
    return sorted(set(life.devices.mapped()) - set(life.devices.unused()))


def test_a_layer_on_others(handed: HandedOut, life: Life) -> None:
    found = words(handed.give(C))
    point = life.paths.point("c")
    assert found["upperdir"] == f"{point}/rootfs"
    assert found["workdir"] == f"{point}/work"
    lower = found["lowerdir"].split(":")
    assert [os.path.realpath(path) for path in lower] == [
        os.path.realpath(f"{life.paths.point(x)}/rootfs") for x in "ba"
    ]
    assert {os.path.dirname(path) for path in lower} == {life.paths.links}
    assert found["index"] == "off"
    assert found["redirect_dir"] == "on"
    assert found["xino"] == "off", "the user's options win"
    assert "ro" not in found, "what has `ro` counts as unpacked"
    assert os.path.isdir(found["upperdir"])


def test_a_layer_on_nothing(handed: HandedOut, life: Life) -> None:
    found = words(handed.give(Stack("a", "a", ())))
    assert found["lowerdir"] == f"{life.paths.point('a')}/none"
    assert os.stat(found["upperdir"]).st_mode & 0o7777 == 0o755


def test_what_is_only_read(handed: HandedOut, life: Life) -> None:
    found = words(handed.give(VIEW))
    assert "ro" in found
    assert "upperdir" not in found
    assert len(found["lowerdir"].split(":")) == 2
    assert mapped(life) == ["a", "b"]


def test_one_layer_that_is_only_read(handed: HandedOut, life: Life) -> None:
    lower = words(handed.give(Stack("v", "", ("a",))))["lowerdir"].split(":")
    assert lower == [f"{life.paths.links}/{life.paths.short('a')}", f"{life.paths.point('a')}/none"]


def test_nothing_that_is_only_read(handed: HandedOut, life: Life) -> None:
    [told] = handed.give(Stack("v", "", ()))
    assert told == Told("bind", life.paths.empty, ["ro", "rbind"])
    assert os.listdir(told.source) == []


def test_128_layers_fit_into_a_page(handed: HandedOut, life: Life, pool: FakePool) -> None:
    names = [f"layer{number}" for number in range(128)]
    for at, name in enumerate(names):
        pool.add_layer(name, *reversed(names[:at]))
        finish(pool, name, *reversed(names[:at]))
    pool.add_layer("top", *reversed(names))
    found = words(handed.give(Stack("top", "top", tuple(reversed(names)))))
    # What containerd makes of it: it changes to the directory that they have in common.
    shorter = found["lowerdir"].replace(f"{life.paths.links}/", "")
    assert len(shorter) + len(",".join(found)) + 2 * len(found["upperdir"]) < 4096 - 512


def test_the_same_is_told_again(handed: HandedOut, pool: FakePool) -> None:
    first = handed.give(C)
    before = len(pool.calls)
    assert handed.give(C) == first
    assert len(pool.calls) == before, "nothing was asked for"


def test_taken_back(handed: HandedOut, life: Life, host: FakeHost) -> None:
    handed.give(C)
    handed.give(VIEW)
    handed.take_back("c")
    assert host.flushed == [life.paths.point("c")]
    assert mapped(life) == ["a", "b"]
    handed.take_back("v")
    handed.take_back("v")
    assert mapped(life) == []
    life.unmap()
    assert nothing_left(life, host)


def test_what_nobody_wants_is_not_written_out(handed: HandedOut, host: FakeHost) -> None:
    handed.give(C)
    handed.take_back("c", flush=False)
    assert host.flushed == []


@pytest.mark.parametrize("layer, error", [("c", LayerError), ("a", LayerLost)])
def test_an_image_that_has_gone_leaves_nothing_mounted(
    layer: str, error: type[Exception], handed: HandedOut, life: Life, host: FakeHost, pool: FakePool
) -> None:
    gone = pool.images.pop(f"docker_image_{layer}")
    with pytest.raises(error, match=f"no image docker_image_{layer}"):
        handed.give(C)
    nothing_is_handed_out(handed, life, host)
    pool.images[f"docker_image_{layer}"] = gone
    handed.give(C)


def test_a_failed_mount_leaves_nothing_mounted(handed: HandedOut, life: Life, host: FakeHost) -> None:
    # The layers are mounted at the same time: any two of them fail, or one, before the others have begun.
    host.fails["mount"] = [mounts.MountError("no"), mounts.MountError("no")]
    with pytest.raises(mounts.MountError):
        handed.give(C)
    host.fails.clear()
    nothing_is_handed_out(handed, life, host)
    handed.give(C)


def nothing_is_handed_out(handed: HandedOut, life: Life, host: FakeHost) -> None:
    assert mapped(life) == []
    assert handed.names() == []
    life.unmap()
    assert nothing_left(life, host)


def test_the_layer_is_made_meanwhile(handed: HandedOut, life: Life, pool: FakePool) -> None:
    handed.give(Stack("new", "new", ("b", "a")), lambda: make_layer(life))
    assert "docker_image_new" in pool.images
    assert mapped(life) == ["a", "b", "new"]


def test_what_cannot_be_made(handed: HandedOut, life: Life) -> None:
    def make() -> None:
        raise LayerError("it cannot")

    with pytest.raises(LayerError, match="it cannot"):
        handed.give(Stack("new", "new", ("b", "a")), make)
    assert mapped(life) == []


def test_a_removed_layer_is_none(handed: HandedOut, life: Life) -> None:
    life.removals.note("c")
    with pytest.raises(LayerError, match="removed"):
        handed.give(C)


# -- how long ----------------------------------------------------------------------------------


def make_layer(life: Life) -> None:
    """The image of a new layer."""
    life.layers.create("new", "b", None)


def unused(handed: HandedOut) -> list[str]:
    """What is taken back now."""
    return handed.take_back_unused(lambda _: None)


def test_what_is_mounted_stays(handed: HandedOut, host: FakeHost, clock: Callable[[float], None]) -> None:
    source = mount(host, handed.give(C))
    clock(10 * handed_out.AWAITED_SECONDS)
    assert unused(handed) == []
    del host.elsewhere[source]
    assert unused(handed) == [], "its container may be started again"
    clock(handed_out.UNUSED_SECONDS + 1)
    assert unused(handed) == ["c"]
    assert handed.names() == []


def test_what_was_told_is_awaited(handed: HandedOut, clock: Callable[[float], None]) -> None:
    handed.give(VIEW)
    clock(handed_out.AWAITED_SECONDS - 1)
    assert unused(handed) == []
    handed.give(VIEW)
    clock(handed_out.AWAITED_SECONDS - 1)
    assert unused(handed) == []
    clock(2)
    assert unused(handed) == ["v"]


def test_a_short_use_that_nobody_saw(handed: HandedOut, life: Life, clock: Callable[[float], None]) -> None:
    handed.give(C)
    os.mkdir(f"{life.paths.point('c')}/{layer_state.WORK}/work")
    clock(handed_out.UNUSED_SECONDS + 1)
    assert unused(handed) == ["c"]


def test_what_is_unpacked_stays(handed: HandedOut, host: FakeHost, clock: Callable[[float], None]) -> None:
    source = mount(host, handed.give(C._replace(kept=True)))
    unused(handed)
    del host.elsewhere[source]
    clock(10 * handed_out.AWAITED_SECONDS)
    assert unused(handed) == []


def test_it_is_asked_before(handed: HandedOut, life: Life, host: FakeHost, clock: Callable[[float], None]) -> None:
    seen: list[bool] = []
    source = mount(host, handed.give(C))
    unused(handed)
    del host.elsewhere[source]
    clock(handed_out.UNUSED_SECONDS + 1)
    handed.take_back_unused(lambda name: seen.append(life.systems.is_mounted(name)))
    assert seen == [True]


def test_a_failure_before_does_not_keep_it(handed: HandedOut, clock: Callable[[float], None]) -> None:
    def fails(_: str) -> None:
        raise LayerError("no")

    handed.give(VIEW)
    clock(handed_out.AWAITED_SECONDS + 1)
    assert handed.take_back_unused(fails) == ["v"]
    assert handed.names() == []


# -- from before -------------------------------------------------------------------------------


def test_a_new_process_takes_over(handed: HandedOut, life: Life, host: FakeHost) -> None:
    told = handed.give(C)
    mount(host, told)
    new = again(life)
    new.home.clients_mount = new.from_before._clients_mount = True
    new.learn()
    assert mapped(new) == []
    assert new.handed_out.adopt(C)
    assert mapped(new) == ["a", "b", "c"]
    assert new.handed_out.give(C) == told
    assert not host.views(), "it is the client's to mount"


def test_what_is_not_whole_is_not_taken_over(handed: HandedOut, life: Life) -> None:
    handed.give(Stack("v", "", ("a",)))
    new = again(life)
    new.learn()
    assert not new.handed_out.adopt(VIEW)
    assert mapped(new) == []
