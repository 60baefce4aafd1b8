"""Anybody at the socket: whatever comes, there is a clear answer, memory is bounded, and others are served meanwhile.

The inputs are made by hypothesis for a minute, or for FUZZ_MINUTES; the plugin is a real one on a real cluster, so that
nothing that is let through goes unseen: pool, home and processes are searched at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lab import Cluster
from plugin_client import Client, PluginProcess, Refused, head_of, make_tar, wait_until

Tally = Callable[[str, int], None]

MINUTES = float(os.environ.get("FUZZ_MINUTES", "1"))
# More than it has after a few requests, less than one body of 10 MB on top of that.
MEMORY_LIMIT = 96 << 20
METHODS = [
    *("Init", "Create", "CreateReadWrite", "Remove", "Get", "Put", "Exists", "Status", "GetMetadata", "Cleanup"),
    *("Capabilities", "Diff", "Changes", "DiffSize", "ApplyDiff"),
]
HOSTILE = ["../x", "a/b", "a@b", "..", "a\nb", "$(touch /tmp/owned)", "`id`", ";reboot", "--help", "-o", "a\0", "%s"]


def peak(plugin: PluginProcess) -> int:
    """The most memory that it ever had (proc(5), VmHWM), in bytes."""
    assert plugin.process
    with open(f"/proc/{plugin.process.pid}/status", encoding="ascii") as source:
        found = re.search(r"VmHWM:\s+(\d+) kB", source.read())
    assert found
    return int(found[1]) << 10


texts = st.text(max_size=40) | st.sampled_from(HOSTILE)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["ID", "Parent", "MountLabel", "StorageOpt", "Home", "Opts", "UIDMaps", "id", "Err"])
bodies = st.one_of(
    st.dictionaries(fields, values, max_size=4).map(lambda body: json.dumps(body).encode()),
    st.binary(max_size=200),
    st.sampled_from([b"", b"[]", b"null", b"{", b'{"ID":"' + b"\xff" * 9 + b'"}', b"[" * 4000, b'{"ID":1e999}']),
)
paths = st.one_of(
    st.sampled_from(METHODS).map(lambda method: f"/GraphDriver.{method}".encode()),
    texts.map(lambda text: f"/GraphDriver.ApplyDiff?id={text}&parent={text}".encode("utf-8", "surrogatepass")),
    st.binary(max_size=80),
)
names = st.sampled_from([b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"X"])
contents = st.one_of(
    st.sampled_from([b"chunked", b"close", b"-1", b"0", b"1e9", b"99999999999999999999", b"100-continue", b"gzip"]),
    st.integers(0, 1 << 40).map(lambda number: str(number).encode()),
    st.binary(max_size=40),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Bytes that are nearly, or not at all, a request."""
    verb = draw(st.sampled_from([b"POST", b"POST", b"POST", b"GET", b"PUT", b"\xff", b""]))
    lines = [verb + b" " + draw(paths) + b" " + draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9", b""]))]
    body = draw(bodies)
    if draw(st.booleans()):
        lines += [name + b": " + content for name, content in draw(st.lists(st.tuples(names, contents), max_size=4))]
    if draw(st.booleans()):
        sizes = draw(st.sampled_from([b"%x", b"%x;ext=1", b"0x%x", b"-%x", b"%xg"]))
        lines.append(b"Transfer-Encoding: chunked")
        body = sizes % len(body) + b"\r\n" + body + draw(st.sampled_from([b"\r\n0\r\n\r\n", b"\r\n", b"", b"\n0\n\n"]))
    else:
        lines.append(b"Content-Length: %d" % max(0, len(body) + draw(st.sampled_from([0, 0, 0, -1, 1, 1000]))))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def converse(path: str, sent: bytes, *, cut: int | None, half_close: bool) -> bytes:
    """Send bytes, all or some of them, and read what comes until the other side closes or waits for more."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as link, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        link.settimeout(20)
        link.connect(path)
        link.sendall(sent[:cut])
        if half_close:
            link.shutdown(socket.SHUT_WR)
        elif cut is not None:
            return b""
        link.settimeout(20 if half_close else 0.05)
        with contextlib.suppress(TimeoutError):
            while piece := link.recv(65536):
                answer += piece
    return answer


def check_answers(answer: bytes) -> None:
    """What came back is HTTP, and a refusal has one line that says why."""
    for part in re.split(rb"(?=HTTP/1\.[01] \d\d\d )", answer):
        if not part or b"\r\n\r\n" not in part:
            continue
        head, _, body = part.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        assert status in (100, 200, 400, 404, 408, 411, 413, 414, 431, 500, 501, 505), head
        if status >= 400 and b"application/x-tar" not in head:
            error = json.loads(body)["Err"]
            assert error
            assert "\n" not in error
            assert "defect" not in error


@pytest.fixture
def others(plugin: PluginProcess) -> Iterator[list[float]]:
    """Somebody else's requests, all the time: how long each took."""
    seconds: list[float] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.2):
            started = time.monotonic()
            assert plugin.client.post("/Plugin.Activate").json() == {"Implements": ["GraphDriver"]}
            seconds.append(time.monotonic() - started)

    thread = threading.Thread(target=ask)
    thread.start()
    yield seconds
    over.set()
    thread.join()
    assert seconds
    assert max(seconds) < 2, "others had to wait"


