"""processes.py: in what world a process begins, and how it is ended."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from plugin_client import process_state, wait_until

from host import processes


def said(*argv: str, confined: bool) -> str:
    process = processes.start(argv, confined=confined, stderr=subprocess.STDOUT)
    return process.communicate(timeout=20)[0].decode()


def test_what_is_confined_gets_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", "x")
    assert said("/usr/bin/env", confined=True) == "LC_ALL=C\n"
    assert "MARK=x\n" in said("/usr/bin/env", confined=False)


@pytest.mark.parametrize("confined", [False, True])
def test_each_leads_a_session_of_its_own_and_reads_nothing(confined: bool) -> None:
    process = processes.start(["cat"], confined=confined)
    assert os.getsid(process.pid) == process.pid
    assert process.communicate(timeout=20) == (b"", b"")


def test_what_cannot_be_started_is_an_error_of_the_system() -> None:
    with pytest.raises(FileNotFoundError):
        processes.start(["/nonexistent"])


@pytest.mark.parametrize("end", [processes.kill, processes.stop])
def test_what_it_has_started_ends_with_it(tmp_path: Path, end: Callable[[subprocess.Popen[bytes]], None]) -> None:
    script = f"sleep 600 & echo $! >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; wait"
    process = processes.start(["sh", "-c", script])
    wait_until((tmp_path / "pid").exists, "it runs")
    end(process)
    assert (process.returncode is None) == (end is processes.kill)
    child = int((tmp_path / "pid").read_text(encoding="ascii"))
    wait_until(lambda: process_state(child) in ("", "Z"), "the child is gone")
    process.communicate(timeout=20)


def test_a_child_that_has_outlived_its_parent_is_killed(tmp_path: Path) -> None:
    process = processes.start(["sh", "-c", f"sleep 600 & echo $! >{tmp_path}/pid"])
    wait_until(lambda: process_state(process.pid) == "Z", "the parent has ended")
    processes.stop(process)
    child = int((tmp_path / "pid").read_text(encoding="ascii"))
    wait_until(lambda: process_state(child) in ("", "Z"), "the child is gone")
    process.communicate(timeout=20)


def test_the_number_of_what_was_reaped_is_somebody_else_s(monkeypatch: pytest.MonkeyPatch) -> None:
    process = processes.start(["true"])
    process.communicate(timeout=20)
    signalled: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, _: signalled.append(group))
    processes.kill(process)
    processes.stop(process)
    assert signalled == []


def test_what_hangs_in_the_kernel_is_told_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = processes.start(["sleep", "600"])
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    monkeypatch.setattr(processes, "REAP_SECONDS", 0.1)
    processes.stop(process)
    assert caplog.record_tuples == [
        ("processes", logging.ERROR, f"process {process.pid} (sleep 600) does not die: it hangs in the kernel")
    ]
    monkeypatch.undo()
    processes.stop(process)
    assert process.returncode == -9
    process.communicate()
