"""trial.py: what the key may do is tried, and nothing of it is left, whatever fails; in a pool in memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.doctored import DoctoredPool, found, let_trials_mount, outcome
from unit.fake_host import FakeHost, refused
from unit.fakes import failed, timed_out

import rbdcli
from cluster.owner import Owner
from doctor import trial as trial_module
from doctor.finding import ALL_OK, BROKEN, IMPROVE, NOT_CHECKED, OK, TO_IMPROVE, exit_status
from doctor.trial import Trial, closing
from host import command
from images.options import DEFAULTS

STEPS = ["create", "clock", "clone", "map", "mount", "remove", "blocklist"]
DENIED = failed(rbdcli.RbdError, 1, "(1) Operation not permitted")


@pytest.fixture
def pool() -> DoctoredPool:
    return DoctoredPool()


@pytest.fixture
def trial(pool: DoctoredPool, tmp_path: Path, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    """A trial of root's, by a host in memory, in which an overlay is no directory to write to."""
    assert host.pool is pool
    let_trials_mount(monkeypatch)
    made = new(pool, tmp_path)
    yield made
    made.close()


def new(pool: DoctoredPool, directory: Path) -> Trial:
    """A trial of this test's own home: another one at the same time is none of its."""
    return Trial(pool.as_pool(), DEFAULTS, Owner("vm", "", str(directory)), str(directory))


def assert_nothing_is_left(pool: DoctoredPool, host: FakeHost, directory: Path) -> None:
    assert (pool.images, pool.trashed_images, pool.devices, host.mounted) == ({}, {}, {}, {})
    assert [path.name for path in directory.iterdir() if path.name != "content"] == []


def test_all_that_is_needed(trial: Trial, pool: DoctoredPool, host: FakeHost, tmp_path: Path) -> None:
    findings = found(trial.checks(), pool)
    assert [*findings] == STEPS
    assert {finding.status for finding in findings.values()} == {OK}
    assert_nothing_is_left(pool, host, tmp_path)
    assert trial.close() == ""
    # As layers are mapped and mounted.
    assert host.views() == {}
    [name] = set(pool.named("create"))
    assert name.startswith("docker-graph-driver-doctor-")
    assert "_" not in name, "it would be an image of some prefix"


def test_the_blocklist_is_tried_with_nobody_s_address_and_for_a_moment(trial: Trial, pool: DoctoredPool) -> None:
    assert outcome(trial.checks(), "blocklist", pool)[0] == OK
    [(_, address, seconds)] = [call for call in pool.calls if call[0] == "blocklist"]
    assert address.startswith("192.0.2.1:0/")
    assert seconds <= 5


@pytest.mark.parametrize(
    ("method", "step", "words", "lacking"),
    [
        ("create", "create", "may not create images", STEPS[1:6]),
        ("snapshot", "clone", "may not take snapshots of images and clone them", ["map", "mount"]),
        ("clone", "clone", "may not take snapshots of images and clone them", ["map", "mount"]),
        ("map", "map", "may not map images", ["mount"]),
        ("remove", "remove", "may not remove images", []),
    ],
)
def test_a_right_that_is_missing_is_named(
    trial: Trial,
    pool: DoctoredPool,
    host: FakeHost,
    tmp_path: Path,
    method: str,
    step: str,
    words: str,
    lacking: list[str],
) -> None:
    pool.fails[method] = [DENIED]
    findings = found(trial.checks(), pool)
    said = findings[step]
    assert said.status == BROKEN
    assert said.text.startswith(f"client.admin {words} in pool pool: rbd : (1) Operation not permitted")
    assert said.text.endswith(
        "let it: ceph auth caps client.admin mon 'profile rbd' osd 'profile rbd pool=rbd' mgr 'profile rbd pool=rbd'"
    )
    assert [name for name, finding in findings.items() if finding.status == NOT_CHECKED] == lacking
    assert trial.close() == ""
    assert_nothing_is_left(pool, host, tmp_path)


def test_a_right_to_the_blocklist_that_is_missing(trial: Trial, pool: DoctoredPool) -> None:
    """The driver works without, but not on the worst day."""
    pool.fails["blocklist"] = [rbdcli.RbdError(("ceph", "osd"), 13, "access denied")]
    status, text = outcome(trial.checks(), "blocklist", pool)
    assert status == IMPROVE
    assert "may not put a client that is dead on the blocklist, so takeover fails" in text


@pytest.mark.parametrize("method", ["create", "set_metadata", "created", "snapshot", "clone", "map"])
@pytest.mark.parametrize("has_worked", [False, True])
def test_what_fails_half_way_leaves_nothing(
    trial: Trial, pool: DoctoredPool, host: FakeHost, tmp_path: Path, method: str, has_worked: bool
) -> None:
    """Also where a command did its work, and its answer was lost."""
    pool.fails[method] = [(timed_out(), True) if has_worked else timed_out()]
    findings = found(trial.checks(), pool)
    assert BROKEN in {finding.status for finding in findings.values()}
    assert trial.close() == ""
    assert_nothing_is_left(pool, host, tmp_path)


