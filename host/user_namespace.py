"""A user namespace with given ids, for mounts that show owners as it maps them (mount_setattr(2), MOUNT_ATTR_IDMAP).

It begins with a process in it (user_namespace_process.py), and lives on as long as somebody has it open.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Iterator

from host import command, deadline, environment, processes, user_namespace_process

_NAME = ("unshare", "user namespace")


@contextlib.contextmanager
def opened(uids: str, gids: str, *, timeout: float) -> Iterator[int]:
    """Give the `with` block the file descriptor of a new user namespace with these lines of uid_map and gid_map.

    Raises command.CommandError if there can be none, or the kernel does not take the lines; command.CommandTimeout.
    """
    process = command.start(environment.python(user_namespace_process.__file__), stdin=subprocess.PIPE)
    try:
        namespace = _open(_await(process, deadline.left(timeout)), uids, gids)
    finally:
        _end(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    try:
        yield namespace
    finally:
        os.close(namespace)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(processes.REAP_SECONDS)
    processes.stop(process)


def _await(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait until a process is in its namespace. Return its number: what was started may have started it."""
    assert process.stdout
    assert process.stderr
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise command.CommandTimeout(_NAME, None, f"no answer within {seconds:.3g} s")
    number = process.stdout.read(20)
    if not number:
        said = os.fsdecode(process.stderr.read()).strip()
        raise command.CommandError(_NAME, process.wait(seconds), said or "it ended without a word")
    return int(number)


def _open(pid: int, uids: str, gids: str) -> int:
    for name, lines in (("uid_map", uids), ("gid_map", gids)):
        try:
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as target:
                target.write(lines)
        except OSError as error:
            raise command.CommandError(_NAME, None, f"{name} does not take {lines!r}: {error.strerror}") from None
    try:
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise command.CommandError(_NAME, None, f"{error.filename}: {error.strerror}") from None
