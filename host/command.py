"""Run one command of the host to its end: within a deadline, and with an error of one line if it fails.

This is the way to all programs of the host that do something and end (rbd, rados, mount, mkfs). Each one is started by
the rules of processes.py, so nothing of it outlives its deadline.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, TypeVar

from host import command_log, deadline, environment, processes
from host.failure import Failure

log = logging.getLogger("command")

# Characters of a message.
MESSAGE_LIMIT = 400
# A command that may run for hours is asked this often whether its caller still wants it.
POLL_SECONDS = 0.2
# This many bytes of its output are kept, the last ones: they say why it failed.
_KEPT = 16 << 10
# The processes that `run` and `run_on` wait for, in all threads.
_running: set[subprocess.Popen[bytes]] = set()
# No more may be started: this process ends.
_over = threading.Event()
_ENDS = "this process ends"
# Ceph's programs say how far they are in such lines ("Removing image: 7% complete...").
_PROGRESS = re.compile(r"^.*: \d+% complete\.\.\..*$")
# Ceph's log lines ("2026-01-01T00:00:00.000+0000 7f.. -1 librbd: ...") follow the real message.
_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d[T ]\S+ +[0-9a-f]+ +-?\d+ ")


class Result(NamedTuple):
    """The exit status of a command that has ended, and what it printed, decoded."""

    status: int
    stdout: str
    stderr: str


Failed = TypeVar("Failed", bound="CommandError")


class CommandError(Failure):
    """A command did not do its work. `str()` is one line that a Docker user can read.

    `status` is the exit status. A negative one is the number of the signal that ended the command. It is None if the
    command could not be started, or was killed by us.
    """

    def __init__(self, argv: Sequence[str], status: int | None, reason: str) -> None:
        self.argv = tuple(argv)
        self.status = status
        self.reason = reason
        super().__init__(f"{os.path.basename(argv[0])} {_subject(argv)}: {reason}")

    def explained(self: Failed, words: str) -> Failed:
        """Return this error, together with the words of the kernel or of the cluster about it ("": no words)."""
        return type(self)(self.argv, self.status, f"{self.reason}; {words}") if words else self


class CommandTimeout(CommandError):
    """The command was killed at its deadline. It may have done its work, or a part of it."""


class CommandGivenUp(CommandError):
    """The command was killed because its caller gave it up. It may have done its work, or a part of it."""


class CommandMissing(CommandError):
    """The program is not on PATH."""


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """When the `with` block ends, kill the commands that still run, and start no more: the process is about to end.

    After that end nobody is left who holds these commands to their deadlines. A thread whose command was killed might
    go on with the next one.
    """
    _over.clear()
    try:
        yield
    finally:
        _over.set()
        end_running(logging.DEBUG)


def end_running(level: int = logging.WARNING) -> None:
    """Kill the commands that `run` and `run_on` wait for, in all threads, and log them."""
    for process in tuple(_running):
        if process.poll() is None:
            log.log(level, "killed: %s", processes.command_line(process))
            processes.kill(process)


def find(program: str) -> str | None:
    """Return the path of a program, or None. It may be on our PATH or in one of the usual directories."""
    return shutil.which(program, path=environment.of_commands()["PATH"])


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    accept: Collection[int] = (0,),
    pass_fds: Collection[int] = (),
    directory: str | None = None,
) -> Result:
    """Run a command to its end, in `directory` or in ours, and return what it printed.

    `timeout` is in seconds, and less if the request that we work for must end sooner (deadline.py). Then the command is
    killed with everything that it started, and CommandTimeout is raised. Raises CommandMissing, and CommandError if the
    command cannot be started or its exit status is not in `accept`.
    """
    timeout = deadline.left(timeout)
    with command_log.noted(argv) as noted, _started(argv, pass_fds=pass_fds, directory=directory) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            noted.end = command_log.TIMEOUT
            raise CommandTimeout(argv, None, f"no answer within {timeout:.3g} s") from None
        noted.end = process.returncode
    result = Result(process.returncode, os.fsdecode(stdout), os.fsdecode(stderr))
    if result.status not in accept:
        raise CommandError(argv, result.status, _reason(result))
    return result


def run_on(argv: Sequence[str], *, timeout: float, give_up: Callable[[], bool]) -> None:
    """Run a command for as long as it prints something at least every `timeout` seconds.

    Each of these waits is shorter if the request that we work for must end sooner (deadline.py). Once `give_up` returns
    True, the command is killed within moments, with everything that it started. Raises CommandGivenUp then, and
    otherwise what `run` raises.
    """
    with command_log.noted(argv) as noted, _started(argv, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        try:
            said = _listen(process.stdout.fileno(), argv, timeout, give_up)
            status = noted.end = process.wait(timeout)
        except subprocess.TimeoutExpired:
            noted.end = command_log.TIMEOUT
            raise CommandTimeout(argv, None, f"no end within {timeout:.3g} s") from None
        except (CommandTimeout, CommandGivenUp) as error:
            noted.end = command_log.TIMEOUT if isinstance(error, CommandTimeout) else command_log.GIVEN_UP
            raise
    if status:
        raise CommandError(argv, status, _reason(Result(status, "", os.fsdecode(said))))


@contextlib.contextmanager
def _started(
    argv: Sequence[str],
    *,
    stderr: int = subprocess.PIPE,
    pass_fds: Collection[int] = (),
    directory: str | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command. When the `with` block ends, the command has ended or was killed, and its pipes are closed.

    Raises CommandGivenUp if this process ends, and what `start` raises.
    """
    if _over.is_set():
        raise CommandGivenUp(argv, None, _ENDS)
    process = start(argv, stderr=stderr, pass_fds=pass_fds, directory=directory)
    _running.add(process)
    try:
        # `none_left` may not have seen it.
        if _over.is_set():
            raise CommandGivenUp(argv, None, _ENDS)
        yield process
    finally:
        _running.discard(process)
        processes.stop(process)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _listen(output: int, argv: Sequence[str], timeout: float, give_up: Callable[[], bool]) -> bytes:
    """Read an output to its end and return the last part of it. Raises CommandTimeout and CommandGivenUp."""
    said = b""
    waiting = select.poll()
    waiting.register(output, select.POLLIN)
    end = time.monotonic() + deadline.left(timeout)
    while True:
        if waiting.poll(1000 * POLL_SECONDS):
            chunk = os.read(output, _KEPT)
            if not chunk:
                return said
            said, end = (said + chunk)[-_KEPT:], time.monotonic() + deadline.left(timeout)
        elif time.monotonic() > end:
            raise CommandTimeout(argv, None, f"no progress within {timeout:.3g} s")
        if give_up():
            raise CommandGivenUp(argv, None, "given up")


