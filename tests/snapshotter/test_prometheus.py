"""The figures of a snapshotter, as Prometheus reads them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping

import pytest
from client import NOT_FOUND, Refused
from conftest import remove_all
from lab import Cluster, mounts_below
from lab_fixtures import lab_options
from plugin_client import wait_until
from prometheus_file import figures
from services import Ceph


@pytest.fixture
def counting(cluster: Cluster, session_directory: str) -> Iterator[Ceph]:
    """One that writes figures, and is ended by the test."""
    service = Ceph(cluster, os.path.join(session_directory, uuid.uuid4().hex[:6]), lab_options())
    service.add("--metrics", written_by(service))
    service.start()
    yield service
    # Shown by pytest when something failed.
    print(f"--- log of {service.name}\n{service.log_tail()}")
    if service.running:
        service.end()
    assert mounts_below(service.root) == []


def written_by(service: Ceph) -> str:
    return f"{service.address}.prom"


def test_a_life_in_figures(counting: Ceph) -> None:
    def now() -> Mapping[str, float]:
        return figures(written_by(counting), counting.address)

    client = counting.client()
    client.prepare("key")
    client.mounts("key")
    with pytest.raises(Refused) as refused:
        client.mounts("nobody has this key")
    assert refused.value.code == NOT_FOUND
    wait_until(lambda: now().get("request_duration_seconds_count Mounts") == 2, "it is written", 60)
    found = now()
    assert found["up"] == 1
    assert found["requests_total Mounts refused"] == 1
    # The first one is that of its start (services.py).
    assert found["requests_total Prepare ok"] == 2
    assert found["requests_total Mounts ok"] == 1
    assert "requests_total Mounts failed" not in found
    assert found["commands_total rbd clone 0"] >= 2
    assert found["mapped_devices"] >= 1
    client.close()
    remove_all(counting)
    wait_until(lambda: mounts_below(counting.root) == [], "nothing is mounted")
    counting.end()
    assert now()["up"] == 0
