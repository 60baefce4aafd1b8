"""paths.py: the links and directories that stand for a layer on this host."""

from __future__ import annotations

import os

import pytest
from unit.fake_host import FakeHost
from unit.fakes import FakePool
from unit.layered import Life, share

import mounts
from mapped.file_systems import FileSystems
from mapped.paths import REMOVED, Paths


def test_a_link_of_few_letters_leads_to_what_the_layer_brought(
    paths: Paths, systems: FileSystems, pool: FakePool
) -> None:
    share(systems, "a", "x")
    link = os.path.join(paths.links, paths.short("a"))
    assert os.path.realpath(link) == str(pool.files("docker_image_a") / "rootfs")
    assert (len(paths.short("a")), paths.short("a") != paths.short("b")) == (13, True)
    systems.release("a", "x")
    systems.unmap_unused("a")
    assert not os.path.lexists(link)


def test_a_link_of_another_layer_is_not_taken_for_this_one_s(
    paths: Paths, systems: FileSystems, pool: FakePool
) -> None:
    os.makedirs(paths.links)
    os.symlink("../mnt/b/layer/rootfs", os.path.join(paths.links, paths.short("a")))
    with pytest.raises(mounts.MountError, match="is the link of another layer than a"):
        share(systems, "a", "x")


def test_what_is_noted_of_a_removed_layer_stays(life: Life, host: FakeHost) -> None:
    share(life.systems, "a", "x")
    life.removals.note("a")
    life.systems.release("a", "x")
    life.systems.unmap_unused("a")
    assert os.listdir(life.paths.directory("a")) == [REMOVED]
