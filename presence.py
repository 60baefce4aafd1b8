"""Shows the cluster that this driver lives, so that nobody takes its layers while none of them is mapped.

A `rados watch` on an object of this host and home lives as long as this process: it ends when its standard
input does, however this process ends. When the host dies or is cut off, the cluster drops the watch after 30 s
(osd_client_watch_timeout). So whoever is watched for is alive, or was 30 s ago; `takeover.py` asks for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import subprocess
import threading
from collections.abc import Callable

import command
import objects
import rbdcli

log = logging.getLogger("presence")

OWNER_ATTRIBUTE = "docker_graph_driver.owner"
# A watch that is lost is renewed soon; what cannot be had at all, later.
RENEW_SECONDS, RETRY_SECONDS = 1.0, 10.0
# For the watching process to take its leave from the cluster.
LEAVE_SECONDS = 2.0


def object_of(prefix: str, owner: str) -> str:
    """Return the name of the object that the driver of an owner ("HOST HOME") watches."""
    return f"{prefix}_host.{hashlib.sha256(owner.encode()).hexdigest()[:16]}"


class Presence:
    """One thread that keeps the watch, and renews it when it is lost. `answers` is called when the cluster took it."""

    def __init__(self, pool: rbdcli.Pool, prefix: str, owner: str, answers: Callable[[], None]) -> None:
        self._pool = pool
        self._object = object_of(prefix, owner)
        self._owner = owner
        self._answers = answers
        self._stopped = threading.Event()
        self._watching = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def shown(self) -> bool:
        """Whether the cluster knows that we live, as far as we know."""
        return self._watching

    def start(self) -> None:
        """Begin, unless that was done; returns at once. Without a cluster it is tried again and again."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="presence", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the watch. The process that kept it is gone then; one whose start hangs goes when that is over."""
        self._stopped.set()
        self._leave()
        if self._thread:
            self._thread.join(LEAVE_SECONDS)

    def _work(self) -> None:
        told = ""
        while not self._stopped.is_set():
            pause = RETRY_SECONDS
            try:
                if self._watch():
                    pause = RENEW_SECONDS
                told = ""
            except (command.CommandError, OSError) as error:
                if str(error) != told:
                    log.warning(
                        "other hosts cannot see that this one lives; again every %g s: %s", RETRY_SECONDS, error
                    )
                told = str(error)
            self._stopped.wait(pause)

    def _watch(self) -> bool:
        """Watch until the watch is lost or `stop` is called; tell whether there was a watch at all."""
        objects.sign(self._pool, self._object, OWNER_ATTRIBUTE, self._owner)
        process = self._process = objects.start_watching(self._pool, self._object)
        assert process.stdout
        try:
            watched = bool(process.stdout.readline())
            if watched and not self._stopped.is_set():
                self._watching = True
                log.debug("watching %s", self._object)
                self._answers()
                process.stdout.readline()
        finally:
            self._watching = False
            self._leave()
            process.stdout.close()
        if not self._stopped.is_set():
            log.info("the watch that shows that this host lives was lost (rados ended with %s)", process.returncode)
        return watched

    def _leave(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            # A cluster that does not answer. It will drop the watch by itself.
            process.kill()
            process.wait()
