"""A big layer passes in both directions without being held in memory or on the local disk.

The layer has 1 GB, with LARGE=1 in the environment 5 GB: one file of random bytes in an archive that exists nowhere,
since it is made while it is sent. While it passes, the driver and all that it started are watched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from lab import StartPlugin
from plugin_client import Client, PluginProcess

GB = 10**9
SIZE = 5 * GB if os.environ.get("LARGE") else GB
PIECE = 1 << 18
PEAK = 64 << 20  # bytes of memory for each process
LOCAL = 1 << 20  # bytes of files on the local disk for each process, and in the directories of the driver


class BigLayer:
    """The archive of a layer with one big file, made while it is read; no two pieces are alike."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.digest = hashlib.sha256()

    def pieces(self) -> Iterator[bytes]:
        """The archive in pieces."""
        member = tarfile.TarInfo("big")
        member.size = self.size
        yield member.tobuf(tarfile.GNU_FORMAT)
        block = random.Random(3).randbytes(PIECE - 8)
        left = self.size
        while left:
            piece = (left.to_bytes(8, "big") + block)[:left]
            self.digest.update(piece)
            yield piece
            left -= len(piece)
        yield bytes(-self.size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


class Watch:
    """Looks at the processes of a plugin ten times a second: the most memory, and the most on the local disk."""

    def __init__(self, plugin: PluginProcess, directory: Path) -> None:
        assert plugin.process
        self.memory: dict[str, int] = {}  # by what the process does
        self.local = 0
        self._pid = plugin.process.pid
        self._directory = directory
        self._disk = os.stat(directory).st_dev
        self._before = self._used()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.1):
            for pid in [self._pid, *_descendants(self._pid)]:
                self._look(pid)
            self.local = max(self.local, self._used() - self._before)

    def _look(self, pid: int) -> None:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            # Not what is open for reading only, as a library while it is loaded.
            opened = [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
            files = [os.stat(path) for path in opened if os.lstat(path).st_mode & stat.S_IWUSR]
        except OSError:  # it has ended, or has closed one
            return
        # What it does: `driver`, the command of confined.py, or a program.
        script = next((number for number, word in enumerate(words) if word.endswith("confined.py")), None)
        name = "driver" if pid == self._pid else os.path.basename(words[0]) if script is None else words[script + 1]
        peak = sum(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
        self.memory[name] = max(self.memory.get(name, 0), peak)
        # Also what has no name any more.
        open_files = [file for file in files if stat.S_ISREG(file.st_mode) and file.st_dev == self._disk]
        self.local = max([self.local, *(file.st_blocks * 512 for file in open_files)])

    def _used(self) -> int:
        """The bytes that the directories of the driver take on this disk, without what is mounted there."""
        used = 0
        for top, directories, files in os.walk(self._directory):
            with contextlib.suppress(OSError):  # removed meanwhile
                directories[:] = [name for name in directories if os.stat(os.path.join(top, name)).st_dev == self._disk]
                used += sum(os.lstat(os.path.join(top, name)).st_blocks * 512 for name in files)
        return used


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()):
                found += [child, *_descendants(child)]
    except OSError:
        pass
    return found


def test_a_big_layer_is_held_neither_in_memory_nor_on_the_local_disk(
    start_plugin: StartPlugin, new_id: Callable[[], str]
) -> None:
    plugin = start_plugin(basesize="20G")
    client = plugin.client
    directory = Path(plugin.home).parent
    layer = client.create(new_id())
    sent = BigLayer(SIZE)
    with Watch(plugin, directory) as applied:
        assert client.apply_diff(layer, sent.pieces()) == SIZE
    with Watch(plugin, directory) as read:
        got = _digest_of_diff(client, layer)
    assert got == (SIZE, sent.digest.hexdigest())
    for what, watch, worker in (("ApplyDiff", applied, "untar"), ("Diff", read, "pack")):
        print(what, {name: f"{peak / 2**20:.1f} MiB" for name, peak in watch.memory.items()}, watch.local)
        assert {"driver", worker} <= set(watch.memory)
        assert max(watch.memory.values()) < PEAK, (what, watch.memory)
        assert watch.local < LOCAL, what


def _digest_of_diff(client: Client, layer: str) -> tuple[int, str]:
    """Size and hash of the big file in a layer's archive."""
    connection, answer = client.open_diff(layer)
    digest, size = hashlib.sha256(), 0
    with tarfile.open(fileobj=answer, mode="r|", bufsize=PIECE) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content
            while piece := content.read(PIECE):
                digest.update(piece)
                size += len(piece)
    connection.close()
    return size, digest.hexdigest()
