"""body.py: the body of a request as a stream, with a length or in chunks, and never with an end that is none."""

from __future__ import annotations

import http.client
import io
import socket
from unittest.mock import Mock

import pytest
from plugin_client import Client, Refused, head_of, in_pieces
from unit.served import BODY, GET, FakeDriver, chunked, raw, read_to_end

from protocol import body, server
from protocol.body import Body
from protocol.request import BadRequest


@pytest.fixture
def driver(fake_driver: FakeDriver) -> FakeDriver:
    return fake_driver


def received(sent: bytes, *headers: str) -> tuple[Body, io.BytesIO]:
    """The body of a request with these headers, and what it is read from."""
    source = io.BytesIO(sent)
    head = "".join(f"{line}\r\n" for line in headers).encode()
    handler = Mock(rfile=source, headers=http.client.parse_headers(io.BytesIO(head + b"\r\n")))
    return Body(handler), source


def pieces(stream: Body, size: int) -> bytes:
    """All of it, so many bytes at a time."""
    data = b""
    while piece := stream.read(size):
        assert len(piece) <= size
        data += piece
    return data


CHUNKED = "Transfer-Encoding: chunked"
HELLO = b"2\r\nhe\r\n0003;name=value\r\nllo\r\n0\r\n"


# -- a stream --------------------------------------------------------------------------------------


def test_a_body_ends_with_its_length() -> None:
    """What comes then is the next request."""
    stream, source = received(b"helloPOST", "Content-Length: 5")
    assert [stream.read(3), stream.ended, stream.read(100), stream.ended] == [b"hel", False, b"lo", True]
    assert stream.read(1) == b""
    assert source.read() == b"POST"


@pytest.mark.parametrize("headers", [(), ("Content-Length: 0",)])
def test_a_request_without_a_body(headers: tuple[str, ...]) -> None:
    stream, source = received(b"POST", *headers)
    assert (stream.ended, stream.read(1), source.read()) == (True, b"", b"POST")


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("trailer", [b"", b"Checksum: 1\r\nOther: 2\r\n"])
def test_a_body_ends_with_its_last_chunk(size: int, trailer: bytes) -> None:
    stream, source = received(HELLO + trailer + b"\r\nPOST", CHUNKED)
    assert not stream.ended
    assert pieces(stream, size) == b"hello"
    assert stream.ended
    assert stream.read(1) == b""
    assert source.read() == b"POST"


def test_chunks_count_where_there_is_a_length_too() -> None:
    """RFC 9112 section 6.3."""
    stream, _ = received(HELLO + b"\r\n", "Content-Length: 2", "Transfer-Encoding:  Chunked ")
    assert pieces(stream, 100) == b"hello"


def test_one_length_said_twice_and_two_that_differ() -> None:
    stream, _ = received(b"hello", "Content-Length: 5", "Content-Length: 5")
    assert stream.read(100) == b"hello"
    with pytest.raises(BadRequest, match="Content-Length '4 and 5' is not a number of bytes"):
        received(b"hello", "Content-Length: 5", "Content-Length: 4")


@pytest.mark.parametrize("at", range(len(HELLO)))
def test_chunks_that_are_cut_off_anywhere_have_no_end(at: int) -> None:
    stream, _ = received(HELLO[:at], CHUNKED)
    with pytest.raises(BadRequest, match=r"cut off|bad chunk header|does not end where it said"):
        pieces(stream, 100)
    assert not stream.ended


def test_a_length_that_is_cut_off() -> None:
    stream, _ = received(b"hel", "Content-Length: 5")
    assert stream.read(100) == b"hel"
    with pytest.raises(BadRequest, match="the request's body was cut off"):
        stream.read(100)
    assert not stream.ended


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"5\r\nhello!\r\n0\r\n\r\n", "a chunk that does not end where it said"),
        (b"-5\r\nhello", "a bad chunk header"),
        (b"0x5\r\nhello", "a bad chunk header"),
        (b"12345678901234567\r\nhello", "a bad chunk header"),
        (b"5;" + bytes(body.CHUNK_HEADER_LIMIT) + b"\r\nhello", "a bad chunk header"),
        (b"", "cut off"),
    ],
)
def test_what_is_wrong_with_a_chunk_is_said(sent: bytes, why: str) -> None:
    stream, _ = received(sent, CHUNKED)
    with pytest.raises(BadRequest, match=why):
        pieces(stream, 100)


# -- the whole of it -------------------------------------------------------------------------------


