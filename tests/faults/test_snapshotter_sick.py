"""A sick cluster: what is known is told at once, what needs the cluster ends in time, and says in one line why.

When the cluster is well again the next call works, without a restart; a service that was started meanwhile gets ready
by itself. A full pool takes nothing new, and what is removed makes room in it.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pytest
import sickness
from client import UNAVAILABLE, Refused
from lab import Cluster
from plugin_client import SLOWNESS, wait_until
from serving import Host
from snapshot_operations import REF, chain, files_of, several, unpacking

Tally = Callable[[str, int], None]
Sickness = Callable[[Cluster], AbstractContextManager[None]]

TIMEOUT = 3.0 * SLOWNESS
# Twice that for the commands of a call, and what is undone after it; see README.
CALL_SECONDS = 2 * TIMEOUT + 5 * 3.0 * SLOWNESS
# Less than one command would wait for the cluster.
AT_ONCE_SECONDS = 0.9 * TIMEOUT
# A busy disk holds up one call; what asks a cluster that is sick holds up each.
TRIES = 3
# What each sickness is called in the errors.
SAID = {
    "osd_stopped": "an OSD hangs|OSD|slow ops|no answer",
    "monitor_stopped": "no monitor lets client.sick in",
    "network_cut": "no monitor lets client.sick in",
    "key_lost": "for the key: ceph auth get client.sick",
}


@pytest.fixture(scope="module", autouse=True)
def pool(cluster: Cluster) -> Iterator[None]:
    """A pool and a key of the tests' own."""
    sickness.make_pool(cluster)
    yield
    sickness.drop_pool(cluster)


@pytest.fixture
def host(cluster: Cluster, session_directory: str) -> Iterator[Host]:
    """On the pool of the tests, with little patience: `base` and `aside` are committed, `running` alone is mapped."""
    directory = os.path.join(session_directory, uuid.uuid4().hex[:6])
    options = {"datapool": sickness.POOL, "client": sickness.CLIENT, "timeout": f"{TIMEOUT:g}", "basesize": "512M"}
    made = Host(cluster, directory, "sick", **options)
    try:
        made.start()
        for name in ("base", "aside"):
            made.work.layer(name, "", several(name))
        for name in ("running", "idle", "doomed"):
            made.work.change(made.calls.prepare(name, "base"), several(name))
        made.switch_off()
        made.start()
        made.calls.mounts("running")
        yield made
        made.remove_all()
        made.nothing_left()
    finally:
        made.give_up()


class Outcome(NamedTuple):
    """How a call ended: seconds, its code, and its text."""

    seconds: float
    code: str = ""
    text: str = ""


def timed(call: Callable[[], Any]) -> Outcome:
    """Do it."""
    began = time.monotonic()
    try:
        call()
    except Refused as error:
        return Outcome(time.monotonic() - began, error.code, error.text)
    return Outcome(time.monotonic() - began)


def outcomes(calls: dict[str, Callable[[], Any]]) -> dict[str, Outcome]:
    """Do all of them at the same time."""
    with ThreadPoolExecutor(max_workers=len(calls)) as threads:
        futures = {name: threads.submit(timed, call) for name, call in calls.items()}
        ended = {name: future.result() for name, future in futures.items()}
    for name, outcome in ended.items():
        print(f"{name}: {outcome}")
        assert outcome.seconds < CALL_SECONDS, name
        assert "\n" not in outcome.text
    return ended


def told_at_once(host: Host) -> None:
    """What needs no layer is answered, and no slower than ever."""
    for call in (
        lambda: host.calls.stat("idle"),
        lambda: list(host.calls.list()),
        lambda: host.calls.usage("base"),
        lambda: host.calls.usage("idle"),
        lambda: host.calls.usage("running"),
        lambda: host.calls.update("base", {"label": uuid.uuid4().hex}, "labels.label"),
    ):
        outcome = min((timed(call) for _ in range(TRIES)), key=lambda outcome: outcome.seconds)
        assert outcome.code == "", outcome
        assert outcome.seconds < AT_ONCE_SECONDS, outcome


