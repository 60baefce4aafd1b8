"""command.py: what becomes of a program that fails, hangs, or is not there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from plugin_client import process_state, wait_until

from host import command


def fails(*script: str, timeout: float = 20, accept: tuple[int, ...] = (0,)) -> command.CommandError:
    with pytest.raises(command.CommandError) as caught:
        command.run(["sh", "-c", *script], timeout=timeout, accept=accept)
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_a_program_prints_comes_back_apart() -> None:
    result = command.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=20, accept=(0, 3))
    assert result == (3, "out\n", "err\n")


def test_bytes_that_are_no_text_come_through() -> None:
    printed = command.run(["printf", r"a\377b"], timeout=20).stdout
    assert os.fsencode(printed) == b"a\xffb"


def test_standard_input_is_closed() -> None:
    """Whatever ours is: a terminal, or a pipe with something in it."""
    ours, (there, here) = os.dup(0), os.pipe()
    os.write(here, b"for somebody else")
    os.close(here)
    os.dup2(there, 0)
    try:
        assert command.run(["cat"], timeout=20).stdout == ""
    finally:
        os.dup2(ours, 0)
        os.close(ours)
        os.close(there)


def test_the_locale_is_c_and_times_are_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    assert command.run(["sh", "-c", "echo $LC_ALL $TZ"], timeout=20).stdout == "C UTC\n"


def test_mount_uses_the_system_call_that_takes_a_page_of_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsconfig(2) takes 256 bytes of an option, and a deep layer's directories are more."""
    monkeypatch.setenv("LIBMOUNT_FORCE_MOUNT2", "never")
    assert command.run(["sh", "-c", "echo $LIBMOUNT_FORCE_MOUNT2"], timeout=20).stdout == "always\n"


def test_a_command_may_run_in_another_directory(tmp_path: Path) -> None:
    here = os.getcwd()
    assert command.run(["pwd", "-P"], timeout=20, directory=str(tmp_path)).stdout == f"{tmp_path.resolve()}\n"
    assert os.getcwd() == here
    with pytest.raises(command.CommandError):
        command.run(["pwd"], timeout=20, directory=str(tmp_path / "missing"))


def test_an_exit_status_that_is_not_accepted_tells_what_the_program_said() -> None:
    error = fails("echo 'no such thing' >&2; exit 2", "x")
    assert error.status == 2
    assert str(error).startswith("sh ")
    assert str(error).endswith("no such thing (exit 2)")


def test_a_message_of_many_lines_becomes_one_without_repetition() -> None:
    error = fails("printf 'first\\n\\n  second\\nfirst\\n' >&2; exit 1")
    assert error.reason == "first; second (exit 1)"


def test_ceph_s_log_lines_are_left_out() -> None:
    log = "2026-01-02T03:04:05.678+0000 7f2305699380 -1 librbd::image::OpenRequest: failed to retrieve"
    error = fails(f"echo '{log}' >&2; echo 'rbd: error opening image' >&2; echo '{log}' >&2; exit 2")
    assert error.reason == "rbd: error opening image (exit 2)"


def test_log_lines_are_told_if_there_is_nothing_else() -> None:
    log = "2026-01-02T03:04:05.678+0000 7f2305699380 -1 monclient: hunting"
    assert "monclient: hunting" in fails(f"echo '{log}' >&2; exit 1").reason


@pytest.mark.parametrize(
    ("status", "says"), [(16, "Device or resource busy (exit 16)"), (200, "no message (exit 200)")]
)
def test_without_a_word_the_exit_status_is_read_as_an_errno(status: int, says: str) -> None:
    assert fails(f"exit {status}").reason == says


def test_a_signal_is_named() -> None:
    error = fails("kill -9 $$")
    assert error.status == -9
    assert "ended by signal 9" in str(error)


def test_a_long_message_is_cut() -> None:
    assert len(fails("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1").reason) < 500


def test_the_subject_names_the_verb_and_not_the_options() -> None:
    error = command.CommandError(["/usr/bin/rbd", "snap", "create", "--pool", "rbd"], 2, "missing")
    assert str(error) == "rbd snap create: missing"
    assert str(command.CommandError(["mount", "-t", "xfs"], 32, "busy")) == "mount -t xfs: busy"


def test_a_missing_program_is_named_with_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(command.CommandMissing, match=str(tmp_path)) as caught:
        command.run(["surely-not-there"], timeout=20)
    assert "surely-not-there" in str(caught.value)
    assert caught.value.status is None
    assert command.find("surely-not-there") is None


def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    program = tmp_path / "no-interpreter"
    program.write_bytes(b"\x7fnot a program")
    program.chmod(0o755)
    with pytest.raises(command.CommandError, match="cannot be started"):
        command.run([str(program)], timeout=20)