def test_a_body_has_as_many_bytes_as_are_taken_and_not_one_more() -> None:
    for sent, header in ((b"hello", "Content-Length: 5"), (HELLO + b"\r\n", CHUNKED)):
        assert received(sent, header)[0].read_all(5) == b"hello"
        with pytest.raises(
            BadRequest, match=r"the request's body has (5 bytes; at most 4 are taken|more than 4 bytes)"
        ):
            received(sent, header)[0].read_all(4)


def test_of_a_body_that_is_too_large_no_more_is_read() -> None:
    """A length tells it before anything is."""
    large = bytes(1 << 20)
    in_one_chunk = b"100000\r\n" + large + b"\r\n0\r\n\r\n"
    for sent, header, most in ((large, f"Content-Length: {len(large)}", 0), (in_one_chunk, CHUNKED, 200)):
        stream, source = received(sent, header)
        with pytest.raises(BadRequest):
            stream.read_all(100)
        assert source.tell() <= most


@pytest.mark.parametrize(("sent", "header"), [(b"", "Content-Length: 0"), (b"0\r\n\r\n", CHUNKED)])
def test_a_body_of_nothing_is_no_call(sent: bytes, header: str) -> None:
    """dockerd repeats a call so whose answer was lost."""
    with pytest.raises(BadRequest, match="the request has no body; expected a JSON object"):
        received(sent, header)[0].read_all(100)


def test_what_is_left_is_read_before_the_answer() -> None:
    for sent, header in ((b"helloPOST", "Content-Length: 5"), (HELLO + b"\r\nPOST", CHUNKED)):
        stream, source = received(sent, header)
        stream.read(1)
        stream.drain()
        assert (stream.ended, source.read()) == (True, b"POST")


def test_who_sends_on_for_too_long_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "DRAIN_SECONDS", -1.0)
    stream, _ = received(HELLO + b"\r\n", CHUNKED)
    with pytest.raises(BadRequest, match="the request's body did not end within -1 s of its refusal"):
        stream.drain()
    received(b"", "Content-Length: 0")[0].drain()


# -- through the socket ----------------------------------------------------------------------------


def test_a_body_that_is_too_large(client: Client, driver: FakeDriver) -> None:
    too_much = server.BODY_LIMIT + 1
    with pytest.raises(Refused, match="bytes") as caught:
        client.post(GET, b'{"ID":"a","x":"' + b"x" * too_much + b'"}').json()
    assert caught.value.status == 400
    with pytest.raises(Refused, match="more than"):
        client.post(GET, in_pieces(bytes(too_much))).json()
    answer = read_to_end(raw(client, head_of(GET, "Content-Length: 99999999999999")))
    assert answer.startswith(b"HTTP/1.1 400")
    assert driver.calls == []


@pytest.mark.parametrize(
    "length", ["x", "-1", "+5", "1e3", "5, 5", "0x5", "9" * 5000, "\xb2", "11\r\nContent-Length: 8"]
)
def test_a_length_that_is_no_number(client: Client, driver: FakeDriver, length: str) -> None:
    link = raw(client, f"POST {GET} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode("latin-1"), BODY)
    answer = read_to_end(link)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1, "the body was read as a second request"
    assert driver.calls == []


def test_a_body_that_is_shorter_than_it_said(client: Client, driver: FakeDriver) -> None:
    link = raw(client, head_of(GET, "Content-Length: 500"), BODY)
    link.shutdown(socket.SHUT_WR)
    assert b"cut off" in read_to_end(link)
    assert driver.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;name=value\r\nhello\r\n0\r\n\r\n",
        b"00005\r\nhello\r\n000\r\n\r\n",
        b"2\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: x\r\n\r\n",
    ],
)
def test_chunks(client: Client, driver: FakeDriver, body: bytes) -> None:
    link = raw(client, chunked(), body, head_of(GET, "Content-Length: 11", "Connection: close"), BODY)
    answer = read_to_end(link)
    assert driver.applied == b"hello"
    assert answer.count(b"HTTP/1.1 200") == 2, "the next request on the connection"


@pytest.mark.parametrize(
    "body",
    [
        b"xyz\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"5 5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5" * 5000 + b"\r\nhello",
        b"1" * 900 + b"\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhel",
        b"5\r\nhello",
        b"5\r\nhello\r\n",
        b"5\r\nhello\r\n0",
        b"5",
        b"",
    ],
)
def test_chunks_that_are_none_end_the_archive_as_broken(client: Client, driver: FakeDriver, body: bytes) -> None:
    """Above all a connection that ends early is not the archive's end."""
    link = raw(client, chunked(), body)
    link.shutdown(socket.SHUT_WR)
    answer = read_to_end(link)
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert answer.count(b"HTTP/1.1") == 1
