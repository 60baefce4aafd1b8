"""http2.py and what is below it: the `h2` package as a client, frames that attack, and frames by chance."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import needs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_client import wait_until
from unit.http2_peer import HEAD, REQUEST, Peer, Server, serving

from wire import calm, frames, hpack, http2, outgoing, stream
from wire.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from wire.hpack import Field
from wire.stream import Stream

try:
    import h2.config
    import h2.connection
    import h2.events
except ImportError:
    needs.requires(False, "h2")


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serving()


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    with server.peer() as made:
        yield made
        # Whatever it did, others are served.
        with server.peer() as other:
            other.request(1, b"other")
            assert other.answer(1)[0] == b"other"


BLOCK = hpack.encode(REQUEST)


# -- a client's ordinary life ------------------------------------------------------------------------


def test_settings_come_first_and_unasked(server: Server) -> None:
    with server.peer(greets=False) as silent:
        first = silent.frame()
        assert first is not None
        assert (first.kind, first.flags, first.stream) == (SETTINGS, 0, 0)
        assert frames.read_settings(first) == {
            frames.MAX_CONCURRENT_STREAMS: http2.MOST_STREAMS,
            frames.MAX_HEADER_LIST_SIZE: hpack.LIST_SIZE,
        }
        silent.raw(frames.PREFACE + frames.settings({}))
        assert silent.frame() == (SETTINGS, ACK, 0, b"")


def test_octets_may_come_one_by_one(server: Server) -> None:
    with server.peer(greets=False) as slow:
        whole = frames.PREFACE + frames.settings({}) + frames.write(HEADERS, END_HEADERS | END_STREAM, 1, BLOCK)
        for octet in whole:
            slow.raw(bytes([octet]))
        assert slow.answer(1)[1] == {b":status": b"200", b"end": b"1"}


def test_ping_is_answered(peer: Peer) -> None:
    peer.send(PING, payload=b"\x02\x04\x10\x10\x09\x0e\x07\x07")
    assert peer.until(PING) == (PING, ACK, 0, b"\x02\x04\x10\x10\x09\x0e\x07\x07")


def test_what_is_unknown_or_late_is_ignored(peer: Peer) -> None:
    peer.send(0x2A, 0xFF, 7, b"what")
    peer.send(PRIORITY, 0, 9, bytes(5))
    peer.send(GOAWAY, 0, 0, bytes(8))
    peer.send(SETTINGS, 0, 0, struct.pack(">HL", 0x99, 5))
    peer.request(1, b"one")
    assert peer.answer(1)[0] == b"one"
    peer.send(WINDOW_UPDATE, 0, 1, struct.pack(">L", 5))
    peer.send(RST_STREAM, 0, 1, struct.pack(">L", 8))
    peer.request(3, b"two")
    assert peer.answer(3)[0] == b"two"


def test_headers_in_pieces_with_padding_and_priority(peer: Peer) -> None:
    peer.send(HEADERS, PADDED | PRIORITY_FLAG, 1, b"\x03" + bytes(5) + BLOCK[:10] + bytes(3))
    peer.send(CONTINUATION, 0, 1, BLOCK[10:20])
    peer.send(CONTINUATION, END_HEADERS, 1, BLOCK[20:])
    peer.send(DATA, PADDED, 1, b"\x04body" + bytes(4))
    peer.send(DATA, PADDED | END_STREAM, 1, b"\x00")
    assert peer.answer(1) == (b"body", {b":status": b"200", b"end": b"1"})


def test_trailers_end_a_request(peer: Peer) -> None:
    peer.request(1, None)
    peer.send(DATA, 0, 1, b"body")
    peer.send(HEADERS, END_HEADERS | END_STREAM, 1, hpack.encode([(b"late", b"1")]))
    assert peer.answer(1)[0] == b"body"


def test_an_answer_waits_for_both_windows(peer: Peer) -> None:
    peer.send(SETTINGS, payload=struct.pack(">HL", frames.INITIAL_WINDOW_SIZE, 10))
    peer.request(1, bytes(40_000))
    peer.request(3, bytes(30_000))
    assert sum(len(frame.payload) for frame in peer.ping() if frame.kind == DATA) in (0, 10, 20)
    peer.send(SETTINGS, payload=struct.pack(">HL", frames.INITIAL_WINDOW_SIZE, 1 << 20))
    got = 0
    while got < 65535 - 20:
        frame = peer.until(DATA)
        assert frame is not None
        assert len(frame.payload) <= frames.FRAME_SIZE
        got += len(frame.payload)
    time.sleep(0.05)
    assert [frame for frame in peer.ping() if frame.kind == DATA] == []
    peer.send(WINDOW_UPDATE, 0, 0, struct.pack(">L", 1 << 20))
    assert peer.until(DATA) is not None


def test_a_window_may_become_negative(peer: Peer) -> None:
    """RFC 9113 section 6.9.2."""
    peer.send(SETTINGS, payload=struct.pack(">HL", frames.INITIAL_WINDOW_SIZE, 1000))
    peer.request(1, bytes(2000))
    first = peer.until(DATA)
    assert first is not None
    assert len(first.payload) == 1000
    peer.send(SETTINGS, payload=struct.pack(">HL", frames.INITIAL_WINDOW_SIZE, 10))
    peer.send(WINDOW_UPDATE, 0, 1, struct.pack(">L", 990))
    assert [frame for frame in peer.ping() if frame.kind == DATA] == []
    peer.send(WINDOW_UPDATE, 0, 1, struct.pack(">L", 7))
    second = peer.until(DATA)
    assert second is not None
    assert len(second.payload) == 7


def test_a_cancelled_request_is_finished_and_its_answer_dropped(server: Server) -> None:
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()
    cancelled: list[bool] = []

    def slow(stream: Stream) -> None:
        begun.set()
        go_on.wait(20)
        cancelled.append(stream.cancelled)
        done.set()
        stream.send(head=HEAD, data=b"nobody reads it", trailers=[])

    server.answer = slow
    with server.peer() as peer:
        peer.request(1)
        begun.wait(20)
        peer.send(RST_STREAM, 0, 1, struct.pack(">L", frames.CANCEL))
        peer.ping()
        go_on.set()
        done.wait(20)
        time.sleep(0.05)
        assert peer.ping() == []
        assert cancelled == [True]


def test_the_end_finishes_what_was_begun_and_takes_nothing_new(server: Server) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(stream: Stream) -> None:
        begun.set()
        go_on.wait(20)
        stream.send(head=HEAD, data=bytes(stream.body), trailers=[])

    server.answer = slow
    with server.peer() as peer:
        peer.request(1, b"begun")
        begun.wait(20)
        server.connections[0].stop()
        peer.request(3, b"too late")
        frame = peer.until(GOAWAY)
        assert frame is not None
        assert struct.unpack_from(">LL", frame.payload) == (1, frames.NO_ERROR)
        peer.ping()
        go_on.set()
        assert peer.answer(1)[0] == b"begun"
        assert peer.frame() is None


def test_a_connection_at_rest_ends_at_once(server: Server) -> None:
    with server.peer() as peer:
        peer.request(1)
        peer.answer(1)
        wait_until(lambda: not server.connections[0]._streams, "the stream is forgotten")
        server.connections[0].stop()
        assert peer.goaway()[:2] == (1, frames.NO_ERROR)


# -- the h2 package as a client ----------------------------------------------------------------------


class H2Client:
    """What a client does with `h2`: it sends within the windows, and gives windows for what it has got."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.http.initiate_connection()
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.http.data_to_send())

    def pump(self) -> None:
        for event in self.http.receive_data(self.sock.recv(1 << 16)):
            if isinstance(event, h2.events.DataReceived):
                self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
            assert not isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)), event
        self.flush()

    def call(self, fields: list[Field], body: bytes) -> bytes:
        number = self.http.get_next_available_stream_id()
        self.http.send_headers(number, fields)
        while body:
            size = min(self.http.local_flow_control_window(number), self.http.max_outbound_frame_size, len(body))
            if size:
                self.http.send_data(number, body[:size])
                body = body[size:]
                self.flush()
            else:
                self.pump()
        self.http.end_stream(number)
        self.flush()
        while number not in self.ended:
            self.pump()
        return self.data.pop(number, b"")


