"""The one place where the driver starts processes, and where it kills them.

The same rules hold for all of them. There is no shell, and a program gets what it needs in a list of arguments. Its
standard input is closed unless the caller gives one. It gets one of the two environments of environment.py, whatever
the environment of the driver's caller is. It leads a session of its own: a signal from the terminal is for the driver,
which decides, and the process can be killed together with everything that it started.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Collection, Sequence
from typing import IO, Union

from host import environment

log = logging.getLogger("processes")

# A killed process is gone at once, unless it hangs in the kernel (state "D": the cluster behind a block device does not
# answer). Then nobody can reap it. The driver goes on, and Python reaps the process later.
REAP_SECONDS = 2.0

_Stream = Union[int, IO[bytes], None]


def start(
    argv: Sequence[str],
    *,
    confined: bool = False,
    stdin: _Stream = subprocess.DEVNULL,
    stdout: _Stream = subprocess.PIPE,
    stderr: _Stream = subprocess.PIPE,
    pass_fds: Collection[int] = (),
    directory: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program, in `directory` or in ours. The caller closes its pipes, and reaps it or calls `stop`.

    `confined` says that the program locks itself into a layer: then nothing of our environment reaches it. The pipes
    have no buffer on our side, so poll(2) on a pipe never misses what was read already. Raises OSError if the program
    cannot be started; then nothing is left behind.
    """
    return subprocess.Popen(
        list(argv),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        bufsize=0,
        env=environment.CONFINED if confined else environment.of_commands(),
        cwd=directory,
        start_new_session=True,
        pass_fds=tuple(pass_fds),
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with everything that it started. Does nothing once it was reaped, and does not reap it.

    The number of a process that was reaped may belong to somebody else's process by now.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a process as `kill` does, and reap it. Its pipes stay open.

    Waits for REAP_SECONDS at most. The log tells of a process that is still there after that.
    """
    kill(process)
    try:
        process.wait(REAP_SECONDS)
    except subprocess.TimeoutExpired:
        log.error("process %d (%s) does not die: it hangs in the kernel", process.pid, command_line(process))


def command_line(process: subprocess.Popen[bytes]) -> str:
    """Return what was started, in one line for the log."""
    return " ".join(map(str, process.args))  # type: ignore[arg-type] # `start` has made it a list