def test_the_deadline_ends_the_whole_process_group(tmp_path: Path) -> None:
    """The child's children too: they hold the pipes, and whatever the command was about."""
    pids = tmp_path / "pids"
    script = f"sleep 600 & echo $! >{pids}.new; sleep 600 & echo $$ $! >>{pids}.new; mv {pids}.new {pids}; wait"
    begin = time.monotonic()
    with pytest.raises(command.CommandTimeout, match="no answer within 1 s") as caught:
        command.run(["sh", "-c", script], timeout=1)
    assert caught.value.status is None
    assert time.monotonic() - begin < 60, "not the ten minutes that the sleeps take"
    for pid in pids.read_text(encoding="ascii").split():
        wait_until(lambda pid=pid: process_state(int(pid)) in ("", "Z"), f"process {pid} is gone")


def test_a_child_that_outlives_its_parent_does_not_outlive_the_deadline(tmp_path: Path) -> None:
    """The parent ends at once, its child keeps standard output open."""
    pid = tmp_path / "pid"
    with pytest.raises(command.CommandTimeout):
        command.run(["sh", "-c", f"sleep 600 & echo $! >{pid}"], timeout=1)
    wait_until(lambda: process_state(int(pid.read_text(encoding="ascii"))) in ("", "Z"), "the child is gone")


def test_what_still_runs_at_our_end_does_not_outlive_us(tmp_path: Path) -> None:
    """A daemon's thread ends with its process, and the deadline of its command with it."""
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(command.run, ["sh", "-c", f"sleep 600 & touch {tmp_path}/begun; wait"], timeout=600)
        wait_until((tmp_path / "begun").exists, "it runs")
        command.end_running()
        with pytest.raises(command.CommandError, match="ended by signal 9"):
            running.result(20)
    command.end_running()


@pytest.mark.parametrize("failed", [True, False])
def test_no_command_outlives_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: bool) -> None:
    """Nor does one that a thread goes on with, once its command was killed. The next block may start some again."""
    monkeypatch.setattr(command, "_over", threading.Event())
    ends: list[str] = []

    def work() -> None:
        for word in ("first", "second"):
            try:
                command.run(["sh", "-c", f"touch {tmp_path}/{word}; sleep 600"], timeout=600)
            except command.CommandError as error:
                ends.append(error.reason)

    thread = threading.Thread(target=work)
    with contextlib.suppress(ZeroDivisionError), command.none_left():
        thread.start()
        wait_until((tmp_path / "first").exists, "it runs")
        if failed:
            raise ZeroDivisionError
    thread.join(20)
    assert ends == ["ended by signal 9", "this process ends"]
    assert os.listdir(tmp_path) == ["first"]
    with command.none_left():
        command.run_on(["true"], timeout=20, give_up=lambda: False)
    with pytest.raises(command.CommandGivenUp):
        command.run_on(["true"], timeout=20, give_up=lambda: False)


def test_a_command_that_is_started_while_the_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block ends after the look whether it has, and before the command is known: it is killed all the same."""
    monkeypatch.setattr(command, "_over", threading.Event())
    started: list[subprocess.Popen[bytes]] = []
    start = command.start

    def at_last(argv: list[str], **how: Any) -> subprocess.Popen[bytes]:
        started.append(start(argv, **how))
        with command.none_left():
            pass
        return started[0]

    monkeypatch.setattr(command, "start", at_last)
    with pytest.raises(command.CommandGivenUp):
        command.run(["sleep", "600"], timeout=600)
    assert started[0].returncode == -signal.SIGKILL


# -- as long as there is progress ------------------------------------------------------------------


def test_what_makes_progress_may_take_longer_than_a_command() -> None:
    script = 'for n in 1 2 3 4; do printf "\\rRemoving image: %d%% complete..." "$n" >&2; sleep 0.4; done'
    command.run_on(["sh", "-c", script], timeout=1, give_up=lambda: False)


def test_what_makes_none_is_killed(tmp_path: Path) -> None:
    script = f"echo $$ >{tmp_path}/pid; echo 'Removing image: 1% complete...'; sleep 600"
    with pytest.raises(command.CommandTimeout, match=r"no progress within 0\.5 s"):
        command.run_on(["sh", "-c", script], timeout=0.5, give_up=lambda: False)
    pid = int((tmp_path / "pid").read_text(encoding="ascii"))
    wait_until(lambda: process_state(pid) in ("", "Z"), "it is gone")


def test_why_it_failed_is_told_without_its_progress() -> None:
    progress = r"\rRemoving image: 7%% complete..."
    script = rf"printf '{progress}{progress}failed.\nrbd: in use\n' >&2; exit 16"
    with pytest.raises(command.CommandError, match="rbd: in use") as failed:
        command.run_on(["sh", "-c", script], timeout=5, give_up=lambda: False)
    assert failed.value.status == 16
    assert failed.value.reason == "rbd: in use (exit 16)"


def test_who_does_not_want_it_any_more_need_not_wait() -> None:
    asked = iter([False, False, True])
    with pytest.raises(command.CommandGivenUp):
        command.run_on(["sleep", "600"], timeout=600, give_up=lambda: next(asked))