def test_h2_sends_and_receives_bodies_of_all_sizes(server: Server) -> None:
    with server.connect() as sock:
        sock.settimeout(20)
        client = H2Client(sock)
        for size in (0, 1, 16383, 16384, 16385, 65535, 65536, 300_000, 3):
            body = random.Random(size).randbytes(size)
            assert client.call(REQUEST, body) == body, size


fields = st.lists(
    st.tuples(st.from_regex(rb"x-[a-z0-9-]{1,10}", fullmatch=True), st.from_regex(rb"[!-~]{0,60}", fullmatch=True)),
    max_size=8,
)


@settings(max_examples=30)
@given(st.lists(st.tuples(fields, st.binary(max_size=30)), min_size=1, max_size=5))
def test_h2_sends_any_headers(calls: list[tuple[list[Field], bytes]]) -> None:
    got: list[list[Field]] = []

    def keep(stream: Stream) -> None:
        got.append(stream.fields)
        stream.send(head=HEAD, data=bytes(stream.body), trailers=[(b"x", b"y")])

    for server in serving(keep):
        with server.connect() as sock:
            sock.settimeout(20)
            client = H2Client(sock)
            for more, body in calls:
                assert client.call(REQUEST + more, body) == body
    assert got == [REQUEST + more for more, _ in calls]


