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

import argparse
import contextlib
import ctypes
import fcntl
import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator

from archive import transfer
from host import command, logs
from host.failure import EXPECTED, Failure
from host.notify import Notifier
from images.options import Options, parse
from maintenance import commands
from protocol.plugin import Plugin
from protocol.server import Server

VERSION = "2.0.0"
SOCKET = "/run/docker/plugins/ceph.sock"
# After SIGTERM the process ends within so many seconds, whatever hangs. The unit's TimeoutStopSec is longer.
FINISH_SECONDS = 60.0
OPEN_FILES = 1 << 16
M_ARENA_MAX = -8  # malloc.h

log = logging.getLogger("docker_graph_driver")


class AlreadyServed(Failure):
    """Another instance has our socket. The text is one line: what to do."""


@contextlib.contextmanager
def only_instance(path: str) -> Iterator[None]:
    """Hold the socket's lock file in the `with` block. Raises AlreadyServed if another instance has it, OSError."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(path + ".lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyServed(f"another instance serves {path}; stop it or give --socket") from None
        yield


def serve(path: str, state_file: str, defaults: Options) -> None:
    """Serve until SIGTERM or SIGINT. Then running requests are finished, and the mounts of containers stay.

    Raises AlreadyServed, OSError, and what Plugin.restore raises.
    """
    notifier = Notifier()
    plugin = Plugin(state_file, defaults)
    with only_instance(path):
        plugin.restore()
        # Before the socket is there: its appearance means that a signal ends us in order.
        caught = _catch_signals()
        with Server(path, plugin) as server:
            _stop_on_signal(server, caught)
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


def _catch_signals() -> socket.socket:
    """Let SIGTERM and SIGINT only send their numbers to a socket from now on. Return that socket.

    A handler must not do more: it interrupts the main thread, which may hold a lock of Python's own at that moment.
    """
    caught, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return caught


def _stop_on_signal(server: Server, caught: socket.socket) -> None:
    """End the server's loop once a signal is caught. A thread does this, since `shutdown` waits for that loop."""

    def stop() -> None:
        log.info("%s: finishing what runs", signal.Signals(caught.recv(1)[0]).name)
        server.shutdown()

    threading.Thread(target=stop, name="signals", daemon=True).start()


def _check_at_start(plugin: Plugin) -> None:
    """Log early what is missing. We serve all the same: Init may name another cluster, or Ceph may come back."""
    try:
        plugin.check()
    except EXPECTED as error:
        log.warning("not ready yet: %s", error)


def _reset_process() -> None:
    """Undo settings of a parent process that a new program inherits, and set the limits that the driver needs."""
    # If SIGCHLD were ignored, we would not see how our commands end. If signals were blocked, none would end us.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Each connection of dockerd takes one descriptor, and a command some for a moment.
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, min(most, OPEN_FILES)), most))
    # By default, glibc gives each thread a heap of its own, and each keeps what was freed. Other C libraries have no
    # such call.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def main() -> int:
    """Read the command line and serve; return 1 if that is impossible. The first word may be an operator's command."""
    _reset_process()
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        return commands.main(sys.argv[1:], SOCKET)
    description, epilog = __doc__.partition("\n")[0], "Beside serving: docker_graph_driver.py check|gc|takeover --help"
    parser = argparse.ArgumentParser(prog="docker_graph_driver.py", description=description, epilog=epilog)
    parser.add_argument("--version", action="version", version=f"docker-graph-driver {VERSION}")
    parser.add_argument("--socket", default=SOCKET, metavar="PATH", help="unix socket to serve (default %(default)s)")
    parser.add_argument("--state", metavar="FILE", help="where Init's settings are kept (default: PATH.state)")
    text = "storage option where dockerd gives none, such as ceph.datapool=docker; repeatable"
    parser.add_argument("--default", action="append", default=[], metavar="OPTION=VALUE", help=text)
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", default="info", choices=levels, help="what is logged (default %(default)s)")
    arguments = parser.parse_args()
    logs.start("%(asctime)s %(levelname)s %(message)s", arguments.log_level)
    try:
        defaults = parse(arguments.default)
        serve(os.path.abspath(arguments.socket), arguments.state or arguments.socket + ".state", defaults)
    except EXPECTED as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
