"""What the benchmark decides: whether a row meets its goal, whose name the peer has, and whose a line of a log is."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import breakdown
import goals
import pytest
import report
import rows
from results import FLOOR, OURS, PEER, Results, Window
from unit.told_progress import ToldProgress

Said = pytest.CaptureFixture[str]


def found(key: str, ours: float, *, peer: float = 0.0, floor: float = 0.0) -> Results:
    results = Results(quick=True)
    results.facts["peer"] = "overlayfs"
    for who, value in ((OURS, ours), (PEER, peer), (FLOOR, floor)):
        if value or who == OURS:
            results.add(key, who, value)
    return results


def test_a_pull_from_the_pool_may_take_a_fifth_of_the_peers() -> None:
    assert report.check(found("pull_second", 1.0, peer=5.0)) == []
    assert report.check(found("pull_hosts@10", 2.0, peer=5.0)) == [
        "pull + run on 10 new hosts: the pool holds it: 2 s, goal 0.2 x overlayfs: is 0.40 x overlayfs"
    ]


def test_what_was_not_measured_misses_nothing() -> None:
    assert report.check(found("pull_second", 1.0)) == []


def test_the_floor_of_a_run_has_the_peers_time_in_it() -> None:
    """The client's and runc's work is the same with both."""
    assert report.check(found("snapshot_run", 1.29, peer=0.6, floor=0.4)) == []
    (line,) = report.check(found("snapshot_run", 1.4, peer=0.6, floor=0.4))
    assert line.endswith("goal 1.3 x floor: is 1.40 x floor")


def test_not_a_byte_of_a_layer_is_fetched() -> None:
    assert report.check(found("pull_fetched", 0)) == []
    assert report.check(found("pull_fetched", 0.001)) != []


def test_the_table_calls_the_peer_by_its_name() -> None:
    head, line = report.table(found("pull_second", 1.0, peer=5.0))
    assert head[4] == "overlayfs"
    assert "0.2 x overlayfs" in line
    assert report.table(Results(quick=True))[0][4] == "overlay2"


def test_the_spread_is_told_of_what_was_measured_more_than_once() -> None:
    results = found("pull_first", 3.0, peer=2.0)
    results.add("pull_first", OURS, 4.0)
    _, line = report.spread(results)
    assert re.split(r"  +", line)[1:] == ["ours", "3", "3.5", "4", "2"]


def test_rows_of_the_snapshotter_stand_in_their_order() -> None:
    keys = ["service_memory", "pull_hosts@10", "image_read", "pull_first"]
    assert goals.in_order(keys) == ["pull_first", "image_read", "service_memory", "pull_hosts@10"]


def test_a_terminal_is_told_which_row_of_how_many(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    progress = ToldProgress()
    usage = SimpleNamespace(peak=1, tree=1, cpu=1)
    stack = SimpleNamespace(settle=lambda: None, watch=SimpleNamespace(usage=lambda: usage))
    bench: Any = SimpleNamespace(stack=stack, results=Results(quick=True), floor=SimpleNamespace(steps=[]))
    monkeypatch.setattr(rows, "ALL", {"first": lambda _: None, "second": lambda _: None})
    rows.measure(bench, ["first", "second"], progress)
    assert progress.told == [("first", 2, 0), ("second", 2, 1)]
    assert capsys.readouterr().err == "bench: first: 0 s\nbench: second: 0 s\n"


def test_a_command_belongs_to_the_request_that_ran_it(tmp_path: Path) -> None:
    """Calls of Docker's name a layer, those of containerd's do not."""
    log = tmp_path / "log"
    log.write_text(
        "2026-01-01 00:00:00,800 [7 removing layer x] DEBUG rbd rm --pool rbd -> 0 in 100 ms\n"
        "2026-01-01 00:00:00,900 [8 #1] DEBUG rbd clone --pool rbd -> 0 in 100 ms\n"
        "2026-01-01 00:00:01,000 [8 #1] INFO Prepare 300 ms\n"
        "2026-01-01 00:00:01,500 [9 #3] DEBUG rbd clone --pool rbd -> timeout in 400 ms\n"
        "2026-01-01 00:00:01,600 [9 #3] DEBUG /usr/bin/python3 -I -S /x/archive/confined.py size /l -> 0 in 10 ms\n"
        "2026-01-01 00:00:02,000 [9 #3] INFO Create abc 500 ms: an error\n"
        "2026-01-01 00:00:03,000 [9 #4] DEBUG mount a b -> 0 in 10 ms\n",
        encoding="utf-8",
    )
    read = breakdown.read(str(log))
    assert [(item.method, item.layer) for item in read.requests] == [("Prepare", ""), ("Create", "abc")]
    assert [command.name for command in read.requests[0].commands] == ["rbd clone"]
    assert [command.name for command in read.requests[1].commands] == ["rbd clone", "archive size"]
    assert [command.name for command in read.background] == ["rbd rm", "mount"], "the last one was cut off"
    windows = [Window("row", read.requests[0].begin, read.requests[0].end)]
    assert any("Prepare" in line for line in breakdown.tell(read, windows))
    assert not any("Create" in line for line in breakdown.tell(read, windows))
