"""Layers with their owners mapped: which are mounted, for how long, and what is told of a host that cannot do it."""

from __future__ import annotations

import errno
import os
import re

import pytest
from needs import needs
from unit.fake_host import FakeHost, refused
from unit.fakes import FakePool
from unit.layered import Life, again, nothing_left

from host import command
from mapped.handed_out import HandedOut, Stack
from mapped.idmapped import CannotMapIds, Ids

pytestmark = pytest.mark.usefixtures("stack")

IDS = Ids(((0, 100000, 1), (1, 200000, 9)), ((0, 300000, 1),))
MAPS = ("0 100000 1\n1 200000 9", "0 300000 1")
C = Stack("c", "c", ("b", "a"), ids=IDS)
VIEW = Stack("v", "", ("b", "a"), ids=IDS)


@pytest.fixture
def handed(life: Life) -> HandedOut:
    """What a process hands out that has handed out nothing yet."""
    life.home.clients_mount = True
    return life.handed_out


def lower(handed: HandedOut, stack: Stack) -> list[str]:
    """The directories below a stack, as a client is told."""
    [told] = handed.give(stack)
    return next(word for word in told.options if word.startswith("lowerdir=")).removeprefix("lowerdir=").split(":")


def clones(life: Life, host: FakeHost) -> list[str]:
    """The mount points with mapped owners."""
    return [point for point in host.mounted if point.startswith(life.paths.all_idmapped)]


def clean(life: Life, host: FakeHost) -> bool:
    """Nothing is left of any layer."""
    life.unmap()
    assert life.handed_out._idmapped.stacks() == []
    return nothing_left(life, host)


def test_each_layer_below_is_mounted_once_more(handed: HandedOut, life: Life, host: FakeHost) -> None:
    top = life.paths.idmapped("c")
    assert lower(handed, C) == [f"{top}/0/rootfs", f"{top}/1/rootfs"]
    assert clones(life, host) == [f"{top}/0", f"{top}/1"]
    for at, layer in enumerate("ba"):
        assert host.mounted[f"{top}/{at}"].device_number == host.mounted[life.paths.point(layer)].device_number
    assert host.namespaces == {MAPS: 0}
    handed.take_back("c")
    assert clones(life, host) == []
    assert clean(life, host)


def test_each_stack_has_ids_of_its_own(handed: HandedOut, life: Life, host: FakeHost) -> None:
    handed.give(C)
    handed.give(VIEW._replace(ids=Ids(((0, 5, 5),), ((0, 5, 5),))))
    handed.give(Stack("other", "other", ("b", "a")))
    assert len(clones(life, host)) == 4
    assert [host.users[point] for point in clones(life, host)] == [0, 0, 1, 1]
    handed.take_back("c")
    assert len(clones(life, host)) == 2


