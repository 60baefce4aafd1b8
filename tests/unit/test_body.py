"""body.py: the body of a request as a stream, with a length or in chunks, and never with an end that is none."""

from __future__ import annotations

import socket

import pytest
from plugin_client import Client, Refused, head_of, in_pieces
from unit.served import BODY, GET, FakeDriver, chunked, raw, read_to_end

from protocol import server


@pytest.fixture
def driver(fake_driver: FakeDriver) -> FakeDriver:
    return fake_driver


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
