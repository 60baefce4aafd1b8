"""Why a command of Ceph failed or did not answer: the cluster is asked then, and the words say what to do."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import rbdcli
from cluster import rados_objects
from host import command, deadline

# These come from a cluster that refuses or does not answer. A command that fails in another way says itself why.
SICK = {errno.EPERM, errno.EACCES, errno.ETIMEDOUT, errno.ENOTCONN, errno.ESHUTDOWN}
# `rados` always ends with 1. It prints the errno in its message.
_ERRNO = re.compile(r"\((\d+)\) ")
MESSAGES_LIMIT = 300
# What is raised where another version of Ceph prints another shape of JSON.
NOT_UNDERSTOOD = (LookupError, ValueError, TypeError, AttributeError)
# When a cluster is sick, many requests fail at once. `ceph` is a program of Python's: if each request started one, a
# small host would be so busy that no answer came in time, and the monitors were blamed.
FRESH_SECONDS = 2.0

Failed = TypeVar("Failed", bound=command.CommandError)

_asking = threading.Lock()
# The last answer of each pool, and when it came.
_answers: dict[rbdcli.Pool, tuple[float, str]] = {}


class Health(NamedTuple):
    """What the monitors say of the cluster: a status such as HEALTH_OK, and the messages of each check that failed."""

    status: str
    messages: Mapping[str, Sequence[str]]

    def __str__(self) -> str:
        texts = [text for texts in self.messages.values() for text in texts]
        return f"the cluster says {self.status}: {'; '.join(texts)[:MESSAGES_LIMIT]}; see: ceph health detail"


def health(pool: rbdcli.Pool) -> Health:
    """Ask for the cluster's health. Raises command.CommandError; what `NOT_UNDERSTOOD` lists for another shape."""
    said = pool.ceph("health", "detail")
    checks = dict(said["checks"]).items()
    found = {name: [item["message"] for item in check.get("detail") or [check["summary"]]] for name, check in checks}
    return Health(str(said["status"]), found)


def explain(pool: rbdcli.Pool, error: Failed) -> Failed:
    """Return the error with what the cluster says of itself added, if the cluster may be why the command failed.

    The cluster is asked in the time that `why` takes.
    """
    if isinstance(error, rbdcli.PoolMissing):
        name = f"pool {pool.name}" + (f", namespace {pool.namespace}," if pool.namespace else "")
        error = error.explained(f"{name} is gone, or hidden from client.{pool.client}; its layers are not touched")
    return error.explained(why(pool)) if is_sick(error) or isinstance(error, rbdcli.PoolMissing) else error


def is_sick(error: command.CommandError) -> bool:
    """Tell whether a command failed because the cluster refuses, or does not answer."""
    return isinstance(error, command.CommandTimeout) or _errno(error) in SICK


def _errno(error: command.CommandError) -> int | None:
    """Return the errno of a failed command; None if it is not told: mkfs, mount and rbd-nbd always end with 1."""
    program, *words = error.argv
    if os.path.basename(program) == "rados":
        found = _ERRNO.search(error.reason)
        return int(found[1]) if found else None
    is_nbd = words[:1] == ["device"] and "--device-type nbd" in " ".join(words)
    return error.status if os.path.basename(program) == "rbd" and not is_nbd else None


def why(pool: rbdcli.Pool) -> str:
    """Say what is wrong with the cluster and what to do. It takes twice GRACE_SECONDS at the most.

    One answer serves all threads that ask until FRESH_SECONDS after it.
    """
    with _asking:
        came, answer = _answers.get(pool, (float("-inf"), ""))
        if time.monotonic() - came > FRESH_SECONDS:
            answer = _ask(pool)
            _answers[pool] = (time.monotonic(), answer)
        return answer


def is_full(pool: rbdcli.Pool) -> bool:
    """Tell whether a pool takes no new data, by its quota or for want of disks. False if that cannot be learned."""
    try:
        with deadline.within(deadline.GRACE_SECONDS):
            pools = pool.ceph("osd", "pool", "ls", "detail")
        flags = [str(item["flags_names"]).split(",") for item in pools if item["pool_name"] == pool.name]
    except (command.CommandError, *NOT_UNDERSTOOD):
        return False
    return any("full" in of_pool for of_pool in flags)


def _ask(pool: rbdcli.Pool) -> str:
    try:
        with deadline.within(deadline.GRACE_SECONDS):
            said = health(pool)
    except command.CommandMissing:
        return _ask_without_ceph(pool)
    except command.CommandError as error:
        return _no_monitor(pool, error)
    except NOT_UNDERSTOOD:
        return "what the cluster says of its health is not understood; see: ceph health detail"
    if not any(said.messages.values()):
        return f"the monitors say {said.status}; if so, an OSD hangs or this host does not reach it: ceph osd perf"
    return str(said)


def _ask_without_ceph(pool: rbdcli.Pool) -> str:
    """Say at least whether the monitors answer, for a minimal container that lacks `ceph`, a program of Python's."""
    try:
        with deadline.within(deadline.GRACE_SECONDS):
            rados_objects.pools(pool)
    except command.CommandError as error:
        return _no_monitor(pool, error)
    return (
        "the monitors answer, so an OSD hangs or this host does not reach it; ceph, which could tell more, is not "
        "installed here; see on another host: ceph health detail"
    )


def _no_monitor(pool: rbdcli.Pool, error: command.CommandError) -> str:
    return (
        f"no monitor lets client.{pool.client} in with {pool.configfile} ({error.reason}): see whether they run, "
        f"whether this host reaches them, and for the key: ceph auth get client.{pool.client}"
    )
