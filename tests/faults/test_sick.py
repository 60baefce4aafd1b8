"""A sick cluster: every request ends within its deadline with one line that says what is wrong and what to do.

Docker is not kept waiting meanwhile, and when the cluster is well again the next request works, without a restart.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import sickness
from lab import Cluster, StartPlugin, device_server
from operations import LARGE, new_id
from plugin_client import PluginProcess, Refused, make_tar, wait_until

Tally = Callable[[str, int], None]
Sickness = Callable[[Cluster], contextlib.AbstractContextManager[None]]

TIMEOUT = 3.0
# Twice that for the commands of a request, and what is undone after it; see README.
REQUEST_SECONDS = 2 * TIMEOUT + 5 * 3.0
STATUS_SECONDS = 5.0 + 2.0
# What only reads is answered by a pool that takes no writes, and so is what removes.
WRITES_ONLY = (sickness.quota_reached, sickness.disks_full)
CONTENT: dict[str, bytes | str | None] = {"file": "x", "large": LARGE[: 1 << 20]}


@pytest.fixture(scope="module", autouse=True)
def pool(cluster: Cluster) -> Iterator[None]:
    """A pool and a key of the tests' own."""
    sickness.make_pool(cluster)
    yield
    sickness.drop_pool(cluster)


class Site(NamedTuple):
    """A plugin with a layer in each state; `aside` is mapped by nobody."""

    plugin: PluginProcess
    parent: str
    aside: str
    running: str
    idle: str
    doomed: str
    device: str


@pytest.fixture
def site(start_plugin: StartPlugin) -> Site:
    """On the pool of the tests, with little patience."""
    plugin = start_plugin(datapool=sickness.POOL, client=sickness.CLIENT, timeout=f"{TIMEOUT:g}", basesize="512M")
    client = plugin.client
    parent, aside = client.create(new_id()), client.create(new_id())
    for layer in (parent, aside):
        client.apply_diff(layer, make_tar(CONTENT))
    running, idle, doomed = (client.create(new_id(), parent, writable=True) for _ in range(3))
    client.call("Cleanup")
    with open(os.path.join(client.get(running), "written"), "wb") as target:
        target.write(LARGE)
    return Site(plugin, parent, aside, running, idle, doomed, client.metadata(running)["Device"])


class Outcome(NamedTuple):
    """How a request ended: seconds, and its error."""

    seconds: float
    error: str


def timed(request: Callable[[], Any]) -> Outcome:
    """Do it."""
    started, error = time.monotonic(), ""
    try:
        request()
    except Refused as refused:
        error = refused.text
    return Outcome(time.monotonic() - started, error)


def requests(site: Site) -> dict[str, Callable[[], Any]]:
    """One of each kind."""
    client = site.plugin.client
    return {
        "Create": lambda: client.create(new_id(), site.parent),
        "CreateReadWrite": lambda: client.create(new_id(), site.parent, writable=True),
        "Get": lambda: client.get(site.idle),
        "Put": lambda: client.put(site.running),
        "Remove": lambda: client.remove(site.doomed),
        "Exists": lambda: client.call("Exists", ID=site.parent),
        "GetMetadata": lambda: client.metadata(site.parent),
        "Diff": lambda: client.diff(site.aside),
        "ApplyDiff": lambda: client.apply_diff(site.idle[:-1] + "0", make_tar({"f": "x"})),
        "Status": client.status,
    }


def fall_ill(site: Site, cluster: Cluster, name: str) -> dict[str, Outcome]:
    """All requests at once while the cluster is sick; `docker info` is asked for again and again.

    Those that must fail say why, in one of three tries: beside other tests living monitors may be slow, and then they
    are blamed.
    """
    asked = requests(site)
    sick: Sickness = getattr(sickness, name)
    with ThreadPoolExecutor(max_workers=len(asked)) as threads, sick(cluster):
        futures = {request: threads.submit(timed, call) for request, call in asked.items()}
        time.sleep(1)
        for _ in range(3):
            again = timed(site.plugin.client.status)
            assert again.seconds < STATUS_SECONDS
            assert again.error == ""
        outcomes = {request: future.result() for request, future in futures.items()}
        for request in ("Create", "CreateReadWrite", *(() if sick in WRITES_ONLY else ("Get", "Exists", "Diff"))):
            tries = [outcomes[request]]
            while not re.search(CLUSTER_SAYS[name], tries[-1].error):
                assert len(tries) < 3, (request, tries)
                tries.append(timed(asked[request]))
        if sick in WRITES_ONLY:
            gone = f"docker_image_{site.doomed}"
            wait_until(lambda: gone not in cluster.images(spec="sick"), "what is removed makes room in a full pool")
    for request, outcome in outcomes.items():
        print(f"{request}: {outcome.seconds:.1f} s {outcome.error}")
        assert outcome.seconds < REQUEST_SECONDS, request
        assert "\n" not in outcome.error
        assert cluster_key(cluster) not in outcome.error
    assert outcomes["Status"].seconds < STATUS_SECONDS
    assert outcomes["Status"].error == ""
    return outcomes


