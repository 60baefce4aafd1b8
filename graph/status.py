"""The rows of `docker info`: the settings of the driver, and what the cluster tells of itself."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import rbdcli
from cluster import diagnosis, rados_objects
from host import command, deadline
from images.options import Options, format_size

# `docker info` and dockerd's start wait so long for the cluster. After that, each row without an answer says so.
STATUS_SECONDS = 5.0


def rows(
    pool: rbdcli.Pool, options: Options, layers: Callable[[], int], mapped: Callable[[], int]
) -> list[tuple[str, str]]:
    """Return the rows. If the cluster does not answer, its rows say so; nothing is raised for that.

    `layers` asks the cluster for the number of layers. `mapped` tells how many layers this host has mapped.
    """
    # The pool that the content of layers fills. Init has seen that the base image uses it (base_image.py): so all do.
    objects_in = options.objectpool or pool.name
    with ThreadPoolExecutor(max_workers=6) as threads, deadline.within(STATUS_SECONDS):

        def ask(question: Callable[[], str]) -> Future[str]:
            return threads.submit(contextvars.copy_context().run, _told, question)

        used = ask(lambda: f"{format_size(rados_objects.used(pool, objects_in))}B")
        room = ask(lambda: f"{format_size(space(pool, objects_in).available)}B")
        health = ask(lambda: str(pool.ceph("health")["status"]))
        version = ask(lambda: release(str(pool.ceph("version")["version"])))
        client = ask(pool.client_version)
        count = ask(lambda: str(layers()))
    return [
        ("Pool", pool.name),
        ("Object Pool", objects_in),
        ("Namespace", pool.namespace or "(default)"),
        ("Image Prefix", options.imageprefix),
        ("Device Type", options.devicetype),
        ("Base Size", format_size(options.basesize)),
        ("Backing Filesystem", options.fs),
        ("Pool Used", used.result()),
        ("Pool Available", room.result()),
        ("Ceph Health", health.result()),
        ("Ceph Client", client.result()),
        ("Ceph Cluster", version.result()),
        ("Layers", count.result()),
        ("Mapped Devices", str(mapped())),
    ]


class Space(NamedTuple):
    """What a pool may still take, in bytes without copies, and how much of it is used, from 0 to 1."""

    available: int
    used_ratio: float | None


def space(pool: rbdcli.Pool, name: str) -> Space:
    """Ask for the space of the pool `name`.

    Raises command.CommandError; LookupError if there is no such pool, and TypeError for JSON of another form.
    """
    stats = {item["name"]: item["stats"] for item in pool.ceph("df")["pools"]}[name]
    return Space(int(stats["max_avail"]), stats.get("percent_used"))


def _told(ask: Callable[[], str]) -> str:
    """Return an answer of the cluster, or say why there is none."""
    try:
        return ask()
    except command.CommandMissing as error:
        return f"unknown ({error.argv[0]} is not installed)"
    except (command.CommandError, *diagnosis.NOT_UNDERSTOOD) as error:
        return f"unknown ({error})"


def release(version: str) -> str:
    """Shorten `ceph version 16.2.15 (hash) pacific (stable)` to `16.2.15 pacific`."""
    words = version.split()
    return f"{words[2]} {words[4]}" if len(words) > 4 else version
