"""Objects of a pool that are no image's: who watches one, and a lock that ends by itself.

Their names begin with the image prefix. `rados` ends with 1 whatever went wrong.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence

import command
from rbdcli import Pool, RbdError


def sign(pool: Pool, name: str, key: str, value: str) -> None:
    """Make an object unless it is there, and write an attribute of it."""
    pool.rados("setxattr", name, key, value)


def watching(pool: Pool, name: str) -> Sequence[str]:
    """Return the addresses of the clients that watch an object, which must exist."""
    return re.findall(r"^watcher=(\S+) ", pool.rados("listwatchers", name), re.MULTILINE)


def start_watching(pool: Pool, name: str) -> subprocess.Popen[bytes]:
    """Start a process that watches an object until its standard input ends; the caller reaps it.

    It prints a line once it watches, and another one should it lose its watch.
    """
    # Only its own way out asks the cluster for anything, and that must have an end.
    return command.start(pool.rados_argv("watch", name), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)


def lock(pool: Pool, name: str, lock: str, holder: str, seconds: float) -> bool:
    """Take a lock of an object for some seconds, whoever runs the commands in them; false if another has it.

    A lock of the same `holder` is one of an earlier life of the caller, and broken.
    """
    words = ("lock", "get", name, lock, "--lock-type", "exclusive", "--lock-duration", str(int(seconds)))
    try:
        pool.rados(*words, "--lock-description", holder)
    except RbdError:
        # Another has it, or had it a moment ago. If it was anything else, this fails too.
        for locker in _lockers(pool, name, lock):
            if locker["description"] == holder:
                pool.rados("lock", "break", name, lock, locker["name"])
        return False
    return True


def unlock(pool: Pool, name: str, lock: str) -> None:
    """Give a lock back that `lock` took."""
    for locker in _lockers(pool, name, lock):
        pool.rados("lock", "break", name, lock, locker["name"])


def _lockers(pool: Pool, name: str, lock: str) -> Sequence[Mapping[str, str]]:
    lockers = json.loads(pool.rados("lock", "info", name, lock))["lockers"]
    return [{key: str(item[key]) for key in ("name", "description")} for item in lockers]
