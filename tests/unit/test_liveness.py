"""liveness.py: shown only as the one that has the claim. `rados watch` is a program that tells what it is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from plugin_client import wait_until
from unit.fakes import FakePool, timed_out
from unit.test_claim import OURS, THERE, holders, lives

from cluster import claim, liveness
from cluster.claim import OwnerTaken
from cluster.liveness import Liveness
from cluster.owner import boot_id

# It watches until its input ends or it is told to lose the watch.
WATCH = 'echo watching; while [ ! -e "$0" ]; do read -t 0.05 -r _; [ $? -gt 128 ] || exit 0; done; rm "$0"; echo lost'


class Pool(FakePool):
    """A pool whose watch is lost when a file appears."""

    def __init__(self, lose: Path) -> None:
        super().__init__()
        self.lose = lose

    def rados_argv(self, *words: str) -> tuple[str, ...]:
        """What is started in the place of rados."""
        return ("bash", "-c", WATCH, str(self.lose))


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    for module, name, seconds in (
        (claim, "PAUSE_SECONDS", 0.01),
        (claim, "REBOOT_SECONDS", 0.1),
        (liveness, "REBOOT_SECONDS", 0.1),
        (liveness, "RENEW_SECONDS", 0.01),
        (liveness, "RETRY_SECONDS", 0.01),
    ):
        monkeypatch.setattr(module, name, seconds)
    return Pool(tmp_path / "lose")


def of(pool: Pool) -> Liveness:
    return Liveness(pool.as_pool(), "p", OURS, lambda: None)


def test_a_claim_is_watched_from_then_on(pool: Pool) -> None:
    shown = of(pool)
    shown.claim()
    assert holders(pool) == [boot_id()]
    shown.start()
    wait_until(lambda: shown.shown, "it is shown")
    shown.stop()
    assert not shown.shown


def test_a_claim_that_nobody_needs_any_more(pool: Pool) -> None:
    """Init failed after it: nothing runs on (conftest.py)."""
    shown = of(pool)
    shown.claim()
    shown.stop()


def test_another_that_lives(pool: Pool) -> None:
    lives(pool, OURS, "another")
    with pytest.raises(OwnerTaken):
        of(pool).claim()


def test_a_pool_that_takes_no_writes(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """What makes room must go on; unless another lives, which is told all the same."""
    setxattr = [timed_out()]
    pool.fails["rados"] = list(setxattr)
    shown = of(pool)
    shown.claim()
    assert "is not claimed yet" in caplog.text
    assert not holders(pool)
    lives(pool, OURS, "another")
    pool.fails["rados"] = list(setxattr)
    with pytest.raises(OwnerTaken):
        shown.claim()


def test_a_claim_that_another_has_taken_meanwhile_is_told_once(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """This machine was cut off for longer than the cluster waits."""
    shown = of(pool)
    shown.claim()
    shown.start()
    wait_until(lambda: shown.shown, "it is shown")
    lives(pool, OURS, "another")
    pool.lose.touch()
    wait_until(lambda: f"it answers from {THERE}" in caplog.text, "it is told")
    calls = len(pool.calls)
    wait_until(lambda: len(pool.calls) > calls + 20, "it has tried again and again")
    assert not shown.shown
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    pool.objects.watchers.clear()
    wait_until(lambda: shown.shown, "the other has gone")
    shown.stop()


def test_a_second_one_of_the_same_boot(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    shown = of(pool)
    shown.claim()
    pool.objects.watchers[OURS.object("p")] = ["10.0.0.1:0/1", THERE]
    shown.start()
    wait_until(lambda: THERE in caplog.text, "it is told")
    assert not shown.shown
    shown.stop()


def test_a_second_driver_of_this_process_is_no_clone(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """A daemon's Init makes it: both watch until the new one has taken over, or failed."""
    shown = of(pool)
    shown.claim()
    watchers = pool.objects.watchers[OURS.object("p")] = ["10.0.0.1:0/1", THERE]
    caplog.set_level(logging.INFO)
    shown.start()
    wait_until(lambda: THERE in caplog.text, "it has looked around")
    watchers.remove(THERE)
    calls = len(pool.calls)
    wait_until(lambda: len(pool.calls) > calls, "it looks again")
    assert shown.shown
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    shown.stop()


def test_a_rados_that_says_nothing_is_waited_for_as_long_as_any_command(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "rados_argv", lambda self, *words: ("cat",))
    monkeypatch.setattr(Pool, "timeout", 0.1)
    shown = of(pool)
    shown.claim()
    assert not holders(pool) or not shown.shown
    shown.stop()


def test_an_answer_that_cannot_be_read_ends_nothing(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """Without its thread other hosts would take this one for dead."""
    shown = of(pool)
    pool.fails["rados"] = [ValueError("what is that?")]
    shown.start()
    wait_until(lambda: shown.shown, "it is shown all the same")
    assert "what is that?" in caplog.text
    shown.stop()
