"""The doctor on a real cluster: what is well, what is not, in Init's words; and nothing of its trial is ever left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from lab import Cluster, StartPlugin, mounts_below
from lab_fixtures import NewId, lab_options, refusal, restricted
from plugin_client import PYTHON, REPO, SLOWNESS, PluginProcess, make_tar, wait_until

PROGRAM = os.path.join(REPO, "docker_graph_driver.py")
TRIAL = "docker-graph-driver-doctor-"
POOL = "doctored"


class Said(NamedTuple):
    """What a doctor ended with, and what it told of each check: the status and the words."""

    status: int
    checks: dict[str, tuple[str, str]]

    def of(self, status: str) -> dict[str, str]:
        """The words of the checks with that outcome."""
        return {name: text for name, (outcome, text) in self.checks.items() if outcome == status}


class Doctor:
    """Runs it for a driver that Docker is configured for, and that does not run."""

    def __init__(self, cluster: Cluster, directory: str) -> None:
        self.cluster = cluster
        self.directory = directory
        self.socket = os.path.join(directory, "doctored.sock")

    def argv(self, *words: str, socket: str = "", **options: str) -> list[str]:
        """The command line, with these storage options."""
        socket = socket or self.socket
        name = os.path.basename(socket).partition(".")[0]
        config = os.path.join(self.directory, f"daemon-{name}.json")
        said = {"experimental": True, "storage-driver": name, "data-root": self.directory}
        with open(config, "w", encoding="ascii") as target:
            json.dump(said, target)
        chosen: dict[str, Any] = {**lab_options(), "configfile": self.cluster.conf, **options}
        words = ("--socket", socket, "--docker-config", config, *words)
        pairs = [word for key, value in chosen.items() for word in ("--option", f"ceph.{key}={value}")]
        return [PYTHON, PROGRAM, "doctor", "--front", "docker", *words, *pairs]

    def run(self, *words: str, socket: str = "", **options: str) -> Said:
        """What it says."""
        done = subprocess.run(
            self.argv("--json", *words, socket=socket, **options),
            env=self.cluster.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300 * SLOWNESS,
            check=False,
        )
        assert done.stderr == ""
        said = json.loads(done.stdout)
        assert said["status"] == done.returncode
        return Said(done.returncode, {item["check"]: (item["status"], item["text"]) for item in said["checks"]})

    def start(self, **options: str) -> subprocess.Popen[str]:
        """One that runs until its trial is mapped."""
        process = subprocess.Popen(
            self.argv(**options),
            env=self.cluster.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: self.mapped() or process.poll() is not None, "the trial is mapped")
        return process

    def mapped(self) -> list[str]:
        """The trials that are mapped."""
        return [name for name in self.cluster.mapped() if name.startswith(TRIAL)]

    def left(self, pool: str = "rbd") -> list[str]:
        """Whatever there is of any trial."""
        there = [*self.cluster.images(TRIAL, pool), *self.cluster.trash(TRIAL, pool), *self.mapped()]
        return there + [point for point in mounts_below("/run") if TRIAL in point]


@pytest.fixture
def doctor(cluster: Cluster, session_directory: str) -> Iterator[Doctor]:
    """A doctor, of which nothing may be left at the end of a test."""
    made = Doctor(cluster, session_directory)
    yield made
    assert made.left() == []


def commands_of_trials() -> list[str]:
    """The commands that still work for a doctor that was killed."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as source:
                words = source.read().split("\0")
        except OSError:
            continue
        programs = {os.path.basename(word) for word in words[:2]}
        if any(TRIAL in word for word in words) and programs & {"rbd", "mount", "umount", "mkdir"}:
            found.append(pid)
    return found


# -- all is well -----------------------------------------------------------------------------------


def test_a_cluster_that_is_well(doctor: Doctor, cluster: Cluster) -> None:
    before = (cluster.rbd("ls"), cluster.rbd("trash", "ls"), cluster.mapped(), sorted(os.listdir("/run")))
    said = doctor.run()
    assert (said.status, said.of("broken"), said.of("improve")) == (0, {}, {})
    for name in ("cluster", "space", "create", "clone", "map", "mount", "remove", "blocklist", "host name", "clock"):
        assert said.checks[name][0] == "ok"
    assert (cluster.rbd("ls"), cluster.rbd("trash", "ls"), cluster.mapped(), sorted(os.listdir("/run"))) == before
    wait_until(lambda: "192.0.2.1" not in cluster.ceph("osd", "blocklist", "ls"), "nobody's address is forgotten")


