"""The life of a process that serves; its end by a signal is in test_docker_graph_driver.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from plugin_client import REPO

from host import instance


def test_one_of_a_kind(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "socket")
    with instance.only(path, "--socket"):
        refused = f"another instance serves {path}; stop it or give --socket"
        with pytest.raises(instance.AlreadyServed, match=refused), instance.only(path, "--socket"):
            pass
        with instance.only(path + "2", "--socket"):
            pass
    with instance.only(path, "--socket"):
        pass


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_a_signal_calls_shutdown_in_another_thread(signal: str) -> None:
    script = f"""
import os, signal, threading
from host import instance
done = threading.Event()
instance.stop_on_signal(done.set, instance.catch_signals())
os.kill(os.getpid(), signal.{signal})
print("ended", done.wait(20))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=REPO, check=True, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == "ended True\n"
