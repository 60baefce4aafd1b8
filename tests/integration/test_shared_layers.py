"""Layers that all hosts share, on a real cluster: two owners find, offer, release, delete them, also in a full pool."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from lab import Cluster
from plugin_client import wait_until

import rbdcli
from cluster import rados_objects, shared_layers
from cluster.chain_entry import Entry
from cluster.owner import Owner
from cluster.shared_layers import SharedLayers
from host import command, deadline

Hosts = Callable[[str], SharedLayers]


def chain(number: int) -> str:
    """A chain id."""
    return f"sha256:{number:064x}"


def pool_of(cluster: Cluster, name: str = "rbd", timeout: float = 60.0) -> rbdcli.Pool:
    """The pool, as the driver asks for it."""
    return rbdcli.Pool(name, "", "admin", cluster.conf, timeout, "krbd", ())


@pytest.fixture
def hosts(cluster: Cluster) -> Iterator[Hosts]:
    """Hosts of a prefix of the test's own."""
    prefix = f"shared_{uuid.uuid4().hex[:6]}"
    pool = pool_of(cluster)
    yield lambda name: SharedLayers(pool, prefix, Owner(name, "", "/home"))
    rados_objects.delete(pool, [f"{prefix}_chains", f"{prefix}_uses"])


def offer_image(host: SharedLayers, numbers: range) -> list[Entry]:
    """Offer layers, each on the one before."""
    offered: list[Entry] = []
    for number in numbers:
        entry = host.offer(chain(number), f"layer-{number}", offered[-1] if offered else None, size=5, inodes=2)
        assert entry
        offered.append(entry)
    return offered


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The verbs of all commands from now on."""
    verbs: list[str] = []
    rados = rbdcli.Pool.rados

    def counting(pool: rbdcli.Pool, *words: str) -> str:
        verbs.append(words[0])
        return rados(pool, *words)

    monkeypatch.setattr(rbdcli.Pool, "rados", counting)
    return verbs


def test_a_layer_s_whole_life(hosts: Hosts) -> None:
    one, two = hosts("one"), hosts("two")
    offered = offer_image(one, range(1, 4))
    assert [two.find(chain(number)) for number in range(1, 4)] == offered
    assert two.find(chain(9)) is None
    one.release([entry.layer for entry in offered])
    assert one.unused(0) == []
    assert not one.begin_delete(offered[2])
    two.release([offered[2].layer])
    assert one.unused(3600) == []
    (unused,) = one.unused(0)
    assert unused.layer == "layer-3"
    assert one.begin_delete(unused)
    assert hosts("three").find(chain(3)) is None
    one.end_delete(unused)
    assert [entry.layer for entry in two.all()] == ["layer-1", "layer-2"]
    assert two.problems() == []


def test_what_finding_costs(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_image(hosts("one"), range(1, 6))
    two = hosts("two")
    two.all()
    verbs = counted(monkeypatch)
    assert two.find(chain(1))
    assert verbs == ["setomapval", "listomapkeys"]
    assert all(two.find(chain(number)) for number in range(2, 6))
    assert two.find(chain(9)) is None
    assert len(verbs) == 2, "the others were used ahead, and the list is fresh"


def test_threads_of_two_hosts_offer_the_same(hosts: Hosts) -> None:
    names = ("one", "two")
    here = {name: hosts(name) for name in names}

    def offer(name: str, number: int) -> Entry | None:
        return here[name].offer(chain(number), f"{name}-{number}", None, size=1, inodes=1)

    with ThreadPoolExecutor(4) as threads:
        answers = {(name, number): threads.submit(offer, name, number) for number in range(1, 4) for name in names}
    for number in range(1, 4):
        told = {answers[name, number].result() for name in names}
        assert len(told) == 1, "both were told of one"
        assert None not in told
    assert len(here["one"].all()) == 3


def test_threads_find_and_delete(hosts: Hosts) -> None:
    maker, finder, collector = hosts("maker"), hosts("finder"), hosts("collector")
    for turn in range(1, 6):
        (entry,) = offer_image(maker, range(turn, turn + 1))
        finder.all()
        maker.release([entry.layer])
        with ThreadPoolExecutor(2) as threads:
            finds = threads.submit(finder.find, entry.chain)
            deletes = threads.submit(collector.begin_delete, entry)
        assert not (finds.result() and deletes.result())


def is_full(cluster: Cluster, pool: str) -> bool:
    """Whether a pool takes no writes any more. The monitors say so a moment before."""
    argv = ["rados", "--conf", cluster.conf, "--rados-osd-op-timeout", "2", "--pool", pool, "put", "data", cluster.conf]
    return subprocess.run(argv, env=cluster.environment, capture_output=True, timeout=60, check=False).returncode != 0


def test_a_full_pool(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    # What `two` uses ahead, and does not ask for, ends at once.
    monkeypatch.setattr(shared_layers, "AHEAD_SECONDS", 0.0)
    cluster.ceph("osd", "pool", "create", "full", "8")
    pool = pool_of(cluster, "full", timeout=6.0)
    one, two = (SharedLayers(pool, "p", Owner(name, "", "/home")) for name in ("one", "two"))
    try:
        offered = offer_image(one, range(1, 4))
        assert two.find(chain(1))
        two.tidy()
        used = [entry.layer for entry in one.all()]
        cluster.run(["rados", "--conf", cluster.conf, "--pool", "full", "put", "data", cluster.conf])
        cluster.ceph("osd", "pool", "set-quota", "full", "max_bytes", "1")
        wait_until(lambda: is_full(cluster, "full"), "the quota is noticed")
        with deadline.within(4), pytest.raises((command.CommandError, deadline.Overdue)):
            one.release(used)
        with deadline.within(4), pytest.raises((command.CommandError, deadline.Overdue)):
            one.begin_delete(offered[2])
        assert [entry.layer for entry in one.make_room()] == ["layer-3", "layer-2"]
        assert one.all() == []
        cluster.ceph("osd", "pool", "set-quota", "full", "max_bytes", "0")
        wait_until(lambda: "POOL_FULL" not in cluster.ceph("health", "detail"), "there is room")
        two.tidy()
        assert "layer-1" in [entry.layer for entry in one.all()]
    finally:
        cluster.ceph("config", "set", "mon", "mon_allow_pool_delete", "true")
        cluster.ceph("osd", "pool", "rm", "full", "full", "--yes-i-really-really-mean-it")


def test_how_long_it_takes(hosts: Hosts) -> None:
    """It prints the times; `-s` shows them."""
    offer_image(hosts("one"), range(1, 3))
    two = hosts("two")
    began = time.monotonic()
    assert two.find(chain(1))
    first = time.monotonic()
    assert two.find(chain(2))
    print(
        f"the first hit of a host {1000 * (first - began):.0f} ms, the next {1000 * (time.monotonic() - first):.1f} ms"
    )
