"""daemon.py: what a daemon asked for that has ended is mounted no more, at whatever step it was."""

from __future__ import annotations

import contextlib

import pytest
from unit.fake_host import FakeHost
from unit.fakes import FakePool
from unit.layered import Life, create, write

from graph.driver import Driver
from mapped.daemon import Daemon
from mapped.devices import Devices
from mapped.file_systems import FileSystems
from mapped.unmounting import LayerBusy


@pytest.fixture
def daemon(life: Life) -> Daemon:
    return life.home.daemon


@pytest.mark.usefixtures("stack")
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


def test_what_a_daemon_asked_for_that_has_ended_is_not_mounted(
    daemon: Daemon, devices: Devices, systems: FileSystems, host: FakeHost
) -> None:
    """The next one would hide it. What is done in the background goes on."""
    with daemon.asking():
        daemon.end()
        with pytest.raises(LayerBusy, match="layer a is not mounted: the daemon that asked for it has ended"):
            write(systems, "a")
    assert (host.mounted, devices.mapped()) == ({}, [])
    write(systems, "a")
    with daemon.asking():
        write(systems, "b")


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