def start(
    argv: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stderr: int = subprocess.PIPE,
    pass_fds: Collection[int] = (),
    directory: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command with its standard output in a pipe, as processes.start does: the caller ends it.

    Raises CommandMissing, or CommandError if it cannot be started.
    """
    try:
        return processes.start(argv, stdin=stdin, stderr=stderr, pass_fds=pass_fds, directory=directory)
    except FileNotFoundError:
        path = environment.of_commands()["PATH"]
        raise CommandMissing(argv, None, f"not found on PATH ({path})") from None
    except OSError as error:
        raise CommandError(argv, None, f"cannot be started: {error.strerror}") from error


def _subject(argv: Sequence[str]) -> str:
    """Name what the command does: its verb, without the options that come with every call."""
    words = []
    for word in argv[1:]:
        if word.startswith("-"):
            break
        words.append(word)
    return " ".join(words) or " ".join(argv[1:])


def _reason(result: Result) -> str:
    """Say in one line why a command failed: by the program's own words, without the log lines around them."""
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    spoken = [line for line in lines if not (_LOG_LINE.match(line) or _PROGRESS.match(line))] or lines
    text = "; ".join(dict.fromkeys(spoken))[:MESSAGE_LIMIT]
    if result.status < 0:
        return f"ended by signal {-result.status}" + (f": {text}" if text else "")
    if not text:
        # rbd and mount.* end with the errno as their exit status. Of others it is just a number.
        text = os.strerror(result.status) if result.status in errno.errorcode else "no message"
    return f"{text} (exit {result.status})"
