"""The snapshotter is killed -9 at each command that a call runs, before it or after it, and started again.

Then it tells of the snapshots what its clients were answered: a call that was answered is done, one that was not is
done or as if it had never been, and the same call succeeds. What was committed is there file by file, on each host that
uses it; when everything is removed nothing is left. The commands are those that the call ran when nobody killed it.
"""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from client import Info
from killer import TURNS, Killer, act_until_killed, kills, kills_the_first, pid, wait_quiet
from lab import Cluster
from plugin_client import wait_until
from serving import Host
from snapshot_operations import OPERATIONS, Operation

WORKERS = 3
# No call runs so many commands.
MOST_STEPS = 60
# A call that runs no command is killed after so long, twice so long, and so on until it is answered before that.
TICK_SECONDS, LEAST_TICKS = 0.004, 8
Tally = Callable[[str, int], None]

# The first test waits for calls that are done beside its own.
pytestmark = pytest.mark.timeout(2400)


def look(host: Host) -> dict[str, Info]:
    """What a host says of its snapshots, which is the same by List and by Stat."""
    found = {info.name: info for info in host.calls.list()}
    for name, info in found.items():
        assert host.calls.stat(name) == info
    return found


def survive(operation: Operation, before: dict[str, Info]) -> None:
    """After the start: what is told at once, the call again if it is not done, and what it was to do."""
    after = look(operation.host)
    for found in (before, after):
        for info in [info for info in found.values() if not operation.is_mine(info)]:
            assert after[info.name] == before[info.name]
    is_done = operation.done(after)
    if not is_done:
        assert not operation.answered, "what was answered is lost"
        assert all(after[name] == info for name, info in before.items()), "it is as before"
        operation.host.wait_ready()
        operation.act()
    operation.check()
    operation.clear()


def kill_after(operation: Operation, number: int) -> bool:
    """Do a call that runs no command, and kill the service a while after it was begun; tell whether it was killed."""
    host = operation.host
    host.wait_ready()
    operation.prepare()
    wait_quiet(host.process)
    before = look(host)
    timer = threading.Timer((number - 1) * TICK_SECONDS, os.kill, (pid(host.process), signal.SIGKILL))
    timer.start()
    act_until_killed(host.process, operation.act)
    timer.join()
    wait_until(lambda: not host.process.running, "it is killed")
    host.start_unready()
    was_answered = operation.answered
    survive(operation, before)
    return not was_answered or number < LEAST_TICKS


def kill_at(killer: Killer, operation: Operation, number: int, moment: str) -> bool:
    """Do the call and kill the service at a step of it; tell whether it has so many."""
    host = operation.host
    host.wait_ready()
    operation.prepare()
    host.wait(lambda: not host.removals(), "what was removed is gone")
    if operation.unmapped:
        host.restart()
    wait_quiet(host.process)
    before = look(host)
    killer.arm(pid(host.process), number, moment)
    act_until_killed(host.process, operation.act)
    steps = killer.disarm(host.process)
    if host.process.running:
        # This time it was done undisturbed.
        assert operation.answered
        operation.check()
        operation.clear()
        return False
    print(f"{operation.__class__.__name__} of {operation.key} killed {moment} step {number}: {steps[-1]}")
    host.start_unready()
    survive(operation, before)
    return True


def kill_at_any_step(make: type[Operation], cluster: Cluster, directory: str) -> int:
    """Kill the service in all places of a call; return how often it was killed."""
    hosts: list[Host] = []
    stem, killed = make.__name__, 0
    for _ in range(2 if make.two_hosts else 1):
        hosts.append(Host(cluster, os.path.join(directory, uuid.uuid4().hex[:6]), stem))
    host, other = hosts[0], hosts[1] if make.two_hosts else None
    process = host.process
    killer = Killer(os.path.join(os.path.dirname(process.home), "killer"), process.environment)
    process.environment["PATH"], process.python = killer.path, killer.python
    try:
        for one in hosts:
            one.start()
        operation = make(host, other)
        for turn in range(TURNS):
            operation.before_all()
            for number, moment in kills(turn):
                is_killed = (
                    kill_after(operation, number) if make.runs_nothing else kill_at(killer, operation, number, moment)
                )
                if not is_killed:
                    break
                killed += 1
                assert number < MOST_STEPS, "what is done behind an earlier step is counted"
            operation.check_committed()
            operation.clear_all()
            if other:
                other.restart()
            host.nothing_left()
            host.start()
        for one in hosts:
            one.nothing_left()
    finally:
        for one in hosts:
            one.give_up()
    return killed


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, cluster: Cluster, session_directory: str
) -> Iterator[dict[type[Operation], Future[int]]]:
    """The count of every call that was selected, side by side: each waits for its commands most of the time."""
    names = " ".join(item.name for item in request.session.items)
    wanted = [make for make in OPERATIONS if f"[{make.__name__}]" in names]
    with ThreadPoolExecutor(max_workers=WORKERS) as threads:
        yield {make: threads.submit(kill_at_any_step, make, cluster, session_directory) for make in wanted}
        threads.shutdown(cancel_futures=True)


@pytest.mark.parametrize("make", OPERATIONS, ids=[make.__name__ for make in OPERATIONS])
def test_killed_at_any_step(make: type[Operation], outcomes: dict[type[Operation], Future[int]], tally: Tally) -> None:
    killed = outcomes[make].result()
    assert killed or not kills_the_first()
    tally("steps of the snapshotter killed", killed)
