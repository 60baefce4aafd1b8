"""views.py: layers joined with their parents, never two of them on one directory, whatever fails, hangs or crashes."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from unit.fake_host import FakeHost, refused
from unit.fakes import FakePool, failed, timed_out
from unit.layered import Life, nothing_left

import mounts
import rbdcli
from host import deadline
from host.command import CommandError, CommandTimeout
from images import layer_state
from images.layer_state import LayerState
from mapped import from_before, overlays
from mapped.file_systems import LayerLost
from mapped.unmounting import LayerBusy
from mapped.view import Place

DOCKER, DRIVER, BELOW = Place.DOCKER, Place.DRIVER, Place.BELOW


@pytest.fixture
def pool() -> FakePool:
    """Two images on one, an init layer and its container."""
    made = FakePool()
    made.add_base()
    made.add_layer("a")
    made.add_layer("b", "a")
    made.add_layer("c", "b", "a")
    made.add_layer("other", "b", "a")
    made.add_layer("box-init", "b", "a")
    return made


@pytest.fixture
def host(pool: FakePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHost:
    made = FakeHost.in_place(pool, monkeypatch, tmp_path / "content")
    finish(pool, "a")
    finish(pool, "b", "a")
    return made


def finish(pool: FakePool, layer: str, *parents: str) -> None:
    """Nobody writes to a layer any more, and its note says so."""
    layer_state.write(str(pool.files(f"docker_image_{layer}")), LayerState(layer, parents, finished=True), 60)


def again(life: Life) -> Life:
    """A process that knows nothing yet."""
    return Life(life.path, life.pool)


def lower(host: FakeHost, point: str) -> list[str]:
    return list(host.views()[point].lower)


def links(life: Life, *layers: str) -> list[str]:
    return [life.paths.short(layer) for layer in layers]


def acquire(life: Life, layer: str, place: Place, *, finished: bool = False) -> Place:
    with life.locks.hold(layer):
        return life.views.acquire(layer, place, finished=finished)


def release(life: Life, layer: str, place: Place) -> None:
    with life.locks.hold(layer):
        life.views.uncount(layer, place)
        life.views.unmount_unused(layer, place)


def container(life: Life) -> None:
    """As Docker makes one: its init layer is filled, and copied."""
    brought = Path(life.paths.point("box-init"), "rootfs", "etc")
    life.get("box-init")
    brought.mkdir()
    (brought / "hostname").write_text("box", encoding="ascii")
    life.put("box-init")
    life.pool.deep_copy("docker_image_box-init", "docker_image_box", 1, "")


def test_who_is_at_work_with_a_parent_keeps_nobody_from_leaving_it(life: Life, host: FakeHost) -> None:
    """As long as the cluster is sick, that may be longer than a Put may take."""
    life.get("c")
    with life.locks.hold("a"), deadline.within(0.1):
        life.put("c")
    assert life.systems.users("a") == life.systems.users("b") == set()


# -- what a view is made of ------------------------------------------------------------------------


def test_a_layer_that_is_not_finished_is_written_to_above_its_parents(life: Life, host: FakeHost) -> None:
    point = life.get("c")
    view, mounted = host.views()[point], host.mounted[point]
    assert view.lower == links(life, "b", "a")
    assert view.upper == ("../mnt/c/layer/rootfs", "../mnt/c/layer/work")
    assert view.options == ("xino=off",)
    assert (mounted.source, mounted.read_only, life.views.is_writable("c")) == (life.paths.source("c"), False, True)
    systems = {life.paths.point(layer): layer != "c" for layer in "abc"}
    assert {place: item.read_only for place, item in host.systems().items()} == systems
    assert [Path(path) for path in view.lower_paths] == [life.pool.files(f"docker_image_{x}") / "rootfs" for x in "ba"]


def test_a_finished_one_is_never_written_to(life: Life, host: FakeHost) -> None:
    finish(life.pool, "c", "b", "a")
    point = life.get("c", finished=True)
    view = host.views()[point]
    assert (view.lower, view.upper) == (links(life, "c", "b", "a"), None)
    assert host.mounted[point].read_only
    assert all(item.read_only for item in host.systems().values())
    assert not life.views.is_writable("c")


def test_a_layer_without_parents_stands_on_an_empty_directory(life: Life, host: FakeHost) -> None:
    """A kernel joins one directory with an upper one, or two."""
    assert lower(host, life.get("a", finished=True)) == [*links(life, "a"), "../mnt/a/layer/none"]
    life.pool.add_layer("new")
    assert lower(host, life.get("new")) == ["../mnt/new/layer/none"]


def test_a_label_is_that_of_the_view(life: Life, host: FakeHost) -> None:
    point = life.get("c", label="system_u:object_r:x")
    assert host.mounted[point].label == "system_u:object_r:x"
    assert {item.label for item in host.systems().values()} == {""}


def test_what_is_below_a_layer_is_looked_at_beside_its_view(life: Life, host: FakeHost) -> None:
    """Also while a container writes to it; who looks for the view by its name does not find that."""
    life.get("c")
    own, below, _ = life.views.acquire_own("c", finished=False)
    assert (own, below) == (f"{life.paths.point('c')}/rootfs", life.point("c", BELOW))
    view = host.views()[str(below)]
    assert (view.lower, view.upper) == (links(life, "b", "a"), None)
    assert host.mounted[str(below)].source == f"{life.paths.source('c')}-below"
    assert host.mounted[str(below)].read_only
    release(life, "c", BELOW)
    assert [*host.views()] == [life.point("c")]


def test_what_is_below_a_layer_with_one_parent_or_none(life: Life, host: FakeHost) -> None:
    _, below, _ = life.views.acquire_own("b", finished=True)
    assert lower(host, str(below)) == [*links(life, "a"), "../mnt/b/layer/none"]
    assert life.views.acquire_own("a", finished=True) == (f"{life.paths.point('a')}/rootfs", None, "")
    assert life.views.acquire_own("a", finished=True)[1] is None
    assert life.point("a", BELOW) not in host.mounted
    for layer in "aab":
        release(life, layer, BELOW)
    life.unmap()
    assert nothing_left(life, host)


def test_what_docker_made_a_layer_on(life: Life, pool: FakePool) -> None:
    container(life)
    pool.add_layer("on-box", "box", "b", "a")
    for layer, parent in {"c": "b", "a": "", "box": "box-init", "on-box": "box"}.items():
        assert life.views.acquire_own(layer, finished=layer == "a")[2] == parent
        release(life, layer, BELOW)


# -- a container -----------------------------------------------------------------------------------


def box(life: Life) -> tuple[dict[str, list[str]], LayerState | None]:
    """What the layer of the container holds."""
    files = life.pool.files("docker_image_box")
    found = {path.name: sorted(child.name for child in path.iterdir()) for path in files.iterdir() if path.is_dir()}
    return found, layer_state.read(str(files), 60)


BOX = ({"rootfs": [], "init": ["etc"], "work": [], "none": []}, LayerState("box", ("b", "a"), init="box-init"))


def test_a_container_has_what_its_init_layer_brought_below_it(life: Life, host: FakeHost) -> None:
    """On its own device: it has one, and not two."""
    container(life)
    point = life.get("box")
    assert lower(host, point) == ["../mnt/box/layer/init", *links(life, "b", "a")]
    assert box(life) == BOX
    assert sorted(life.devices.mapped()) == ["a", "b", "box", "box-init"]
    assert life.systems.users("box-init") == set()
    life.put("box")
    assert lower(host, life.get("box")) == ["../mnt/box/layer/init", *links(life, "b", "a")]
    assert box(life) == BOX
    own, below, _ = life.views.acquire_own("box", finished=False)
    assert own.endswith("/box/layer/rootfs")
    assert lower(host, str(below)) == ["../mnt/box/layer/init", *links(life, "b", "a")]


@pytest.mark.parametrize("crashed", ["before", "after the rename", "before the note", "with half a note"])
def test_a_container_whose_first_mount_was_cut_off(life: Life, host: FakeHost, crashed: str) -> None:
    container(life)
    files = life.pool.files("docker_image_box")
    if crashed != "before":
        os.rename(files / "rootfs", files / "init")
    if crashed in ("before the note", "with half a note"):
        (files / "rootfs").mkdir()
    if crashed == "with half a note":
        (files / f"{layer_state.NAME}.new").write_text("{", encoding="ascii")
    assert lower(host, life.get("box")) == ["../mnt/box/layer/init", *links(life, "b", "a")]
    assert box(life) == BOX


def test_a_layer_on_a_container_s_has_both_its_directories_below_it(life: Life, host: FakeHost, pool: FakePool) -> None:
    container(life)
    life.get("box")
    life.put("box")
    pool.add_layer("on-box", "box", "b", "a")
    point = life.get("on-box")
    assert lower(host, point) == [*links(life, "box"), "../mnt/box/layer/init", *links(life, "b", "a")]


def test_a_copy_of_what_is_no_init_layer(life: Life, host: FakeHost, pool: FakePool) -> None:
    """What an operator copies; its rootfs is not to be taken for what an init layer brought."""
    container(life)
    life.get("box")
    life.put("box")
    pool.deep_copy("docker_image_box", "docker_image_copied", 1, "")
    with pytest.raises(LayerLost, match="layer copied: box is no init layer, but a container's; remove copied"):
        life.get("copied")


# -- what a root inherits ----------------------------------------------------------------------------


def test_a_root_has_the_attributes_of_that_below_it(life: Life, pool: FakePool) -> None:
    """In a view the topmost root counts. What overlayfs keeps there for itself is no attribute of anybody's."""
    nearest = pool.files("docker_image_b") / "rootfs"
    os.chmod(nearest, 0o3751)
    os.setxattr(nearest, "user.kept", b"1")
    os.utime(nearest, ns=(10**18, 10**18 + 7))
    life.get("c")
    root = pool.files("docker_image_c") / "rootfs"
    status = root.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o3751, 10**18 + 7)
    assert os.getxattr(root, "user.kept") == b"1"