# -- connections that end ----------------------------------------------------------------------------


def send(kind: int, flags: int = 0, number: int = 0, payload: bytes = b"") -> Callable[[Peer], None]:
    return lambda peer: peer.send(kind, flags, number, payload)


def both(*steps: Callable[[Peer], None]) -> Callable[[Peer], None]:
    def run(peer: Peer) -> None:
        for step in steps:
            step(peer)

    return run


def repeated(count: int, kind: int, flags: int = 0, number: int = 0, payload: bytes = b"") -> Callable[[Peer], None]:
    return lambda peer: peer.raw(frames.write(kind, flags, number, payload) * count)


def rapid_reset(peer: Peer) -> None:
    for number in range(1, 6001, 2):
        peer.raw(
            frames.write(HEADERS, END_HEADERS | END_STREAM, number, BLOCK) + frames.rst_stream(number, frames.CANCEL)
        )


def unended(peer: Peer) -> None:
    """Requests that are refused and never end: each is remembered."""
    for number in range(1, 2 * http2.MOST_LEFT_OPEN + 300, 2):
        peer.send(HEADERS, END_HEADERS, number, hpack.encode([(b":path", b"")]))


def window(name: int, size: int) -> bytes:
    return struct.pack(">HL", name, size)


OPEN = send(HEADERS, END_HEADERS, 1, BLOCK)
WHOLE = send(HEADERS, END_HEADERS | END_STREAM, 1, BLOCK)
FATAL: dict[str, tuple[Callable[[Peer], None], int, bytes]] = {
    "a frame that is too large": (lambda peer: peer.raw(b"\x00\x40\x01" + bytes(6)), frames.FRAME_SIZE_ERROR, b"16385"),
    "SETTINGS on a stream": (send(SETTINGS, 0, 1), frames.PROTOCOL_ERROR, b"on stream 1"),
    "SETTINGS cut": (send(SETTINGS, payload=b"12345"), frames.FRAME_SIZE_ERROR, b"within a setting"),
    "SETTINGS ACK with values": (send(SETTINGS, ACK, 0, bytes(6)), frames.FRAME_SIZE_ERROR, b"not empty"),
    "ENABLE_PUSH 2": (send(SETTINGS, payload=window(2, 2)), frames.PROTOCOL_ERROR, b"ENABLE_PUSH"),
    "a window too large": (send(SETTINGS, payload=window(4, 1 << 31)), frames.FLOW_CONTROL_ERROR, b"INITIAL_WINDOW"),
    "a small frame size": (send(SETTINGS, payload=window(5, 100)), frames.PROTOCOL_ERROR, b"MAX_FRAME_SIZE"),
    "PING cut": (send(PING, payload=b"1"), frames.FRAME_SIZE_ERROR, b"1 bytes and not 8"),
    "PING on a stream": (send(PING, 0, 3, bytes(8)), frames.PROTOCOL_ERROR, b"on stream 3"),
    "a push": (send(PUSH_PROMISE, 0, 1, bytes(4)), frames.PROTOCOL_ERROR, b"push"),
    "HEADERS on 0": (send(HEADERS, END_HEADERS, 0, BLOCK), frames.PROTOCOL_ERROR, b"on stream 0"),
    "HEADERS on 2": (send(HEADERS, END_HEADERS, 2, BLOCK), frames.PROTOCOL_ERROR, b"on stream 2"),
    "DATA on an idle stream": (send(DATA, 0, 5, b"x"), frames.PROTOCOL_ERROR, b"idle stream 5"),
    "RST_STREAM on an idle stream": (send(RST_STREAM, 0, 5, bytes(4)), frames.PROTOCOL_ERROR, b"idle stream 5"),
    "RST_STREAM cut": (both(OPEN, send(RST_STREAM, 0, 1, bytes(3))), frames.FRAME_SIZE_ERROR, b"3 bytes and not 4"),
    "a window on an idle stream": (send(WINDOW_UPDATE, 0, 5, b"\0\0\0\1"), frames.PROTOCOL_ERROR, b"idle stream 5"),
    "a window of 0": (send(WINDOW_UPDATE, 0, 0, bytes(4)), frames.PROTOCOL_ERROR, b"0 bytes"),
    "a window that overflows": (send(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), frames.FLOW_CONTROL_ERROR, b"window"),
    "padding beyond the frame": (both(OPEN, send(DATA, PADDED, 1, b"\x05abc")), frames.PROTOCOL_ERROR, b"padding"),
    "no length of padding": (both(OPEN, send(DATA, PADDED, 1)), frames.FRAME_SIZE_ERROR, b"empty"),
    "no whole priority": (send(HEADERS, PRIORITY_FLAG | END_HEADERS, 1, b"1"), frames.FRAME_SIZE_ERROR, b"shorter"),
    "a block that is no HPACK": (send(HEADERS, END_HEADERS, 1, b"\x80"), frames.COMPRESSION_ERROR, b"index 0"),
    "CONTINUATION of nothing": (send(CONTINUATION, 0, 1, b""), frames.PROTOCOL_ERROR, b"CONTINUATION"),
    "a PING within a block": (
        both(send(HEADERS, 0, 1, BLOCK), send(PING, payload=bytes(8))),
        frames.PROTOCOL_ERROR,
        b"not continued",
    ),
    "CONTINUATION of another": (
        both(send(HEADERS, 0, 1, BLOCK), send(CONTINUATION, END_HEADERS, 3)),
        frames.PROTOCOL_ERROR,
        b"not continued",
    ),
    "a flood of PING": (repeated(3000, PING, 0, 0, bytes(8)), frames.ENHANCE_YOUR_CALM, b"PING"),
    "a flood of SETTINGS": (repeated(3000, SETTINGS), frames.ENHANCE_YOUR_CALM, b"SETTINGS"),
    "a flood of empty DATA": (both(OPEN, repeated(3000, DATA, 0, 1)), frames.ENHANCE_YOUR_CALM, b"empty DATA"),
    "a flood of PRIORITY": (repeated(3000, PRIORITY, 0, 1, bytes(5)), frames.ENHANCE_YOUR_CALM, b"PRIORITY"),
    "a flood of unknown frames": (repeated(3000, 99), frames.ENHANCE_YOUR_CALM, b"type 99"),
    "a flood of windows": (
        repeated(3000, WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
        frames.ENHANCE_YOUR_CALM,
        b"WINDOW_UPDATE",
    ),
    "empty CONTINUATION for ever": (
        both(send(HEADERS, 0, 1), repeated(3000, CONTINUATION, 0, 1)),
        frames.ENHANCE_YOUR_CALM,
        b"CONTINUATION",
    ),
    "large CONTINUATION for ever": (
        both(send(HEADERS, 0, 1), repeated(3, CONTINUATION, 0, 1, bytes(16384))),
        frames.ENHANCE_YOUR_CALM,
        b"header block of more",
    ),
    "requests that never end": (unended, frames.ENHANCE_YOUR_CALM, b""),
}


@pytest.mark.parametrize("name", FATAL)
def test_a_connection_ends_with_a_clear_goaway(name: str, peer: Peer) -> None:
    attack, code, words = FATAL[name]
    # It reads meanwhile: a peer that does not is another case.
    attacker = threading.Thread(target=attack, args=(peer,), daemon=True)
    attacker.start()
    _, found, text = peer.goaway()
    attacker.join()
    assert (found, words in text) == (code, True), text


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r", b"\x16\x03\x01" + bytes(40)]
)
def test_another_protocol_is_refused(server: Server, first: bytes) -> None:
    with server.peer(greets=False) as other:
        other.raw(first)
        assert other.goaway()[1:] == (
            frames.PROTOCOL_ERROR,
            b"this is no HTTP/2 with prior knowledge (RFC 9113 section 3.4)",
        )


