"""server.py: HTTP as dockerd speaks it, on a unix socket, with a driver that is not real."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from plugin_client import BrokenOff, Client, Connection, Refused, head_of, in_pieces, wait_until
from unit.served import APPLY, BODY, GET, FakeDriver, chunked, raw, read_to_end, receive

from host.metrics import text
from images.layers import LayerError, LayerRefused
from images.options import OptionError
from mapped.unmounting import LayerBusy
from protocol import server


@pytest.fixture
def driver(fake_driver: FakeDriver) -> FakeDriver:
    return fake_driver


# -- calls -------------------------------------------------------------------------------------------


def test_activate_has_no_body(client: Client) -> None:
    assert client.post("/Plugin.Activate").json() == {"Implements": ["GraphDriver"]}
    assert b'{"Implements": ["GraphDriver"]}' in read_to_end(
        raw(client, head_of("/Plugin.Activate", "Connection: close"))
    )


def test_what_a_call_carries_reaches_the_driver(client: Client, driver: FakeDriver) -> None:
    client.call("Create", ID="a", Parent="b", MountLabel="", StorageOpt=None)
    client.call("CreateReadWrite", ID="c", StorageOpt={"size": "1G"})
    assert client.call("Get", ID="a", MountLabel="system_u:x:y:c1,c2") == {"Dir": "/a"}
    client.call("Put", ID="a")
    client.call("Remove", ID="a")
    client.call("Cleanup")
    assert driver.calls == [
        ("create", "a", "b", "null"),
        ("create", "c", "", '{"size": "1G"}'),
        ("get", "a", "system_u:x:y:c1,c2"),
        ("put", "a"),
        ("remove", "a"),
        ("cleanup",),
    ]


def test_what_comes_back(client: Client) -> None:
    assert client.call("Capabilities") == {"Capabilities": {"ReproducesExactDiffs": False}}
    assert client.call("Status") == {"Status": [["Pool", "rbd"]]}
    assert client.call("GetMetadata", ID="a") == {"Metadata": {"Image": "a"}}
    assert client.call("DiffSize", ID="a") == {"Size": 42}
    assert client.call("Exists", ID="there") == {"Exists": True}
    assert client.call("Exists", ID="gone") == {"Exists": False}
    assert client.call("Put", ID="a") == {}


def test_names_that_are_no_text_become_text(client: Client) -> None:
    """Go turns what is not UTF-8 into U+FFFD; a lone surrogate would be worse."""
    assert client.changes("a") == {"/new": 1, "/bad-\ufffd": 0, "/ä": 2}


def test_the_answer_has_a_length_and_docker_s_type(client: Client) -> None:
    answer = client.post(GET, BODY)
    assert answer.headers["Content-Type"] == "application/vnd.docker.plugins.v1.2+json"
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert answer.body.endswith(b"\n")


def test_a_connection_is_kept(connection: Connection, driver: FakeDriver) -> None:
    """After answers, refusals, archives: dockerd goes on with the connection that it has."""
    sock = None
    driver.on_get = lambda layer: f"/{layer}" if layer == "a" else explode(layer)
    for _ in range(2):
        assert connection.post("/Plugin.Activate").status == 200
        assert connection.post(GET, BODY).json() == {"Dir": "/a"}
        assert connection.post(GET, b'{"ID":"bad"}').status == 500
        assert connection.post("/GraphDriver.NoSuch", BODY).status == 404
        assert connection.post("/GraphDriver.Diff", BODY).body == b"archive"
        assert connection.post(APPLY, in_pieces(bytes(100_000))).json()["Size"] > 0
        assert sock in (None, connection.sock)
        sock = connection.sock


def explode(layer: str) -> str:
    raise LayerError(f"{layer}\n  is refused\r\nfor good")


def test_an_error_is_one_line(client: Client, driver: FakeDriver) -> None:
    driver.on_get = explode
    with pytest.raises(Refused) as caught:
        client.get("a")
    assert (caught.value.status, caught.value.text) == (500, "a is refused for good")


def test_an_error_with_bytes_that_are_no_text(client: Client, driver: FakeDriver) -> None:
    driver.on_get = lambda _: explode(os.fsdecode(b"\xff"))
    with pytest.raises(Refused) as caught:
        client.get("\ud800")
    assert "is refused" in caught.value.text


def test_a_defect_is_told_in_one_line_and_logged_with_its_trace(
    client: Client, driver: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.on_get = lambda _: str(dict[str, str]()["missing"])
    with pytest.raises(Refused) as caught:
        client.get("a")
    assert (caught.value.status, caught.value.text) == (500, "'missing'")
    assert "Traceback" in caplog.text
    assert client.call("Exists", ID="a") == {"Exists": False}


def test_one_line_of_log_for_a_request(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client.get("a")
    client.call("Status")
    # A line is written when its answer has been sent: the next request, on another connection, may be logged first.
    wait_until(lambda: len(caplog.messages) == 2, "two lines")
    get, status = sorted(caplog.messages)
    assert get.startswith("Get a ")
    assert get.endswith(" ms")
    assert status.startswith("Status ")


def test_calls_run_side_by_side(client: Client, driver: FakeDriver) -> None:
    together = threading.Barrier(8)
    driver.on_get = lambda layer: f"/{together.wait(20)}"
    with ThreadPoolExecutor(8) as threads:
        assert len({*threads.map(client.get, "abcdefgh")}) == 8


# -- refusals ----------------------------------------------------------------------------------------


def test_an_empty_body_is_refused(client: Client, driver: FakeDriver) -> None:
    """What dockerd sends when it repeats a call whose answer was lost: no defaults may be made of it."""
    for method in ("Create", "Get", "Put", "Remove", "Cleanup", "Init", "Diff", "Status"):
        with pytest.raises(Refused, match="has no body") as caught:
            client.post(f"/GraphDriver.{method}").json()
        assert caught.value.status == 400
    assert driver.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"null",
        b"[]",
        b'"a"',
        b"\xff\xfe",
        b'{"ID":"\xff"}',
        b"[" * 100_000,
        b'{"ID":1}',
        b'{"ID":null}',
        b'{"ID":["a"]}',
        b'{"ID":"a","MountLabel":1}',
        b"{}",
        b"\n",
    ],
)
def test_a_body_that_is_no_call(client: Client, driver: FakeDriver, body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        client.post(GET, body).json()
    assert caught.value.status == 400
    assert driver.calls == []


@pytest.mark.parametrize(
    "fields",
    [
        {"StorageOpt": ["size"]},
        {"StorageOpt": {"size": 1}},
        {"Parent": 1},
    ],
)
def test_a_field_of_another_type(client: Client, driver: FakeDriver, fields: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=next(iter(fields))):
        client.call("Create", ID="a", **fields)
    assert driver.calls == []


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"Home": ""},
        {"Home": "relative"},
        {"Home": "/h", "Opts": "ceph.fs=xfs"},
        {"Home": "/h", "Opts": [1]},
        {"Home": "/h", "UIDMaps": [{"container_id": 0}]},
        {"Home": "/h", "UIDMaps": [{"container_id": 0, "host_id": "x", "size": 1}]},
        {"Home": "/h", "UIDMaps": {"container_id": 0}},
    ],
)
def test_an_init_that_is_none(client: Client, fields: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="Init") as caught:
        client.call("Init", **fields)
    assert caught.value.status == 400


def test_a_bad_storage_option_is_told_by_init(client: Client) -> None:
    with pytest.raises(Refused, match=r"unknown storage option 'ceph\.x'; valid are ceph\.basesize"):
        client.call("Init", Home="/nonexistent/home", Opts=["ceph.x=1"])


def test_an_unknown_method(client: Client) -> None:
    with pytest.raises(Refused, match=r"unknown method GraphDriver\.Fly; known are Init, Capabilities") as caught:
        client.call("Fly")
    assert caught.value.status == 404


def test_an_unknown_path_does_not_spoil_the_connection(connection: Connection) -> None:
    """Its body must not be read as the next request."""
    assert connection.post("/VolumeDriver.Create", BODY).status == 404
    assert connection.post(GET, BODY).json() == {"Dir": "/a"}


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "BREW"])
def test_another_verb_is_refused_as_json(client: Client, method: str) -> None:
    link = raw(client, f"{method} /GraphDriver.Get HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    status, _, body = read_to_end(link).partition(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 501")
    assert "Unsupported method" in json.loads(body)["Err"]


def test_a_request_that_is_no_http(client: Client) -> None:
    answer = read_to_end(raw(client, b"\x16\x03\x01\x02\x00\x01\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"Err"' in answer


# -- archives ----------------------------------------------------------------------------------------


def test_an_archive_is_read_to_its_end_before_the_answer(connection: Connection, driver: FakeDriver) -> None:
    """A driver that stops at the archive's end leaves zeros behind: tar-split wants them read."""
    driver.apply = lambda stream: len(stream.read(10))
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for piece in in_pieces(b"x" * 10 + bytes(5 << 20)):
            yield piece
            sent += len(piece)

    assert connection.post(APPLY, pieces()).json() == {"Size": 10}
    assert sent == 10 + (5 << 20)
    assert connection.post(GET, BODY).json() == {"Dir": "/a"}


