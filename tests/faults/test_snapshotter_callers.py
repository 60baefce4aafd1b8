"""Anybody at the snapshotter's socket: whatever comes, there is a clear answer, memory is bounded, others are served.

The inputs are made by hypothesis for half a minute, or for half of FUZZ_MINUTES. The service is a real one on a real
cluster, so that nothing that is let through goes unseen: what it made is removed at the end, and nothing may be left.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from client import NOT_FOUND, Refused, Snapshots
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lab import Cluster
from plugin_client import SLOWNESS, wait_until
from serving import Host
from unit.http2_peer import Peer

from wire import frames, http2
from wire.frames import DATA, END_STREAM, GOAWAY, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, Frame
from wire.grpc_server import MOST_CONNECTIONS
from wire.hpack import Field

Tally = Callable[[str, int], None]

MINUTES = float(os.environ.get("FUZZ_MINUTES", "1")) / 2
# What it has after a few calls, the bodies that it holds, and one message in work: its octets, and a copy of them.
MEMORY_LIMIT = (64 << 20) + http2.HELD_LIMIT + 3 * http2.BODY_LIMIT
WAITED_SECONDS = 5 * SLOWNESS
SERVICE = b"/containerd.services.snapshots.v1.Snapshots/"
METHODS = [
    b"Prepare",
    b"View",
    b"Mounts",
    b"Commit",
    b"Remove",
    b"Stat",
    b"Update",
    b"List",
    b"Usage",
    b"Cleanup",
    b"x",
]
HOSTILE = ["../x", "a/b", "..", "a\nb", "$(touch /tmp/owned)", "`id`", "--help", "a\0", "%s", "é", ""]


@pytest.fixture(scope="module")
def host(cluster: Cluster, session_directory: str) -> Iterator[Host]:
    """The service that is attacked."""
    made = Host(cluster, os.path.join(session_directory, uuid.uuid4().hex[:6]), "callers")
    try:
        made.start()
        yield made
        made.remove_all()
        log = made.process.log_text()
        assert "Traceback" not in log
        assert "defect" not in log
        made.nothing_left()
    finally:
        made.give_up()


@pytest.fixture
def others(host: Host) -> Iterator[None]:
    """Somebody else's calls, all the time; none may wait for long."""
    seconds: list[float] = []
    over = threading.Event()

    def ask(client: Snapshots) -> None:
        while not over.wait(0.1):
            began = time.monotonic()
            with pytest.raises(Refused, match="does not exist"):
                client.stat("nobody has this key")
            seconds.append(time.monotonic() - began)

    thread = threading.Thread(target=ask, args=(host.client(),))
    thread.start()
    wait_until(lambda: bool(seconds), "the first call is answered")
    yield
    over.set()
    thread.join()
    assert max(seconds) < WAITED_SECONDS, "others had to wait"


def status(host: Host, name: str) -> int:
    """A number from the kernel about the process (proc(5), status)."""
    assert host.process.process
    with open(f"/proc/{host.process.process.pid}/status", encoding="ascii") as source:
        found = re.search(rf"{name}:\s+(\d+)", source.read())
    assert found
    return int(found[1])


def memory_is_bounded(host: Host) -> None:
    """The most memory that it ever had."""
    assert status(host, "VmHWM") << 10 < MEMORY_LIMIT


def threads_end(host: Host) -> None:
    """Those of connections that are closed, with what they hold."""
    wait_until(lambda: status(host, "Threads") < 20, "their threads end")


@contextlib.contextmanager
def connected(host: Host) -> Iterator[Peer]:
    """A connection of raw frames."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(host.process.socket)
        yield Peer(link)
        # A thread that still reads would keep it open.
        with contextlib.suppress(OSError):
            link.shutdown(socket.SHUT_RDWR)


def call(method: bytes) -> list[Field]:
    """The header fields of a call."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", SERVICE + method),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]


def framed(message: bytes) -> bytes:
    """A message as gRPC has it in a body."""
    return struct.pack(">BL", 0, len(message)) + message


def reading(peer: Peer) -> list[Frame]:
    """All frames that come, while others are sent: a client that does not read is not served for long."""
    found: list[Frame] = []

    def read() -> None:
        with contextlib.suppress(OSError):
            while frame := peer.frame():
                found.append(frame)

    threading.Thread(target=read, daemon=True).start()
    return found


def ends_in_words(found: list[Frame]) -> None:
    """The service ends the connection, and says in one line why."""
    wait_until(lambda: any(frame.kind == GOAWAY for frame in found), "GOAWAY comes")
    text = next(frame for frame in found if frame.kind == GOAWAY).payload[8:].decode()
    assert text
    assert "\n" not in text


texts = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# Keys, names and parents are fields 2 to 4 of most requests; 15 is nobody's.
values = st.one_of(texts.map(str.encode), st.binary(max_size=60))
messages = st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 5, 15]), values), max_size=5).map(
    lambda fields: b"".join(bytes([number << 3 | 2, len(value)]) + value for number, value in fields)
)
bodies = st.one_of(messages.map(framed), st.binary(max_size=60), messages, st.just(b""))
odd_frames = st.tuples(
    st.integers(0, 12),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 1 << 30]),
    st.one_of(st.binary(max_size=80), st.sampled_from([bytes(4), bytes(8), b"\xff" * 6])),
)


