"""Makes an archive of a mounted layer, and lays an archive down in one: ApplyDiff, Diff, Changes and DiffSize.

Only processes that are locked into the layer (confined.py) touch its files. This module starts them, feeds them, reads
what they print and ends them. They live as long as a call: none is left when a function has returned or raised, or when
the generator of `diff` was closed. The caller mounts the layers, holds their locks, and lets nobody else write to the
layer of an `apply`. Nothing is written to the local disk, and no archive is held in memory.

Two processes do an ApplyDiff. untar.py reads and checks the archive, and lays down everything that has rules of its
own. Most entries are plain files: it hands these over to a bsdtar that runs beside it on another core (bsdtar_feed.py,
bsdtar.py). bsdtar is the only tar that can lock itself into the layer (--chroot); GNU tar would be loaded out of the
layer. If a layer has few plain files, or the host has no bsdtar, untar.py alone does it all, with the same result.
20,000 files of 2 KiB on XFS took `tar -x` 0.81 s, us 0.82 s with bsdtar and 1.26 s without, on two idle cores
(tests/bench/archives.py).

No tar does a Diff, since live containers write to the layer meanwhile. GNU tar and bsdtar -c follow a directory that
becomes a symlink at that moment (as in CVE-2018-15664), and bsdtar has --chroot only for extraction. A file that has
vanished is no error, and one that cannot be read is one; both programs end with the same exit status for the two.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple, Protocol

from archive import bsdtar, confined
from archive import changes as comparison
from archive.tar_format import ArchiveError
from host import command_log, deadline, environment, processes

__all__ = [
    "ArchiveError",
    "Change",
    "IdMaps",
    "IdRange",
    "Kind",
    "Readable",
    "apply",
    "changes",
    "diff",
    "extractor",
    "size",
]

log = logging.getLogger("transfer")

_PIECE = 1 << 20
_F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ from Python 3.10 on


class Readable(Protocol):
    """A stream. `read(n)` returns up to n bytes, and no bytes only at the end of the stream."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes."""


class Kind(enum.IntEnum):
    """What happened to a path. The numbers are those of the protocol's answer to Changes."""

    MODIFIED = comparison.MODIFIED
    ADDED = comparison.ADDED
    DELETED = comparison.DELETED


class Change(NamedTuple):
    """A path that a layer changes, absolute within the layer."""

    path: bytes
    kind: Kind


@dataclass(frozen=True)
class IdRange:
    """A range of `size` consecutive ids, in a container and on the host (an entry of UIDMaps or GIDMaps of Init)."""

    container_id: int
    host_id: int
    size: int


@dataclass(frozen=True)
class IdMaps:
    """The ranges of users and of groups with --userns-remap. Without ranges every id stays as it is."""

    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()


_IDENTITY = IdMaps()
# If the processes of an archive have done nothing at all for so many seconds, the layer's device is taken to hang.
STALL_SECONDS = 60.0
PATIENCE = 400  # untar.py creates so many plain files itself before it asks for a bsdtar: to start one costs as much


def _nothing(_: int) -> None:
    """Make no room: the layer is large enough."""


def extractor() -> str:
    """Return what lays down plain files in `apply` on this host, in words for the log."""
    program = bsdtar.find()
    return program if program is not None else "Python alone: bsdtar is not installed"


def apply(
    root: str,
    stream: Readable,
    ids: IdMaps = _IDENTITY,
    stall: float = STALL_SECONDS,
    make_room: Callable[[int], None] = _nothing,
) -> int:
    """Lay an uncompressed archive down in the directory `root`, as moby's ApplyUncompressedLayer does.

    Returns the sum of the sizes in the archive's headers, in bytes. Reads the stream to its end, also what comes after
    the end of the archive. `ids` maps the owners in the archive to those of the host. `make_room` is called before
    bytes are laid down, with their number.

    Raises ArchiveError, which names the entry, and whatever `stream.read` and `make_room` raise. If the layer's file
    system does nothing for `stall` seconds, raises deadline.Overdue. After an error the layer holds a part of the
    archive, and the rest of the stream was not read.
    """
    with _start_untar(os.path.abspath(root), ids) as process:
        assert process.stdin is not None
        _enlarge(process.stdin)
        with contextlib.suppress(BrokenPipeError):  # the process gave up, and says why on its standard error
            while piece := _gather(stream):
                make_room(len(piece))
                _write_all(process, piece, stall)
        _close((process.stdin,))
        size, dropped = _output(process, stall).decode("ascii").splitlines()
        if dropped:
            log.warning("%s: what cannot be kept on this kernel is left out: %s", root, dropped)
        return int(size)


