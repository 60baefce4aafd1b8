"""What can be wrong with a cluster, each as a context: sick within the `with` block, well again after it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator

from lab import Cluster
from needs import requires
from plugin_client import wait_until

POOL, CLIENT = "sick", "sick"
CAPS = ("mon", "profile rbd", "osd", f"profile rbd pool={POOL}", "mgr", f"profile rbd pool={POOL}")


def keyring(cluster: Cluster) -> str:
    """Where the configuration looks for the key."""
    return os.path.join(cluster.directory, f"ceph.client.{CLIENT}.keyring")


def make_pool(cluster: Cluster) -> None:
    """The pool of the tests, and a key that is as small as the README says."""
    cluster.ceph("osd", "pool", "create", POOL, "8")
    cluster.rbd("pool", "init", POOL)
    cluster.ceph("auth", "get-or-create", f"client.{CLIENT}", *CAPS, "-o", keyring(cluster))


def drop_pool(cluster: Cluster) -> None:
    """Delete it with all that is in it."""
    cluster.ceph("config", "set", "mon", "mon_allow_pool_delete", "true")
    cluster.ceph("osd", "pool", "rm", POOL, POOL, "--yes-i-really-really-mean-it")


def checks(cluster: Cluster) -> dict[str, object]:
    """What the cluster complains of."""
    return dict(json.loads(cluster.ceph("health", "--format", "json"))["checks"])


def wait_well(cluster: Cluster) -> None:
    """Wait until the cluster serves again."""
    wait_until(lambda: not checks(cluster), "the cluster is well")
    # An OSD that stood still may be taken for dead only now.
    for verb in (("create", "--size", "1M"), ("rm", "--no-progress")):
        cluster.rbd(*verb, f"{POOL}/trial")
    wait_until(lambda: not checks(cluster), "the cluster is well")


@contextlib.contextmanager
def stopped(cluster: Cluster, *names: str) -> Iterator[None]:
    """Daemons are stopped (SIGSTOP): connections stay, nobody answers."""
    for name in names:
        os.kill(cluster.daemon(name), signal.SIGSTOP)
    try:
        yield
    finally:
        for name in names:
            os.kill(cluster.daemon(name), signal.SIGCONT)
        wait_well(cluster)


def osd_stopped(cluster: Cluster) -> contextlib.AbstractContextManager[None]:
    """The OSD stands still."""
    return stopped(cluster, "osd.0")


def monitor_stopped(cluster: Cluster) -> contextlib.AbstractContextManager[None]:
    """The monitor stands still."""
    return stopped(cluster, "mon.a")


@contextlib.contextmanager
def network_cut(cluster: Cluster) -> Iterator[None]:
    """Every packet to its ports is lost."""
    with open(os.path.join(cluster.directory, "ports"), encoding="ascii") as source:
        ports = dict(line.strip().split("=") for line in source)["all"]
    rule = ["INPUT", "--in-interface", "lo", "--protocol", "tcp", "--dport", ports, "--jump", "DROP"]
    program = shutil.which("iptables", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    is_cut = program is not None and subprocess.run([program, "--insert", *rule], check=False).returncode == 0
    requires(is_cut, "iptables, and a kernel that drops packets for it")
    assert program is not None
    try:
        yield
    finally:
        subprocess.run([program, "--delete", *rule], check=True)
        wait_well(cluster)


@contextlib.contextmanager
def quota_reached(cluster: Cluster) -> Iterator[None]:
    """The pool holds more than it may."""
    cluster.ceph("osd", "pool", "set-quota", POOL, "max_bytes", "4096")
    wait_until(lambda: "POOL_FULL" in checks(cluster), "the quota is noticed")
    try:
        yield
    finally:
        cluster.ceph("osd", "pool", "set-quota", POOL, "max_bytes", "0")
        wait_well(cluster)


@contextlib.contextmanager
def disks_full(cluster: Cluster) -> Iterator[None]:
    """The OSD takes no more."""
    # The OSD corrects ratios that are not in this order.
    ratios = {"nearfull": "0.85", "backfillfull": "0.90", "full": "0.95"}
    for name in ratios:
        cluster.ceph("osd", f"set-{name}-ratio", "0.0001")
    wait_until(lambda: "OSD_FULL" in checks(cluster), "the OSD is full")
    try:
        yield
    finally:
        for name, ratio in reversed(ratios.items()):
            cluster.ceph("osd", f"set-{name}-ratio", ratio)
        wait_well(cluster)


@contextlib.contextmanager
def key_revoked(cluster: Cluster) -> Iterator[None]:
    """The cluster does not know the key any more."""
    cluster.ceph("auth", "rm", f"client.{CLIENT}")
    try:
        yield
    finally:
        cluster.ceph("auth", "add", f"client.{CLIENT}", *CAPS, "--in-file", keyring(cluster))


@contextlib.contextmanager
def key_lost(cluster: Cluster) -> Iterator[None]:
    """The keyring is gone from this host."""
    os.rename(keyring(cluster), keyring(cluster) + ".away")
    try:
        yield
    finally:
        os.rename(keyring(cluster) + ".away", keyring(cluster))
