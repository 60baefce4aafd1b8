"""What is told to systemd: real datagrams, and a driver that asks for nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_client import PluginProcess, Refused, wait_until

from host import notify


@contextlib.contextmanager
def listener(address: str) -> Iterator[socket.socket]:
    """The end of whoever starts services; `address` as it stands in NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + address[1:] if address.startswith("@") else address)
        receiver.settimeout(30)
        yield receiver


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, short: Path) -> str:
    """Both kinds of addresses that systemd uses."""
    return str(short / "notify") if request.param == "path" else f"@dgd-test-{secrets.token_hex(8)}"


def started_by(address: str, short: Path) -> PluginProcess:
    """The driver as a service that is asked to tell how far it is."""
    process = PluginProcess(str(short / "p"), os.environ)
    process.start(NOTIFY_SOCKET=address)
    return process


def test_messages_are_one_datagram(address: str) -> None:
    with listener(address) as receiver:
        notify.Notifier({"NOTIFY_SOCKET": address}).tell("READY=1", "STATUS=listening")
        assert receiver.recv(4096) == b"READY=1\nSTATUS=listening"


def test_the_variable_is_gone_afterwards() -> None:
    environment = {"NOTIFY_SOCKET": "@x", "PATH": "/bin"}
    notify.Notifier(environment)
    assert environment == {"PATH": "/bin"}


def test_nobody_asked() -> None:
    notify.Notifier({}).tell("READY=1")


@pytest.mark.parametrize(
    "broken", ["/nonexistent/notify", "@nobody-listens-there", "/", "relative", "vsock:2:1", "/" * 200]
)
def test_a_broken_address_is_logged_and_no_more(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    notify.Notifier({"NOTIFY_SOCKET": broken}).tell("READY=1", "STATUS=x")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "READY=1" in caplog.text


def test_a_listener_that_reads_nothing_stops_nobody(
    short: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "SEND_SECONDS", 0.1)
    address = str(short / "notify")
    with listener(address):
        notifier = notify.Notifier({"NOTIFY_SOCKET": address})
        # The kernel keeps some (net.unix.max_dgram_qlen).
        for _ in range(10_000):
            notifier.tell("STATUS=once more")
            if caplog.records:
                break
    assert "timed out" in caplog.text


def test_the_driver_says_when_it_listens_and_when_it_ends(address: str, short: Path) -> None:
    with listener(address) as receiver:
        process = started_by(address, short)
        try:
            assert receiver.recv(4096).decode().splitlines() == ["READY=1", f"STATUS=listening on {process.socket}"]
            # Who was waiting for READY may connect at once.
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(process.socket)
        finally:
            assert process.terminate() == 0
        assert receiver.recv(4096).decode().splitlines() == ["STOPPING=1", "STATUS=finishing what runs"]


def test_ready_is_not_said_before_the_driver_listens(short: Path) -> None:
    address = str(short / "notify")
    (short / "p").mkdir()
    # It looks at its home first, where a command hangs.
    tools = short / "tools"
    tools.mkdir()
    (tools / "rbd").write_text(
        f"#!/bin/sh\ntouch {short}/asked\nwhile [ ! -e {short}/go ]; do sleep 0.05; done\necho []\n"
    )
    (tools / "rbd").chmod(0o755)
    process = PluginProcess(str(short / "p"), os.environ)
    (Path(process.home) / "mnt" / "a" / "removed").mkdir(parents=True)
    Path(process.socket + ".state").write_text(
        json.dumps({"Format": "2", "Home": process.home, "Opts": None}), encoding="ascii"
    )
    with listener(address) as receiver:
        process.launch(NOTIFY_SOCKET=address, PATH=f"{tools}:{os.environ['PATH']}")
        try:
            wait_until((short / "asked").exists, "it looks at its home")
            receiver.setblocking(False)
            with pytest.raises(BlockingIOError):
                receiver.recv(4096)
            assert not os.path.exists(process.socket)
            (short / "go").touch()
            receiver.settimeout(30)
            assert receiver.recv(4096).startswith(b"READY=1\n")
        finally:
            (short / "go").touch()
            # Not killed: a command of its would go on, and write where the test cleans up.
            assert process.terminate() == 0


@pytest.mark.parametrize("broken", ["", "/nonexistent/notify", "@nobody-listens-there", "relative"])
def test_a_driver_with_a_broken_address_serves(broken: str, short: Path) -> None:
    process = started_by(broken, short)
    try:
        assert process.client.call("Capabilities")
    finally:
        assert process.terminate() == 0


def test_the_commands_of_the_driver_do_not_get_the_variable(short: Path) -> None:
    """rbd-nbd lives as long as a container, and must not speak for the service."""
    tools = short / "tools"
    tools.mkdir()
    for name in ("rbd", "rados", "ceph"):
        (tools / name).write_text(f"#!/bin/sh\nenv >>{short}/environment\nexit 2\n")
        (tools / name).chmod(0o755)
    for name in ("mount", "umount", "mkfs.xfs", "xfs_growfs"):
        (tools / name).symlink_to("/bin/true")
    (short / "ceph.conf").touch()
    address = str(short / "notify")
    with listener(address) as receiver:
        process = PluginProcess(str(short / "p"), os.environ, [f"ceph.configfile={short}/ceph.conf"])
        process.start(NOTIFY_SOCKET=address, PATH=f"{tools}:{os.environ['PATH']}")
        try:
            assert receiver.recv(4096).startswith(b"READY=1\n")
            with pytest.raises(Refused, match="no Ceph cluster answers"):
                process.init()
        finally:
            assert process.terminate() == 0
    environment = (short / "environment").read_text()
    assert "PATH=" in environment
    assert "NOTIFY_SOCKET" not in environment