def test_an_archive_comes_through_unchanged(client: Client, driver: FakeDriver) -> None:
    archive = os.urandom(1 << 20)
    assert client.apply_diff("a", archive) == len(archive)
    assert driver.applied == archive
    assert driver.calls == [("apply_diff", "a")]


def test_an_archive_with_a_length(client: Client, driver: FakeDriver) -> None:
    assert client.post(APPLY, b"whole").json() == {"Size": 5}


def test_a_refused_archive_is_still_read(client: Client, driver: FakeDriver) -> None:
    """The client sends on until it is answered; it must see the reason and not a broken pipe."""

    def refuse(_: Any) -> int:
        raise LayerError("no archive today")

    driver.apply = refuse
    with pytest.raises(Refused, match="no archive today"):
        client.apply_diff("a", bytes(20 << 20))


def test_a_defect_in_the_middle_of_an_archive(connection: Connection, driver: FakeDriver) -> None:
    driver.apply = lambda stream: dict[bytes, int]()[stream.read(10)]
    assert connection.post(APPLY, in_pieces(bytes(8 << 20))).status == 500
    assert connection.post(GET, BODY).json() == {"Dir": "/a"}


@pytest.mark.parametrize("query", ["", "?", "?parent=b", "?idx=1"])
def test_an_archive_without_an_id(client: Client, driver: FakeDriver, query: str) -> None:
    with pytest.raises(Refused, match="has no id"):
        client.post("/GraphDriver.ApplyDiff" + query, in_pieces(b"x")).json()
    assert driver.calls == []


