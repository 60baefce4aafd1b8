"""What Docker does not name is removed: so a Docker of which a part is not there must not be taken for whole.

Every test has a stopped container, whose layers are as old as anything, and looks at what gc would remove.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_tree import BOLT_META
from unit.inspected import HOUR, Host, moved, new_id

from maintenance import docker_database, knowledge

# A dockerd, as far as others see it: its name, and the lock of a database, whose path it is given.
DOCKERD = """
import fcntl, sys
database = open(sys.argv[1], "rb")
fcntl.flock(database, fcntl.LOCK_EX)
open("/proc/self/comm", "w").write("dockerd")
print(flush=True)
sys.stdin.read()
"""
ORPHAN, RECORD = "orphan-image", "stale-record"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing changes here while it is looked at, unless a test does it."""
    monkeypatch.setattr(docker_database, "PAUSE_SECONDS", 0.0, raising=False)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A Docker with an image of two layers, and a container of it."""
    host = Host(tmp_path)
    low, high = host.image(), host.image()
    host.docker.layer(high, host.docker.layer(low))
    host.docker.image("small", low, high)
    host.container()
    return host


@pytest.fixture
def dockerd(host: Host) -> Iterator[None]:
    """A dockerd runs on it, which has started just now."""
    with running(os.path.join(host.docker.buildkit, "snapshots.db")):
        yield


def running(database: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", DOCKERD, database], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return process


def refuses(host: Host, words: str) -> None:
    """It is told in one line what is missing."""
    with pytest.raises((knowledge.DatabaseMissing, OSError)) as raised:
        host.dead()
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def first(directory: str) -> str:
    return os.path.join(directory, sorted(os.listdir(directory))[0])


def test_what_docker_knows_is_not_dead(host: Host) -> None:
    assert host.dead() == set()


def test_what_docker_does_not_know_is_dead(host: Host) -> None:
    layer = host.image()
    assert host.dead() == {(ORPHAN, layer)}


@pytest.mark.usefixtures("dockerd")
def test_containers_that_are_not_mounted_yet(host: Host) -> None:
    """A dockerd that has started meanwhile knows no better, and has even made another container since."""
    with moved(host.docker.containers):
        os.mkdir(host.docker.containers)
        host.container(age=-60)
        refuses(host, "containers")
        for name in os.listdir(host.docker.containers):
            host.docker.removed(name)
        os.rmdir(host.docker.containers)
        refuses(host, "containers")


def test_one_container_that_is_not_there(host: Host) -> None:
    """Without a dockerd nothing tells a copy that is under way from a container that was removed."""
    name, _ = host.container()
    host.docker.removed(name)
    refuses(host, f"container {name[:12]} has layers but is not in")


@pytest.mark.parametrize("what", ["sha256", "mounts"])
def test_a_part_of_the_layer_store_that_is_empty(host: Host, what: str) -> None:
    with moved(os.path.join(host.docker.layerdb, what)):
        refuses(host, "layerdb")
        os.mkdir(os.path.join(host.docker.layerdb, what))
        refuses(host, "layerdb")
        os.rmdir(os.path.join(host.docker.layerdb, what))


def test_images_that_are_not_there(host: Host) -> None:
    """Then their layers may be missing too, and nobody misses them."""
    with moved(host.docker.images):
        refuses(host, "imagedb")
        os.mkdir(host.docker.images)
        refuses(host, "small:latest is an image that is not in")
        os.rmdir(host.docker.images)


@pytest.mark.parametrize("text", [None, "", "73f386", "sha256:" + 64 * "0"])
@pytest.mark.parametrize("file", ["cache-id", "diff", "parent", "mount-id", "init-id"])
def test_a_file_of_the_layer_store_that_is_not_whole(host: Host, file: str, text: str | None) -> None:
    chains = os.path.join(host.docker.layerdb, "sha256")
    directory = first(os.path.join(host.docker.layerdb, "mounts"))
    if file in ("cache-id", "diff", "parent"):
        directory = next(
            os.path.join(chains, name)
            for name in os.listdir(chains)
            if "parent" in os.listdir(os.path.join(chains, name))
        )
    os.unlink(os.path.join(directory, file))
    if text is not None:
        with open(os.path.join(directory, file), "w", encoding="ascii") as target:
            target.write(text)
    refuses(host, file)


@pytest.mark.parametrize("place", ["image", "reference", "config"])
def test_a_file_that_is_empty(host: Host, place: str) -> None:
    config = os.path.join(host.docker.containers, new_id(), "config.v2.json")
    os.makedirs(os.path.dirname(config))
    path = {"image": first(host.docker.images), "reference": host.docker.names, "config": config}[place]
    with open(path, "w", encoding="ascii"):
        pass
    refuses(host, f"{path} is empty or damaged")


@pytest.mark.parametrize("content", ["[]", '{"rootfs": 1}', '{"rootfs": {"diff_ids": 1}}', "no json"])
def test_an_image_that_is_none(host: Host, content: str) -> None:
    """Its name is the sum of what it holds, as if Docker had written it."""
    path = os.path.join(host.docker.images, hashlib.sha256(content.encode()).hexdigest())
    Path(path).write_text(content, encoding="ascii")
    refuses(host, f"{path} is empty or damaged")


def test_a_file_that_cannot_be_read(host: Host) -> None:
    path = first(first(os.path.join(host.docker.layerdb, "mounts")))
    os.unlink(path)
    os.symlink(path, path)
    refuses(host, path)


def test_a_container_without_its_record(host: Host) -> None:
    """But one that Docker is removing, or another driver's, has none."""
    for said in ('{"Driver": "ceph", "State": {"Dead": true}}', '{"Driver": "overlay2"}'):
        os.makedirs(directory := os.path.join(host.docker.containers, new_id()))
        with open(os.path.join(directory, "config.v2.json"), "w", encoding="ascii") as target:
            target.write(said)
    assert host.dead() == set()
    name, _ = host.container()
    os.rename(os.path.join(host.docker.layerdb, "mounts", name), host.directory / "away")
    refuses(host, f"container {name[:12]} is not in")