def changes(root: str, parent: str | None, stall: float = STALL_SECONDS, *, own: bool = False) -> list[Change]:
    """Return what the layer in `root` changes in the one in `parent`, sorted by path, as moby's ChangesDirs does.

    Both are directories of mounted layers, and nothing is written to them. Without a parent everything is added. `own`
    says that `root` is only what the layer brought, its upper directory of overlayfs, and `parent` a view of what is
    below the layer. The result is the same as for the layer's view, but only what the layer brought is looked at.
    Raises ArchiveError, and deadline.Overdue as `apply` does.
    """
    with _start("changes", *_trees(root, parent, own)) as process:
        lines = _output(process, stall).split(b"\0")
    return [Change(line[1:], Kind(line[0] - 0x30)) for line in lines if line]


def size(root: str, parent: str | None, stall: float = STALL_SECONDS, *, own: bool = False) -> int:
    """Return the size in bytes of what the layer in `root` adds to or modifies in `parent`, as moby's ChangesSize does.

    The parameters are those of `changes`, and so are the errors.
    """
    with _start("size", *_trees(root, parent, own)) as process:
        return int(_output(process, stall))


def diff(
    root: str, parent: str | None, ids: IdMaps = _IDENTITY, stall: float = STALL_SECONDS, *, own: bool = False
) -> Generator[bytes, None, None]:
    """Yield the uncompressed archive of what the layer in `root` changes in `parent`, as moby's ExportChanges does.

    The same trees give the same bytes. `ids` maps the owners on the host to those in the archive. The other parameters
    are those of `changes`. Raises ArchiveError and deadline.Overdue, at the first piece or later: what was yielded by
    then is no complete archive. Once the generator is closed, no process of it is left.
    """
    with contextlib.ExitStack() as stack:
        if parent is not None:  # all is compared before there is a first path, so two processes would not be faster
            processes = [stack.enter_context(_start("diff", *_trees(root, parent, own), *_ranges(ids)))]
        else:
            processes = _start_both(stack, os.path.abspath(root), ids)
        out = processes[-1].stdout
        assert out is not None
        _enlarge(out)
        yield from _pieces(out, processes, stall)
        _check(*processes)


def _start_both(stack: contextlib.ExitStack, root: str, ids: IdMaps) -> list[subprocess.Popen[bytes]]:
    """Start one process that walks a tree, and another that packs at the same time what the first has found."""
    walker = stack.enter_context(_start("walk", root))
    packer = stack.enter_context(_start("pack", root, *_ranges(ids), stdin=walker.stdout))
    assert walker.stdout is not None
    walker.stdout.close()  # only the packer may have it: if the packer ends, the walker must get a broken pipe
    return [walker, packer]


@contextlib.contextmanager
def _start_untar(root: str, ids: IdMaps) -> Iterator[subprocess.Popen[bytes]]:
    """Run untar.py, and be ready to start a bsdtar for it if the host has one. None is left after the `with` block."""
    program = bsdtar.find()
    if program is None:
        with _start("untar", root, *_ranges(ids), stdin=subprocess.PIPE) as process:
            yield process
        return
    with bsdtar.Bsdtar(program, root) as beside:
        control = beside.control.fileno()
        arguments = (root, *_ranges(ids), str(control), str(PATIENCE))
        with _start("untar", *arguments, stdin=subprocess.PIPE, pass_fds=(control,)) as process:
            beside.serve()
            yield process


def _trees(root: str, parent: str | None, own: bool) -> tuple[str, str, str]:
    return os.path.abspath(root), os.path.abspath(parent) if parent is not None else "", "own" if own else ""


def _ranges(ids: IdMaps) -> tuple[str, str]:
    """Return the maps as arguments of confined.py."""
    uids, gids = (",".join(f"{i.container_id}:{i.host_id}:{i.size}" for i in ranges) for ranges in (ids.uids, ids.gids))
    return uids, gids


