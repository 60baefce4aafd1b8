"""Figures of a driver on a real cluster, as Prometheus reads them, and the lines of its log that belong together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

import pytest
from lab import Cluster, StartPlugin
from plugin_client import PluginProcess, Refused, make_tar, wait_until
from prometheus_file import figures as figures_in

NewId = Callable[[], str]


@pytest.fixture
def plugin(start_plugin: StartPlugin) -> PluginProcess:
    """One that writes figures, from its second start on."""
    plugin = start_plugin()
    assert plugin.terminate() == 0
    words = [*plugin.arguments(), "--metrics", written_to(plugin)]
    plugin.arguments = lambda: words  # type: ignore[method-assign]
    plugin.start()
    return plugin


def written_to(plugin: PluginProcess) -> str:
    return os.path.join(os.path.dirname(plugin.socket), "driver.prom")


def figures(plugin: PluginProcess) -> Mapping[str, float]:
    """What it has written last."""
    return figures_in(written_to(plugin), plugin.socket)


def test_a_life_in_figures(plugin: PluginProcess, new_id: NewId) -> None:
    client = plugin.client
    image = client.create(new_id())
    client.apply_diff(image, make_tar({"name": "of the image"}))
    layer = client.create(new_id(), image, writable=True)
    client.get(layer)
    with pytest.raises(Refused):
        client.get(new_id())
    wait_until(lambda: figures(plugin).get("requests_total CreateReadWrite ok") == 1, "it is written", 60)
    found = figures(plugin)
    assert found["up"] == 1
    assert found["requests_total Create ok"] == 1
    assert found["requests_total ApplyDiff ok"] == 1
    assert found["requests_total Get refused"] == 1
    assert found["request_duration_seconds_count CreateReadWrite"] == 1
    assert [name for name in found if re.fullmatch(r"errors_total \w+ request", name)] == [], "nothing was out of order"
    assert found["commands_total rbd clone 0"] >= 2
    assert found["command_duration_seconds_count rbd device map"] >= 2
    assert found["mapped_devices"] >= 2
    assert found["mounts view"] >= 1
    assert found["background_oldest_seconds removing layer"] == 0
    client.put(layer)


def test_what_the_cluster_says_of_the_pool(plugin: PluginProcess, new_id: NewId) -> None:
    plugin.client.create(new_id())
    wait_until(lambda: figures(plugin).get("pool_answers") == 1, "the cluster was asked", 60)
    found = figures(plugin)
    assert found["layers"] >= 0
    assert found["pool_used_bytes rbd"] > 0
    assert found["pool_available_bytes rbd"] > 0
    assert 0 <= found["pool_used_ratio rbd"] < 1


def test_it_says_at_its_end_that_it_serves_no_more(plugin: PluginProcess) -> None:
    wait_until(lambda: figures(plugin).get("up") == 1, "it is written")
    assert plugin.terminate() == 0
    assert figures(plugin)["up"] == 0
    plugin.start()


def test_commands_of_a_request_have_its_number(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """Those that it runs in other threads, too: what is below a layer is mapped by them."""
    client = plugin.client
    below = ""
    for number in range(3):
        below = client.create(new_id(), below)
        client.apply_diff(below, make_tar({f"file{number}": "x"}))
    layer = client.create(new_id(), below, writable=True)
    cluster.wait_unmapped()
    before = len(plugin.log_text())
    client.get(layer)
    client.put(layer)
    log = plugin.log_text()[before:]
    [number_of_get] = re.findall(rf" \[\d+ (#\d+)\] INFO Get {layer} \d+ ms$", log, re.MULTILINE)
    mapped = re.findall(r" \[(\d+) (.*)\] DEBUG rbd device map ", log)
    assert {task for _, task in mapped} == {number_of_get}
    assert len({thread for thread, _ in mapped}) > 1
    assert re.search(rf" {number_of_get}\] DEBUG mount -t overlay ", log)
