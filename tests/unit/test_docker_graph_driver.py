"""The command itself: its options, its socket, and how it ends."""

from __future__ import annotations

import configparser
import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import quote

import pytest
from plugin_client import PYTHON, REPO, UNANSWERED, PluginProcess, Refused, process_state, wait_until

import docker_graph_driver
from host.locks import Gate, GateTimeout

PROGRAM = [PYTHON, os.path.join(REPO, "docker_graph_driver.py")]
# How a program of a test's own begins.
IMPORTED = f"import sys\nsys.path.insert(0, {REPO!r})\nimport docker_graph_driver\n"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def changed(process: PluginProcess, short: Path, change: str) -> None:
    """Let the driver's process change its module before it runs."""
    program = short / "changed.py"
    program.write_text(f"{IMPORTED}{change}\nsys.exit(docker_graph_driver.main())\n", encoding="ascii")
    process.program = str(program)


@pytest.fixture
def process(short: Path) -> Iterator[PluginProcess]:
    plugin = PluginProcess(str(short / "p"), os.environ)
    yield plugin
    if plugin.running:
        plugin.kill()


def test_help_names_the_options() -> None:
    ended = run("--help")
    assert ended.returncode == 0
    for option in ("--help", "--version", "--socket", "--log-level"):
        assert option in ended.stdout


def test_version() -> None:
    ended = run("--version")
    assert ended.returncode == 0
    assert ended.stdout.startswith("docker-graph-driver ")
    version = ended.stdout.split()[1]
    assert version[0].isdigit()
    # What is new in it is told.
    changes = Path(REPO, "CHANGELOG.md").read_text(encoding="utf-8")
    assert next(line for line in changes.splitlines() if line.startswith("## ")) == f"## {version}"


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["--log-level", "loud"], ["word"]])
def test_a_bad_command_line(arguments: list[str]) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr


def test_the_directory_is_made_and_the_socket_is_for_root_alone(short: Path) -> None:
    plugin = PluginProcess(str(short / "p"), os.environ)
    plugin.socket = str(short / "a" / "b" / "ceph.sock")
    plugin.client.path = plugin.socket
    plugin.start()
    try:
        said = os.stat(plugin.socket)
        assert stat.S_ISSOCK(said.st_mode)
        assert stat.S_IMODE(said.st_mode) == 0o600
        assert plugin.client.post("/Plugin.Activate").json() == {"Implements": ["GraphDriver"]}
    finally:
        assert plugin.terminate() == 0
    assert not os.path.exists(plugin.socket)


def test_control_characters_of_a_caller_do_not_reach_the_log(process: PluginProcess) -> None:
    """An id, a method, a path and a home that would clear the terminal of who reads it, or forge a line of the log."""
    evil = "a\x1b[2J\n2026-01-01 00:00:00,000 INFO forged\x9b"
    process.start()
    calls = [("Get", {"ID": evil}), ("Get" + evil, {}), ("Init", {"Home": "/" + evil, "Opts": [evil]})]
    for method, fields in calls:
        with pytest.raises(Refused) as caught:
            process.client.post(f"/GraphDriver.{quote(method)}", json.dumps(fields).encode()).json()
        assert caught.value.text.isprintable()
    with pytest.raises(Refused):
        process.client.post(f"/GraphDriver.ApplyDiff?id={quote(evil)}", b"x").json()
    for path in (b"/GraphDriver.\x1b[2J", b"/\x1b[2J\x9b", b"/GraphDriver.ApplyDiff?id=\x1b[2J"):
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(process.socket)
            # Cut off: then the layer is removed by its id, whatever that is.
            link.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: \r\nContent-Length: 9\r\nConnection: close\r\n\r\nx")
            link.shutdown(socket.SHUT_WR)
            while link.recv(1 << 16):
                continue
    assert process.terminate() == 0
    text = process.log_text()
    assert "[2J" in text
    assert text.replace("\n", "").isprintable()
    # The level comes behind the thread and what it works for.
    assert [line for line in text.splitlines() if re.match(r"\S+ \S+ (\[[^]]*\] )?INFO forged", line)] == []


def test_a_stale_socket_is_replaced(process: PluginProcess) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(process.socket)
    process.start()
    process.kill()
    assert os.path.exists(process.socket), "killed, it cannot have removed it"
    process.start()
    assert process.client.call("Capabilities")
    assert process.terminate() == 0


def test_a_second_instance_is_refused_and_the_first_goes_on(process: PluginProcess) -> None:
    process.start()
    ended = run("--socket", process.socket)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert f"another instance serves {process.socket}" in ended.stderr
    assert process.client.call("Capabilities")
    assert process.terminate() == 0


def test_a_directory_that_cannot_be_made(short: Path) -> None:
    (short / "file").write_text("x", encoding="ascii")
    ended = run("--socket", str(short / "file" / "ceph.sock"))
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1


