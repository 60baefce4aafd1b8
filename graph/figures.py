"""What there is now of a driver's layers, for the metrics: on this host, waiting in the background, and in the pool.

The host's figures are in memory. The cluster is asked every ASK_SECONDS, in a thread of its own, and never waited for.
If it gives no answer in STATUS_SECONDS, what only it knows is left out until it does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from cluster import diagnosis, rados_objects
from graph import status
from host import command, deadline, task
from host.background import Background, Group
from host.metrics import Gauge
from mapped.host_layers import HostLayers

log = logging.getLogger("figures")

ASK_SECONDS = 300.0

_DEVICES = Gauge("docker_graph_driver_mapped_devices", "Images that this process has mapped on this host.")
_MOUNTS = Gauge(
    "docker_graph_driver_mounts",
    "What is mounted on this host: file systems of layers (layer), joined layers (view), and what clients of the "
    "snapshotter were told to mount (client).",
    ("kind",),
)
_WAITING = Gauge(
    "docker_graph_driver_background_waiting", "Work in the background that is due and not done yet, by kind.", ("work",)
)
_OLDEST = Gauge(
    "docker_graph_driver_background_oldest_seconds",
    "For how long the oldest work in the background is due and not done, by kind; 0 if there is none.",
    ("work",),
)
_ANSWERS = Gauge(
    "docker_graph_driver_pool_answers", "Whether the cluster answered when the pool was asked for its figures last."
)
_LAYERS = Gauge("docker_graph_driver_layers", "Layers with this image prefix in the pool, those of other hosts too.")
_USED = Gauge(
    "docker_graph_driver_pool_used_bytes", "Bytes in the pool that layers fill, all copies counted.", ("pool",)
)
_AVAILABLE = Gauge(
    "docker_graph_driver_pool_available_bytes",
    "Bytes that the pool that layers fill may still take, without copies, by ceph df; none without that program.",
    ("pool",),
)
_RATIO = Gauge(
    "docker_graph_driver_pool_used_ratio",
    "How much of the pool that layers fill is used, from 0 to 1, by ceph df; none without that program.",
    ("pool",),
)


_Answer = TypeVar("_Answer")


class Figures:
    """The figures of one driver. `works` are what it does in the background beside mapping and unmapping."""

    def __init__(self, here: HostLayers, *works: Background | Group) -> None:
        self._here = here
        self._works = Group(here.mapping, here.unmapping, *works)
        self._pool = here.home.pool
        # As in `docker info`: the pool that the content of layers fills.
        self._objects_in = here.home.options.objectpool or self._pool.name
        self._asked = float("-inf")
        self._asking = threading.Lock()

    def fill(self, serving: bool = True) -> None:
        """Set the gauges to what there is now. Nobody is waited for; if we are `serving`, the cluster may be asked."""
        mapped = self._here.devices.mapped()
        _DEVICES.set(len(mapped))
        _MOUNTS.replace(
            {
                ("layer",): sum(map(self._here.systems.is_mounted, mapped)),
                ("view",): self._here.views.count(),
                ("client",): len(self._here.handed_out.names()),
            }
        )
        works = self._works.waiting()
        _WAITING.replace({(work.title,): work.number for work in works})
        _OLDEST.replace({(work.title,): round(work.oldest, 3) for work in works})
        due = serving and time.monotonic() - self._asked >= ASK_SECONDS
        if due and self._asking.acquire(blocking=False):
            try:
                threading.Thread(target=self._ask, name="figures of the pool", daemon=True).start()
            except BaseException:
                self._asking.release()
                raise
            self._asked = time.monotonic()

    def _ask(self) -> None:
        """Ask the cluster, in a thread of its own."""
        try:
            with task.background("figures of the pool"), deadline.within(status.STATUS_SECONDS):
                layers = _answer(self._here.home.layers.count)
                used = _answer(lambda: rados_objects.used(self._pool, self._objects_in))
                space = _answer(lambda: status.space(self._pool, self._objects_in))
            self._show(layers, used, space)
        except Exception:
            log.exception("a defect of the driver")
            self._show(None, None, None)
        finally:
            self._asking.release()

    def _show(self, layers: int | None, used: int | None, space: status.Space | None) -> None:
        _ANSWERS.set(int(layers is not None and used is not None))
        _LAYERS.set(layers)
        pool = (self._objects_in,)
        _USED.replace({} if used is None else {pool: used})
        _AVAILABLE.replace({} if space is None else {pool: space.available})
        _RATIO.replace({} if space is None or space.used_ratio is None else {pool: space.used_ratio})


def _answer(ask: Callable[[], _Answer]) -> _Answer | None:
    """Return what the cluster answers; None without an answer, or if another version of Ceph prints another form."""
    try:
        return ask()
    except (command.CommandError, *diagnosis.NOT_UNDERSTOOD) as error:
        log.debug("the pool is asked in vain: %s", error)
        return None