@contextlib.contextmanager
def _start(
    *arguments: str, stdin: int | IO[bytes] | None = subprocess.DEVNULL, pass_fds: tuple[int, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run confined.py. The process is gone when the `with` block ends. Raises ArchiveError if it cannot be started.

    It is noted as a command: its time has in it what it waits for whoever sends or takes the archive.
    """
    argv = environment.python(confined.__file__, *arguments)
    with command_log.noted(argv, f"archive {arguments[0]}") as noted:
        try:
            process = processes.start(argv, confined=True, stdin=stdin, pass_fds=pass_fds, directory="/")
        except OSError as error:
            raise ArchiveError(f"cannot start {argv[0]}: {error.strerror}") from error
        noted.end = command_log.GIVEN_UP
        try:
            yield process
        except deadline.Overdue:
            noted.end = command_log.TIMEOUT
            raise
        finally:
            # What it has ended with itself; not that `stop` kills it.
            ended = process.poll()
            noted.end = noted.end if ended is None else ended
            processes.stop(process)
            _close((process.stdin, process.stdout, process.stderr))


def _output(process: subprocess.Popen[bytes], stall: float) -> bytes:
    """Return all that a process prints, once it has ended well. Raises ArchiveError if it fails, and Overdue."""
    assert process.stdout is not None
    with contextlib.closing(_pieces(process.stdout, (process,), stall)) as pieces:
        printed = b"".join(pieces)
    _check(process)
    return printed


def _pieces(
    pipe: IO[bytes], processes: Sequence[subprocess.Popen[bytes]], stall: float
) -> Generator[bytes, None, None]:
    """Yield what comes out of a pipe. Raises Overdue once the processes have used no time for `stall` seconds.

    A thread of its own reads, because a process that hangs in the middle of a sendfile(2) holds the lock of the pipe:
    then everybody who touches the pipe hangs too. The thread ends when the process does.
    """
    read: queue.SimpleQueue[bytes | OSError] = queue.SimpleQueue()
    room, closed = threading.Semaphore(2), threading.Event()

    def reading() -> None:
        try:
            while room.acquire() and not closed.is_set():
                piece = os.read(pipe.fileno(), _PIECE)
                read.put(piece)
                if not piece:
                    return
        except (OSError, ValueError) as error:
            read.put(OSError(str(error)))

    threading.Thread(target=reading, name="archive", daemon=True).start()
    try:
        while True:
            piece = _next(read, processes, stall)
            if isinstance(piece, OSError):
                raise piece
            if not piece:
                return
            yield piece
            room.release()
    finally:
        closed.set()
        room.release()


def _next(
    read: queue.SimpleQueue[bytes | OSError], processes: Sequence[subprocess.Popen[bytes]], stall: float
) -> bytes | OSError:
    used, since = -1, time.monotonic()
    while True:
        try:
            return read.get(timeout=min(stall, 4) / 4)
        except queue.Empty:
            now = sum(map(_used, processes))
            if now != used:
                used, since = now, time.monotonic()
            elif time.monotonic() - since > stall:
                raise deadline.Overdue(f"a layer's file system has done nothing for {stall:g} s") from None


def _used(process: subprocess.Popen[bytes]) -> int:
    """Return the time that a process has used, in ticks (proc(5), stat: utime and stime), or 0 if it has ended."""
    try:
        with open(f"/proc/{process.pid}/stat", "rb") as source:
            fields = source.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _check(*processes: subprocess.Popen[bytes]) -> None:
    """Wait for processes that have closed their output. If one failed, raises ArchiveError with the cause."""
    for process in processes:
        process.wait()
    for process in sorted(processes, key=lambda process: process.returncode == confined.READER_GONE):
        assert process.stderr is not None
        if process.returncode:
            message = process.stderr.read().decode("utf-8", "backslashreplace").strip()
            if process.returncode < 0:
                message = f"the archive process was ended by {signal.Signals(-process.returncode).name}"
            raise ArchiveError(message or f"the archive process ended with status {process.returncode}")


def _gather(stream: Readable) -> bytes:
    """Read a whole piece, or less at the end. Docker sends only 32 KiB at a time, and each write takes a thread."""
    gathered = bytearray()
    while len(gathered) < _PIECE and (data := stream.read(_PIECE - len(gathered))):
        gathered += data
    return bytes(gathered)


def _enlarge(pipe: IO[bytes]) -> None:
    """Let a pipe hold more, so that its two ends wait for each other less often. It works without, too."""
    with contextlib.suppress(OSError):  # the host has a limit for the pipes of a user
        fcntl.fcntl(pipe.fileno(), _F_SETPIPE_SZ, _PIECE)


def _write_all(process: subprocess.Popen[bytes], data: bytes, stall: float) -> None:
    """Write all of `data` to the process. Raises Overdue if that takes more than `stall` seconds.

    A thread of its own writes, for the same reason as in `_pieces`: untar.py splices from this pipe.
    """
    pipe = process.stdin
    assert pipe is not None

    def write() -> None:
        view = memoryview(data)
        while view:
            view = view[pipe.write(view) :]

    deadline.call(write, "an archive", stall)


def _close(pipes: Iterable[IO[bytes] | None]) -> None:
    """Close pipes, in a thread too: even that may hang (see `_pieces`). The thread ends with the process."""

    def close() -> None:
        for pipe in pipes:
            if pipe is not None:
                pipe.close()

    with contextlib.suppress(deadline.Overdue):
        deadline.call(close, "an archive", processes.REAP_SECONDS)
