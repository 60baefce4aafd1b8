"""grpc_server.py and what a call goes through: the `grpcio` package as a client, and calls that are none."""

from __future__ import annotations

import logging
import os
import re
import stat
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import needs
import pytest
from plugin_client import wait_until
from unit.http2_peer import REQUEST, Peer

from host import metrics
from host.failure import Failure
from wire import frames, grpc_server, hpack, protobuf
from wire.grpc_call import Call, Method, streaming, unary
from wire.grpc_server import GrpcServer, NoSocket
from wire.grpc_status import NOT_FOUND, Status, percent_encoded
from wire.hpack import Field
from wire.protobuf import Message

try:
    import grpc
except ImportError:
    needs.requires(False, "grpcio")

ODD = "zwei\nZeilen, 100 % ä \U0001f600 \x00\x7f 'und' mehr"


@dataclass
class Text(Message):
    text: str = protobuf.string(1)
    size: int = protobuf.int64(2)


class Handlers:
    """What the tests' methods do, and what they saw."""

    def __init__(self) -> None:
        self.seen: list[Call] = []
        self.go_on = threading.Event()
        self.closed = threading.Event()

    def echo(self, request: Text, call: Call) -> Text:
        self.seen.append(call)
        return request

    def fail(self, request: Text, _: Call) -> Text:
        if request.text == "defect":
            raise KeyError("missing")
        if request.text == "failure":
            raise Failure("one\n thing is   missing")
        if request.text == "surrogate":
            return Text("\udc80")
        raise Status(NOT_FOUND, request.text)

    def wait(self, request: Text, call: Call) -> Text:
        self.seen.append(call)
        self.go_on.wait(20)
        return request

    def many(self, request: Text, _: Call) -> Iterator[Text]:
        try:
            for at in range(request.size):
                if request.text == "break" and at == 2:
                    raise Status(NOT_FOUND, "in the middle")
                yield Text("x" * 8000, at)
        finally:
            self.closed.set()

    def methods(self) -> dict[str, Method]:
        return {
            "/test.Test/Echo": unary(Text, self.echo),
            "/test.Test/Fail": unary(Text, self.fail),
            "/test.Test/Wait": unary(Text, self.wait),
            "/test.Test/Many": streaming(Text, self.many),
        }


class Served:
    """A server in a thread."""

    def __init__(self, path: str, handlers: Handlers) -> None:
        self.server = GrpcServer(path, handlers.methods())
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
def path(short: Path) -> str:
    return str(short / "socket")


@pytest.fixture
def served(path: str, handlers: Handlers) -> Iterator[Served]:
    made = Served(path, handlers)
    yield made
    handlers.go_on.set()
    made.end()


class Client:
    """Google's client. Each has a connection of its own."""

    def __init__(self, path: str, *options: tuple[str, Any]) -> None:
        options = (("grpc.use_local_subchannel_pool", 1), *options)
        self.channel = grpc.insecure_channel(f"unix:{path}", options=options)

    def call(self, name: str, text: str = "", **more: Any) -> Text:
        found = self.method(name)(Text(text), **more)
        assert isinstance(found, Text)
        return found

    def method(self, name: str) -> Any:
        return self.channel.unary_unary(f"/test.Test/{name}", Text.encode, Text.decode)

    def many(self, text: str, size: int) -> Any:
        return self.channel.unary_stream("/test.Test/Many", Text.encode, Text.decode)(Text(text, size), timeout=30)

    def error(self, name: str, text: str = "", **more: Any) -> tuple[Any, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.call(name, text, **more)
        return caught.value.code(), str(caught.value.details())


@pytest.fixture
def client(served: Served, path: str) -> Iterator[Client]:
    made = Client(path)
    yield made
    made.channel.close()


def test_two_thousand_calls_on_one_connection(client: Client, served: Served) -> None:
    echo = client.method("Echo")
    for at in range(2000):
        assert echo(Text(f"key {at}"), timeout=30).text == f"key {at}"
    assert len(served.server._connections) == 1


def test_a_hundred_calls_at_once(client: Client, handlers: Handlers) -> None:
    calls = [client.method("Wait").future(Text(str(at)), timeout=30) for at in range(100)]
    wait_until(lambda: len(handlers.seen) == 100, "all have begun")
    handlers.go_on.set()
    assert [call.result().text for call in calls] == [str(at) for at in range(100)]


def test_more_calls_than_streams_wait_their_turn(client: Client) -> None:
    with ThreadPoolExecutor(20) as threads:
        assert len(list(threads.map(lambda at: client.call("Echo", str(at), timeout=30), range(400)))) == 400


def test_a_stream_larger_than_the_windows(served: Served, path: str) -> None:
    """A List of 240 KB for a client with windows of 64 KiB."""
    client = Client(path, ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65535))
    assert [one.size for one in client.many("", 30)] == list(range(30))
    assert list(client.many("", 0)) == []
    client.channel.close()


