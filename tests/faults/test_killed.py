"""The plugin is killed -9 at each command that an operation runs, before it and after it, and started again.

Then the same call succeeds, or Remove cleans up and the call succeeds anew; no layer that was finished has changed, and
when everything is removed nothing is left. The commands are those that the operation ran when nobody killed it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from killer import Killer
from lab import Cluster, StartPlugin, mounts_below
from lab_fixtures import plugins
from operations import OPERATIONS, Operation
from plugin_client import UNANSWERED, PluginProcess, Refused, wait_until

MOMENTS = ("before", "after")
WORKERS = 3
# After the answer; what is done behind is asked for by Cleanup.
QUIET_SECONDS = 0.3
Tally = Callable[[str, int], None]

# The first test waits for operations that are done beside its own.
pytestmark = pytest.mark.timeout(1200)


def under(killer: Killer, plugin: PluginProcess) -> None:
    """Let a plugin that runs be one that is killed."""
    assert plugin.terminate() == 0
    plugin.environment["PATH"] = killer.path
    plugin.python = killer.python
    plugin.start()


def pid(plugin: PluginProcess) -> int:
    """Its process."""
    assert plugin.process
    return plugin.process.pid


def commands(plugin: PluginProcess) -> list[str]:
    """The processes that it runs at the moment."""
    running: list[str] = []
    for task in os.listdir(f"/proc/{pid(plugin)}/task"):
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            open(f"/proc/{pid(plugin)}/task/{task}/children", encoding="ascii") as said,
        ):
            running += said.read().split()
    return [child for child in running if not _is_watcher(child)]


def _is_watcher(child: str) -> bool:
    """Tell whether a process shows that the host lives (liveness.py), which it does as long as the plugin."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{child}/cmdline", "rb") as said:
        words = said.read().split(b"\0")
        return os.path.basename(words[0]) == b"rados" and any(b"_host." in word for word in words)
    return False


def wait_quiet(plugin: PluginProcess) -> None:
    """Wait until nothing is done behind the caller's back: the commands that are counted must be the operation's."""
    for _ in range(3):
        wait_until(lambda: not commands(plugin), "the plugin runs no command")
        time.sleep(0.02)


def act_until_killed(plugin: PluginProcess, act: Callable[[], None]) -> None:
    """Do what is answered by nobody any more, and what is begun behind the answer."""
    with contextlib.suppress(*UNANSWERED):
        act()
    quiet = time.monotonic() + QUIET_SECONDS
    while plugin.running and time.monotonic() < quiet:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if commands(plugin):
                quiet = time.monotonic() + QUIET_SECONDS
        time.sleep(0.01)


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
    steps = killer.disarm()
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
    for moment in MOMENTS:
        for number in itertools.count(1):
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
    assert killed >= len(MOMENTS)
    tally("steps killed", killed)
