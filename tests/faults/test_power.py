"""Without power: devices vanish with what was not flushed, and the plugin with all that it knew.

The stand-in's daemon is killed -9 while writes are under way: what XFS had only in memory, and what was on its way to
the cluster, is lost; the file systems are taken off by force and the plugin is killed. Then the host comes up: the
plugin, dockerd's Init, and mounts that replay their logs. With krbd nobody can be killed: see tests/may_be_missing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import tree
from lab import Cluster, device_server, kill_device_servers, mounts_below
from needs import NO_RBD, requires
from operations import FILES, description, new_id
from plugin_client import PluginProcess, Refused, in_pieces, make_tar, wait_until

Tally = Callable[[str, int], None]

requires(not os.path.isdir("/sys/bus/rbd"), NO_RBD)  # krbd cannot be killed


@pytest.fixture(scope="module", autouse=True)
def short_watches(cluster: Cluster) -> Iterator[None]:
    """A client that died is believed to live until its watch times out, 30 s: as long as a host needs to come up."""
    cluster.ceph("config", "set", "osd", "osd_client_watch_timeout", "2")
    yield
    cluster.ceph("config", "rm", "osd", "osd_client_watch_timeout")


def cut(plugin: PluginProcess, cluster: Cluster) -> None:
    """The power goes: first for the devices, or the end of the plugin might be in time to tell something."""
    assert kill_device_servers(cluster.environment), "nothing is mapped: there is nothing to lose"
    plugin.kill()
    for point in reversed(mounts_below(plugin.home)):
        subprocess.run(["umount", "--lazy", point], check=True)
    assert cluster.mapped() == []


def come_up(plugin: PluginProcess) -> None:
    """The host starts again: the plugin, then dockerd."""
    plugin.start()
    plugin.init()


class Writer:
    """A container that writes files and has each flushed (fsync); `flushed` are those that it was told of.

    As a container does, it stays in the file system that it was given. By its path it would come to the directory below
    the mount point once that is unmounted, and write to this host's disk until it is full.
    """

    FILES = 3000  # and as many MiB at the most, whatever goes wrong

    def __init__(self, root: str) -> None:
        self.flushed: list[str] = []
        self.error: OSError | None = None
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        try:
            for number in range(self.FILES):
                name = f"file-{number}"
                with open(name, "wb", opener=self._open) as target:
                    target.write(content(name))
                    target.flush()
                    os.fsync(target.fileno())
                self.flushed.append(name)
                # Beside it, what is never flushed.
                with open(name + ".lost", "wb", opener=self._open) as target:
                    target.write(bytes(1 << 20))
        except OSError as error:
            self.error = error
        finally:
            os.close(self._root)

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags, dir_fd=self._root)

    def wait(self, files: int) -> None:
        """Wait until so many are flushed."""
        wait_until(lambda: len(self.flushed) >= files, f"{files} files are flushed")

    def end(self) -> None:
        """Wait until it got its error."""
        self._thread.join(120)
        assert not self._thread.is_alive()
        assert self.error, "it wrote all of its files"


def content(path: str) -> bytes:
    """What a file of this name holds."""
    return os.path.basename(path).encode() * 4000


def whole(plugin: PluginProcess, parent: str) -> list[tree.Line]:
    """What a layer with the archive of FILES looks like."""
    layer = plugin.client.create(new_id(), parent)
    plugin.client.apply_diff(layer, make_tar(FILES))
    try:
        return description(plugin.client, layer)
    finally:
        plugin.client.remove(layer)


def test_what_a_container_flushed_is_there(plugin: PluginProcess, cluster: Cluster, tally: Tally) -> None:
    """Also what its init layer brought, which was made its own when it was mounted first."""
    client = plugin.client
    layer = new_id()
    client.create(f"{layer}-init", client.create(new_id()), writable=True)
    client.write(f"{layer}-init", "hosts", "init")
    client.create(layer, f"{layer}-init", writable=True)
    point = client.get(layer)
    writer = Writer(point)
    writer.wait(20)
    cut(plugin, cluster)
    writer.end()
    assert os.listdir(point) == [], "it wrote below the mount point"
    come_up(plugin)
    root = client.get(layer)
    for name in writer.flushed:
        with open(os.path.join(root, name), "rb") as source:
            assert source.read() == content(name), name
    client.put(layer)
    assert client.read(layer, "hosts") == b"init"
    assert "/hosts" not in client.changes(layer, f"{layer}-init")
    tally("power cuts survived", 1)


def test_what_docker_was_told_is_there(plugin: PluginProcess, cluster: Cluster, tally: Tally) -> None:
    """An archive, a layer that was written and put, a layer that was made: each with the answer still warm."""
    client = plugin.client
    base = client.create(new_id())
    expected = whole(plugin, base)
    applied, written = (client.create(new_id(), base) for _ in range(2))
    client.write(written, "file", content("file"))
    client.apply_diff(applied, make_tar(FILES))
    made = client.create(new_id(), written, writable=True)
    cut(plugin, cluster)
    come_up(plugin)
    assert description(client, applied) == expected
    assert client.read(written, "file") == content("file")
    assert client.read(made, "file") == content("file")
    with pytest.raises(Refused, match=r"takes no other|takes one archive"):
        client.apply_diff(applied, make_tar({"late": "x"}))
    tally("power cuts survived", 1)


def test_a_container_that_was_put(plugin: PluginProcess, cluster: Cluster, tally: Tally) -> None:
    """Its answer is still warm, and its file system still mounted; so is what its child was told, and what is below."""
    client = plugin.client
    image = client.create(new_id())
    client.apply_diff(image, make_tar({"of the image": "x"}))
    container = new_id()
    client.create(f"{container}-init", image, writable=True)
    client.write(f"{container}-init", "hosts", "init")
    client.create(container, f"{container}-init", writable=True)
    client.write(container, "file", content("file"))
    os.unlink(os.path.join(client.get(container), "of the image"))
    client.put(container)
    cut(plugin, cluster)
    come_up(plugin)
    assert client.listing(container) == ["file", "hosts"]
    assert client.read(container, "file") == content("file")
    assert client.changes(container, f"{container}-init") == {"/file": 1, "/of the image": 2}
    tally("power cuts survived", 1)


@pytest.mark.parametrize("lost", ["its device", "all"])
def test_a_finished_layer_whose_log_is_not_clean(
    plugin: PluginProcess, cluster: Cluster, tally: Tally, lost: str
) -> None:
    """It is mounted read-only from then on, which takes a log that was written out: so that is done first, once."""
    client = plugin.client
    expected = whole(plugin, "")
    layer = client.create(new_id())
    client.apply_diff(layer, make_tar(FILES))
    if lost == "all":
        cut(plugin, cluster)
        come_up(plugin)
    else:
        os.kill(device_server(plugin.environment, f"docker_image_{layer}"), signal.SIGKILL)
    assert description(client, layer) == expected
    mended = plugin.log_text().count(f"layer {layer} is mapped writable, to be mended")
    assert mended == (0 if lost == "all" else 1), "after a start it is looked at first"
    cluster.wait_unmapped()
    upper = client.create(new_id(), layer)
    assert "large" in client.listing(upper)
    assert plugin.log_text().count("to be mended") == mended
    tally("power cuts survived", 1)


def test_an_archive_in_a_layer_that_docker_has_mounted(plugin: PluginProcess, cluster: Cluster, tally: Tally) -> None:
    """Then the answer comes without an unmount, which would flush all of it."""
    client = plugin.client
    base = client.create(new_id())
    expected = whole(plugin, base)
    layer = client.create(new_id(), base)
    client.get(layer)
    client.apply_diff(layer, make_tar(FILES))
    cut(plugin, cluster)
    come_up(plugin)
    assert description(client, layer) == expected
    tally("power cuts survived", 1)


def test_an_archive_that_was_not_answered(plugin: PluginProcess, cluster: Cluster, tally: Tally) -> None:
    """It is broken for good, which every call says, and Remove removes it."""
    client = plugin.client
    base = client.create(new_id())
    layer = client.create(new_id(), base)
    archive = make_tar({**FILES, "last": bytes(1 << 20)})
    halfway, over = threading.Event(), threading.Event()

    def half() -> Iterator[bytes]:
        pieces = list(in_pieces(archive))
        yield from pieces[: len(pieces) // 2]
        halfway.set()
        over.wait(120)

    def apply() -> None:
        with pytest.raises((OSError, Refused)):
            client.apply_diff(layer, half())

    thread = threading.Thread(target=apply)
    thread.start()
    assert halfway.wait(120)
    time.sleep(0.3)
    cut(plugin, cluster)
    over.set()
    thread.join(120)
    come_up(plugin)
    for call in (
        lambda: client.get(layer),
        lambda: client.apply_diff(layer, archive),
        lambda: client.diff(layer),
        lambda: client.create(new_id(), layer),
    ):
        with pytest.raises(Refused, match=rf"{layer} is broken|one is applying already"):
            call()
    client.remove(layer)
    assert client.listing(base) == []
    tally("power cuts survived", 1)