def test_large_messages_and_larger_ones(served: Served, path: str) -> None:
    client = Client(path, ("grpc.max_receive_message_length", -1))
    text = "x" * ((16 << 20) - 10)
    assert client.call("Echo", text, timeout=60).text == text
    code, words = client.error("Echo", text + "x" * 10, timeout=60)
    assert (code, "larger than" in words or "16777216 are allowed" in words) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        True,
    )
    assert client.call("Echo", "next", timeout=30).text == "next"
    client.channel.close()


@pytest.mark.parametrize("text", [ODD, "a", " blanks ", "%41", "x" * 3000])
def test_the_text_of_an_error_arrives_as_it_is(client: Client, text: str) -> None:
    assert client.error("Fail", text) == (grpc.StatusCode.NOT_FOUND, text.strip(" "))


def test_a_long_text_is_cut_between_letters() -> None:
    text = percent_encoded("ä" * 3000)
    assert text == b"%C3%A4" * (4000 // 6)


def test_an_expected_failure_is_one_line_and_a_defect_is_logged(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.error("Fail", "failure") == (grpc.StatusCode.UNKNOWN, "one thing is missing")
    assert "Traceback" not in caplog.text
    assert client.error("Fail", "defect") == (grpc.StatusCode.INTERNAL, "'missing'")
    assert "Traceback" in caplog.text
    assert client.error("Fail", "surrogate")[0] == grpc.StatusCode.UNKNOWN


def test_an_unknown_method(client: Client) -> None:
    assert client.error("Nope") == (grpc.StatusCode.UNIMPLEMENTED, "unknown method /test.Test/Nope")


def test_a_stream_that_fails_in_the_middle(client: Client) -> None:
    found = []
    with pytest.raises(grpc.RpcError) as caught:
        found.extend(iter(client.many("break", 5)))
    assert caught.value.details() == "in the middle"
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_deadline_reaches_the_handler(client: Client, handlers: Handlers) -> None:
    client.call("Echo", timeout=20)
    assert 10 < handlers.seen[0].deadline - time.monotonic() <= 21  # clients round it up
    client.call("Echo", metadata=(("containerd-namespace", "moby"),))
    assert handlers.seen[1].deadline == float("inf")
    assert handlers.seen[1].metadata[b"containerd-namespace"] == b"moby"
    assert client.error("Wait", timeout=0.2)[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: handlers.seen[2].cancelled, "the handler knows")


def test_cancelled_calls(client: Client, handlers: Handlers) -> None:
    call = client.method("Wait").future(Text("x"), timeout=30)
    wait_until(lambda: len(handlers.seen) == 1, "it has begun")
    call.cancel()
    wait_until(lambda: handlers.seen[0].cancelled, "the handler knows")
    answers = client.many("", 100_000)
    next(answers)
    answers.cancel()
    assert handlers.closed.wait(20), "the generator is closed where it stands"
    handlers.go_on.set()
    assert client.call("Echo", "next", timeout=30).text == "next"


def test_a_client_goes_on_with_the_next_server(path: str, handlers: Handlers) -> None:
    first = Served(path, handlers)
    client = Client(path, ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100))
    assert client.call("Echo", "one", timeout=30).text == "one"
    call = client.method("Wait").future(Text("begun"), timeout=30)
    wait_until(lambda: len(handlers.seen) == 2, "it has begun")
    threading.Timer(0.3, handlers.go_on.set).start()
    first.end()
    assert call.result().text == "begun"
    second = Served(path, handlers)
    assert client.call("Echo", "two", timeout=30, wait_for_ready=True).text == "two"
    second.end()
    client.channel.close()


def test_the_end_waits_for_a_limited_time(
    path: str, handlers: Handlers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(grpc_server, "STOP_SECONDS", 0.3)
    served, client = Served(path, handlers), Client(path)
    call = client.method("Wait").future(Text("x"), timeout=30)
    wait_until(lambda: len(handlers.seen) == 1, "it has begun")
    served.end()
    assert "1 clients still wait" in caplog.text
    assert call.exception().code() == grpc.StatusCode.UNAVAILABLE
    handlers.go_on.set()
    client.channel.close()


def test_only_root_may_connect_and_a_stale_socket_is_replaced(path: str, handlers: Handlers) -> None:
    for _ in range(2):
        served = Served(path, handlers)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        served.end()
    os.unlink(path)
    Path(path).write_text("a file", encoding="utf-8")
    with pytest.raises(NoSocket, match="is no socket"):
        GrpcServer(path, {})
    assert Path(path).read_text(encoding="utf-8") == "a file"


def test_one_connection_too_many_is_closed(served: Served, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "MOST_CONNECTIONS", 2)
    with raw(path) as one, raw(path) as other:
        one.ping()
        other.ping()
        with raw(path) as third:
            assert third.until() is None
        other.ping()


def raw(path: str) -> Peer:
    import socket

    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return Peer(sock)


def counted(*results: str) -> int:
    """How many calls had one of these results."""
    lines = re.findall(r'^docker_graph_driver_requests_total{.*,result="(\w+)"} (\d+)$', metrics.text({}), re.MULTILINE)
    return sum(int(count) for result, count in lines if result in results)


def instead(name: bytes, value: bytes) -> list[Field]:
    return [(found, value if found == name else old) for found, old in REQUEST]


@pytest.mark.parametrize(
    ("fields", "body", "status", "words"),
    [
        (REQUEST, b"", b"13", b"no message"),
        (REQUEST, b"\0\0\0\0\5abc", b"13", b"says 5 bytes, and holds 3"),
        (REQUEST, bytes(10), b"13", b"says 0 bytes, and holds 5"),
        (REQUEST, b"\1\0\0\0\0", b"12", b"compressed"),
        (REQUEST, b"\0\xff\xff\xff\xff", b"8", b"4294967295 bytes"),
        (REQUEST, b"\0\0\0\0\1\x0a", b"13", b"malformed"),
        ([*REQUEST, (b"grpc-timeout", b"soon")], bytes(5), b"13", b"grpc-timeout"),
        ([*REQUEST, (b"grpc-timeout", b"0n")], bytes(5), b"4", b"deadline"),
        (instead(b":path", b"/"), bytes(5), b"12", b"unknown method"),
        (instead(b":path", b"/\xff\n"[:2]), bytes(5), b"12", b"unknown method"),
    ],
)
def test_calls_that_are_wrong(
    served: Served, path: str, client: Client, fields: list[Field], body: bytes, status: bytes, words: bytes
) -> None:
    failed = counted("failed", "defect")
    with raw(path) as peer:
        peer.request(1, body, fields)
        _, found = peer.answer(1)
        assert found[b":status"] == b"200"
        assert found[b"content-type"] == b"application/grpc"
        assert found[b"grpc-status"] == status
        assert words in found[b"grpc-message"].replace(b"%25", b"%")
    assert client.call("Echo", "other", timeout=30).text == "other"
    assert counted("failed", "defect") == failed, "it is the caller's"


@pytest.mark.parametrize("fields", [instead(b"content-type", b"text/html"), instead(b":method", b"GET")])
def test_what_is_no_call_is_refused_in_the_words_of_http(served: Served, path: str, fields: list[Field]) -> None:
    with raw(path) as peer:
        peer.request(1, bytes(5), fields)
        assert peer.answer(1)[1] == {b":status": b"415"}


def test_header_fields_that_are_too_large_are_a_status(served: Served, path: str) -> None:
    with raw(path) as peer:
        block = hpack.encode([*REQUEST[:4], *((b"x%d" % at, bytes(b"v" * 3000)) for at in range(6))])
        peer.send(frames.HEADERS, 0, 1, block[:16000])
        peer.send(frames.CONTINUATION, frames.END_HEADERS, 1, block[16000:])
        assert peer.answer(1)[1][b"grpc-status"] == b"8"
        assert peer.until(frames.RST_STREAM) == (frames.RST_STREAM, 0, 1, struct.pack(">L", frames.NO_ERROR))


def test_one_line_of_log_for_a_call(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "grpc")
    client.call("Echo", timeout=30)
    client.error("Fail", "a\nb")
    wait_until(lambda: len(caplog.messages) == 2, "two lines")
    assert caplog.messages[0].startswith("Echo ")
    assert caplog.messages[1].startswith("Fail ")
    assert caplog.messages[1].endswith(" ms: a b")