@pytest.mark.parametrize("function", ["make", "mount", "overlay"])
def test_a_file_system_that_cannot_be_used(
    trial: Trial, pool: DoctoredPool, host: FakeHost, tmp_path: Path, function: str
) -> None:
    host.fails[function] = [(refused(), True)]
    findings = found(trial.checks(), pool)
    assert (findings["mount"].status, findings["remove"].status) == (BROKEN, OK)
    assert "wrong fs type" in findings["mount"].text
    assert_nothing_is_left(pool, host, tmp_path)


def test_what_cannot_be_removed_is_named(trial: Trial, pool: DoctoredPool) -> None:
    told: list[str] = []
    with closing(trial, told.append):
        pool.fails["remove"] = [DENIED, DENIED]
        assert found(trial.checks(), pool)["remove"].status == BROKEN
    [text] = told
    assert f"the image {pool.named('create')[0]}, or " in text
    assert "the next doctor removes them" in text
    assert pool.images != {}


def test_what_a_doctor_that_was_killed_has_left_goes_with_the_next(
    trial: Trial, pool: DoctoredPool, host: FakeHost, tmp_path: Path
) -> None:
    checks = trial.checks()
    found(checks[:5], pool)
    assert (len(pool.images), len(pool.devices), len(host.mounted)) == (2, 1, 2)
    # The end of its process lets go of the name.
    trial._let_others()
    pool.add("docker_image_other")
    after = new(pool, tmp_path)
    assert {finding.status for finding in found(after.checks(), pool).values()} == {OK}
    assert [*pool.images] == ["docker_image_other"]
    assert (pool.devices, host.mounted) == ({}, {})


def test_a_removal_that_was_cut_short_goes_on(trial: Trial, pool: DoctoredPool, tmp_path: Path) -> None:
    found(trial.checks(), pool)
    trial.close()
    name = pool.named("create")[0]
    pool.add(name)
    pool.trash(name, "USER")
    found(new(pool, tmp_path).checks(), pool)
    assert pool.trashed_images == {}


def test_two_doctors_of_one_home_do_not_meet(trial: Trial, pool: DoctoredPool, tmp_path: Path) -> None:
    """The second one leaves alone what the first one has."""
    found(trial.checks()[:4], pool)
    second = new(pool, tmp_path)
    findings = found(second.checks(), pool)
    assert [finding.status for finding in findings.values()] == [NOT_CHECKED] * 6 + [OK]
    assert "another doctor of this host and home is at work" in findings["create"].text
    assert [name for name, finding in findings.items() if finding.missed] == ["create"], "the rest follows from it"
    assert exit_status(findings.values()) == TO_IMPROVE
    assert second.close() == ""
    assert (len(pool.images), len(pool.devices)) == (2, 1)


def test_without_root_the_rights_are_tried_all_the_same(
    trial: Trial, pool: DoctoredPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    findings = found(trial.checks(), pool)
    outcomes = [finding.status for finding in findings.values()]
    assert outcomes == [OK, OK, OK, NOT_CHECKED, NOT_CHECKED, OK, OK]
    assert findings["map"].text == "only root can map"
    assert exit_status(findings.values()) == ALL_OK


@pytest.mark.parametrize(("off", "status"), [(0.0, OK), (-3.0, OK), (-600.0, IMPROVE), (600.0, IMPROVE)])
def test_the_clock(trial: Trial, pool: DoctoredPool, off: float, status: str) -> None:
    checks = trial.checks()
    found(checks[:1], pool)
    pool.images[pool.named("create")[0]].created = time.time() - off
    said = outcome(checks, "clock", pool)
    assert said[0] == status
    if status == IMPROVE:
        assert f"this host's clock is 600 s {'ahead of' if off > 0 else 'behind'} the cluster's" in said[1]


def test_an_interruption_ends_the_step_at_work_and_leaves_nothing(
    trial: Trial, pool: DoctoredPool, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that runs is killed; it may have done its work. What its step would do next is not done."""
    at_work, killed = threading.Event(), threading.Event()
    snapshot = DoctoredPool.snapshot

    def slow(self: DoctoredPool, image: str, name: str) -> None:
        at_work.set()
        killed.wait(10)
        snapshot(self, image, name)

    monkeypatch.setattr(DoctoredPool, "snapshot", slow)
    monkeypatch.setattr(command, "end_running", killed.set)
    findings: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: findings.update(found(trial.checks(), pool)))
    thread.start()
    assert at_work.wait(10)
    assert trial.close() == ""
    thread.join(10)
    assert_nothing_is_left(pool, host, tmp_path)
    assert pool.named("clone") == []
    assert findings["clone"] == ("clone", NOT_CHECKED, "interrupted", True)


def test_an_interruption_while_it_closes(trial: Trial, pool: DoctoredPool, host: FakeHost, tmp_path: Path) -> None:
    found(trial.checks()[:5], pool)
    pool.fails["mappings"] = [KeyboardInterrupt()]
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt), closing(trial, told.append):
        pass
    assert told == []
    assert_nothing_is_left(pool, host, tmp_path)


def test_a_step_that_cannot_be_ended_is_told(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_module, "CLOSE_SECONDS", 0.0)
    trial._at_work.acquire()
    try:
        assert trial.close().endswith(": it hangs; the next doctor removes them")
    finally:
        trial._at_work.release()
