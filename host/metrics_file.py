"""The file that holds this process's figures, for the textfile collector of Prometheus' node_exporter.

It is written whole or not at all, when the process starts, every WRITE_SECONDS, and at the end. The collector reads
`*.prom`. A file that a process left can be told from one that is kept: at an end in order `docker_graph_driver_up` is 0
in it; after any other end the time in it stays as it was (`docker_graph_driver_written_timestamp_seconds`). It is not
removed: the counts of the last seconds are in it. The next process begins at 0, as Prometheus expects it.

Several processes of one host have a file each. Each sample names the socket of its process, since the collector takes
no sample twice.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from host import metrics, whole_file

log = logging.getLogger("metrics")

WRITE_SECONDS = 15.0
# So long the end of the process waits for the last of it.
END_SECONDS = 15.0
HELP = "file for node_exporter's textfile collector, with a name that ends in .prom (default: none is written)"

_UP = metrics.Gauge(
    "docker_graph_driver_up", "Whether the process that wrote this serves: 0 once it has ended in order."
)
_STARTED = metrics.Gauge(
    "docker_graph_driver_start_time_seconds", "When the process that wrote this started, in seconds since 1970."
)
_WRITTEN = metrics.Gauge(
    "docker_graph_driver_written_timestamp_seconds", "When this was written, in seconds since 1970."
)


@contextlib.contextmanager
def kept(path: str | None, socket: str, fill: Callable[[bool], None]) -> Iterator[None]:
    """Keep the file at `path` up to date in the `with` block, and write it once more at its end. None: there is none.

    `fill` sets the gauges that show what there is now. It must not take long, and is told whether this process serves
    still: at the end it shall begin nothing. Nothing is raised: serving matters more. The log tells, once, why the file
    cannot be written.
    """
    if path is None:
        yield
        return
    _STARTED.set(round(time.time(), 3))
    file = _File(path, socket, fill)
    ended = threading.Event()
    thread = threading.Thread(target=_keep, args=(file, ended), name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # A disk that does not answer keeps nobody from ending: this thread never touches it.
        thread.join(END_SECONDS)
        if thread.is_alive():
            log.warning("the last metrics are not written to %s within %g s", path, END_SECONDS)


def _keep(file: _File, ended: threading.Event) -> None:
    file.write(up=True)
    while not ended.wait(WRITE_SECONDS):
        file.write(up=True)
    file.write(up=False)


class _File:
    """The file, and what was said of it."""

    def __init__(self, path: str, socket: str, fill: Callable[[bool], None]) -> None:
        self._path, self._common, self._fill = path, {"socket": socket}, fill
        self._said = ""

    def write(self, *, up: bool) -> None:
        """Write it now. A failure is logged, unless it is the same as before."""
        said = ""
        try:
            self._fill(up)
        except Exception:
            said = "a defect of the driver"
            if self._said != said:
                log.exception(said)
        _UP.set(int(up))
        _WRITTEN.set(round(time.time(), 3))
        try:
            whole_file.write(self._path, metrics.text(self._common))
        except OSError as error:
            said = str(error)
            if self._said != said:
                log.warning("no metrics are written to %s: %s", self._path, error)
        self._said = said