def cluster_key(cluster: Cluster) -> str:
    """What must never be told."""
    path = sickness.keyring(cluster)
    with open(path, encoding="ascii") as source:
        found = re.search(r"key = (\S+)", source.read())
    assert found
    return found[1]


def wait_device(site: Site) -> None:
    """Wait until packets that were lost have been sent again (TCP doubles the pause): then the cluster is back."""
    read = ["dd", f"if={site.device}", "of=/dev/null", "bs=4096", "count=1", "skip=7", "iflag=direct", "status=none"]
    # One that was put meanwhile may be gone.
    subprocess.run(read, check=False, timeout=60, stderr=subprocess.DEVNULL)


def recover(site: Site) -> None:
    """The next request works; what was half done is repaired, and no file has changed."""
    client = site.plugin.client
    wait_device(site)
    assert client.call("Exists", ID=site.parent)["Exists"] is True
    root = client.get(site.running)
    with open(os.path.join(root, "written"), "rb") as source:
        assert source.read() == LARGE
    for _ in range(3):
        client.put(site.running)
    for layer in (site.parent, site.aside, site.idle):
        assert client.read(layer, "large") == CONTENT["large"]
    made = client.create(new_id(), site.parent, writable=True)
    assert client.read(made, "file") == b"x"
    client.remove(site.doomed)


CLUSTER_SAYS = {
    "osd_stopped": "an OSD hangs|OSD|slow ops",
    "monitor_stopped": "no monitor lets client.sick in",
    "network_cut": "no monitor lets client.sick in",
    "quota_reached": r"pool 'sick' is full \(running out of quota\)",
    "disks_full": "osd.0 is full|pool 'sick' is full",
    "key_revoked": "for the key: ceph auth get client.sick",
    "key_lost": "for the key: ceph auth get client.sick",
}


@pytest.mark.parametrize("name", CLUSTER_SAYS)
def test_every_request_ends_and_says_why(name: str, site: Site, cluster: Cluster, tally: Tally) -> None:
    outcomes = fall_ill(site, cluster, name)
    # Noted on this host, and done once the cluster is back.
    assert outcomes["Remove"].error == ""
    recover(site)
    wait_until(lambda: f"docker_image_{site.doomed}" not in cluster.images(spec="sick"), "what was removed is gone")
    tally("sick clusters survived", 1)


def test_a_pool_that_was_deleted(start_plugin: StartPlugin, cluster: Cluster, tally: Tally) -> None:
    """No layer is called missing; a pool of that name serves the next Init."""
    cluster.ceph("config", "set", "mon", "mon_allow_pool_delete", "true")
    cluster.ceph("osd", "pool", "create", "short-lived", "8")
    cluster.rbd("pool", "init", "short-lived")
    plugin = start_plugin(datapool="short-lived", timeout=f"{TIMEOUT:g}", basesize="512M")
    client = plugin.client
    layer = client.create(new_id())
    client.created.clear()
    cluster.ceph("osd", "pool", "rm", "short-lived", "short-lived", "--yes-i-really-really-mean-it")
    for request in (
        lambda: client.create(new_id(), layer),
        lambda: client.get(layer),
        lambda: client.call("Exists", ID=new_id()),
        lambda: client.diff(layer),
    ):
        outcome = timed(request)
        assert outcome.seconds < REQUEST_SECONDS
        assert re.search("error opening pool 'short-lived'|pool short-lived", outcome.error), outcome.error
    assert timed(client.status).error == ""
    with pytest.raises(Refused, match="pool short-lived does not exist; make it with: ceph osd pool create"):
        plugin.init()
    cluster.ceph("osd", "pool", "create", "short-lived", "8")
    cluster.rbd("pool", "init", "short-lived")
    plugin.init()
    again = client.create(new_id())
    client.write(again, "f", "x")
    client.remove(again)
    client.call("Cleanup")
    cluster.ceph("osd", "pool", "rm", "short-lived", "short-lived", "--yes-i-really-really-mean-it")
    tally("sick clusters survived", 1)