def test_a_path_that_is_too_long_for_a_socket(short: Path) -> None:
    ended = run("--socket", str(short / ("x" * 120)))
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_although_clients_are_connected(process: PluginProcess, number: signal.Signals) -> None:
    """dockerd keeps its connections open for ever."""
    process.start()
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(process.socket)
        assert process.process
        process.process.send_signal(number)
        assert process.process.wait(30) == 0
    assert not os.path.exists(process.socket)


def test_a_signal_that_comes_while_a_connection_gets_its_thread() -> None:
    """Python before 3.10 starts a thread under a lock that a handler would wait for, for ever, if it started one."""
    program = (
        f"{IMPORTED}import os, signal, threading\n"
        "class Server:\n    shutdown = asked = None\n"
        "server = Server()\nserver.asked = threading.Event()\nserver.shutdown = server.asked.set\n"
        "docker_graph_driver.instance.stop_on_signal(server.shutdown, docker_graph_driver.instance.catch_signals())\n"
        "threading._active_limbo_lock = threading.Lock()\n"
        "with threading._active_limbo_lock:\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(not server.asked.wait(20))\n"
    )
    assert subprocess.run([PYTHON, "-c", program], stdin=subprocess.DEVNULL, timeout=60, check=False).returncode == 0


def test_a_signal_that_comes_as_soon_as_the_socket_is_there(process: PluginProcess, short: Path) -> None:
    """Whoever waited for the socket may end it before the loop runs: it ends in order, and takes the socket with it."""
    changed(
        process,
        short,
        "import os, time\nat_once = docker_graph_driver.instance.stop_on_signal\n"
        "def late(*arguments):\n"
        f"    while not os.path.exists({str(short / 'go')!r}): time.sleep(0.02)\n"
        "    at_once(*arguments)\n"
        "docker_graph_driver.instance.stop_on_signal = late",
    )
    process.start()
    assert process.process
    process.process.terminate()
    (short / "go").touch()
    assert process.process.wait(30) == 0
    assert not os.path.exists(process.socket)


def test_sigterm_finishes_a_running_request(process: PluginProcess, short: Path) -> None:
    """Init asks a `rados` that takes its time; the answer must still come. No Ceph is needed for that."""
    tools = short / "tools"
    tools.mkdir()
    for name in ("rbd", "rados", "mount", "umount", "mkfs.xfs", "xfs_growfs"):
        (tools / name).write_text(
            f"#!/bin/sh\necho called >{short}/{name}\nwhile [ ! -e {short}/go ]; do sleep 0.05; done\n",
            encoding="ascii",
        )
        (tools / name).chmod(0o755)
    conf = short / "ceph.conf"
    conf.write_text("[global]\n", encoding="ascii")
    process.options = [f"ceph.configfile={conf}"]
    process.start(PATH=f"{tools}:{os.environ['PATH']}")
    with ThreadPoolExecutor(1) as threads:
        init = threads.submit(process.init)
        wait_until((short / "rados").exists, "Init asks rados")
        assert process.process
        process.process.terminate()
        wait_until(lambda: not os.path.exists(process.socket), "new clients are turned away")
        (short / "go").touch()
        with pytest.raises(Refused, match="pool rbd does not exist"):
            init.result(60)
    assert process.process.wait(60) == 0


def test_no_request_begins_once_all_is_finished() -> None:
    """Python takes itself down then, and starts no threads any more: it would end as a defect of ours."""
    server, plugin = Mock(requests=Gate()), Mock()
    assert docker_graph_driver._finish(server, plugin)
    plugin.drain.assert_called_once()
    with pytest.raises(GateTimeout), server.requests.shared(0.05):
        pytest.fail("a request began")


def hanging_tools(short: Path) -> str:
    """A PATH with an rbd that ends only when `short`/go is there, or go-layer for what is about "layer".

    Its lists of devices and of images it gives at once. What it was called for stands in `short`/hangs.
    """
    tools = short / "tools"
    tools.mkdir()
    (tools / "rbd").write_text(
        '#!/bin/sh\ncase "$*" in *device*list*|ls*) echo "[]"; exit 0;; esac\n'
        f'go={short}/go\ncase "$*" in *_layer*) go=$go-layer;; esac\necho "$*" >>{short}/hangs\n'
        "while [ ! -e $go ]; do sleep 0.05; done\nexit 2\n",
        encoding="ascii",
    )
    (tools / "rbd").chmod(0o755)
    for name in ("ceph", "rados"):
        (tools / name).symlink_to("/bin/false")
    return f"{tools}:{os.environ['PATH']}"


def hangs(short: Path, word: str) -> bool:
    """Tell whether the rbd of `hanging_tools` was called for something with this word."""
    return (short / "hangs").exists() and word in (short / "hangs").read_text(encoding="utf-8")


def quick(process: PluginProcess, short: Path, seconds: float) -> None:
    """Let the driver take `seconds` for its end, and not a minute."""
    changed(process, short, f"docker_graph_driver.FINISH_SECONDS = {seconds}")