def test_rapid_reset(server: Server) -> None:
    """CVE-2023-44487. Where the work is done before the reset comes, it is a request like others."""
    server.answer = lambda _: time.sleep(0.3)
    with server.peer() as peer:
        attacker = threading.Thread(target=rapid_reset, args=(peer,), daemon=True)
        attacker.start()
        assert peer.goaway()[1] == frames.ENHANCE_YOUR_CALM
        attacker.join()
        assert len(server.connections[0]._streams) <= 2 * http2.MOST_STREAMS


def test_a_stream_for_the_second_time(peer: Peer, server: Server) -> None:
    WHOLE(peer)
    peer.answer(1)
    wait_until(lambda: not server.connections[0]._streams, "the stream is forgotten")
    WHOLE(peer)
    assert peer.goaway()[1:] == (frames.STREAM_CLOSED, b"HEADERS are on stream 1, which has ended")


def test_the_first_frame_is_settings(server: Server) -> None:
    with server.peer(greets=False) as other:
        other.raw(frames.PREFACE + frames.write(PING, 0, 0, bytes(8)))
        assert b"not SETTINGS" in other.goaway()[2]


def test_more_than_our_window_ends_the_connection(server: Server) -> None:
    """What we have taken in is given back at once, so it needs a connection that counts for itself."""
    connection = http2.Connection(socket.socketpair()[1], lambda _: None, lambda: 0)
    with pytest.raises(frames.BadConnection, match="more than its window") as caught:
        connection._received(1, 100, 101)
    assert caught.value.code == frames.FLOW_CONTROL_ERROR
    connection._outgoing.close()