def test_a_command_that_hangs(start_plugin: StartPlugin, session_directory: str, tally: Tally) -> None:
    """It ignores SIGTERM, has a child that holds its output, and hangs in the middle of a request."""
    plugin = start_plugin(timeout=f"{TIMEOUT:g}", imageprefix="hang")
    client = plugin.client
    directory, flag = os.path.join(session_directory, "hanging"), os.path.join(session_directory, "hang")
    os.makedirs(directory)
    for name in ("rbd", "mount", "umount"):
        path = os.path.join(directory, name)
        with open(path, "w", encoding="ascii") as script:
            script.write(
                f'#!/bin/bash\nPATH=${{PATH#"{directory}:"}}\n[[ $(<{flag}) != "{name}" ]] || '
                f"{{ trap '' TERM; sleep 30 & setsid sleep 12 & wait; }}\nexec {name} \"$@\"\n"
            )
        os.chmod(path, 0o755)

    def hang(name: str) -> None:
        with open(flag, "w", encoding="ascii") as target:
            target.write(name)

    hang("nobody")
    parent, layer, mounted = (client.create(new_id()) for _ in range(3))
    assert plugin.terminate() == 0
    plugin.environment["PATH"] = f"{directory}:{plugin.environment['PATH']}"
    plugin.start()
    client.get(mounted)
    for name, request in {
        "rbd": lambda: client.create(new_id(), parent),
        "mount": lambda: client.get(layer),
        "umount": lambda: client.put(mounted),
    }.items():
        hang(name)
        outcome = timed(request)
        assert outcome.seconds < REQUEST_SECONDS
        assert f"{name} " in outcome.error
        assert f"no answer within {TIMEOUT:g} s; the monitors say HEALTH_OK" in outcome.error
        hang("nobody")
        if name != "rbd":
            timed(request)
            assert client.listing(layer) == client.listing(mounted) == []
        tally("commands that hang survived", 1)


@pytest.mark.parametrize("name", CLUSTER_SAYS)
def test_remove_needs_no_cluster_after_a_restart_either(name: str, site: Site, cluster: Cluster) -> None:
    """Nothing is known of the layer any more; whose it is will be asked before its image goes."""
    client = site.plugin.client
    client.put(site.running)
    client.call("Cleanup")
    assert site.plugin.terminate() == 0
    site.plugin.start()
    with getattr(sickness, name)(cluster):
        outcome = timed(lambda: client.remove(site.doomed))
        assert outcome.error == ""
        assert outcome.seconds < REQUEST_SECONDS
        again = [timed(lambda: client.get(site.doomed)) for _ in range(3)]
        assert all("does not exist: it was removed" in outcome.error for outcome in again)
        # The machine may hold up one; what asked the cluster would hold up each.
        assert min(outcome.seconds for outcome in again) < 1
    wait_until(lambda: f"docker_image_{site.doomed}" not in cluster.images(spec="sick"), "what was removed is gone")


def test_a_left_over_that_hangs_keeps_nobody_from_starting(site: Site, cluster: Cluster) -> None:
    """The plugin was killed while it laid an archive down, and an OSD hangs when it starts again."""
    client = site.plugin.client
    broken = client.create(new_id(), site.parent)
    begun, killed = threading.Event(), threading.Event()

    def archive() -> Iterator[bytes]:
        yield make_tar({"large": bytes(32 << 20)})[: 16 << 20]
        begun.set()
        killed.wait(60)
        yield b""

    with ThreadPoolExecutor() as threads:
        applying = threads.submit(lambda: client.apply_diff(broken, archive()))
        assert begun.wait(60)
        site.plugin.kill()
        killed.set()
        with pytest.raises((OSError, http.client.HTTPException)):
            applying.result()
    assert os.path.ismount(os.path.join(site.plugin.home, "mnt", broken, "driver"))
    with sickness.osd_stopped(cluster):
        began = time.monotonic()
        site.plugin.start()
        assert time.monotonic() - began < REQUEST_SECONDS
        assert timed(client.status).error == ""
    client.remove(broken)
    recover(site)


def test_many_daemons_leave_no_threads(site: Site) -> None:
    """Each Init makes a driver, and ends the one before."""

    def threads() -> int:
        assert site.plugin.process
        return len(os.listdir(f"/proc/{site.plugin.process.pid}/task"))

    client = site.plugin.client
    client.put(site.running)
    client.call("Cleanup")
    before = threads()
    for _ in range(4):
        site.plugin.init()
        client.listing(site.idle)
        client.call("Cleanup")
    wait_until(lambda: threads() <= before, "the threads of former drivers have ended")