def test_what_overlayfs_keeps_is_not_inherited(life: Life, pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    set_names: list[str] = []
    monkeypatch.setattr(os, "listxattr", lambda path: ["trusted.overlay.opaque", "user.kept", "trusted.overlay.origin"])
    monkeypatch.setattr(os, "getxattr", lambda path, name: b"y")
    monkeypatch.setattr(os, "setxattr", lambda path, name, value: set_names.append(name))
    life.get("c")
    assert set_names == ["user.kept"]


def test_a_container_s_root_has_those_of_its_init_layer_s(life: Life, pool: FakePool) -> None:
    container(life)
    os.chmod(pool.files("docker_image_box") / "rootfs", 0o711)
    os.chmod(pool.files("docker_image_b") / "rootfs", 0o700)
    life.get("box")
    assert stat.S_IMODE((pool.files("docker_image_box") / "rootfs").stat().st_mode) == 0o711


def test_a_root_that_inherits_nothing_belongs_to_the_containers_root(
    life: Life, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: list[tuple[str, int, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: owners.append((path, uid, gid)))
    remapped = Life(life.path, pool, root_owner=(100000, 100001))
    pool.add_layer("new")
    remapped.get("new")
    assert owners == [(f"{life.paths.point('new')}/rootfs", 100000, 100001)]


def test_what_a_layer_has_come_to_have_stays(life: Life, pool: FakePool) -> None:
    """Only its first mount gives it something."""
    life.get("c")
    root = pool.files("docker_image_c") / "rootfs"
    os.chmod(root, 0o700)
    life.put("c")
    again(life).learn()
    life.get("c")
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_a_note_that_the_power_took_is_written_anew(life: Life, pool: FakePool) -> None:
    files = pool.files("docker_image_c")
    (files / layer_state.NAME).write_bytes(b"")
    life.get("c")
    assert layer_state.read(str(files), 60) == LayerState("c", ("b", "a"))


# -- counts --------------------------------------------------------------------------------------


def test_the_last_put_unmounts_and_the_rest_goes_when_it_is_let_go(life: Life, host: FakeHost) -> None:
    life.get("c")
    life.get("c")
    assert len(host.overlays) == 1
    life.put("c")
    assert life.views.is_mounted("c", DOCKER)
    assert life.idle == []
    life.put("c")
    # All of it is in the cluster now, and stays mounted for the next.
    assert host.flushed == [life.paths.point("c")]
    assert sorted(host.mounted) == [life.paths.point(layer) for layer in "abc"]
    assert sorted(life.idle) == ["a", "b", "c"]
    life.unmap()
    assert nothing_left(life, host)


def test_release_of_what_was_never_mounted(life: Life, host: FakeHost) -> None:
    for place in Place:
        release(life, "c", place)
    life.get("c")
    release(life, "c", DRIVER)
    release(life, "c", BELOW)
    assert life.views.is_mounted("c", DOCKER)
    life.put("c")
    life.put("c")
    life.unmap()
    assert nothing_left(life, host)


def test_what_is_shared_is_mapped_once_and_goes_with_the_last(life: Life, host: FakeHost, pool: FakePool) -> None:
    life.get("c")
    life.get("other")
    maps = ["docker_image_a", "docker_image_b", "docker_image_c", "docker_image_other"]
    assert sorted(pool.named("map")) == maps
    assert life.systems.users("a") == {"c/docker", "other/docker"}
    life.put("c")
    life.unmap()
    assert sorted(life.devices.mapped()) == ["a", "b", "other"]
    assert life.systems.users("a") == {"other/docker"}
    life.put("other")
    life.unmap()
    assert nothing_left(life, host)


def test_docker_cannot_have_a_layer_while_an_archive_is_laid_down(life: Life, host: FakeHost) -> None:
    """Two views on the same directories would spoil both."""
    assert acquire(life, "c", DRIVER) is DRIVER
    with pytest.raises(LayerBusy, match="layer c: an archive is being laid down in it; try again"):
        life.get("c")
    assert [*host.views()] == [life.point("c", DRIVER)]
    release(life, "c", DRIVER)
    assert host.mounted[life.get("c")].read_only is False
    life.put("c")
    life.unmap()
    assert nothing_left(life, host)


def test_a_finished_layer_may_have_two_views(life: Life, host: FakeHost) -> None:
    acquire(life, "b", DRIVER, finished=True)
    life.get("b", finished=True)
    assert [*host.views()] == [life.point("b", DRIVER), life.point("b")]
    release(life, "b", DRIVER)
    assert life.systems.users("a") == {"b/docker"}
    life.put("b")
    life.unmap()
    assert nothing_left(life, host)


def test_our_own_work_uses_docker_s_mount_and_does_not_end_it(life: Life, host: FakeHost) -> None:
    life.get("c")
    assert acquire(life, "c", DRIVER) is DOCKER
    life.put("c")
    assert [*host.views()] == [life.point("c")]
    release(life, "c", DOCKER)
    assert host.views() == {}


def test_a_layer_that_is_just_being_finished_is_not_got_as_a_finished_one(life: Life, host: FakeHost) -> None:
    """Its archive is in the cluster, and its view is not let go yet: it would be read-only under that."""
    acquire(life, "c", DRIVER)
    life.systems.set_finished("c")
    with pytest.raises(LayerBusy, match="layer c: an archive is being laid down in it; try again"):
        life.get("c", finished=True)
    release(life, "c", DRIVER)
    assert host.mounted[life.get("c", finished=True)].read_only


def test_a_view_that_nobody_uses_any_more_is_in_nobody_s_way(life: Life, host: FakeHost) -> None:
    """One view has one label."""
    acquire(life, "c", DRIVER)
    host.fails["unmount"] = [refused("target is busy")] * 2
    with pytest.raises(LayerBusy):
        release(life, "c", DRIVER)
    life.get("c", label="x")
    assert [*host.views()] == [life.point("c")]
    assert host.mounted[life.point("c")].label == "x"
    life.put("c")
    life.unmap()
    assert nothing_left(life, host)


def test_what_somebody_will_need_is_mapped_and_mounted_ahead(life: Life, host: FakeHost, pool: FakePool) -> None:
    life.views.map_ahead("b")
    life.views.map_ahead("b")
    assert host.systems()[life.paths.point("b")].read_only
    assert life.idle == ["b"]
    life.get("c")
    assert sorted(pool.named("map")) == ["docker_image_a", "docker_image_b", "docker_image_c"]


def test_parents_are_mapped_side_by_side(life: Life, pool: FakePool) -> None:
    """A map waits for the cluster, and a deep image is many."""
    together, mapping = threading.Barrier(3, timeout=300), pool.map

    def map_together(image: str, *, read_only: bool, exclusive: bool) -> str:
        together.wait()
        return mapping(image, read_only=read_only, exclusive=exclusive)

    object.__setattr__(pool, "map", map_together)
    life.get("c")
    assert len(pool.devices) == 3


# -- what fails ----------------------------------------------------------------------------------


def fail(life: Life, host: FakeHost, monkeypatch: pytest.MonkeyPatch, step: str, failure: Exception) -> None:
    """Let the next Get of c fail at a step."""
    if step == "overlay":
        host.fails[step] = [failure]
    elif step.startswith(("map ", "mount ")):
        verb, layer = step.split()
        target = life.pool if verb == "map" else mounts
        work = getattr(target, verb)

        def fails(*words: object, **options: object) -> object:
            if f"docker_image_{layer}" in words or life.pool.devices.get(f"docker_image_{layer}") in words:
                raise failure
            return work(*words, **options)

        if verb == "map":
            object.__setattr__(target, verb, fails)
        else:
            monkeypatch.setattr(target, verb, fails)
    else:

        def raises(*_: object) -> None:
            raise failure

        module, name = step.split(".")
        monkeypatch.setattr({"layer_state": layer_state, "overlays": overlays}[module], name, raises)


STEPS = [
    "map c",
    "map b",
    "map a",
    "mount c",
    "mount b",
    "layer_state.write",
    "layer_state.read",
    "overlays._prepare",
    "overlay",
]


@pytest.mark.parametrize("place", [DOCKER, BELOW])
@pytest.mark.parametrize("step", STEPS)
def test_a_get_that_fails_leaves_nothing(life: Life, host: FakeHost, step: str, place: Place) -> None:
    failure = failed(rbdcli.RbdError, 5)
    with pytest.MonkeyPatch.context() as patch:
        fail(life, host, patch, step, failure)
        with pytest.raises(CommandError) as raised:
            acquire(life, "c", place)
    assert raised.value is failure
    assert host.views() == {}
    assert {user for layer in life.devices.mapped() for user in life.systems.users(layer)} == set()
    # What was mapped is told to be idle, so that it goes.
    life.unmap()
    assert nothing_left(life, host)


def test_a_layer_that_is_not_there(life: Life, host: FakeHost) -> None:
    with pytest.raises(rbdcli.ImageMissing):
        life.get("missing")
    assert nothing_left(life, host)


def test_a_parent_that_is_not_there_any_more_is_named(life: Life, host: FakeHost, pool: FakePool) -> None:
    del pool.images["docker_image_a"]
    with pytest.raises(LayerLost) as raised:
        life.get("c")
    said = str(raised.value)
    assert said.startswith("layer c cannot be mounted: what is below it, layer a, does not exist any more (no image")
    assert said.endswith("docker_image_a); remove it")
    life.unmap()
    assert nothing_left(life, host)


def test_a_parent_that_another_host_has_mapped_writable_does_not_keep_us(life: Life, pool: FakePool) -> None:
    """A finished layer is mapped read-only, which takes no lock."""
    locked = pool.map

    def refuses(image: str, *, read_only: bool, exclusive: bool) -> str:
        if not read_only and image == "docker_image_b":
            raise failed(rbdcli.ImageLocked, 30)
        return locked(image, read_only=read_only, exclusive=exclusive)

    object.__setattr__(pool, "map", refuses)
    life.get("c")


def test_a_dead_device_of_a_shared_parent_is_named_and_mended_after_its_last_user(
    life: Life, host: FakeHost, pool: FakePool
) -> None:
    life.get("c")
    dead = host.die("a")
    for layer in ("other", "c"):
        with pytest.raises(LayerLost) as raised:
            life.get(layer)
        said = str(raised.value)
        assert f"layer a: its device {dead} is gone" in said
        assert "stop what uses it (c): " in said
    assert life.systems.users("a") == {"c/docker"}
    assert [*host.views()] == [life.point("c")]
    life.put("c")
    life.get("other")
    assert life.devices.device("a") == pool.devices["docker_image_a"] != dead


# -- what takes too long -----------------------------------------------------------------------------


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("place", [DOCKER, BELOW])
def test_a_mount_that_timed_out_is_ended_whether_it_was_done(
    life: Life, host: FakeHost, done: bool, place: Place
) -> None:
    host.fails["overlay"] = [(timed_out(), True) if done else timed_out()]
    with pytest.raises(CommandTimeout):
        acquire(life, "c", place)
    acquire(life, "c", place)
    assert [*host.views()] == [life.point("c", place)]
    release(life, "c", place)
    life.unmap()
    assert nothing_left(life, host)


@pytest.mark.parametrize("then", ["get", "discard", "let go"])
def test_a_mount_that_timed_out_and_could_not_be_ended_is_looked_at_before_the_next_step(
    life: Life, host: FakeHost, then: str
) -> None:
    """Nobody was told of it, and it is there."""
    host.fails["overlay"] = [(timed_out(), True)]
    host.fails["unmount"] = [timed_out()]
    with pytest.raises(CommandTimeout):
        life.get("c")
    assert [*host.views()] == [life.point("c")]
    if then == "get":
        life.get("c")
        assert [*host.views()] == [life.point("c")]
        life.put("c")
    elif then == "discard":
        life.views.discard("c")
    life.unmap("c")
    life.unmap()
    assert nothing_left(life, host)


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("then", ["get", "put", "let go", "discard"])
@pytest.mark.parametrize("place", [DOCKER, BELOW])
def test_an_unmount_that_timed_out_is_looked_at_before_the_next_step(
    life: Life, host: FakeHost, done: bool, then: str, place: Place
) -> None:
    acquire(life, "c", place)
    host.fails["unmount"] = [(timed_out(), True) if done else timed_out()]
    with pytest.raises(CommandTimeout):
        release(life, "c", place)
    if then == "get":
        acquire(life, "c", place)
        assert [*host.views()] == [life.point("c", place)]
    if then in ("get", "put"):
        release(life, "c", place)
        # What was written is in the cluster with the last user.
        assert host.flushed[-1:] == [life.paths.point("c")]
    if then == "discard":
        life.views.discard("c")
    life.unmap("c")
    assert host.views() == {}
    life.unmap()
    assert nothing_left(life, host)


def test_a_view_that_somebody_uses_is_unmounted_by_the_next_release(life: Life, host: FakeHost) -> None:
    life.get("c")
    host.fails["unmount"] = [refused("target is busy")] * 2
    with pytest.raises(LayerBusy, match=r"docker cannot be unmounted: .*process 1 \(sh\)"):
        life.put("c")
    assert life.systems.users("a") == {"c/docker"}
    # It is tried again in the background, too.
    assert life.idle == ["c"]
    life.put("c")
    life.unmap()
    assert nothing_left(life, host)


def test_a_layer_that_others_are_at_work_with_can_be_left(life: Life, host: FakeHost) -> None:
    """For longer than a Put may take, as long as the cluster is sick."""
    life.get("c")
    with life.locks.hold("c"):
        life.views.uncount("c", DOCKER)
        life.views.uncount("c", BELOW)
    life.views.uncount("other", DOCKER)
    life.unmap("c", "b", "a")
    assert nothing_left(life, host)


def test_what_stays_mounted_keeps_nobody_from_looking_at_what_is_below(life: Life, host: FakeHost) -> None:
    """`docker diff` of a container that has ended, and in whose root somebody has his working directory."""
    life.get("c")
    host.fails["unmount"] = [refused("target is busy")] * 2
    with pytest.raises(LayerBusy):
        life.put("c")
    host.fails["unmount"] = [refused("target is busy")] * 2
    acquire(life, "c", BELOW)
    assert host.fails["unmount"] != []


def test_a_layer_that_cannot_be_written_out_after_its_view_has_gone(life: Life, host: FakeHost) -> None:
    """What is below it is free, and it is told that it may not be in the cluster."""
    life.get("c")
    host.fails["flush"] = [deadline.Overdue("no answer")]
    with pytest.raises(deadline.Overdue):
        life.put("c")
    assert [life.systems.users(layer) for layer in "abc"] == [set()] * 3
    assert {*life.idle} == {"a", "b", "c"}
    life.put("c")
    life.unmap()
    assert nothing_left(life, host)


# -- removal -------------------------------------------------------------------------------------


def test_a_removed_layer_is_unmounted_whatever_its_counts(life: Life, host: FakeHost) -> None:
    """BuildKit removes what it never put."""
    life.get("c")
    life.get("c")
    life.views.acquire_own("c", finished=False)
    life.views.discard("c")
    assert host.views() == {}
    life.unmap()
    assert nothing_left(life, host)


def test_what_is_removed_is_not_written_out(life: Life, host: FakeHost) -> None:
    """Nobody wants it any more, and a full pool does not take it."""
    life.get("c")
    life.views.discard("c")
    assert host.flushed == []


def test_one_that_was_never_mounted(life: Life, host: FakeHost) -> None:
    life.views.discard("c")
    life.unmap("c")
    assert nothing_left(life, host)


def test_one_that_a_container_holds_is_not_removed(life: Life, host: FakeHost) -> None:
    host.run_container(life.get("c"))
    with pytest.raises(LayerBusy, match=r"layer c: .*process 1 \(sh\)"):
        life.views.discard("c")
    host.elsewhere.clear()
    life.views.discard("c")
    life.unmap()
    assert nothing_left(life, host)


@pytest.mark.parametrize("hangs", [1, 2])
def test_an_unmount_that_hangs_keeps_the_removal_until_the_kernel_is_done(
    life: Life, host: FakeHost, hangs: int
) -> None:
    """Of its views at any place; each of them is tried."""
    life.get("c")
    life.views.acquire_own("c", finished=False)
    host.fails["unmount"] = [timed_out()] * hangs
    with pytest.raises(CommandTimeout):
        life.views.discard("c")
    assert len(host.views()) == hangs
    life.unmap("c")
    life.unmap()
    assert nothing_left(life, host)


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


def test_what_the_kernel_still_writes_is_nobody_s(life: Life, host: FakeHost) -> None:
    """It goes once the kernel is done, which the pool may prevent: Docker need not wait for that."""
    life.get("c")
    host.writing.add(str(life.devices.device("c")))
    life.views.discard("c")
    with pytest.raises(LayerBusy):
        life.unmap("c")
    host.writing.clear()
    life.unmap("c")
    assert life.devices.device("c") is None


# -- after a crash -------------------------------------------------------------------------------


def test_a_new_life_knows_docker_s_views_and_ends_its_own(life: Life, host: FakeHost) -> None:
    """Nobody comes back for those of an earlier life of ours."""
    life.get("c", label="system_u:object_r:x")
    life.get("c")
    acquire(life, "other", DRIVER)
    life.views.acquire_own("b", finished=True)
    new = again(life)
    assert new.learn() == ["b", "other"]
    assert [new.views.is_mounted("c", place) for place in Place] == [True, False, False]
    assert new.views.is_writable("c")
    for layer in ("b", "other"):
        new.unmap(layer)
    assert [*host.views()] == [new.point("c")]
    # Counted from its note, for as long as it is there.
    assert [new.systems.users(layer) for layer in "abc"] == [{"c/docker"}] * 3
    new.unmap("a", "b")
    assert sorted(new.devices.mapped()) == ["a", "b", "c"]
    # One user, whatever it was.
    new.put("c")
    new.unmap()
    assert nothing_left(new, host)


def test_what_an_earlier_life_looked_at_goes(life: Life, host: FakeHost) -> None:
    """Docker's stays."""
    life.get("c")
    life.views.acquire_own("c", finished=False)
    new = again(life)
    assert new.learn() == ["c"]
    new.unmap("c")
    assert [*host.views()] == [new.point("c")]
    assert new.systems.users("a") == {"c/docker"}


def test_a_label_is_learned(life: Life) -> None:
    life.get("c", label="x")
    new = again(life)
    new.learn()
    assert acquire(new, "c", DRIVER) is DOCKER
    new.get("c", label="x")


def test_what_a_new_life_has_learned_it_goes_on_with(life: Life, host: FakeHost, pool: FakePool) -> None:
    """Nothing is mapped or joined a second time."""
    life.get("c")
    mapped = len(pool.named("map"))
    new = again(life)
    new.learn()
    new.get("c")
    acquire(new, "c", DRIVER)
    new.get("other")
    assert len(pool.named("map")) == mapped + 1
    assert len(host.overlays) == 2
    for layer in ("c", "c", "c", "other"):
        new.put(layer)
    new.unmap()
    assert nothing_left(new, host)


def test_a_finished_layer_is_known_as_one(life: Life, host: FakeHost) -> None:
    """So there is nothing to be written out when it is put."""
    life.get("c")
    with life.locks.hold("c"):
        layer_state.finish(life.paths.point("c"), LayerState("c", ("b", "a")), 60)
    new = again(life)
    new.learn()
    new.put("c")
    assert host.flushed == []


def test_a_view_that_only_a_container_has_is_taken_from_it(life: Life, host: FakeHost) -> None:
    """`docker plugin disable --force`: our mount namespace has ended, and the containers have their own."""
    host.run_container(life.get("c", label="x"))
    host.end_namespace()
    new = again(life)
    assert new.learn() == []
    assert [*host.views()] == [new.point("c")]
    assert len(host.overlays) == 1
    assert new.views.is_writable("c")
    # What it is joined of is mounted again, for what is to come.
    assert sorted(host.systems()) == [new.paths.point(layer) for layer in "abc"]
    assert [new.systems.users(layer) for layer in "abc"] == [{"c/docker"}] * 3
    new.get("other")
    assert acquire(new, "c", DRIVER) is DOCKER
    release(new, "c", DOCKER)
    # It ends, and Docker puts it.
    host.elsewhere.clear()
    new.put("c")
    new.put("other")
    new.unmap()
    assert nothing_left(new, host)


def test_a_finished_view_that_only_a_container_has_is_taken_as_it_is(life: Life, host: FakeHost) -> None:
    """`docker cp`, and a device that was mapped writable before the layer was finished."""
    life.get("c")
    life.put("c")
    finish(life.pool, "c", "b", "a")
    host.run_container(life.get("c", finished=True))
    host.end_namespace()
    new = again(life)
    new.learn()
    assert [*host.views()] == [new.point("c")]
    assert not new.views.is_writable("c")
    assert new.systems.users("c") == {"c/docker"}


def test_what_a_container_has_and_cannot_be_taken_is_not_mounted_beside_it(life: Life, host: FakeHost) -> None:
    """Linux before 5.2."""
    host.run_container(life.get("c"))
    host.end_namespace()
    new = again(life)
    host.fails["take"] = [CommandError(("take",), 1, "open_tree: Function not implemented; it takes Linux 5.2")]
    new.learn()
    with pytest.raises(LayerBusy, match=r"layer c: .*process 1 \(sh\)"):
        new.get("c")
    with pytest.raises(LayerBusy):
        new.views.discard("c")
    assert host.views() == {}
    host.elsewhere.clear()
    new.get("c")


@pytest.mark.parametrize("done", [True, False])
def test_what_took_too_long_to_be_taken_is_looked_at_before_the_next_step(
    life: Life, host: FakeHost, done: bool
) -> None:
    host.run_container(life.get("c"))
    host.end_namespace()
    new = again(life)
    host.fails["take"] = [(timed_out(), True) if done else timed_out()]
    new.learn()
    host.elsewhere.clear()
    new.get("c")
    new.put("c")
    new.unmap()
    assert nothing_left(new, host)


def test_one_that_is_removed_is_not_taken(life: Life, host: FakeHost) -> None:
    host.run_container(life.get("c"))
    host.end_namespace()
    new = again(life)
    new.removals.note("c")
    assert "c" not in new.learn()
    assert host.views() == {}


@pytest.mark.parametrize("lost", ["another's", "empty", "none"])
def test_a_view_without_a_note_of_its_layer_is_there_all_the_same(life: Life, host: FakeHost, lost: str) -> None:
    """It can be put, and removed; what is below it is not known to be needed, and not let go while it is used."""
    life.get("c")
    path = Path(life.paths.point("c"), layer_state.NAME)
    if lost == "another's":
        layer_state.write(str(path.parent), LayerState("x", ()), 60)
    elif lost == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    new = again(life)
    left = new.learn()
    for layer in left:
        if layer != "c":
            with pytest.raises(LayerBusy):
                new.unmap(layer)
    assert new.views.is_mounted("c", DOCKER)
    new.put("c")
    new.unmap("a", "b", "c")
    assert nothing_left(new, host)


@pytest.mark.parametrize("kept", ["device", "mount"])
def test_one_that_hangs_keeps_no_other_from_being_learned(
    life: Life, host: FakeHost, pool: FakePool, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """What is known of it is known: it can be put, and removed."""
    life.get("other")
    life.get("c")
    device = pool.devices["docker_image_other"]
    if kept == "device":
        life.put("other")
    monkeypatch.setattr(from_before, "LEARN_SECONDS", 0.1)
    in_use, read = host.in_use, layer_state.read

    def hangs(asked: str) -> bool:
        if asked == device:
            raise deadline.Overdue(f"{asked}: no answer")
        return in_use(asked)

    def hangs_too(directory: str, seconds: float) -> LayerState | None:
        if directory == life.paths.point("other"):
            raise deadline.Overdue(f"{directory}: no answer")
        return read(directory, seconds)

    monkeypatch.setattr(mounts, "in_use", hangs)
    monkeypatch.setattr(layer_state, "read", hangs_too)
    new = again(life)
    new.learn()
    assert new.views.is_mounted("c", DOCKER)
    new.settle()
    assert new.devices.device("other") == device
    monkeypatch.setattr(mounts, "in_use", in_use)
    new.put("other")
    new.put("c")
    new.unmap("other", "c", "b", "a")
    assert nothing_left(new, host)


def test_no_view_is_mounted_for_a_daemon_that_has_ended(life: Life, host: FakeHost) -> None:
    """Nor where all that it is made of is mounted for somebody else."""
    life.get("c")
    before = dict(host.mounted)
    with life.home.daemon.asking():
        life.home.daemon.end()
        with pytest.raises(LayerBusy, match="layer c is not mounted: the daemon that asked for it has ended"):
            life.views.acquire_own("c", finished=False)
    assert host.mounted == before
    life.views.acquire_own("c", finished=False)


# -- a daemon has started anew -----------------------------------------------------------------------


def test_what_is_hidden_by_a_mount_above_it_is_not_there(life: Life, host: FakeHost) -> None:
    """dockerd mounts its data root on itself; what was mounted just before cannot be reached any more."""
    life.get("c")
    host.hide()
    later = again(life)
    later.learn()
    assert not any(later.views.is_mounted("c", place) for place in Place)
    assert not any(later.systems.is_mounted(layer) for layer in ("a", "b", "c"))
    assert later.devices.device("c") is not None
    # Nobody can unmap it, and everybody can have it.
    with pytest.raises(LayerBusy):
        later.unmap("a")
    acquire(later, "b", DOCKER, finished=True)
    release(later, "b", DOCKER)


def test_a_new_daemon_keeps_what_a_container_uses(life: Life, host: FakeHost) -> None:
    host.run_container(life.get("c"))
    life.get("other")
    new = again(life)
    new.learn()
    assert new.settle() == ["other"]
    assert [*host.views()] == [new.point("c")]
    assert [new.systems.users(layer) for layer in "abc"] == [{"c/docker"}] * 3
    new.get("c")
    new.put("c")
    assert [*host.views()] == [new.point("c")]


def test_a_new_daemon_keeps_what_is_used_in_our_own_namespace(life: Life, host: FakeHost) -> None:
    life.get("c")
    new = again(life)
    new.learn()
    host.fails["unmount"] = [refused("target is busy")] * 2
    assert new.settle() == []
    assert [*host.views()] == [new.point("c")]
    new.put("c")
    new.unmap()
    assert nothing_left(new, host)


def test_one_that_cannot_be_unmounted_keeps_no_other(life: Life, host: FakeHost) -> None:
    life.get("c")
    life.get("other")
    new = again(life)
    new.learn()
    host.fails["unmount"] = [timed_out()]
    assert new.settle() == ["other"]
    assert [*host.views()] == [new.point("c")]
    new.put("c")
    new.unmap()
    assert nothing_left(new, host)


@pytest.mark.parametrize("name", ["tmp/buildkit-mount123", "buildkit/executor/z1/rootfs"])
def test_what_a_builder_left_behind_is_unmounted(life: Life, host: FakeHost, name: str) -> None:
    """It was killed with the former daemon; what is mounted elsewhere by such a name is not its."""
    point = life.get("c")
    left, theirs = f"/var/lib/docker/{name}", f"/mnt/{name}"
    host.mounted[left] = host.mounted[point]._replace(point=left)
    host.mounted[theirs] = mounts.Mount("8:1", theirs, False, "", "xfs", "/dev/sda1")
    with pytest.MonkeyPatch.context() as patch:
        # Where a builder mounts is no directory of ours.
        patch.setattr(os, "unlink", lambda path: None)
        new = again(life)
        new.learn()
        new.settle()
    assert left not in host.mounted
    assert theirs in host.mounted


def test_a_put_that_is_sent_twice_does_not_end_a_running_container_s_mount(life: Life, host: FakeHost) -> None:
    """Its answer was lost in the crash of the former life, and the count of the new one is a guess."""
    host.run_container(life.get("c"))
    new = again(life)
    new.learn()
    new.put("c")
    assert [*host.views()] == [new.point("c")]
    assert len(host.overlays) == 1
    assert [new.systems.users(layer) for layer in "abc"] == [{"c/docker"}] * 3
    host.elsewhere.clear()
    new.put("c")
    new.unmap()
    assert nothing_left(new, host)


@pytest.mark.parametrize("looked_at", [True, False])
def test_a_put_of_what_docker_got_in_this_life_ends_its_mount(life: Life, host: FakeHost, looked_at: bool) -> None:
    """Whoever has it: Docker knows. But it is not mounted a second time beside it."""
    view = host.run_container(life.get("c"))
    life.put("c")
    assert host.views() == {}
    if looked_at:
        life.views.acquire_own("c", finished=False)
    for place in (DOCKER, DRIVER):
        with pytest.raises(LayerBusy, match=r"layer c: .*process 1 \(sh\) has it mounted"):
            acquire(life, "c", place)
    del host.elsewhere[view]
    life.get("c")
    life.put("c")
    if looked_at:
        release(life, "c", BELOW)
    life.unmap()
    assert nothing_left(life, host)


def test_a_layer_that_docker_has_put_in_a_former_life(life: Life, host: FakeHost) -> None:
    """A Put that met our end is lost; the layer gets a child now."""
    life.get("c")
    life.get("other")
    new = again(life)
    new.learn()
    new.views.settle_put("c")
    assert [*host.views()] == [new.point("other")]
    # What this life was told, it knows.
    new.get("c")
    new.views.settle_put("c")
    assert sorted(host.views()) == [new.point("c"), new.point("other")]
    new.views.settle_put("missing")
