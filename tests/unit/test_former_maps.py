"""former_maps.py: commands that an earlier life of this process has left at work; they are real ones, and only wait."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plugin_client import process_state, wait_until
from unit.archives import needs_root

from host import processes
from mapped import former_maps
from rbdcli import Pool

IMAGE = "docker_image_a"
CLIENT = ("--conf", "/etc/ceph/ceph.conf", "--id", "admin")
# As rbdcli.py writes it; tests/unit/test_rbdcli.py compares that with what is really run.
MAP = ("device", "map", *CLIENT, "--client-mount-timeout", "30", "--device-type", "krbd", "--pool", "rbd")

Start = Callable[..., int]


@pytest.fixture
def pool() -> Pool:
    return Pool(
        name="rbd",
        namespace="",
        configfile=CLIENT[1],
        client=CLIENT[3],
        timeout=60,
        device_type="krbd",
        map_options=(),
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command of an earlier life: it has another parent than us, a group of its own, and a child."""
    started: list[int] = []

    def run(*words: str) -> int:
        told = tmp_path / f"pid-{len(started)}"
        script = 'echo $$ >"$0.new"; mv "$0.new" "$0"; sleep 100; exit 0'
        subprocess.run(["setsid", "--fork", "sh", "-c", script, str(told), *words], check=True, timeout=20)
        wait_until(told.exists, "it has started")
        started.append(int(told.read_text()))
        return started[-1]

    yield run
    for pid in started:
        if lives(pid):
            os.killpg(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    """Whether a process runs; what has ended may wait for its parent."""
    return process_state(pid) not in ("", "Z")


def test_what_maps_is_killed_with_all_that_it_has_started(pool: Pool, start: Start) -> None:
    pid = start(*MAP, "--image", IMAGE, "--exclusive")
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until(children.read_text, "it has a child")
    child = int(children.read_text())
    assert former_maps.maps(pool, {IMAGE, "docker_image_b"}) == {IMAGE}
    assert former_maps.end_maps(pool, {IMAGE, "docker_image_b"}) == set()
    # One that is being ended has no command line any more, and its state tells a moment later.
    wait_until(lambda: not lives(pid) and not lives(child), "it is gone, and so is its child")
    assert former_maps.maps(pool, {IMAGE}) == set()


@pytest.mark.parametrize(
    "words",
    [
        (*MAP, "--image", "docker_image_b"),
        (*MAP, "--namespace", "other", "--image", IMAGE),
        (*MAP[:-1], "other", "--image", IMAGE),
        ("device", "map", "--conf", "/etc/ceph/other.conf", *MAP[4:], "--image", IMAGE),
        ("device", "unmap", *MAP[2:], "--image", IMAGE),
        ("map", "rbd/docker_image_a", "--device", "/dev/nbd0"),
    ],
    ids=[
        "another image",
        "a namespace",
        "another pool",
        "another cluster",
        "an unmap",
        "rbd-nbd, which serves a device",
    ],
)
def test_what_is_none_of_ours_goes_on(pool: Pool, start: Start, words: tuple[str, ...]) -> None:
    pid = start(*words)
    assert former_maps.end_maps(pool, {IMAGE}) == set()
    assert lives(pid)


def test_what_this_life_maps_goes_on(pool: Pool) -> None:
    process = subprocess.Popen(["sh", "-c", "sleep 100; exit 0", *MAP, "--image", IMAGE], start_new_session=True)
    try:
        assert former_maps.end_maps(pool, {IMAGE}) == set()
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@needs_root
def test_a_process_in_a_container_is_not_looked_at(pool: Pool, tmp_path: Path) -> None:
    """It may hang on a device of ours, and whoever reads its command line with it."""
    told = tmp_path / "told"
    script = 'echo >"$0"; sleep 100; exit 0'
    argv = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", script, str(told), *MAP, "--image", IMAGE]
    process = subprocess.Popen(["sh", "-c", 'exec "$@" &', "-", *argv], start_new_session=True)
    process.wait(10)
    try:
        wait_until(told.exists, "it has started")
        [outer] = [pid for pid, _ in former_maps._maps(pool, {IMAGE})]
        assert Path(f"/proc/{outer}/comm").read_text() == "unshare\n"
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_one_that_hangs_in_the_kernel_is_named(pool: Pool, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = start(*MAP, "--image", IMAGE)
    monkeypatch.setattr(processes, "REAP_SECONDS", 0.1)
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    assert former_maps.end_maps(pool, {IMAGE}) == {IMAGE}
    assert lives(pid)
    monkeypatch.undo()
    assert former_maps.end_maps(pool, {IMAGE}) == set()