def test_whatever_comes(host: Host, others: None, tally: Tally) -> None:
    tried = 0
    end = time.monotonic() + 60 * MINUTES

    @settings(
        max_examples=500,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(st.tuples(st.sampled_from(METHODS), bodies), max_size=3),
        st.lists(odd_frames, max_size=4),
        st.binary(max_size=30),
    )
    def attack(calls: list[tuple[bytes, bytes]], odd: list[tuple[int, int, int, bytes]], octets: bytes) -> None:
        nonlocal tried
        if time.monotonic() > end:
            return
        with connected(host) as peer:
            for number, (method, body) in enumerate(calls):
                peer.request(2 * number + 1, body, call(method))
            for kind, flags, stream, payload in odd:
                peer.send(kind, flags, stream, payload)
            # The answer, or the reason; a frame that is not whole is dropped with the connection.
            peer.send(PING, 0, 0, b"together")
            frame = peer.until(PING, GOAWAY)
            if frame and frame.kind == GOAWAY:
                assert b"\n" not in frame.payload[8:]
            peer.raw(octets)
        tried += 1

    while time.monotonic() < end:
        attack()
    assert tried > 100 * MINUTES
    assert not os.path.exists("/tmp/owned")
    memory_is_bounded(host)
    tally("bad inputs tried", tried)


def test_bodies_that_are_large_and_never_end(host: Host, others: None, tally: Tally) -> None:
    """Each of 16 peers holds back the end of a message of 13 MB; who asks for little is served meanwhile."""
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            peer = stack.enter_context(connected(host))
            reading(peer)
            peer.request(1, None, call(b"Prepare"))
            for _ in range(13 * 64):
                peer.send(DATA, 0, 1, bytes(frames.FRAME_SIZE))
        with pytest.raises(Refused) as caught:
            host.calls.stat("nobody has this key")
        assert caught.value.code == NOT_FOUND
        memory_is_bounded(host)
    tally("bad inputs tried", 16)
    threads_end(host)


def test_messages_of_tiny_fields(host: Host, others: None, tally: Tally) -> None:
    """Four messages of 15 MB whose labels would be a gigabyte."""
    labels = {str(number): "" for number in range(1_000_000)}
    with pytest.raises(Refused) as caught:
        host.calls.prepare("key", "", labels)
    assert (caught.value.code, "more than 10000 fields" in caught.value.text) == ("INTERNAL", True), caught.value.text
    del labels
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(connected(host)) for _ in range(4)]
        answers = [reading(peer) for peer in peers]
        for peer in peers:
            peer.request(1, framed(b"\x78\x01" * (15 << 19)), call(b"Prepare"))
        for found in answers:
            wait_until(lambda: any(frame.kind == frames.HEADERS for frame in found), "it is answered")  # noqa: B023
    memory_is_bounded(host)
    tally("bad inputs tried", 5)


@pytest.mark.parametrize(
    ("kind", "flags", "payload"),
    [
        (PING, 0, bytes(8)),
        (SETTINGS, 0, b""),
        (WINDOW_UPDATE, 0, b"\0\0\0\1"),
        (frames.PRIORITY, 0, bytes(5)),
        (99, 0, b""),
    ],
    ids=["PING", "SETTINGS", "WINDOW_UPDATE", "PRIORITY", "unknown"],
)
def test_floods(kind: int, flags: int, payload: bytes, host: Host, others: None, tally: Tally) -> None:
    stream = 1 if kind == frames.PRIORITY else 0
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(connected(host)) for _ in range(8)]
        answers = [reading(peer) for peer in peers]
        for peer in peers:
            peer.raw(frames.write(kind, flags, stream, payload) * 5000)
        for found in answers:
            ends_in_words(found)
    memory_is_bounded(host)
    tally("bad inputs tried", len(peers))


def test_requests_that_are_taken_back_at_once(host: Host, others: None, tally: Tally) -> None:
    """Rapid reset, CVE-2023-44487. One that is answered before is paid for."""
    with connected(host) as peer:
        found = reading(peer)
        for number in range(1, 10_000, 2):
            peer.request(number, None, call(b"Stat"))
            peer.send(RST_STREAM, 0, number, bytes(4))
        ends_in_words(found)
    memory_is_bounded(host)
    tally("bad inputs tried", 1)


def test_header_blocks_without_an_end(host: Host, others: None, tally: Tally) -> None:
    for number, size in ((5000, 0), (100, 16_000)):
        with connected(host) as peer:
            found = reading(peer)
            peer.send(frames.HEADERS, END_STREAM, 1, b"")
            for _ in range(number):
                peer.send(frames.CONTINUATION, 0, 1, bytes(size))
            ends_in_words(found)
    tally("bad inputs tried", 2)


def test_idle_clients_as_many_as_there_may_be(host: Host, others: None, tally: Tally) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MOST_CONNECTIONS + 20):
            with contextlib.suppress(OSError):
                stack.enter_context(connected(host))
        time.sleep(1)
        memory_is_bounded(host)
    threads_end(host)
    with pytest.raises(Refused, match="does not exist"):
        host.calls.stat("nobody has this key")
    tally("bad inputs tried", MOST_CONNECTIONS + 20)


def test_another_user_is_not_let_in(host: Host) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            with connected(host):
                pass
        except PermissionError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
