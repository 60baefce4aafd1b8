"""host_layers.py: what is mapped ahead of need, and for how long what was put stays mapped."""

from __future__ import annotations

import pytest
from plugin_client import wait_until
from unit.fake_host import FakeHost
from unit.fakes import FakePool
from unit.layered import Life, Lives, chain, create

from graph.driver import Driver
from mapped import host_layers
from mapped.file_systems import FileSystems


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


@pytest.mark.usefixtures("stack")
def test_what_somebody_will_need_is_mapped_and_mounted_ahead(life: Life, host: FakeHost, pool: FakePool) -> None:
    life.views.map_ahead("b")
    life.views.map_ahead("b")
    assert host.systems()[life.paths.point("b")].read_only
    assert life.idle == ["b"]
    life.get("c")
    assert sorted(pool.named("map")) == ["docker_image_a", "docker_image_b", "docker_image_c"]