def test_an_archive_goes_out_in_chunks(client: Client, driver: FakeDriver) -> None:
    driver.archive = lambda: iter([b"one", b"", b"two", bytes(1 << 20)])
    answer = client.post("/GraphDriver.Diff", BODY)
    assert answer.headers["Content-Type"] == "application/x-tar"
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert "Connection" not in answer.headers
    assert answer.body == b"onetwo" + bytes(1 << 20)
    assert driver.diffs_ended == 1


def test_an_archive_of_nothing(connection: Connection, driver: FakeDriver) -> None:
    driver.archive = lambda: iter([])
    assert connection.post("/GraphDriver.Diff", BODY).body == b""
    assert connection.post(GET, BODY).json() == {"Dir": "/a"}


def test_an_error_before_the_first_byte_has_a_status(connection: Connection, driver: FakeDriver) -> None:
    def fail() -> Iterator[bytes]:
        raise LayerError("no such layer")
        yield b""

    driver.archive = fail
    with pytest.raises(Refused, match="no such layer") as caught:
        connection.post("/GraphDriver.Diff", BODY).json()
    assert caught.value.status == 500
    assert connection.post(GET, BODY).json() == {"Dir": "/a"}


def counted(result: str) -> int:
    """How many Gets had this result."""
    found = re.search(rf'^docker_graph_driver_requests_total{{method="Get",result="{result}"}} (\d+)$', text({}), re.M)
    return int(found[1]) if found else 0


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (LayerRefused("layer a does not exist"), "refused"),
        (OptionError("unknown storage option"), "refused"),
        (LayerBusy("somebody holds it"), "failed"),
        (LayerError("it is broken"), "failed"),
        (OSError(5, "lost"), "failed"),
        (KeyError("lost"), "defect"),
    ],
)
def test_what_an_operator_is_told_of_it(
    connection: Connection, driver: FakeDriver, error: Exception, result: str
) -> None:
    """Docker is told the same in any case: 500, with the words."""

    def fail(_: str) -> str:
        raise error

    before = counted(result)
    driver.on_get = fail
    with pytest.raises(Refused) as caught:
        connection.post(GET, BODY).json()
    assert caught.value.status == 500
    wait_until(lambda: counted(result) == before + 1, "it is counted")