def test_a_client_that_says_nothing_is_not_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "PREFACE_SECONDS", 0.1)
    with server.peer(greets=False) as silent:
        silent.raw(b"PRI")
        assert silent.until() is None


def test_a_client_that_does_not_read_is_not_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "WRITE_SECONDS", 0.3)
    with server.peer() as deaf:
        deaf.raw(frames.window_update(0, 1 << 30) + frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 30}))
        for number in range(1, 21, 2):
            deaf.request(number, bytes(16000))
            deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sock.settimeout(0.5)
        with contextlib.suppress(OSError):
            for number in range(21, 2001, 2):
                deaf.sock.sendall(frames.write(HEADERS, END_HEADERS, number, BLOCK))
                deaf.sock.sendall(frames.write(DATA, END_STREAM, number, bytes(16000)))
        server._threads[0].join(20)
        assert not server._threads[0].is_alive()


# -- streams that end --------------------------------------------------------------------------------


def without(name: bytes) -> list[Field]:
    return [field for field in REQUEST if field[0] != name]


MALFORMED: dict[str, list[Field]] = {
    "no method": without(b":method"),
    "no path": without(b":path"),
    "an empty path": [*without(b":path")[:2], (b":path", b"")],
    "a status": [*REQUEST[:1], (b":status", b"200"), *REQUEST[1:]],
    "two paths": [(b":path", b"/a"), *REQUEST],
    "a pseudo field after the others": [*REQUEST, (b":authority", b"x")],
    "a large letter": [*REQUEST, (b"Upper", b"x")],
    "a blank in a name": [*REQUEST, (b"a b", b"x")],
    "an empty name": [*REQUEST, (b"", b"x")],
    "a line end": [*REQUEST, (b"a", b"x\r\nb: c")],
    "a blank at the end": [*REQUEST, (b"a", b"x ")],
    "connection": [*REQUEST, (b"connection", b"close")],
    "te gzip": [*without(b"te"), (b"te", b"gzip")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_reset_and_the_connection_goes_on(name: str, peer: Peer) -> None:
    peer.request(1, b"body", MALFORMED[name])
    assert peer.until(RST_STREAM) == (RST_STREAM, 0, 1, struct.pack(">L", frames.PROTOCOL_ERROR))
    peer.request(3, b"next")
    assert peer.answer(3)[0] == b"next"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ((WINDOW_UPDATE, 0, 1, bytes(4)), frames.PROTOCOL_ERROR),
        ((WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), frames.FLOW_CONTROL_ERROR),
        ((HEADERS, END_HEADERS, 1, b""), frames.PROTOCOL_ERROR),
        ((HEADERS, END_HEADERS | END_STREAM, 1, hpack.encode([(b":path", b"/")])), frames.PROTOCOL_ERROR),
        ((PRIORITY, 0, 1, b""), frames.FRAME_SIZE_ERROR),
    ],
)
def test_a_wrong_frame_ends_its_stream(peer: Peer, frame: tuple[int, int, int, bytes], code: int) -> None:
    peer.request(1, None)
    peer.send(*frame)
    assert peer.until(RST_STREAM) == (RST_STREAM, 0, 1, struct.pack(">L", code))
    # What was under way is dropped: trailers too.
    peer.send(DATA, 0, 1, b"late")
    peer.send(HEADERS, END_HEADERS | END_STREAM, 1, b"")
    assert [kind for kind, *_ in peer.ping()] == []


