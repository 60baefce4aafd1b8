"""overlays.py: what a view is made of, what is below a container, what the root of a new layer inherits."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from unit.fake_host import FakeHost
from unit.fakes import FakePool
from unit.layered import Life, again, finish, nothing_left, release

from images import layer_state
from images.layer_state import LayerState
from mapped.file_systems import LayerLost
from mapped.view import Place

pytestmark = pytest.mark.usefixtures("stack")
DOCKER, DRIVER, BELOW = Place.DOCKER, Place.DRIVER, Place.BELOW


def lower(host: FakeHost, point: str) -> list[str]:
    return list(host.views()[point].lower)


def links(life: Life, *layers: str) -> list[str]:
    return [life.paths.short(layer) for layer in layers]


def container(life: Life) -> None:
    """As Docker makes one: its init layer is filled, and copied."""
    brought = Path(life.paths.point("box-init"), "rootfs", "etc")
    life.get("box-init")
    brought.mkdir()
    (brought / "hostname").write_text("box", encoding="ascii")
    life.put("box-init")
    life.pool.deep_copy("docker_image_box-init", "docker_image_box", 1, "")


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


# -- what a root inherits --------------------------------------------------------------------------


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
