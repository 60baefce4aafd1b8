"""told.py: what each host was told of, in one object of the pool."""

from __future__ import annotations

import pytest
from unit.fakes import FakePool

from cluster.owner import Owner
from cluster.told import Note, Told

HERE, THERE = Owner("here", "", "/home"), Owner("there", "1" * 32, "/my home")
NAME = "docker_image_told"
NOTE = Note("layer", "sha256:1", {"key": "shared/x", "labels": {"a": "é" * 9000}})


def test_each_host_has_its_own(pool: FakePool) -> None:
    here, there = (Told(pool.as_pool(), "docker_image", owner) for owner in (HERE, THERE))
    assert here.all() == {}
    here.write("one", NOTE)
    there.write("one", NOTE._replace(image="other"))
    assert here.all() == {"one": NOTE}
    assert there.names() == {"one"}
    here.forget("one")
    here.forget("never was")
    assert (here.names(), there.names()) == (set(), {"one"})
    here.forget_owner(THERE)
    assert pool.objects.omaps[NAME] == {}


def test_what_cannot_be_read_is_left_as_it_is(pool: FakePool, caplog: pytest.LogCaptureFixture) -> None:
    told = Told(pool.as_pool(), "docker_image", HERE)
    told.write("one", NOTE)
    for value in ("x", "[]", "{}", '{"layer": "x", "chain": "y", "snapshot": 1}'):
        pool.objects.omaps[NAME][f"{HERE.digest} broken"] = value
        assert told.all() == {"one": NOTE}
        assert caplog.messages[-1].endswith("which no driver of this version wrote; it is left as it is")
