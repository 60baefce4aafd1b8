"""Signals that interrupt an operator's command."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from plugin_client import PYTHON, REPO, wait_until

from host import command, interruption

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", ALL)
def test_a_signal_interrupts_once(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in ALL]
    undisturbed = False
    with pytest.raises(KeyboardInterrupt) as interrupted, interruption.by_signals():
        try:
            signal.raise_signal(number)
        finally:
            for each in ALL:
                signal.raise_signal(each)
            undisturbed = True
    assert undisturbed
    assert interruption.number_of(interrupted.value) == number
    assert [signal.getsignal(each) for each in ALL] == before


def test_what_our_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption.by_signals():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_without_a_number_is_ctrl_c() -> None:
    assert interruption.number_of(KeyboardInterrupt()) == signal.SIGINT


def test_the_commands_of_other_threads_are_not_waited_for(tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_until((tmp_path / "begun").exists, "it runs")
        os.kill(os.getpid(), signal.SIGINT)

    def work() -> None:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(command.run, ["sh", "-c", f"touch {tmp_path}/begun; sleep 600"], timeout=600).result()

    began = time.monotonic()
    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt), interruption.by_signals(commands_too=True):
        work()
    other.join()
    assert time.monotonic() - began < 60


def test_without_a_signal_nothing_is_killed() -> None:
    with interruption.by_signals(commands_too=True):
        assert command.run(["sleep", "0.3"], timeout=60).status == 0


def test_two_signals_that_are_pending_together() -> None:
    """As when a terminal is closed. Python calls the handlers of both, one after the other."""
    # Not in our process: what Python says of a handler that is none is said of the whole process.
    program = (
        f"import signal, sys\nsys.path.insert(0, {REPO!r})\nfrom host import command, interruption\n"
        "numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)\n"
        "for number in numbers:\n    signal.signal(number, signal.default_int_handler)\n"
        "try:\n"
        "    with interruption.by_signals():\n"
        "        try:\n"
        "            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)\n"
        "            signal.raise_signal(signal.SIGHUP)\n"
        "            signal.raise_signal(signal.SIGTERM)\n"
        "            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)\n"
        "        finally:\n"
        # What cleans up ends by a signal as any other command does.
        "            said = command.run(['grep', 'SigIgn:', '/proc/self/status'], timeout=60).stdout\n"
        "except KeyboardInterrupt as error:\n"
        "    print(interruption.number_of(error), int(said.split()[1], 16) & 0x4003)\n"
    )
    argv = [PYTHON, "-c", program]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (f"{signal.SIGHUP:d} 0\n", "")
