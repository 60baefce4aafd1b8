"""The command `docker_graph_driver.py snapshotter`: its options, and the life of the process that serves containerd.

The socket is served before the cluster has answered: what needs no layer is answered from the store.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import threading
import time

from cluster.liveness import Liveness
from cluster.shared_layers import SharedLayers
from cluster.told import Told
from graph.bounds import Bounds
from graph.figures import Figures
from graph.lifetime import Lifetime
from graph.reaper import Reaper
from host import command, instance, logs, metrics_file
from host.background import in_turn
from host.failure import EXPECTED
from host.notify import Notifier
from host.subcommands import Parser, seconds
from images.options import Options, parse, pool_of
from mapped.home import Home
from mapped.host_layers import HostLayers
from snapshots.store import FILE, Store
from snapshotter import rebuilding, settings
from snapshotter.notes import Notes
from snapshotter.service import Service
from snapshotter.sharing import Sharing
from snapshotter.snapshotter import Snapshotter
from wire.grpc_server import GrpcServer

ADDRESS = "/run/docker-graph-driver/snapshotter.sock"
ROOT = "/var/lib/docker-graph-driver"
LOCK = "snapshotter"
# After SIGTERM the process ends within so many seconds, whatever hangs. The unit's TimeoutStopSec is longer.
FINISH_SECONDS = 60.0
# How often it is looked for snapshots that nobody has mounted any more, and for a cluster that does not answer.
LOOK_SECONDS, RETRY_SECONDS = 10.0, 5.0

log = logging.getLogger("snapshotter")


class Process:
    """All parts of a running snapshotter. It decides in which order they start and end. `figures` tell what it has."""

    def __init__(self, root: str, options: Options, *, shares: bool, keep: float) -> None:
        """Open what the root holds. This neither asks the cluster nor touches what is mounted.

        `shares` and `keep` are those of Sharing. Raises StoreFailed, OSError.
        """
        home = Home(root, options, pool_of(options), clients_mount=True)
        home.paths.make_home()
        self._store = Store(root)
        liveness = Liveness(home.pool, options.imageprefix, home.layers.owner(), self._wake)
        here = self._here = HostLayers(home, liveness, (0, 0))
        self._reaper = Reaper(here, self._gone)
        shared = self._shared = SharedLayers(home.pool, options.imageprefix, home.layers.owner())
        self._told = Told(home.pool, options.imageprefix, home.layers.owner())
        notes = self._notes = Notes(self._store, home.layers, self._told, home.timeout)
        self._sharing = Sharing(self._store, here, self._reaper, shared, notes, enabled=shares, keep=keep)
        self._snapshotter = Snapshotter(self._store, here, self._reaper, self._sharing, notes)
        self._bounds = Bounds(home)
        self._lifetime = Lifetime(here, liveness, self._bounds, self._reaper)
        self.figures = Figures(here, self._reaper.works, self._sharing.works, notes.works)
        self._ended = threading.Event()

    def serve(self, address: str, notifier: Notifier) -> None:
        """Serve until SIGTERM or SIGINT. Then running calls are answered, and the mounts of containers stay.

        Raises OSError, NoSocket, StoreFailed, command.CommandError.
        """
        self._lifetime.learn()
        self._snapshotter.recover()
        caught = instance.catch_signals()
        with GrpcServer(address, Service(self._snapshotter, self._bounds).methods()) as server:
            instance.stop_on_signal(server.shutdown, caught)
            for work in (self._get_ready, self._look):
                threading.Thread(target=work, name=work.__name__.strip("_"), daemon=True).start()
            log.info("listening on %s", address)
            notifier.tell("READY=1", f"STATUS=listening on {address}")
            server.serve_forever(poll_interval=0.1)
            notifier.tell("STOPPING=1", "STATUS=finishing what runs")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)
        self._end()

    def _end(self) -> None:
        end = time.monotonic() + FINISH_SECONDS
        self._ended.set()
        works = [self._sharing.works.pause, self._notes.works.pause, self._lifetime.drain]
        if not in_turn(end - time.monotonic(), works):
            log.warning("ended with work unfinished after %g s", FINISH_SECONDS)
            command.end_running()
        self._sharing.works.end()
        self._notes.works.end()
        self._lifetime.end()
        self._store.close()

    def _get_ready(self) -> None:
        """Take this host's name, and make the base image, as soon as the cluster lets us."""
        said = ""
        while not self._ended.is_set():
            try:
                self._lifetime.claim()
                with self._bounds.explaining():
                    self._lifetime.prepare()
                    self._rebuild()
                    self._sharing.reconcile()
                    self._notes.reconcile()
                break
            except EXPECTED as error:
                self._snapshotter.why_not_ready = str(error)
                if str(error) != said:
                    log.warning("not ready yet: %s", error)
                said = str(error)
            self._ended.wait(RETRY_SECONDS)
        else:
            return
        self._lifetime.start()
        self._sharing.start()
        self._notes.start()
        self._snapshotter.set_ready()
        log.info("ready")

    def _rebuild(self) -> None:
        """Make the store whole, if it is new: the pool tells whether this root had one before.

        That needs nobody's word: containerd asks at once, and removes from its own database what it is told is gone.
        """
        if self._store.is_whole():
            return
        found = rebuilding.find(self._here.home.layers, self._shared, self._told, self._here.removals)
        for line in found.problems:
            log.error("%s", line)
        if found.snapshots:
            there = f"{len(found.snapshots)} snapshots are made anew from the pool"
            log.warning("%s was missing: %s", os.path.join(self._here.home.paths.home, FILE), there)
        self._store.restore(found.snapshots, found.unnoted)
        self._snapshotter.recover()
        self._snapshotter.set_whole()

    def _look(self) -> None:
        """Release again and again what nobody has mounted any more."""
        while not self._ended.wait(LOOK_SECONDS):
            try:
                self._snapshotter.take_back_unused()
            except EXPECTED as error:
                log.warning("%s", error)
            except Exception:
                log.exception("a defect of the driver")

    def _wake(self) -> None:
        self._here.unmapping.wake()
        self._reaper.works.wake()
        self._sharing.works.wake()
        self._notes.works.wake()

    def _gone(self, layer: str) -> None:
        self._sharing.gone(layer)
        self._store.removed(layer)


