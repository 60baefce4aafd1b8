"""What moby's graphtest demands of every driver, by the names of its checks (daemon/graphdriver/graphtest)."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable

import pytest
from lab import Cluster, StartPlugin
from plugin_client import Client, Refused, tar_names, wait_until

MODIFIED, ADDED, DELETED = 0, 1, 2
NewId = Callable[[], str]


def create_base(client: Client, layer: str, parent: str = "") -> None:
    """A layer with what graphtest looks for: a sticky set-uid directory of another owner, and a file in the root."""
    client.create(layer, parent)
    root = client.get(layer)
    directory = os.path.join(root, "a subdir")
    os.mkdir(directory)
    os.chmod(directory, 0o705 | stat.S_ISVTX)
    os.chown(directory, 1, 2)
    with open(os.path.join(root, "a file"), "w", encoding="ascii") as target:
        target.write("Some data")
    os.chmod(os.path.join(root, "a file"), 0o222 | stat.S_ISUID)
    client.put(layer)


def verify_base(client: Client, layer: str) -> None:
    """Everything of create_base is there, and nothing else."""
    root = client.get(layer)
    directory = os.stat(os.path.join(root, "a subdir"))
    file = os.stat(os.path.join(root, "a file"))
    assert stat.S_IMODE(directory.st_mode) == 0o705 | stat.S_ISVTX
    assert (directory.st_uid, directory.st_gid) == (1, 2)
    assert stat.S_IMODE(file.st_mode) == 0o222 | stat.S_ISUID
    with open(os.path.join(root, "a file"), encoding="ascii") as source:
        assert source.read() == "Some data"
    assert sorted(os.listdir(root)) == ["a file", "a subdir"]
    client.put(layer)


WRITTEN = 1_600_000_000


def add_many_files(client: Client, layer: str, count: int, seed: int) -> None:
    """Files in directories of hundreds, as graphtest lays them out, with contents that follow from the seed."""
    root = client.get(layer)
    for start in range(0, count, 100):
        directory = os.path.join(root, f"directory-{start}")
        os.makedirs(directory, exist_ok=True)
        for number in range(start, min(start + 100, count)):
            path = os.path.join(directory, f"file-{number}")
            with open(path, "wb") as target:
                target.write(content(seed, number))
            # Written twice within a second, a file of the same size looks unchanged once an archive has cut its time
            # to whole seconds (moby archive.sameFsTime).
            os.utime(path, (WRITTEN + seed, WRITTEN + seed))
    client.put(layer)


def check_many_files(client: Client, layer: str, count: int, seed: int) -> None:
    """Each file of add_many_files has its content."""
    root = client.get(layer)
    for number in range(count):
        with open(os.path.join(root, f"directory-{number - number % 100}", f"file-{number}"), "rb") as source:
            assert source.read() == content(seed, number)
    client.put(layer)


def content(seed: int, number: int) -> bytes:
    """64 bytes that no other file has."""
    return random.Random(f"{seed}/{number}").randbytes(64)


def test_create_empty(client: Client) -> None:
    client.create("empty")
    assert client.call("Exists", ID="empty")["Exists"] is True
    root = client.get("empty")
    assert os.listdir(root) == []
    said = os.stat(root)
    assert (stat.S_IMODE(said.st_mode), said.st_uid, said.st_gid) == (0o755, 0, 0)
    client.put("empty")


def test_create_base(client: Client) -> None:
    create_base(client, "Base")
    verify_base(client, "Base")


def test_create_snap(client: Client) -> None:
    create_base(client, "Base")
    client.create("Snap", "Base")
    verify_base(client, "Snap")
    client.write("Snap", "only here", "x")
    verify_base(client, "Base")


def test_deep_layer_read(client: Client, cluster: Cluster, new_id: NewId) -> None:
    """20 layers: more than the kernel could map, were each a clone of the one before."""
    layers = [client.create(new_id())]
    client.write(layers[0], "testfile.txt", "test content")
    for number in range(1, 21):
        layers.append(client.create(new_id(), layers[-1]))
        client.write(layers[-1], f"layer-{number}", str(number))
        client.write(layers[-1], "top", str(number))
    top = client.create(new_id(), layers[-1], writable=True)
    root = client.get(top)
    for number in range(1, 21):
        with open(os.path.join(root, f"layer-{number}"), encoding="ascii") as source:
            assert source.read() == str(number)
    client.put(top)
    assert client.read(top, "testfile.txt") == b"test content"
    assert client.read(top, "top") == b"20"
    assert client.read(layers[10], "top") == b"10"
    assert {cluster.ancestors(f"docker_image_{layer}") for layer in (*layers, top)} == {1}


@pytest.mark.parametrize("count", [10, 500])
def test_diff_apply(client: Client, new_id: NewId, count: int) -> None:
    base, upper, diff = new_id(), new_id(), new_id()
    client.create(base)
    add_many_files(client, base, count, 3)
    client.write(base, "file-remove.txt", "This file should get removed in upper!")
    client.write(base, "var/lib/file", "x")
    client.create(upper, base)
    add_many_files(client, upper, count, 6)
    root = client.get(upper)
    os.unlink(os.path.join(root, "file-remove.txt"))
    os.unlink(os.path.join(root, "var/lib/file"))
    os.rmdir(os.path.join(root, "var/lib"))
    client.put(upper)

    client.create(diff, base)
    check_many_files(client, diff, count, 3)
    archive = client.diff(upper, base)
    assert {"file-remove.txt", "var/lib"}.isdisjoint(tar_names(archive))
    assert {".wh.file-remove.txt", "var/.wh.lib"} <= set(tar_names(archive))
    assert client.apply_diff(diff, archive, base) == client.diff_size(upper, base) == 64 * count
    check_many_files(client, diff, count, 6)
    root = client.get(diff)
    assert not os.path.exists(os.path.join(root, "file-remove.txt"))
    assert os.listdir(os.path.join(root, "var")) == []
    client.put(diff)
    assert client.changes(diff, base) == client.changes(upper, base)


def test_changes(client: Client, new_id: NewId) -> None:
    base, upper = new_id(), new_id()
    client.create(base)
    add_many_files(client, base, 20, 3)
    client.create(upper, base)
    assert client.changes(upper, base) == {}
    root = client.get(upper)
    directory = os.path.join(root, "directory-0")
    for number in range(5):
        with open(os.path.join(directory, f"file-{number}"), "ab") as target:
            target.write(b"more")
        os.unlink(os.path.join(directory, f"file-{10 + number}"))
        with open(os.path.join(directory, f"new-{number}"), "wb") as target:
            target.write(b"new")
    client.put(upper)
    expected = {"/directory-0": MODIFIED}
    for number in range(5):
        expected[f"/directory-0/file-{number}"] = MODIFIED
        expected[f"/directory-0/file-{10 + number}"] = DELETED
        expected[f"/directory-0/new-{number}"] = ADDED
    assert client.changes(upper, base) == expected


def test_changes_without_a_parent_are_everything(client: Client, new_id: NewId) -> None:
    layer = client.create(new_id())
    client.write(layer, "etc/passwd", "x")
    assert client.changes(layer) == {"/etc": ADDED, "/etc/passwd": ADDED}
    assert client.diff_size(layer) == 1


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
def test_set_quota(start_plugin: StartPlugin, cluster: Cluster, new_id: NewId, fs: str) -> None:
    """`--storage-opt size=`: image and file system grow; the layer holds that much and no more."""
    plugin = start_plugin(basesize="512M", imageprefix=f"quota_{fs}", fs=fs)
    client = plugin.client
    base = client.create(new_id())
    client.write(base, "a file", "x")
    small, large = client.create(new_id(), base), client.create(new_id(), base, "1G", writable=True)
    assert cluster.info(f"quota_{fs}_{small}")["size"] == 512 << 20
    assert cluster.info(f"quota_{fs}_{large}")["size"] == 1 << 30
    assert capacity(client, small) < 512 << 20
    assert 800 << 20 < capacity(client, large) <= 1 << 30
    assert client.read(large, "a file") == b"x"

    root = client.get(small)
    with pytest.raises(OSError, match="No space") as caught, open(os.path.join(root, "big"), "wb") as target:
        for _ in range(600):
            target.write(bytes(1 << 20))
    assert caught.value.errno == errno.ENOSPC
    client.put(small)

    # What a layer needs is for what it brings itself.
    grandchild = client.create(new_id(), large)
    assert capacity(client, grandchild) < 512 << 20
    with pytest.raises(Refused, match=r"400M is smaller than 512M"):
        client.create(new_id(), large, "400M")
    with pytest.raises(Refused, match=r"'12 parsecs' is not a size"):
        client.create(new_id(), large, "12 parsecs")
    assert len(cluster.images(f"quota_{fs}_")) == 4


def capacity(client: Client, layer: str) -> int:
    """What df says of a layer's root."""
    said = os.statvfs(client.get(layer))
    client.put(layer)
    return said.f_blocks * said.f_frsize