@pytest.mark.parametrize("content", [None, b"", b"\0" * 4096, BOLT_META, 2 * BOLT_META, 4 * BOLT_META])
def test_buildkits_databases_that_are_not_whole(host: Host, content: bytes | None) -> None:
    cached = "zmw1v9qrl54fjcblllwc7fp9f"
    host.image(cached)
    host.docker.caches([cached])
    assert host.dead() == set()
    path = os.path.join(host.docker.buildkit, "snapshots.db")
    os.rename(path, os.path.join(host.docker.buildkit, "cache.db"))
    if content is not None:
        with open(path, "wb") as target:
            target.write(content)
    refuses(host, host.docker.buildkit)


@pytest.mark.parametrize("name", ["CHAIN-0123456789-removing", "write-set-1"])
def test_what_docker_is_removing_or_registering_need_not_be_whole(host: Host, name: str) -> None:
    place, layer = ("tmp" if name.startswith("write") else "sha256"), host.image()
    os.makedirs(directory := os.path.join(host.docker.layerdb, place, name.replace("CHAIN", 64 * "0")))
    assert host.dead() == {(ORPHAN, layer)}
    with open(os.path.join(directory, "cache-id"), "w", encoding="ascii") as target:
        target.write(layer)
    assert host.dead() == set()