def test_frames_after_the_end_of_a_request(server: Server) -> None:
    go_on = threading.Event()

    def slow(_: Stream) -> None:
        go_on.wait(20)

    server.answer = slow
    with server.peer() as peer:
        peer.request(1)
        peer.send(DATA, 0, 1, b"more")
        assert peer.until(RST_STREAM) == (RST_STREAM, 0, 1, struct.pack(">L", frames.STREAM_CLOSED))
        peer.request(3)
        peer.send(HEADERS, END_HEADERS | END_STREAM, 3, b"")
        assert peer.until(RST_STREAM) == (RST_STREAM, 0, 3, struct.pack(">L", frames.STREAM_CLOSED))
        go_on.set()


def test_headers_that_are_too_large_are_told_to_the_handler(peer: Peer) -> None:
    big = [(b"x%d" % at, bytes(b"v" * 3000)) for at in range(6)]
    block = hpack.encode(REQUEST + big)
    peer.send(HEADERS, 0, 1, block[:16000])
    peer.send(CONTINUATION, END_HEADERS, 1, block[16000:])
    data, _ = peer.answer(1)
    assert b"larger than 16384" in data
    assert peer.until(RST_STREAM) == (RST_STREAM, 0, 1, bytes(4))
    peer.send(DATA, END_STREAM, 1, b"late")
    assert peer.ping() == []


def test_a_body_that_is_too_large_is_told_to_the_handler(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "BODY_LIMIT", 20_000)
    monkeypatch.setattr(http2, "HELD_LIMIT", 30_000)
    peer.request(1, None)
    peer.send(DATA, 0, 1, bytes(15_000))
    peer.send(DATA, 0, 1, bytes(15_000))
    assert b"larger than" in peer.answer(1)[0]
    peer.request(3, None)
    peer.send(DATA, 0, 3, bytes(16_000))
    peer.request(5, bytes(16_000))
    assert b"all requests than 30000" in peer.answer(5)[0]
    peer.send(DATA, END_STREAM, 3, b"")
    assert len(peer.answer(3)[0]) == 16_000


def test_large_bodies_of_one_peer_leave_room_for_small_ones_of_others(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "HELD_LIMIT", 30_000)
    with server.peer() as greedy, server.peer() as other:
        greedy.request(1, None)
        for _ in range(2):
            greedy.send(DATA, 0, 1, bytes(14_900))
        # The answers to the greeting are before that to the ping.
        greedy.ping()
        other.request(1, bytes(http2.SMALL_BODY))
        assert len(other.answer(1)[0]) == http2.SMALL_BODY
        other.request(3, bytes(http2.SMALL_BODY + 1))
        assert b"all requests than 30000" in other.answer(3)[0]