def test_the_key_of_the_readme_is_enough(doctor: Doctor, cluster: Cluster, session_directory: str) -> None:
    caps = ("mon", "profile rbd", "osd", "profile rbd pool=rbd", "mgr", "profile rbd pool=rbd")
    conf = restricted(cluster, session_directory, "healthy", caps)
    said = doctor.run(client="healthy", configfile=conf)
    assert (said.status, said.of("broken"), said.of("improve")) == (0, {}, {})


@pytest.mark.parametrize("options", [{"fs": "ext4"}, {"namespace": "ward"}])
def test_other_options(doctor: Doctor, cluster: Cluster, options: dict[str, str]) -> None:
    if "namespace" in options:
        cluster.rbd("namespace", "create", "rbd/ward")
    said = doctor.run(imageprefix="doctored", **options)
    assert (said.status, said.of("broken")) == (0, {})
    if "namespace" in options:
        assert doctor.left("rbd/ward") == []
        cluster.rbd("namespace", "rm", "rbd/ward")


def test_a_driver_that_serves_is_not_disturbed(doctor: Doctor, plugin: PluginProcess, new_id: NewId) -> None:
    layer = plugin.client.create(new_id())
    plugin.client.apply_diff(layer, make_tar({"f": "x"}))
    said = doctor.run(socket=plugin.socket)
    assert (said.status, said.of("broken"), said.of("improve")) == (0, {}, {})
    assert plugin.process
    assert said.checks["socket"] == ("ok", f"process {plugin.process.pid} serves {plugin.socket}")
    assert plugin.home in said.checks["state file"][1]
    assert said.checks["base image"] == ("ok", "it fits the options")
    assert plugin.client.listing(layer) == ["f"]
    assert "lost" not in plugin.log_text()


def test_a_socket_that_was_left_behind(doctor: Doctor, plugin: PluginProcess) -> None:
    plugin.kill()
    said = doctor.run(socket=plugin.socket)
    assert (said.status, [*said.of("improve")]) == (1, ["socket"])


# -- something is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "caps", "status", "check", "words"),
    [
        (
            "reader",
            ("mon", "profile rbd", "osd", "profile rbd-read-only pool=rbd"),
            2,
            "create",
            "client.reader may not create images in pool rbd: ",
        ),
        (
            "unfenced",
            ("mon", "allow r", "osd", "profile rbd pool=rbd"),
            1,
            "blocklist",
            "client.unfenced may not put a client that is dead on the blocklist, so takeover fails",
        ),
    ],
)
def test_a_right_that_is_missing(
    doctor: Doctor,
    cluster: Cluster,
    session_directory: str,
    name: str,
    caps: tuple[str, ...],
    status: int,
    check: str,
    words: str,
) -> None:
    said = doctor.run(client=name, configfile=restricted(cluster, session_directory, name, caps))
    assert said.status == status
    found = {**said.of("broken"), **said.of("improve")}
    assert [*found] == [check]
    assert found[check].startswith(words)
    assert f"ceph auth caps client.{name} mon 'profile rbd' osd 'profile rbd pool=rbd'" in found[check]


@pytest.mark.parametrize(
    ("check", "options"),
    [
        ("pool", {"datapool": "nosuch"}),
        ("configuration", {"configfile": "/nonexistent"}),
        ("namespace", {"namespace": "nosuch"}),
        ("object pool", {"objectpool": "nosuch"}),
    ],
)
def test_it_says_what_an_init_says(
    doctor: Doctor, start_plugin: StartPlugin, check: str, options: dict[str, str]
) -> None:
    said = doctor.run(**options)
    assert (said.status, [*said.of("broken")]) == (2, [check])
    assert said.checks[check][1] in refusal(start_plugin, **options)


def test_a_base_image_that_does_not_fit(doctor: Doctor, start_plugin: StartPlugin) -> None:
    start_plugin(imageprefix="fitting", basesize="1G")
    said = doctor.run(imageprefix="fitting", fs="ext4")
    assert (said.status, [*said.of("broken")]) == (2, ["base image"])
    assert said.checks["base image"][1] in refusal(start_plugin, imageprefix="fitting", fs="ext4")