def needing(host: Host) -> dict[str, Callable[[], Any]]:
    """Calls that cannot be answered without the cluster."""
    return {
        "Prepare": lambda: host.calls.prepare("new", "base"),
        "Prepare on nothing": lambda: host.calls.prepare("new of nothing"),
        "View": lambda: host.calls.view("view of it", "aside"),
        "Mounts": lambda: host.calls.mounts("idle"),
    }


def refused_in_words(ended: dict[str, Outcome], said: str) -> None:
    """All of them say UNAVAILABLE, and why."""
    for name, outcome in ended.items():
        assert outcome.code == UNAVAILABLE, (name, outcome)
        assert re.search(said, outcome.text), (name, outcome)


def works(host: Host) -> None:
    """Everything works, without a restart, and no file has changed."""
    wait_until(lambda: timed(lambda: host.calls.prepare("new", "base")).code != UNAVAILABLE, "it is made")
    assert host.work.files(host.calls.mounts("new")) == files_of(host, "base")
    for name in ("running", "idle"):
        assert name in host.work.names(host.calls.mounts(name))
    assert "aside" in host.work.names(host.calls.view("view of it", "aside"))
    host.calls.commit("committed", "idle")
    assert host.calls.stat("committed").parent == "base"


@pytest.mark.parametrize("name", SAID)
def test_every_call_ends_and_says_why(name: str, host: Host, cluster: Cluster, tally: Tally) -> None:
    sick: Sickness = getattr(sickness, name)
    with sick(cluster):
        told_at_once(host)
        refused_in_words(outcomes(needing(host)), SAID[name])
        told_at_once(host)
        # It is noted on this host.
        assert timed(lambda: host.calls.remove("doomed")).code == ""
        assert sorted(info.name for info in host.calls.list()) == ["aside", "base", "idle", "running"]
    works(host)
    wait_until(lambda: not host.removals(), "what was removed is gone")
    tally("sick clusters survived by a snapshotter", 1)


@pytest.mark.parametrize("name", SAID)
def test_a_start_while_the_cluster_is_away(name: str, host: Host, cluster: Cluster, tally: Tally) -> None:
    """It serves what it knows, and is ready by itself when the cluster is back."""
    # With nothing mapped, as after a reboot.
    host.switch_off()
    with getattr(sickness, name)(cluster):
        host.start_unready()
        told_at_once(host)
        wait_until(lambda: "not ready yet" in host.said(), "it has tried")
        refused_in_words(outcomes(needing(host)), f"{SAID[name]}|no Ceph cluster answers client.sick")
        assert timed(lambda: host.calls.remove("doomed")).code == ""
        told_at_once(host)
        assert not host.is_ready()
    host.wait_ready()
    works(host)
    wait_until(lambda: not host.removals(), "what was removed is gone")
    tally("sick clusters survived by a snapshotter", 1)


def test_what_is_removed_makes_room_in_a_full_pool(host: Host, cluster: Cluster, tally: Tally) -> None:
    """Whether it is active, committed or shared. What is mapped and not written out goes once there is room."""
    key, _, labels = unpacking(1, "")
    host.work.change(host.calls.prepare(key, "", labels), several("shared"))
    shared = f"default/2/{chain(1)}"
    host.calls.commit(shared, key, {REF: chain(1)})
    host.wait(lambda: host.is_offered(shared), "it is offered")
    host.work.layer("above", "aside", several("above"))
    needed = {f"sick_{host.image(name)}" for name in ("running", "base")}
    host.wait(lambda: set(host.mapped()) == needed, "nothing else is mapped")
    with sickness.quota_reached(cluster):
        told_at_once(host)
        full = r"pool 'sick' is full \(running out of quota\)|no answer"
        refused_in_words(outcomes({"Prepare": lambda: host.calls.prepare("new", "base")}), full)
        gone = {f"sick_{host.image(name)}" for name in ("doomed", "above", shared)}
        for name in ("running", "doomed", "above", shared):
            assert timed(lambda: host.calls.remove(name)).code == ""  # noqa: B023
        wait_until(lambda: not gone & set(host.images()), "what is removed makes room in a full pool")
    host.wait(lambda: not host.removals(), "what was mapped has gone, too")
    host.calls.prepare("running", "base")
    host.work.change(host.calls.mounts("running"), several("running"))
    works(host)
    wait_until(lambda: not host.removals(), "what was removed is gone")
    tally("sick clusters survived by a snapshotter", 1)