def restored(process: PluginProcess) -> None:
    """Give the driver a home from before, so that it needs no Init: a removed layer, whose image is still to go."""
    (Path(process.home) / "mnt" / "gone" / "removed").mkdir(parents=True)
    Path(process.socket + ".state").write_text(
        json.dumps({"Format": "2", "Home": process.home, "Opts": None}), encoding="ascii"
    )


def test_a_request_that_hangs_does_not_keep_the_driver_from_its_end(process: PluginProcess, short: Path) -> None:
    quick(process, short, 2)
    restored(process)
    process.start(PATH=hanging_tools(short))
    with ThreadPoolExecutor(1) as threads:
        get = threads.submit(process.client.get, "layer")
        wait_until(lambda: hangs(short, "_layer"), "the request asks rbd")
        began = time.monotonic()
        assert process.terminate() == 0
        took = time.monotonic() - began
        with pytest.raises(UNANSWERED):
            get.result(30)
    for name in ("go", "go-layer"):
        (short / name).touch()
    assert 2 <= took < 20
    assert "ended with work unfinished after 2 s" in process.log_text()


def test_requests_and_what_is_done_in_the_background_have_one_deadline(process: PluginProcess, short: Path) -> None:
    """The request ends late, what is removed hangs on: the second does not get the time of the first once more."""
    quick(process, short, 8)
    restored(process)
    process.start(PATH=hanging_tools(short))
    wait_until(lambda: hangs(short, "_gone"), "the removed layer's image is to go")
    with ThreadPoolExecutor(1) as threads:
        get = threads.submit(process.client.get, "layer")
        wait_until(lambda: hangs(short, "_layer"), "the request asks rbd")
        assert process.process
        process.process.terminate()
        began = time.monotonic()
        time.sleep(6)
        (short / "go-layer").touch()
        with pytest.raises(Refused, match="layer"):
            get.result(30)
        assert process.process.wait(60) == 0
    took = time.monotonic() - began
    (short / "go").touch()
    assert 8 <= took < 6 + 8
    assert "ended with work unfinished after 8 s" in process.log_text()


def test_what_nobody_waits_for_does_not_outlive_the_driver(process: PluginProcess, short: Path) -> None:
    """All requests are answered, and nothing is left to do; but the figures and the check at the start still ask."""
    tools = short / "tools"
    tools.mkdir()
    hanging = f"#!/bin/sh\necho $$ >>{short}/pids\nexec sleep 600\n"
    for name, script in (("rbd", "#!/bin/sh\necho []\n"), ("rados", hanging), ("ceph", hanging)):
        (tools / name).write_text(script, encoding="ascii")
        (tools / name).chmod(0o755)
    (short / "ceph.conf").touch()
    fields = {"Format": "2", "Home": process.home, "Opts": [f"ceph.configfile={short}/ceph.conf"]}
    Path(process.socket + ".state").write_text(json.dumps(fields), encoding="ascii")
    process.before = ("sh", "-c", f'exec "$@" --metrics {short}/figures.prom', "-")
    process.start(PATH=f"{tools}:{os.environ['PATH']}")

    def pids() -> list[int]:
        path = short / "pids"
        return [int(word) for word in path.read_text(encoding="ascii").split()] if path.exists() else []

    wait_until(lambda: len(pids()) >= 2, "the cluster is asked by both")
    assert process.terminate() == 0
    assert "work unfinished" not in process.log_text()
    for pid in pids():
        wait_until(lambda pid=pid: process_state(pid) in ("", "Z"), f"process {pid} is gone")


def test_systemd_waits_longer_than_the_longest_end() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(os.path.join(REPO, "systemd", "docker-graph-driver.service"), encoding="utf-8")
    # Python's own end, a machine that has much to do.
    assert int(unit["Service"]["TimeoutStopSec"]) >= docker_graph_driver.FINISH_SECONDS + 20


def test_what_is_missing_is_said_at_the_start(process: PluginProcess) -> None:
    """And it serves all the same: Init may name another cluster."""
    process.before = ("sh", "-c", 'exec "$@" --default ceph.configfile=/nonexistent', "-")
    process.start()
    wait_until(lambda: "not ready yet: " in process.log_text(), "the log says what is missing")
    assert process.client.call("Capabilities")
    assert process.terminate() == 0


def test_before_init_a_call_says_what_to_do(process: PluginProcess) -> None:
    process.start()
    with pytest.raises(Refused, match="Init was never called"):
        process.client.get("a")
    assert process.terminate() == 0


@pytest.mark.parametrize(
    ("default", "says"),
    [
        ("ceph.pool=x", "unknown storage option 'ceph.pool'; valid are"),
        ("ceph.fs=zfs", "'zfs' is not one of xfs, ext4"),
    ],
)
def test_a_bad_default_ends_the_driver_with_one_line(default: str, says: str, tmp_path: Path) -> None:
    ended = run("--socket", str(tmp_path / "ceph.sock"), "--default", default)
    assert ended.returncode == 1
    assert says in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