def test_whatever_comes(plugin: PluginProcess, cluster: Cluster, others: list[float], tally: Tally) -> None:
    tried = 0
    end = time.monotonic() + 60 * MINUTES
    before = cluster.images("docker_image_")

    @settings(
        max_examples=500,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        sent=requests(),
        cut=st.none() | st.none() | st.integers(0, 400),
        half_close=st.sampled_from([True, True, False]),
    )
    def attack(sent: bytes, cut: int | None, half_close: bool) -> None:
        nonlocal tried
        if time.monotonic() > end:
            return
        # An Init that is one would give the plugin another home.
        if b"Init" in sent and b"Home" in sent:
            return
        check_answers(converse(plugin.socket, sent, cut=cut, half_close=half_close))
        tried += 1

    while time.monotonic() < end:
        attack()
    assert plugin.running
    assert tried > 100 * MINUTES
    assert peak(plugin) < MEMORY_LIMIT
    for image in set(cluster.images("docker_image_")) - set(before):
        # Some inputs are good ones.
        assert re.fullmatch("docker_image_[A-Za-z0-9][A-Za-z0-9_-]{0,127}", image)
        plugin.client.remove(image.removeprefix("docker_image_"))
    assert not os.path.exists("/tmp/owned")
    assert sorted(os.listdir(plugin.home)) == ["l", "mnt"]
    log = plugin.log_text()
    assert "Traceback" not in log
    tally("bad inputs tried", tried)


def test_bodies_that_are_too_large_or_never_end(plugin: PluginProcess, others: list[float], tally: Tally) -> None:
    """10 MB where a page is plenty; an archive followed by garbage without an end: memory is bounded."""
    for _ in range(3):
        for method in ("Create", "Get", "Init"):
            with pytest.raises((Refused, ConnectionError)):
                plugin.client.post(f"/GraphDriver.{method}", b'{"ID":"' + b"a" * (10 << 20)).json()
            with pytest.raises((Refused, ConnectionError)):
                plugin.client.post(f"/GraphDriver.{method}", (b"x" * 65536 for _ in range(160))).json()
            tally("bad inputs tried", 2)
    layer = plugin.client.create("endless")
    sent = 0
    end = time.monotonic() + 3

    def garbage() -> Iterator[bytes]:
        nonlocal sent
        yield make_tar({"f": bytes(1 << 20)})
        while time.monotonic() < end:
            sent += 65536
            yield bytes(65536)

    # What follows the end of an archive is read and thrown away, as tar does.
    plugin.client.apply_diff(layer, garbage())
    assert sent > 10 << 20
    assert peak(plugin) < MEMORY_LIMIT
    tally("bad inputs tried", 1)


def test_500_idle_and_50_slow_clients(plugin: PluginProcess, others: list[float], tally: Tally) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(550):
            link = stack.enter_context(socket.socket(socket.AF_UNIX))
            link.connect(plugin.socket)
            if number >= 500:
                link.sendall(head_of("/GraphDriver.Get", "Content-Length: 100") + b'{"ID":')
        for _ in range(10):
            plugin.client.call("Capabilities")
            time.sleep(0.1)
        assert peak(plugin) < MEMORY_LIMIT
    tally("bad inputs tried", 550)
    wait_until(lambda: threads(plugin) < 20, "their threads end")


def threads(plugin: PluginProcess) -> int:
    """How many it has."""
    assert plugin.process
    return len(os.listdir(f"/proc/{plugin.process.pid}/task"))


def test_another_user_is_not_let_in(plugin: PluginProcess) -> None:
    """Root's alone, also for the moment in which the socket is made."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(65534)
            Client(plugin.socket).call("Status")
        except PermissionError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
