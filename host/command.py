"""Run one command of the host: an argv list, a deadline, a one-line failure.

Every external program that the driver needs (rbd, ceph, mount, mkfs, tar) is started here or
follows the rules written here: no shell, standard input closed, the same environment whatever the
caller's (environment.py), a process group of its own so that nothing of it outlives the deadline.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypeVar

from host import deadline, environment
from host.failure import Failure

log = logging.getLogger("command")

# A killed process is gone at once unless it hangs in the kernel ("D" state, a sick cluster
# behind a block device). Then nobody can reap it; we go on and Python reaps it later.
REAP_SECONDS = 2.0
MESSAGE_LIMIT = 400
# How soon a command that may run for hours is ended when its caller wants that.
POLL_SECONDS = 0.2
# What is kept of its output, in bytes: the end says why it failed.
_KEPT = 16 << 10
# What `run` waits for, whichever thread it is.
_running: set[subprocess.Popen[bytes]] = set()
# How Ceph's programs say how far they are ("Removing image: 7% complete...").
_PROGRESS = re.compile(r"^.*: \d+% complete\.\.\..*$")
# Ceph's log lines ("2026-01-01T00:00:00.000+0000 7f.. -1 librbd: ...") follow the real message.
_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d[T ]\S+ +[0-9a-f]+ +-?\d+ ")


class Result(NamedTuple):
    """What a finished command left: its exit status and both streams, decoded."""

    status: int
    stdout: str
    stderr: str


Failed = TypeVar("Failed", bound="CommandError")


class CommandError(Failure):
    """A command did not do its work; `str()` is one line that a Docker user can read.

    `status` is the exit status (negative: the signal that ended it), or None if it could not
    be started or ran into its deadline.
    """

    def __init__(self, argv: Sequence[str], status: int | None, reason: str) -> None:
        self.argv = tuple(argv)
        self.status = status
        self.reason = reason
        super().__init__(f"{os.path.basename(argv[0])} {_subject(argv)}: {reason}")

    def explained(self: Failed, words: str) -> Failed:
        """Return this error with what somebody else, the kernel or the cluster, said of it ("": nothing)."""
        return type(self)(self.argv, self.status, f"{self.reason}; {words}") if words else self


class CommandTimeout(CommandError):
    """The command was killed at its deadline: what it was about to do may have been done."""


class CommandGivenUp(CommandError):
    """The command was killed since its caller did not want it any more: it may have done all of it, or a part."""


class CommandMissing(CommandError):
    """The program is not on PATH."""


def end_running() -> None:
    """Kill what `run` waits for. For the end of this process: after it, nobody holds these commands to a deadline."""
    for process in tuple(_running):
        if process.poll() is None:
            log.warning("killed: %s", " ".join(map(str, process.args)))  # type: ignore[arg-type] # argv is a list
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def find(program: str) -> str | None:
    """Return the path of `program`, also in the usual directories, or None."""
    return shutil.which(program, path=environment.of_commands()["PATH"])


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    accept: Collection[int] = (0,),
    pass_fds: Collection[int] = (),
    directory: str | None = None,
) -> Result:
    """Run `argv`, in `directory` or in ours, to its end and return what it printed.

    `timeout` is in seconds, less where the request's own deadline is nearer (deadline.py); then the whole
    process group is killed. Raises CommandError if the exit status is not in `accept`, CommandTimeout, or
    CommandMissing.
    """
    started = time.monotonic()
    timeout = deadline.left(timeout)
    process = start(argv, pass_fds=pass_fds, directory=directory)
    _running.add(process)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        stop(process)
        raise CommandTimeout(argv, None, f"no answer within {timeout:.3g} s") from None
    except BaseException:
        stop(process)
        raise
    finally:
        _running.discard(process)
    result = Result(process.returncode, os.fsdecode(stdout), os.fsdecode(stderr))
    log.debug("%s -> %d in %.0f ms", " ".join(argv), result.status, 1000 * (time.monotonic() - started))
    if result.status not in accept:
        raise CommandError(argv, result.status, _reason(result))
    return result


def run_on(argv: Sequence[str], *, timeout: float, give_up: Callable[[], bool]) -> None:
    """Run `argv` for as long as it tells how far it is, or anything else, at least every `timeout` seconds.

    A request's own deadline (deadline.py) counts, too, for each of them.
    Once `give_up` says so, it is killed within moments. Raises CommandGivenUp then, and what `run` does.
    """
    process = start(argv, stderr=subprocess.STDOUT)
    assert process.stdout
    _running.add(process)
    try:
        said = _listen(process.stdout.fileno(), argv, timeout, give_up)
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise CommandTimeout(argv, None, f"no end within {timeout:.3g} s") from None
    finally:
        _running.discard(process)
        if process.poll() is None:
            stop(process)
        process.stdout.close()
    if status:
        raise CommandError(argv, status, _reason(Result(status, "", os.fsdecode(said))))


def _listen(output: int, argv: Sequence[str], timeout: float, give_up: Callable[[], bool]) -> bytes:
    """Read to the end of an output and return the last of it."""
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
    pass_fds: Collection[int] = (),
    stdin: int = subprocess.DEVNULL,
    stderr: int = subprocess.PIPE,
    directory: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start `argv` with its output captured; the caller reaps it. Raises CommandError or CommandMissing."""
    variables = environment.of_commands()
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=variables,
            cwd=directory,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
    except FileNotFoundError:
        raise CommandMissing(argv, None, f"not found on PATH ({variables['PATH']})") from None
    except OSError as error:
        raise CommandError(argv, None, f"cannot be started: {error.strerror}") from error


def stop(process: subprocess.Popen[bytes]) -> str:
    """Kill what `start` started, with all that it started, unless it has ended; reap it.

    Returns why it had failed before, in one line, or "".
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        stdout, stderr = process.communicate(timeout=REAP_SECONDS)
    except subprocess.TimeoutExpired:
        log.error("process %d (%s) does not die: it hangs in the kernel", process.pid, process.args)
        return ""
    if process.returncode <= 0:
        return ""
    return _reason(Result(process.returncode, os.fsdecode(stdout), os.fsdecode(stderr or b"")))


def _subject(argv: Sequence[str]) -> str:
    """Name what the command was doing: its verb, without the options that come with every call."""
    words = []
    for word in argv[1:]:
        if word.startswith("-"):
            break
        words.append(word)
    return " ".join(words) or " ".join(argv[1:])


def _reason(result: Result) -> str:
    """Choose what to tell of stderr: the program's own words, not the log lines around them."""
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    spoken = [line for line in lines if not (_LOG_LINE.match(line) or _PROGRESS.match(line))] or lines
    text = "; ".join(dict.fromkeys(spoken))[:MESSAGE_LIMIT]
    if result.status < 0:
        return f"ended by signal {-result.status}" + (f": {text}" if text else "")
    if not text:
        # rbd and mount.* leave the errno as their exit status; others just leave a number.
        text = os.strerror(result.status) if result.status in errno.errorcode else "no message"
    return f"{text} (exit {result.status})"
