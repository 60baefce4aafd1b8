#!/usr/bin/env python3
"""docker-graph-driver: keeps Docker's image layers and containers in Ceph RBD images.

The front door: the command line, signals, and the life of the process. Each request has a thread; all code below is
synchronous.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # With -I or -P, Python does not look for modules beside this file.
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    from host import environment

    environment.enter(__file__)

import logging
import threading
import time

from archive import transfer
from host import command, instance, logs, metrics_file, subcommands
from host.failure import EXPECTED
from host.notify import Notifier
from host.subcommands import PROGRAM, SOCKET, Parser
from images.options import Options, parse
from protocol.plugin import Plugin
from protocol.server import Server

VERSION = "2.2.0"
# After SIGTERM the process ends within so many seconds, whatever hangs. The unit's TimeoutStopSec is longer.
FINISH_SECONDS = 60.0

log = logging.getLogger("docker_graph_driver")


def serve(path: str, state_file: str, defaults: Options, metrics: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Then running requests are finished, and the mounts of containers stay.

    `metrics` is the path of a file for figures (metrics_file.py).

    Raises instance.AlreadyServed, OSError, and what Plugin.restore raises.
    """
    notifier = Notifier()
    plugin = Plugin(state_file, defaults)
    # What asks the cluster for the figures, or whether all is there, is not waited for.
    with instance.only(path, "--socket"), command.none_left(), metrics_file.kept(metrics, path, plugin.fill_figures):
        plugin.restore()
        # Before the socket is there: its appearance means that a signal ends us in order.
        caught = instance.catch_signals()
        with Server(path, plugin) as server:
            instance.stop_on_signal(server.shutdown, caught)
            threading.Thread(target=_check_at_start, args=(plugin,), name="check", daemon=True).start()
            log.info("listening on %s; plain files of archives are laid down by %s", path, transfer.extractor())
            notifier.tell("READY=1", f"STATUS=listening on {path}")
            server.serve_forever(poll_interval=0.1)
            notifier.tell("STOPPING=1", "STATUS=finishing what runs")
        os.unlink(path)
        if not _finish(server, plugin):
            log.warning("ended with work unfinished after %g s", FINISH_SECONDS)
            command.end_running()


def _finish(server: Server, plugin: Plugin) -> bool:
    """Wait until running requests are answered and removed layers are deleted. Tell whether both are done.

    Together this takes FINISH_SECONDS at the most. New requests wait until this process has ended: a request that began
    while Python shuts down could fail anywhere.
    """
    end = time.monotonic() + FINISH_SECONDS
    return server.requests.close(FINISH_SECONDS) and plugin.drain(max(0.0, end - time.monotonic()))


def _check_at_start(plugin: Plugin) -> None:
    """Log early what is missing. We serve all the same: Init may name another cluster, or Ceph may come back."""
    try:
        plugin.check()
    except EXPECTED as error:
        log.warning("not ready yet: %s", error)


def parser() -> Parser:
    """Return the parser for serving Docker, whose help lists the subcommands."""
    front = Parser(PROGRAM, __doc__.partition("\n")[0].partition(": ")[2])
    front.add_argument("--version", action="version", version=f"docker-graph-driver {VERSION}", help="say it, and exit")
    front.add_argument("--socket", default=SOCKET, metavar="PATH", help="unix socket to serve (default %(default)s)")
    front.add_argument("--state", metavar="FILE", help="where Init's settings are kept (default: PATH.state)")
    text = "storage option where dockerd gives none, such as ceph.datapool=docker; repeatable"
    front.add_argument("--default", action="append", default=[], metavar="OPTION=VALUE", help=text)
    front.add_log_level("info")
    front.add_argument("--metrics", metavar="FILE", help=metrics_file.HELP)
    front.add_paragraph("Without a subcommand it serves Docker, at the socket, until SIGTERM or SIGINT.")
    front.add_paragraph(subcommands.listed())
    front.add_example("before dockerd --experimental --storage-driver ceph", "python3 docker_graph_driver.py")
    front.add_paragraph("docker_graph_driver.py SUBCOMMAND --help tells more of one.")
    return front


def main() -> int:
    """Read the command line and serve; return 1 if that is impossible. The first word may be a subcommand."""
    instance.reset_process()
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        subcommand = subcommands.named(sys.argv[1])
        if subcommand:
            return subcommand.main(sys.argv[2:])
        known = ", ".join(each.name for each in subcommands.SUBCOMMANDS)
        print(f"{PROGRAM}: no subcommand is named {sys.argv[1]!r}; expected one of {known}", file=sys.stderr)
        return 2
    arguments = parser().parse_args()
    logs.start(arguments.log_level)
    try:
        defaults = parse(arguments.default)
        state = arguments.state or arguments.socket + ".state"
        serve(os.path.abspath(arguments.socket), state, defaults, arguments.metrics)
    except EXPECTED as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
