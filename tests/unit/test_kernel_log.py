"""What the kernel said meanwhile: the messages that name a device, each once. Its log is a pipe of packets here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from host import kernel_log

Say = Callable[[str], None]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Iterator[Say]:
    """Let the kernel say something: a record for each read (Documentation/ABI/testing/dev-kmsg)."""
    source, log = os.pipe2(os.O_DIRECT)
    monkeypatch.setattr(kernel_log, "_LOG", f"/proc/self/fd/{source}")

    def write(message: str) -> None:
        os.write(log, f"6,1234,567890,-;{message}\n SUBSYSTEM=block\n".encode())

    yield write
    os.close(log)
    os.close(source)


def test_what_names_it_is_one_line_without_repetition(say: Say) -> None:
    with kernel_log.Log() as log:
        say("rbd: image a: feature set unsupported")
        say("eth0: link is up")
        say("rbd: image a: feature set unsupported")
        say("rbd1: cannot do it")
        assert log.about("image a", "rbd1") == "rbd: image a: feature set unsupported; rbd1: cannot do it"
        assert log.about("eth0") == "", "it was returned with the others"
        say("eth0: link is down")
        assert log.about("eth0") == "eth0: link is down"


def test_a_kernel_that_says_nothing(say: Say) -> None:
    with kernel_log.Log() as log:
        assert log.about("rbd") == ""


def test_a_log_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_log, "_LOG", "/nonexistent/kmsg")
    with kernel_log.Log() as log:
        assert log.about("rbd") == ""