@pytest.mark.parametrize(
    ("option", "said"),
    [("ceph.datapool=nowhere", "pool nowhere does not exist"), ("ceph.fs=ext4", "ceph.fs=ext4, but .* holds xfs")],
)
def test_an_init_that_fails_leaves_the_driver_whole(site: Site, cluster: Cluster, option: str, said: str) -> None:
    """What was removed still goes, and other hosts still see that this one lives."""
    client = site.plugin.client
    client.remove(site.doomed)
    with pytest.raises(Refused, match=said):
        client.init(site.plugin.home, [*site.plugin.options, option])
    wait_until(lambda: f"docker_image_{site.doomed}" not in cluster.images(spec="sick"), "what was removed is gone")
    assert "the watch that shows that this host lives was lost" not in site.plugin.log_text()
    recover(site)


def test_a_layer_that_hangs_does_not_hold_up_others(site: Site, cluster: Cluster) -> None:
    """Requests for one layer wait for each other no longer than one of them may take."""
    client = site.plugin.client
    with ThreadPoolExecutor(max_workers=8) as threads, sickness.osd_stopped(cluster):
        futures = [threads.submit(timed, lambda: client.create(new_id(), site.parent)) for _ in range(8)]
        for outcome in [future.result() for future in futures]:
            assert outcome.seconds < REQUEST_SECONDS
            assert outcome.error
    recover(site)


def test_archives_of_a_device_that_hangs(site: Site, cluster: Cluster, tally: Tally) -> None:
    """An archive that is under way has no deadline; one whose file system does nothing any more has."""
    client = site.plugin.client
    target = client.create(new_id(), site.parent)
    middle, well = threading.Event(), threading.Event()

    def archive() -> Iterator[bytes]:
        whole = make_tar({"large": bytes(32 << 20)})
        yield whole[: 1 << 20]
        middle.set()
        well.wait(120)
        yield whole[1 << 20 :]

    with ThreadPoolExecutor(max_workers=2) as threads:
        applying = threads.submit(timed, lambda: client.apply_diff(target, archive()))
        assert middle.wait(120)
        # What is to be read must not be in memory any more.
        client.get(site.parent)
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as caches:
            caches.write("3")
        with sickness.osd_stopped(cluster):
            well.set()
            reading = threads.submit(timed, lambda: client.diff(site.parent))
            outcomes = [applying.result(), reading.result()]
    for outcome in outcomes:
        assert re.search("no answer from its file system|has done nothing for|client went away|cut off", outcome.error)
        assert outcome.seconds < REQUEST_SECONDS + 5 * TIMEOUT
    client.put(site.parent)
    with pytest.raises(Refused, match="broken"):
        client.get(target)
    client.remove(target)
    recover(site)
    tally("sick clusters survived", 1)


def test_a_container_that_fills_its_layer(site: Site) -> None:
    """It gets ENOSPC; others write on."""
    client = site.plugin.client
    root = client.get(site.idle)
    with pytest.raises(OSError) as caught, open(os.path.join(root, "big"), "wb") as target:
        os.posix_fallocate(target.fileno(), 0, 1 << 30)
    assert caught.value.errno == errno.ENOSPC
    client.write(site.running, "beside", "x")
    os.unlink(os.path.join(root, "big"))
    client.put(site.idle)
    recover(site)


def test_xfs_does_not_retry_for_ever(site: Site) -> None:
    """What its device refuses to take is tried again for as long as a request may last: then it shuts down, so that
    processes end and the layer can be removed. Nobody has to touch it for that.
    """
    client = site.plugin.client
    root = client.get(site.idle)
    file = os.path.join(root, "logged")
    with open(file, "wb") as target:
        target.write(b"x")
    # Its log has all of it then, and what is logged has yet to be written back to its place. A log that still had to be
    # written would shut it down at the first error.
    subprocess.run(["sync", "--file-system", os.path.join(os.path.dirname(root), "layer")], check=True)
    os.kill(device_server(site.plugin.environment, f"docker_image_{site.idle}"), signal.SIGKILL)
    # The kernel writes metadata back by itself after half a minute (fs.xfs.xfssyncd_centisecs).
    wait_until(lambda: is_shut_down(file), "the file system has given up")
    client.put(site.idle)
    client.remove(site.idle)


def is_shut_down(file: str) -> bool:
    """Tell whether the XFS below a file of an overlay is; to open one that is in memory asks no device."""
    try:
        os.close(os.open(file, os.O_RDONLY))
    except OSError as error:
        assert error.errno == errno.EIO
        return True
    return False


def test_the_socket_and_the_key_are_root_s_alone(site: Site, cluster: Cluster) -> None:
    assert stat.S_IMODE(os.stat(site.plugin.socket).st_mode) == 0o600
    key = cluster_key(cluster)
    assert key not in site.plugin.log_text()
    assert key not in str(site.plugin.client.status())
    assert key not in str(site.plugin.client.metadata(site.parent))
