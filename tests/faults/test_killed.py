"""The plugin is killed -9 at each command that an operation runs, before it or after it, and started again.

Then the same call succeeds, or Remove cleans up and the call succeeds anew; no layer that was finished has changed, and
when everything is removed nothing is left. The commands are those that the operation ran when nobody killed it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from killer import TURNS, Killer, act_until_killed, kills, kills_the_first, pid, under, wait_quiet
from lab import Cluster, StartPlugin, mounts_below
from lab_fixtures import plugins
from operations import OPERATIONS, Operation
from plugin_client import PluginProcess, Refused, wait_until

WORKERS = 3
Tally = Callable[[str, int], None]

# The first test waits for operations that are done beside its own.
pytestmark = pytest.mark.timeout(1200)


def nothing_left(operation: Operation, stem: str, images: list[str]) -> None:
    """Neither in the pool, where names begin with `stem`, nor on this host, but for `images`."""
    cluster, home = operation.cluster, operation.home
    operation.client.call("Cleanup")
    assert cluster.images(stem) == images
    wait_until(lambda: cluster.trash(stem) == [], "the trash is empty")
    wait_until(lambda: not [name for name in cluster.mapped() if name.startswith(stem)], "nothing is mapped")
    assert mounts_below(home) == []
    assert os.listdir(os.path.join(home, "mnt")) == []
    assert sorted(os.listdir(home)) == ["l", "mnt"]
    assert os.listdir(os.path.join(home, "l")) == []


def survive(operation: Operation) -> None:
    """After the restart: the call, or Remove and the call."""
    try:
        operation.act()
    except Refused:
        if not operation.tolerant:
            raise
        operation.client.remove(operation.layer)
        operation.anew()
    operation.check()
    operation.clear()


def kill_at(plugin: PluginProcess, killer: Killer, operation: Operation, number: int, moment: str) -> bool:
    """Do the operation and kill the plugin at a step of it; tell whether it has so many."""
    operation.prepare()
    if operation.settled:
        operation.client.call("Cleanup")
    wait_quiet(plugin)
    killer.arm(pid(plugin), number, moment)
    act_until_killed(plugin, operation.act)
    steps = killer.disarm(plugin)
    if plugin.running:
        # This time it was done undisturbed.
        operation.check()
        operation.clear()
        return False
    print(f"{operation.__class__.__name__} of {operation.layer} killed {moment} step {number}: {steps[-1]}")
    plugin.start()
    return True


def kill_at_any_step(make: type[Operation], start: StartPlugin, cluster: Cluster) -> int:
    """Kill the plugin in all places of an operation; return how often it was killed."""
    stem, killed = make.__name__, 0
    plugin = start(imageprefix=stem)
    killer = Killer(os.path.join(os.path.dirname(plugin.home), "killer"), plugin.environment)
    under(killer, plugin)
    operation = make(plugin, stem, cluster)
    operation.before_all()
    operation.client.call("Cleanup")
    images = cluster.images(stem)
    for turn in range(TURNS):
        for number, moment in kills(turn):
            if not kill_at(plugin, killer, operation, number, moment):
                break
            killed += 1
            survive(operation)
        # After all of them: to look after each would take as long again. What is left has the id of its step.
        operation.check_finished()
        nothing_left(operation, stem, images)
    return killed


@pytest.fixture(scope="module")
def outcomes(cluster: Cluster, session_directory: str) -> Iterator[dict[type[Operation], Future[int]]]:
    """Every operation's count, side by side: each waits for its commands most of the time."""
    with plugins(cluster, session_directory) as start, ThreadPoolExecutor(max_workers=WORKERS) as threads:
        yield {make: threads.submit(kill_at_any_step, make, start, cluster) for make in OPERATIONS}


@pytest.mark.parametrize("make", OPERATIONS, ids=[make.__name__ for make in OPERATIONS])
def test_killed_at_any_step(make: type[Operation], outcomes: dict[type[Operation], Future[int]], tally: Tally) -> None:
    killed = outcomes[make].result()
    assert killed or not kills_the_first()
    tally("steps killed", killed)
