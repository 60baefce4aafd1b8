"""target.py: which front end is meant, with which home and options, by what lies on a host."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from doctor import target
from doctor.target import DOCKER, SNAPSHOTTER, Target, Wanted
from host import command
from images.options import DEFAULTS, OptionError
from protocol import init_state
from protocol.request import Request
from snapshotter import front, settings

DAEMON = {"storage-driver": "ceph", "storage-opts": ["ceph.datapool=docker"], "data-root": "/data"}
CONFIG = '[proxy_plugins.ours]\ntype = "snapshot"\naddress = "{}"\n'


class Host:
    """A host with both programs, on which nothing was started or configured yet."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.socket = str(directory / "ceph.sock")
        self.programs = {"dockerd", "containerd"}
        monkeypatch.setattr(command, "find", lambda name: name if name in self.programs else None)
        monkeypatch.setattr(front, "ROOT", str(directory / "root"))
        monkeypatch.setattr(front, "ADDRESS", str(directory / "snapshotter.sock"))

    def find(self, *words: str, **said: str) -> Target:
        configs = {name: str(self.directory / name) for name in ("daemon.json", "config.toml")}
        wanted = Wanted(
            said.get("front", ""),
            said.get("socket", ""),
            said.get("state", ""),
            said.get("root", ""),
            words,
            configs["daemon.json"],
            configs["config.toml"],
            self.socket,
        )
        return target.find(wanted)

    def docker(self) -> None:
        (self.directory / "daemon.json").write_text(json.dumps(DAEMON), encoding="ascii")

    def containerd(self) -> None:
        (self.directory / "config.toml").write_text(CONFIG.format(front.ADDRESS), encoding="ascii")

    def init(self, *opts: str) -> None:
        request = Request("Init", json.dumps({"Home": "/kept", "Opts": opts}).encode())
        init_state.save(self.socket + ".state", request)

    def snapshotter(self, *words: str) -> None:
        Path(front.ROOT).mkdir()
        settings.save(front.ROOT, words)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_which_front_end_is_meant(host: Host) -> None:
    assert host.find().front == DOCKER
    host.programs = {"containerd"}
    assert host.find().front == SNAPSHOTTER
    host.docker()
    assert host.find().front == DOCKER
    host.containerd()
    assert host.find().front == SNAPSHOTTER
    host.init()
    assert host.find().front == DOCKER
    assert host.find(root="/root").front == SNAPSHOTTER
    assert host.find(front=SNAPSHOTTER).front == SNAPSHOTTER
    Path(host.socket + ".state").unlink()
    host.snapshotter()
    assert host.find().front == SNAPSHOTTER
    assert host.find(state="/state").front == DOCKER


def test_a_driver_before_its_first_start_is_as_docker_s_configuration_has_it(host: Host) -> None:
    host.docker()
    found = host.find()
    assert (found.home, found.options.datapool) == ("/data/ceph", "docker")
    assert (found.socket, found.state) == (host.socket, host.socket + ".state")
    assert host.find("ceph.client=me").options.client == "me"
    other = host.find(socket=str(host.directory / "other.sock"))
    assert (other.home, other.options) == ("/data/other", DEFAULTS)


def test_a_driver_is_as_docker_has_started_it(host: Host) -> None:
    host.docker()
    host.init("ceph.datapool=kept")
    found = host.find("ceph.client=me")
    assert (found.home, found.options.datapool, found.options.client) == ("/kept", "kept", "me")
    assert host.find().options.client == DEFAULTS.client
    assert found.settings() == f"{host.socket}.state: Docker has used the driver with home /kept"


@pytest.mark.parametrize("word", [DOCKER, SNAPSHOTTER])
def test_what_is_given_wins_over_the_last_start(host: Host, word: str) -> None:
    """Who tries a new key must not be told that the old one is well. What is not given is as at that start."""
    kept = ("ceph.datapool=kept", "ceph.client=old", "ceph.mkfsarg=-K", "ceph.mkfsarg=-q")
    host.docker()
    host.init(*kept)
    host.snapshotter(*kept)
    found = host.find("ceph.client=new", "ceph.mkfsarg=-f", front=word).options
    assert (found.datapool, found.client, found.mkfsarg) == ("kept", "new", ("-f",))


def test_settings_that_are_damaged_are_left_to_their_check(host: Host) -> None:
    host.docker()
    Path(host.socket + ".state").write_text("{", encoding="ascii")
    found = host.find("ceph.client=me")
    assert (found.front, found.home) == (DOCKER, "/data/ceph")
    assert (found.options.datapool, found.options.client) == ("docker", "me")
    with pytest.raises(init_state.NoUse, match="is of no use, restart dockerd: "):
        found.settings()


def test_a_snapshotter(host: Host) -> None:
    found = host.find("ceph.datapool=docker", front=SNAPSHOTTER)
    assert (found.home, found.options.datapool, found.socket) == (front.ROOT, "docker", front.ADDRESS)
    host.snapshotter("ceph.datapool=kept")
    found = host.find()
    assert (found.home, found.options.datapool) == (front.ROOT, "kept")
    assert found.settings() == f"{front.ROOT}/{settings.FILE}: a snapshotter was started with this root"
    Path(front.ROOT, settings.FILE).write_text("{", encoding="ascii")
    assert host.find().options == DEFAULTS
    assert host.find("ceph.client=me").options == replace(DEFAULTS, client="me")


def test_a_snapshotter_whose_last_start_had_an_option_of_another_version(host: Host) -> None:
    host.snapshotter("ceph.gone=1")
    assert host.find("ceph.client=me").options == replace(DEFAULTS, client="me")


@pytest.mark.parametrize(
    ("words", "told"),
    [((), "pool docker, client.admin"), (("ceph.namespace=ward", "ceph.client=me"), "pool docker/ward, client.me")],
)
def test_it_says_what_is_looked_at(host: Host, words: tuple[str, ...], told: str) -> None:
    host.docker()
    assert str(host.find(*words, front=DOCKER)) == f"docker (as told), home /data/ceph, {told}"


def test_an_option_that_there_is_not(host: Host) -> None:
    for word in (DOCKER, SNAPSHOTTER):
        with pytest.raises(OptionError):
            host.find("ceph.nothing=1", front=word)
