"""Shows the cluster that this driver lives, so that nobody takes its layers while none of them is mapped.

A `rados watch` on an object of this host and home lives as long as this process: it ends when its standard
input does, however this process ends. When the host dies or is cut off, the cluster drops the watch after 30 s
(osd_client_watch_timeout). So a host whose object has a watcher is alive, or was 30 s ago; `takeover.py` asks for that.
A driver that watches has the claim of that name (claim.py).
"""

from __future__ import annotations

import contextlib
import logging
import select
import subprocess
import threading
from collections.abc import Callable

import rbdcli
from cluster import rados_objects
from cluster.claim import REBOOT_SECONDS, Claim, OwnerTaken
from cluster.owner import Owner
from host import command, deadline, processes

log = logging.getLogger("liveness")

# A watch that was lost is renewed soon. If that fails, it is tried again later.
RENEW_SECONDS, RETRY_SECONDS = 1.0, 10.0
# The watching process may take so long to end its watch in the cluster.
LEAVE_SECONDS = 2.0


class Liveness:
    """One thread that keeps the watch, and renews it when it is lost. It calls `answers` when the cluster took it."""

    def __init__(self, pool: rbdcli.Pool, prefix: str, owner: Owner, answers: Callable[[], None]) -> None:
        self._pool = pool
        self._claim = Claim(pool, prefix, owner)
        self._answers = answers
        self._stopped = threading.Event()
        self._watching = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def shown(self) -> bool:
        """Whether the cluster knows that we live, and, as far as we know, nobody else lives under our name."""
        return self._watching

    def claim(self) -> None:
        """Claim our name and begin to watch, before anything is changed under it. `start` goes on with that watch.

        Waits while this machine before a reboot may seem to live still. Raises claim.OwnerTaken, OSError, and
        command.CommandError if the cluster does not answer. If the cluster is full and takes no claim, that is logged,
        and `start` tries again: a driver that makes room must start.
        """
        try:
            self._claim.take_when_alone(self._begin)
        except command.CommandError as error:
            self._leave()
            self._claim.wait_alone()
            log.warning("the name of this host is not claimed yet: %s", error)
        except BaseException:
            self._leave()
            raise

    def start(self) -> None:
        """Start the thread, unless it runs; return at once. Without a cluster the thread tries again and again."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="liveness", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the watch, and the process that keeps it. One that is just being started goes when its start is over."""
        self._stopped.set()
        if self._process:
            _end(self._process)
        if self._thread:
            self._thread.join(LEAVE_SECONDS)

    def _work(self) -> None:
        reported = ""
        while not self._stopped.is_set():
            pause, failure = RETRY_SECONDS, ""
            try:
                if self._process is None:
                    self._claim.take_when_alone(self._begin)
                self._watch()
                pause = RENEW_SECONDS
            except OwnerTaken as error:
                failure = "taken"
                if failure != reported:
                    log.error("%s", error)
            except Exception as error:  # what an old or new rados prints may be anything
                failure = str(error)
                if failure != reported:
                    log.warning(
                        "other hosts cannot see that this one lives; again every %g s: %s", RETRY_SECONDS, error
                    )
            finally:
                self._leave()
            reported = failure
            self._stopped.wait(pause)

    def _begin(self) -> None:
        """Start to watch, and wait until the cluster has taken the watch. Raises command.CommandError."""
        if self._stopped.is_set():
            return
        process = self._process = rados_objects.start_watching(self._pool, self._claim.object)
        assert process.stdout
        seconds = deadline.left(self._pool.timeout)
        if (_has_output(process, seconds) and process.stdout.readline()) or self._stopped.is_set():
            return
        _end(process)
        argv = ("rados", "watch", self._claim.object)
        raise rbdcli.RbdError(argv, process.returncode, f"the cluster took no watch within {seconds:.3g} s")

    def _watch(self) -> None:
        """Watch until the watch is lost or `stop` is called."""
        process = self._process
        if process is None or self._stopped.is_set():
            return
        assert process.stdout
        self._watching = True
        log.debug("watching %s", self._claim.object)
        try:
            self._answers()
            if not _has_output(process, REBOOT_SECONDS):
                self._look_around()
                process.stdout.readline()
        finally:
            self._watching = False
            _end(process)
        if not self._stopped.is_set():
            log.info("the watch that shows that this host lives was lost (rados ended with %s)", process.returncode)

    def _look_around(self) -> None:
        """Look whether we watch alone, now that the watch of our former process must have ended."""
        try:
            # A daemon's Init makes another driver, which watches too until it has taken over, or failed.
            self._claim.wait_single()
        except OwnerTaken as error:
            self._watching = False
            log.error("%s", error)
        except command.CommandError as error:
            log.info("it is not known whether this host is the only one of its name: %s", error)

    def _leave(self) -> None:
        """End the process that watches, if there is one."""
        process, self._process = self._process, None
        if process:
            assert process.stdout
            _end(process)
            process.stdout.close()


def _has_output(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Tell whether a process has printed something, or ended, within some seconds."""
    assert process.stdout
    output = select.poll()
    output.register(process.stdout, select.POLLIN)
    return bool(output.poll(1000 * seconds))


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        # A cluster that does not answer. It will drop the watch by itself.
        processes.stop(process)