def test_more_requests_than_allowed_are_refused_and_not_begun(server: Server) -> None:
    go_on = threading.Event()
    begun: list[int] = []

    def slow(stream: Stream) -> None:
        begun.append(stream.number)
        go_on.wait(20)
        stream.send(head=HEAD, trailers=[(b"a", b"b")])

    server.answer = slow
    with server.peer() as peer:
        for at in range(http2.MOST_STREAMS + 1):
            peer.request(1 + 2 * at)
        refused = peer.until(RST_STREAM)
        assert refused == (RST_STREAM, 0, 1 + 2 * http2.MOST_STREAMS, struct.pack(">L", frames.REFUSED_STREAM))
        # A stream that is reset still counts while its thread is at work (rapid reset).
        peer.send(RST_STREAM, 0, 1, struct.pack(">L", frames.CANCEL))
        peer.request(1001)
        assert peer.until(RST_STREAM) == (RST_STREAM, 0, 1001, struct.pack(">L", frames.REFUSED_STREAM))
        assert len(begun) <= http2.MOST_STREAMS
        go_on.set()
        # All answers but that to the first one: what is not read keeps the others waiting.
        left = http2.MOST_STREAMS - 1
        while left:
            frame = peer.until(HEADERS)
            assert frame
            left -= bool(frame.flags & END_STREAM)
        wait_until(lambda: not server.connections[0]._streams, "all are answered")
        peer.request(1003)
        peer.answer(1003)


def test_tiny_windows_hold_an_answer_for_a_limited_time(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SEND_SECONDS", 0.3)
    peer.send(SETTINGS, payload=struct.pack(">HL", frames.INITIAL_WINDOW_SIZE, 1))
    peer.request(1, bytes(3000))
    peer.request(3, bytes(3000))
    for _ in range(100):
        peer.send(WINDOW_UPDATE, 0, 3, b"\0\0\0\1")
        time.sleep(0.01)
    ends = {frame.stream: frame.payload for frame in peer.ping() if frame.kind == RST_STREAM}
    assert ends == {1: struct.pack(">L", frames.CANCEL), 3: struct.pack(">L", frames.CANCEL)}


def test_a_handler_that_fails_or_forgets_resets_its_stream(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def defect(stream: Stream) -> None:
        if stream.body:
            raise KeyError("a defect")

    server.answer = defect
    with server.peer() as peer:
        for number, body in ((1, b"x"), (3, b"")):
            peer.request(number, body)
            assert peer.until(RST_STREAM) == (RST_STREAM, 0, number, struct.pack(">L", frames.INTERNAL_ERROR))
    assert "Traceback" in caplog.text


def test_frames_that_ask_for_nothing_are_allowed_for_ever_but_slowly() -> None:
    now = [0.0]
    budget = calm.Calm(lambda: now[0])
    for _ in range(10 * calm.MOST):
        now[0] += 1 / calm.PER_SECOND
        budget.spend("PING")
    for _ in range(10 * calm.MOST):
        budget.earn()
        budget.spend("WINDOW_UPDATE")
    with pytest.raises(frames.BadConnection):
        for _ in range(calm.MOST + 1):
            budget.spend("PING")


# -- by chance ---------------------------------------------------------------------------------------


def chance(dice: random.Random) -> bytes:
    """A frame that is mostly right, or not at all."""
    number = dice.choice([0, 0, 1, 1, 3, 5, 7, 2, 999, dice.getrandbits(31)])
    payload: Any = dice.choice([b"", bytes(4), b"\0\0\1\0", bytes(8), BLOCK, BLOCK, dice.randbytes(dice.randrange(60))])
    kind = dice.choice([*range(10), DATA, HEADERS, HEADERS, dice.randrange(256)])
    flags = dice.choice([0, 1, 4, 5, 5, 8, 0x20, dice.randrange(256)])
    data = frames.write(kind, flags, number, payload)
    if dice.random() < 0.02:
        data = data[: dice.randrange(len(data))]
    return data


def test_frames_by_chance_harm_only_their_connection(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    dice = random.Random(20)
    until = time.monotonic() + 4
    tried = 0
    with server.peer() as steady:
        while time.monotonic() < until:
            with server.peer() as wild:
                wild.raw(b"".join(chance(dice) for _ in range(dice.randrange(1, 12))))
                wild.sock.shutdown(socket.SHUT_WR)
                assert wild.until() is None
            tried += 1
            if not tried % 20:
                steady.request(1 + tried // 10, b"steady")
                assert steady.answer(1 + tried // 10)[0] == b"steady"
    assert tried > 100
    assert "Traceback" not in caplog.text
    assert outgoing.FIRST_WINDOW == 65535