def test_size_of_both_layers_of_a_container(client: Client, cluster: Cluster, new_id: NewId) -> None:
    """Docker sends the size with the -init layer and with the container's own."""
    image, container = client.create(new_id()), new_id()
    client.create(container + "-init", image, "11G", writable=True)
    client.write(container + "-init", "etc/hosts", "")
    client.create(container, container + "-init", "11G", writable=True)
    assert cluster.info(f"docker_image_{container}")["size"] == 11 << 30
    assert capacity(client, container) > 10 << 30
    assert client.listing(container) == ["etc"]


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
def test_the_root_shows_nothing_of_ours(start_plugin: StartPlugin, new_id: NewId, fs: str) -> None:
    """No lost+found, no notes, also after an archive."""
    client = start_plugin(fs=fs, imageprefix=f"root_{fs}").client
    layer = client.create(new_id())
    assert client.listing(layer) == []
    assert client.apply_diff(layer, client.diff(layer)) == 0
    child = client.create(new_id(), layer)
    assert client.listing(child) == []
    client.write(child, "f", "x")
    assert client.changes(child, layer) == {"/f": ADDED}
    assert tar_names(client.diff(child, layer)) == ["f"]


def test_names_in_rbd_list_are_those_of_the_go_driver(client: Client, cluster: Cluster, new_id: NewId) -> None:
    layer = client.create(new_id())
    client.create(layer + "-init", layer)
    assert cluster.images("docker_image_") == [f"docker_image_{layer}", f"docker_image_{layer}-init"]
    assert "docker_image_base_image" in cluster.rbd("ls", "rbd").split()


def test_metadata_and_status(client: Client, cluster: Cluster, new_id: NewId) -> None:
    layer = client.create(new_id())
    root = client.get(layer)
    said = client.metadata(layer)
    assert said["Image"] == f"docker_image_{layer}"
    assert said["Pool"] == "rbd"
    assert said["Filesystem"] == "xfs"
    assert said["Size"] == str(10 << 30)
    assert (said["Parent"], said["Depth"]) == ("", "0")
    assert os.path.exists(said["Device"])
    assert root == said["MountPoint"]
    status = client.status()
    assert status["Layers"] == "1"
    assert status["Mapped Devices"] == "1"
    assert status["Ceph Health"] == "HEALTH_OK"
    assert status["Backing Filesystem"] == "xfs"
    assert status["Pool Available"].endswith("B")
    assert cluster.mapped() == [f"docker_image_{layer}"]
    client.put(layer)
    assert client.metadata(layer)["Device"] == client.metadata(layer)["MountPoint"] == ""
    cluster.wait_unmapped()
    wait_until(lambda: client.status()["Mapped Devices"] == "0", "the device is not counted any more")
