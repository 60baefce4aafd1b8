"""Shows the cluster that this driver lives, so that nobody takes its layers while none of them is mapped.

A `rados watch` on an object of this host and home lives as long as this process: it ends when its standard
input does, however this process ends. When the host dies or is cut off, the cluster drops the watch after 30 s
(osd_client_watch_timeout). So whoever is watched for is alive, or was 30 s ago; `takeover.py` asks for that.
Whoever watches has the claim of that name (claim.py).
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

log = logging.getLogger("presence")

# A watch that is lost is renewed soon; what cannot be had at all, later.
RENEW_SECONDS, RETRY_SECONDS = 1.0, 10.0
# For the watching process to take its leave from the cluster.
LEAVE_SECONDS = 2.0


class Presence:
    """One thread that keeps the watch, and renews it when it is lost. `answers` is called when the cluster took it."""

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
        """Whether the cluster knows that we live, and nobody else under our name, as far as we know."""
        return self._watching

    def claim(self) -> None:
        """Claim our name and begin to watch, before anything is changed under it; `start` goes on with that.

        Waits while it may be ourselves before a reboot who still seem to live. Raises claim.OwnerTaken, and
        command.CommandError if the cluster does not tell. One that takes no writes, since it is full, is no reason to
        refuse: what makes room must go on.
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
        """Begin, unless that was done; returns at once. Without a cluster it is tried again and again."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="presence", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the watch. The process that kept it is gone then; one whose start hangs goes when that is over."""
        self._stopped.set()
        if self._process:
            _end(self._process)
        if self._thread:
            self._thread.join(LEAVE_SECONDS)

    def _work(self) -> None:
        told = ""
        while not self._stopped.is_set():
            pause, said = RETRY_SECONDS, ""
            try:
                if self._process is None:
                    self._claim.take_when_alone(self._begin)
                self._watch()
                pause = RENEW_SECONDS
            except OwnerTaken as error:
                said = "taken"
                if said != told:
                    log.error("%s", error)
            except Exception as error:  # what an old or new rados prints may be anything
                said = str(error)
                if said != told:
                    log.warning(
                        "other hosts cannot see that this one lives; again every %g s: %s", RETRY_SECONDS, error
                    )
            finally:
                self._leave()
            told = said
            self._stopped.wait(pause)

    def _begin(self) -> None:
        """Start to watch, and wait until the cluster has taken that. Raises rbdcli.RbdError."""
        if self._stopped.is_set():
            return
        process = self._process = rados_objects.start_watching(self._pool, self._claim.object)
        assert process.stdout
        seconds = deadline.left(self._pool.timeout)
        if (_says_something(process, seconds) and process.stdout.readline()) or self._stopped.is_set():
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
            if not _says_something(process, REBOOT_SECONDS):
                self._look_around()
                process.stdout.readline()
        finally:
            self._watching = False
            _end(process)
        if not self._stopped.is_set():
            log.info("the watch that shows that this host lives was lost (rados ended with %s)", process.returncode)

    def _look_around(self) -> None:
        """Look whether we watch alone, now that what we were before must have gone."""
        try:
            # A daemon's Init makes another driver, which watches too until it has taken over, or failed.
            self._claim.wait_single()
        except OwnerTaken as error:
            self._watching = False
            log.error("%s", error)
        except command.CommandError as error:
            log.info("it is not known whether this host is the only one of its name: %s", error)

    def _leave(self) -> None:
        """End what was begun to watch."""
        process, self._process = self._process, None
        if process:
            assert process.stdout
            _end(process)
            process.stdout.close()


def _says_something(process: subprocess.Popen[bytes], seconds: float) -> bool:
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