def test_the_root_of_a_new_layer_is_its_own_root_s(handed: HandedOut, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later it may be whatever the container has made of it."""
    given: list[tuple[str, int, int]] = []
    monkeypatch.setattr(handed._overlays, "give_root", lambda layer, owner: given.append((layer, *owner)))
    handed.give(C, lambda: None)
    assert given == [("c", 100000, 300000)]
    handed.take_back("c")
    handed.give(C)
    handed.give(VIEW)
    assert len(given) == 1


@needs(os.geteuid() == 0, "root")
def test_a_layer_that_is_the_container_s_already_is_not_mapped_again(
    handed: HandedOut, life: Life, host: FakeHost, pool: FakePool
) -> None:
    for image in pool.images:
        (pool.files(image) / "rootfs").mkdir(exist_ok=True)
    os.chown(pool.files("docker_image_b") / "rootfs", 100000, 300000)
    handed.give(C)
    assert clones(life, host) == [f"{life.paths.idmapped('c')}/{at}" for at in range(2)]
    assert list(host.users) == [f"{life.paths.idmapped('c')}/1"]


def test_of_the_host_s_own_root_nobody_can_tell(handed: HandedOut, host: FakeHost) -> None:
    handed.give(C._replace(ids=Ids(((0, 0, 1), (1, 100000, 9)), ((0, 0, 1),))))
    assert len(host.users) == 2


def test_a_layer_on_nothing_needs_no_more_than_that(handed: HandedOut, life: Life, host: FakeHost) -> None:
    stack = Stack("a", "a", (), ids=IDS)
    assert lower(handed, stack) == [f"{life.paths.point('a')}/none"]
    assert host.namespaces == {}
    handed.take_back("a")
    life.unmap()
    assert nothing_left(life, host)


def test_128_layers_fit_into_a_page(handed: HandedOut, life: Life) -> None:
    names = [str(number) for number in range(128)]
    found = handed._idmapped.lower("some-stack", names)
    # What containerd makes of it: it changes to the directory that they have in common.
    shorter = ":".join(found).replace(f"{life.paths.idmapped('some-stack')}/", "")
    assert len(shorter) < 2000


def test_a_mount_that_went_is_made_again(handed: HandedOut, life: Life, host: FakeHost) -> None:
    told = handed.give(C)
    host.unmount(clones(life, host)[0], timeout=1)
    assert handed.give(C) == told
    assert len(clones(life, host)) == 2


def test_a_mount_of_another_device_is_made_again(handed: HandedOut, life: Life, host: FakeHost) -> None:
    handed.give(C)
    point = life.paths.idmapped("c") + "/0"
    host.mounted[point] = host.mounted[point]._replace(device_number="7:99")
    handed.give(C)
    assert host.mounted[point].device_number == host.mounted[life.paths.point("b")].device_number


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_the_next_life_has_the_same(missing: int, handed: HandedOut, life: Life, host: FakeHost) -> None:
    """Also if it was killed while it mounted them, or somebody has unmounted some."""
    told = handed.give(C)
    for point in clones(life, host)[:missing]:
        host.unmount(point, timeout=1)
    new = again(life)
    new.home.clients_mount = new.from_before._clients_mount = True
    new.learn()
    assert new.handed_out.adopt(C)
    new.handed_out.unmount_left()
    assert len(clones(life, host)) == 2
    assert new.handed_out.give(C) == told
    new.handed_out.take_back("c")
    assert clean(new, host)


def test_what_nobody_knows_any_more_is_unmounted(handed: HandedOut, life: Life, host: FakeHost) -> None:
    """The process was killed before anybody was told of it."""
    handed.give(C)
    new = again(life)
    new.home.clients_mount = new.from_before._clients_mount = True
    for layer in new.learn():
        new.leave_mapped(layer)
    new.handed_out.unmount_left()
    assert clones(life, host) == []
    assert clean(new, host)


def test_what_cannot_be_unmounted_is_tried_again(
    handed: HandedOut, life: Life, host: FakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    handed.give(C)
    host.fails["unmount"] = [refused("target is busy")] * 3
    with pytest.raises(Exception, match="target is busy"):
        handed.take_back("c")
    assert len(clones(life, host)) == 2
    host.fails["unmount"] = [refused("target is busy")] * 3
    handed.unmount_left()
    assert "target is busy" in caplog.text
    handed.unmount_left()
    assert clean(life, host)


def test_ids_that_have_changed_meanwhile(handed: HandedOut, life: Life, host: FakeHost) -> None:
    """What is mounted for the former ones was left by a failure; the kernel does not tell the ids of a mount."""
    handed.give(C)
    host.fails["unmount"] = [refused("target is busy")] * 3
    with pytest.raises(Exception, match="target is busy"):
        handed.take_back("c")
    handed.give(C._replace(ids=Ids(((0, 5, 5),), ((0, 5, 5),))))
    assert [host.users[point] for point in clones(life, host)] == [1, 1]


def os_error(number: int, call: str) -> OSError:
    return OSError(number, "", call)


@pytest.mark.parametrize(
    ("step", "failure", "said"),
    [
        ("clone", os_error(errno.ENOSYS, "mount_setattr"), "mount_setattr: Function not implemented"),
        ("clone", os_error(errno.EINVAL, "mount_setattr"), "mount_setattr: Invalid argument"),
        ("clone", os_error(errno.EPERM, "open_tree"), "open_tree: Operation not permitted"),
        ("overlay", refused(), "Linux 5.19"),
        ("opened", command.CommandError(("unshare", "it"), 1, "No space left on device"), "No space left"),
    ],
)
def test_a_host_that_cannot_do_it_is_told_so(
    step: str, failure: Exception, said: str, handed: HandedOut, life: Life, host: FakeHost
) -> None:
    host.fails[step] = [failure]
    with pytest.raises(CannotMapIds, match=re.escape(said)) as caught:
        handed.give(C)
    assert "\n" not in str(caught.value)
    assert clean(life, host)
    handed.give(C)


@pytest.mark.parametrize("step", ["clone", "overlay", "opened"])
def test_other_failures_are_what_they_are(step: str, handed: HandedOut, life: Life, host: FakeHost) -> None:
    failure = OSError(errno.ENOMEM, "no memory") if step == "clone" else command.CommandTimeout(("x",), None, "")
    host.fails[step] = [failure]
    with pytest.raises(type(failure)):
        handed.give(C)
    assert clean(life, host)


def test_it_is_tried_once_whether_they_can_be_joined(handed: HandedOut, host: FakeHost) -> None:
    handed.give(C)
    handed.give(VIEW)
    assert len(host.overlays) == 1
    assert host.views() == {}