def test_what_goes_or_comes_while_it_is_read_is_not_missing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks Docker has finished what it was at."""
    name, layer = host.container()
    os.rename(os.path.join(host.docker.layerdb, "mounts", name), host.directory / "away")

    def finished(seconds: float) -> None:
        if name in os.listdir(host.docker.containers):
            host.docker.removed(name)

    monkeypatch.setattr(time, "sleep", finished)
    assert host.dead() == {(ORPHAN, layer), (ORPHAN, f"{layer}-init")}


# -- what a dockerd proves -------------------------------------------------------------------------


@pytest.mark.usefixtures("dockerd")
def test_a_container_that_this_dockerd_has_removed(host: Host) -> None:
    """Its record was made since it started: so it was in this very `containers`."""
    name, layer = host.container(age=-60)
    host.docker.removed(name)
    found = host.look(min_age=-HOUR).findings()
    assert {(item.kind, item.id) for item in found if item.dead} == {
        (ORPHAN, layer),
        (ORPHAN, f"{layer}-init"),
        (RECORD, name),
    }
    outcomes = host.collect(host.look(min_age=-HOUR), found)
    assert all(outcome.removed for outcome in outcomes.values())
    assert name not in os.listdir(os.path.join(host.docker.layerdb, "mounts"))
    assert host.dead() == set()


def test_a_container_that_was_removed_before_this_dockerd_started(host: Host, dockerd: None) -> None:
    name, layer = host.container()
    host.docker.removed(name)
    refuses(host, f"rm -r {host.docker.layerdb}/mounts/{name}")
    os.system(f"rm -r {host.docker.layerdb}/mounts/{name}")
    assert host.dead() == {(ORPHAN, layer), (ORPHAN, f"{layer}-init")}


def test_records_that_a_killed_dockerd_had_just_begun(host: Host) -> None:
    """Told like any other container that is not there, all in one line, and gone when its dockerd has ended."""
    for name in (new_id(), new_id()):
        record = host.docker.builders(name, new_id())
        os.unlink(os.path.join(record, "mount-id"))
        os.utime(record, (time.time() - 9 * HOUR,) * 2)
    refuses(host, f"rm -r {host.docker.layerdb}/mounts/")
    with running(os.path.join(host.docker.buildkit, "snapshots.db")):
        assert {kind for kind, _ in host.dead()} == {RECORD}


def test_a_lock_that_is_no_dockerds_proves_nothing(host: Host) -> None:
    name, _ = host.container(age=-60)
    host.docker.removed(name)
    with open(os.path.join(host.directory, "other.db"), "wb"):
        pass
    with running(os.path.join(host.directory, "other.db")):
        refuses(host, f"container {name[:12]} has layers but is not in")


@pytest.mark.usefixtures("dockerd")
def test_containers_of_another_mount_prove_nothing(host: Host) -> None:
    """The same data root, seen at another place, where nothing is mounted at `containers`."""
    other = host.directory / "elsewhere"
    other.mkdir()
    for name in ("image", "buildkit"):
        (other / name).symlink_to(host.directory / name)
    (other / "containers").mkdir()
    name, _ = host.container(age=-60)
    look = host.look(min_age=-HOUR)
    look._database = docker_database.DockerDatabase(str(other), "ceph")
    with pytest.raises(knowledge.DatabaseMissing, match=r"\d more has layers but is not in"):
        look.findings()


@pytest.mark.usefixtures("dockerd")
def test_what_a_builder_left_goes_when_its_dockerd_has_ended(host: Host) -> None:
    old, layer, new = new_id(), host.image(), new_id()
    host.docker.builders(old, layer, age=9 * HOUR)
    host.docker.builders(new, host.image(), age=-60)
    assert host.dead() == {(RECORD, old), (ORPHAN, layer)}


@pytest.mark.usefixtures("dockerd")
def test_containers_that_were_unmounted_prove_nothing(host: Host) -> None:
    """What lies below a mount point was there before the containers were made."""
    before = time.time() - 9 * HOUR
    host.container(age=-60)
    with moved(host.docker.containers):
        os.mkdir(host.docker.containers)
        os.utime(host.docker.containers, (before, before))
        refuses(host, "and 1 more has layers but is not in")


@pytest.mark.usefixtures("dockerd")
def test_containers_behind_a_symlink_prove_nothing(host: Host) -> None:
    """Something may be mounted over what it leads to."""
    name, _ = host.container(age=-60)
    host.docker.removed(name)
    os.rename(host.docker.containers, host.directory / "elsewhere")
    os.symlink(host.directory / "elsewhere", host.docker.containers)
    refuses(host, f"container {name[:12]} has layers but is not in")


@pytest.mark.parametrize("last", [[], ["something"]])
def test_a_docker_that_is_busy_at_every_look_is_judged_by_the_last(
    monkeypatch: pytest.MonkeyPatch, last: list[str]
) -> None:
    """Each time something else is not there yet; only what is missing twice in a row is missing for good."""
    looks = iter([[f"file {at}"] for at in range(docker_database._LOOKS)] + [last])
    known = knowledge.Known()
    monkeypatch.setattr(docker_database._Reading, "read", lambda self: (known, next(looks)))
    database = docker_database.DockerDatabase("/var/lib/docker", "ceph")
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    if last:
        with pytest.raises(knowledge.DatabaseMissing, match="something"):
            database.known()
    else:
        assert database.known() is known
