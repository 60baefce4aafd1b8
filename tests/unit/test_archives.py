"""archives.py: where an archive is laid down, and which trees are compared; what is in it is none of its business."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.fake_host import FakeHost, refused
from unit.fakes import FakePool, failed
from unit.layered import Applied, Lives, chain, create, says, use

import rbdcli
from archive import transfer
from graph.driver import Driver
from images import layer_state
from images.layers import LayerError

# -- laid down -------------------------------------------------------------------------------------


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


# -- compared --------------------------------------------------------------------------------------


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