@pytest.fixture
def pool(cluster: Cluster) -> Iterator[str]:
    """A pool of its own; its name."""
    cluster.ceph("osd", "pool", "create", POOL, "4")
    cluster.rbd("pool", "init", POOL)
    yield POOL
    cluster.ceph("config", "set", "mon", "mon_allow_pool_delete", "true")
    cluster.ceph("osd", "pool", "rm", POOL, POOL, "--yes-i-really-really-mean-it")
    wait_until(lambda: "HEALTH_OK" in cluster.ceph("health"), "the cluster is well")


def test_a_pool_that_is_full(doctor: Doctor, cluster: Cluster, pool: str) -> None:
    """What would hang in it is not tried."""
    cluster.run(["rados", "--conf", cluster.conf, "--pool", pool, "put", "fill", PROGRAM])
    cluster.ceph("osd", "pool", "set-quota", pool, "max_bytes", "1024")
    wait_until(lambda: "POOL_FULL" in cluster.ceph("health", "detail"), "the quota is noticed")
    began = time.monotonic()
    said = doctor.run(datapool=pool)
    assert time.monotonic() - began < 60 * SLOWNESS
    assert (said.status, [*said.of("broken")]) == (2, ["space"])
    assert said.checks["space"][1].startswith(f"pool {pool} is full and takes no new data")
    assert said.checks["create"][0] == "not checked"
    assert "health" in said.of("improve")
    assert doctor.left(pool) == []


def test_a_pool_without_an_application(doctor: Doctor, cluster: Cluster, pool: str) -> None:
    cluster.ceph("osd", "pool", "application", "disable", pool, "rbd", "--yes-i-really-mean-it")
    said = doctor.run(datapool=pool)
    assert said.status == 1
    assert said.of("improve")["application"].endswith(f"do: ceph osd pool application enable {pool} rbd")
    assert doctor.left(pool) == []


def test_no_cluster(doctor: Doctor, cluster: Cluster, session_directory: str) -> None:
    """Nobody listens there. It ends in time, and says so once."""
    conf = os.path.join(session_directory, "nowhere.conf")
    with open(cluster.conf, encoding="ascii") as source, open(conf, "w", encoding="ascii") as target:
        target.writelines(
            "mon_host = 127.0.0.1:1\n" if line.startswith("mon_host") else line for line in source.readlines()
        )
    began = time.monotonic()
    said = doctor.run(configfile=conf)
    assert time.monotonic() - began < 60 * SLOWNESS
    assert (said.status, [*said.of("broken")]) == (2, ["cluster"])
    assert said.checks["cluster"][1].startswith(f"no Ceph cluster answers client.admin with {conf}")
    assert said.checks["remove"] == ("not checked", "it makes no sense without: create")


def test_a_cluster_that_stops_answering(doctor: Doctor, cluster: Cluster) -> None:
    """While the trial is mapped: it ends all the same; what it had to leave goes with the next."""
    process = doctor.start()
    os.kill(cluster.daemon("osd.0"), signal.SIGSTOP)
    try:
        out, _ = process.communicate(timeout=400 * SLOWNESS)
    finally:
        os.kill(cluster.daemon("osd.0"), signal.SIGCONT)
    assert process.returncode in (0, 2), out
    wait_until(lambda: commands_of_trials() == [], "its commands have ended")
    wait_until(lambda: "HEALTH_OK" in cluster.ceph("health"), "the cluster is well")
    assert doctor.run().status == 0


# -- interrupted -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(doctor: Doctor, number: signal.Signals) -> None:
    process = doctor.start()
    process.send_signal(number)
    out, _ = process.communicate(timeout=120 * SLOWNESS)
    lines: Sequence[str] = out.splitlines()
    # It may have been just over.
    if process.returncode != 0:
        assert process.returncode == 128 + number
        assert lines[-1].startswith("doctor: not checked: interrupted")
    assert doctor.left() == []


def test_killed(doctor: Doctor) -> None:
    """What is left then goes with the next one."""
    process = doctor.start()
    process.kill()
    process.communicate()
    wait_until(lambda: commands_of_trials() == [], "its commands have ended")
    assert doctor.run().status == 0
