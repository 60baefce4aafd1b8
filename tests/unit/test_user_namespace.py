"""A user namespace of this kernel, and what is told if there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from needs import needs

from host import command, environment, user_namespace, user_namespace_process

ROOT = needs(os.geteuid() == 0, "root")


def inside(namespace: int) -> list[list[str]]:
    """The maps that a process in a namespace has."""
    script = (
        "import ctypes, sys; libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.setns(int(sys.argv[1]), 0x10000000) == 0\n"
        "print(open('/proc/self/uid_map').read(), open('/proc/self/gid_map').read(), sep='/')"
    )
    argv = [sys.executable, "-c", script, str(namespace)]
    said = subprocess.run(argv, pass_fds=(namespace,), capture_output=True, text=True, check=True).stdout
    return [" ".join(part.split()).split() for part in said.split("/")]


@ROOT
def test_ids() -> None:
    with user_namespace.opened("0 100000 10\n10 300000 5", "0 200000 65536", timeout=60) as namespace:
        assert inside(namespace) == [["0", "100000", "10", "10", "300000", "5"], ["0", "200000", "65536"]]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(namespace)


@ROOT
def test_another_process_may_have_started_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And that one comes to its own end."""
    started = " ".join(environment.python(user_namespace_process.__file__))
    monkeypatch.setattr(environment, "python", instead("sh", "-c", f"{started}; touch {tmp_path}/ended"))
    with user_namespace.opened("0 100000 10", "0 200000 10", timeout=60) as namespace:
        assert inside(namespace) == [["0", "100000", "10"], ["0", "200000", "10"]]
        assert (tmp_path / "ended").exists()


@ROOT
def test_ids_that_the_kernel_does_not_take() -> None:
    for uids, gids, name in (("0 1 5\n3 9 5", "0 1 1", "uid_map"), ("0 1 1", "0 1 0", "gid_map")):
        with (
            pytest.raises(command.CommandError, match=f"{name} does not take .*: Invalid argument"),
            user_namespace.opened(uids, gids, timeout=60),
        ):
            pass


def instead(*argv: str) -> Any:
    def python(_: str, *__: str) -> Sequence[str]:
        return argv

    return python


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("sh", "-c", "echo unshare: No space left on device >&2; exit 1"), "unshare: No space left on device"),
        (("true",), "without a word"),
        (("/no/such/program",), "not found"),
    ],
)
def test_there_is_none(argv: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "python", instead(*argv))
    with pytest.raises(command.CommandError, match=said), user_namespace.opened("0 0 1", "0 0 1", timeout=60):
        pass


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what does not answer has ended."""
    monkeypatch.setattr(environment, "python", instead("sleep", "1000"))
    with pytest.raises(command.CommandTimeout), user_namespace.opened("0 0 1", "0 0 1", timeout=0.2):
        pass