@pytest.mark.parametrize("error", [LayerError("lost"), KeyError("lost"), OSError(5, "lost")])
def test_an_error_after_it_breaks_the_stream_off(client: Client, driver: FakeDriver, error: Exception) -> None:
    """Never an end of the chunks, never a text that would be read as a part of the archive."""

    def fail() -> Iterator[bytes]:
        yield b"first"
        raise error

    driver.archive = fail
    with pytest.raises(BrokenOff):
        client.diff("a")
    link = raw(client, head_of("/GraphDriver.Diff", f"Content-Length: {len(BODY)}"), BODY)
    assert read_to_end(link).endswith(b"\r\n\r\n5\r\nfirst\r\n")
    assert driver.diffs_ended == 2


def test_a_client_that_goes_away_ends_the_diff(client: Client, driver: FakeDriver) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 16)

    driver.archive = endless
    connection, answer = client.open_diff("a")
    answer.read(1 << 16)
    answer.close()
    connection.close()
    wait_until(lambda: driver.diffs_ended == 1, "the diff is closed")
    assert client.get("a") == "/a"


def test_a_diff_may_feed_an_apply_diff(client: Client, driver: FakeDriver) -> None:
    driver.archive = lambda: in_pieces(b"x" * (4 << 20))
    connection, answer = client.open_diff("a")
    assert client.apply_diff("b", iter(lambda: answer.read(65536), b"")) == 4 << 20
    connection.close()


# -- clients of all kinds ----------------------------------------------------------------------------


def test_slow_clients_do_not_hold_up_others(client: Client) -> None:
    slow = [
        raw(client),
        raw(client, b"POST /Graph"),
        raw(client, head_of(GET, "Content-Length: 11"), b'{"ID"'),
        raw(client, chunked(), b"5\r\nhel"),
    ]
    assert client.get("a") == "/a"
    slow[2].sendall(b':"b"}\n')
    assert b'"/b"' in receive(slow[2], b"}")
    for link in slow:
        link.close()


def test_a_client_that_stops_in_the_middle_is_let_go(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(server, "STREAM_SECONDS", 0.2)
    for pieces in ([b"POST /Graph"], [head_of(GET, "Content-Length: 11"), b'{"ID"'], [chunked(), b"5\r\nhel"]):
        assert b"200" not in read_to_end(raw(client, *pieces))


@pytest.mark.parametrize("sent", [[chunked(), b"5\r\nhel"], [chunked()], [head_of(APPLY, "Content-Length: 9"), b"hel"]])
def test_an_archive_whose_client_falls_asleep_is_abandoned(
    client: Client,
    driver: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    sent: list[bytes],
) -> None:
    """No daemon will ever remove half a layer whose sender has stopped: it is removed, and its connection ends."""
    monkeypatch.setattr(server, "STREAM_SECONDS", 0.2)
    caplog.set_level(logging.INFO)
    assert read_to_end(raw(client, *sent)) == b"", "there is nobody to answer"
    wait_until(lambda: "the client went away" in caplog.text, "the log says why")
    assert driver.calls == [("apply_diff", "a"), ("remove", "a")]


def test_a_client_may_be_silent_between_requests(
    client: Client, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that meets a closing connection would be repeated with an empty body."""
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.2)
    assert connection.post(GET, BODY).status == 200
    sock = connection.sock
    threading.Event().wait(0.6)
    assert connection.post(GET, BODY).status == 200
    assert connection.sock is sock


def test_500_idle_connections(client: Client) -> None:
    idle = []
    for _ in range(500):
        idle.append(raw(client))
    assert client.get("a") == "/a"
    for number, link in enumerate(idle):
        if number % 50 == 0:
            link.sendall(head_of(GET, f"Content-Length: {len(BODY)}") + BODY)
            assert b"200 OK" in receive(link, b"}")
        link.close()


def test_the_socket_is_for_root_alone(client: Client) -> None:
    assert os.stat(client.path).st_mode & 0o777 == 0o600