def add_arguments(parser: Parser) -> None:
    """Add its options."""
    text = "unix socket to serve (default %(default)s)"
    parser.add_argument("--address", default=ADDRESS, metavar="SOCKET", help=text)
    text = "directory for what this host remembers, and for its mounts (default %(default)s)"
    parser.add_argument("--root", default=ROOT, metavar="DIR", help=text)
    text = "storage option such as ceph.datapool=docker; repeatable"
    parser.add_argument("--option", action="append", default=[], metavar="OPTION=VALUE", help=text)
    text = "neither use layers that other hosts have pulled, nor offer ours"
    parser.add_argument("--no-sharing", action="store_true", help=text)
    text = "how long a shared layer stays in the pool when no host uses it any more (default %(default)g)"
    parser.add_argument("--keep", type=seconds, default=0.0, metavar="SECONDS", help=text)
    parser.add_argument("--metrics", metavar="FILE", help=metrics_file.HELP)
    parser.add_log_level("info")
    line = "python3 docker_graph_driver.py snapshotter --option ceph.datapool=docker --option ceph.client=docker"
    parser.add_example("without systemd", line)


def run(arguments: argparse.Namespace) -> int:
    """Serve; return 1 if that is impossible."""
    logs.start(arguments.log_level)
    address, root = os.path.abspath(arguments.address), os.path.abspath(arguments.root)
    notifier = Notifier()
    try:
        options = parse(arguments.option)
        os.makedirs(root, mode=0o711, exist_ok=True)
        with instance.only(os.path.join(root, LOCK), "--root"), instance.only(address, "--address"):
            settings.save(root, arguments.option)
            process = Process(root, options, shares=not arguments.no_sharing, keep=arguments.keep)
            # What asks the cluster for the figures, or gets ready, is not waited for.
            with command.none_left(), metrics_file.kept(arguments.metrics, address, process.figures.fill):
                process.serve(address, notifier)
    except EXPECTED as error:
        log.error("%s", error)
        return 1
    return 0
