"""Runs bsdtar, which lays down the plain files of an archive while untar.py reads on. This module is not confined.

untar.py cannot start a program once it is locked into the layer. So it asks us to do it (bsdtar_feed.py), and sends the
reading end of a pipe with each request. There is at most one bsdtar at a time, and none after the `with` block. bsdtar
locks itself into the layer before it creates anything. Host command: bsdtar (libarchive).
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import signal
import socket
import subprocess
import threading
from typing import Any

from host import command, command_log, processes

# Bytes of a complaint: more does not go into one packet to bsdtar_feed.py.
MOST_SAID = 1 << 15


def find() -> str | None:
    """Return the absolute path of bsdtar, or None if this host has none."""
    return command.find("bsdtar")


def _argv(program: str, root: str) -> list[str]:
    return [
        program,
        "--extract",
        "--chroot",
        "--absolute-paths",  # the names are absolute; bsdtar is locked in, so it need not check each directory
        "--numeric-owner",  # to look up users and groups would load the libraries of nsswitch out of the layer
        "--preserve-permissions",  # setuid too, and whatever the umask is
        *("--file", "-"),
        *("--directory", root),
    ]


class Bsdtar:
    """The bsdtar processes of one archive.

    The caller passes the socket `control` on to bsdtar_feed.py and calls `serve` then. When the `with` block ends, no
    bsdtar runs any more, whatever happened in it.
    """

    def __init__(self, program: str, root: str) -> None:
        self._argv = _argv(program, root)
        self._ours, self.control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process: subprocess.Popen[bytes] | None = None
        # Held to kill the process that runs, and to note one that was just started: that one must be killed too.
        self._lock = threading.Lock()
        self._ended = False
        # What it does is a part of the request that the archive came with.
        serve = contextvars.copy_context().run
        self._thread = threading.Thread(target=serve, args=(self._serve,), name="bsdtar", daemon=True)

    def __enter__(self) -> Bsdtar:
        return self

    def serve(self) -> None:
        """Answer requests from now on, in a thread, until the last copy of `control` is closed. Closes our copy now."""
        self.control.close()
        self._thread.start()

    def __exit__(self, *_: Any) -> None:
        """Kill what runs, and end the thread. The copy of `control` that was passed on must be closed."""
        self.control.close()
        with self._lock:
            self._ended = True
            if self._process is not None:
                processes.kill(self._process)
        if self._thread.is_alive():
            # The thread reaps the process. One that hangs in the kernel ends with its device, and the thread with it.
            self._thread.join(processes.REAP_SECONDS)
        self._ours.close()

    def _serve(self) -> None:
        with contextlib.suppress(ConnectionError):  # untar.py has ended, and its end of the pipe is closed
            while True:
                request, pipes, _, _ = socket.recv_fds(self._ours, 1, 1)
                if not request:
                    return
                failure = self._run(pipes[0])
                self._ours.send(failure.encode("ascii", "backslashreplace")[:MOST_SAID] or b"+")

    def _run(self, pipe: int) -> str:
        """Let a bsdtar lay down what comes out of a pipe. Return why it failed, in one line, or ""."""
        with command_log.noted(self._argv) as noted:
            return self._run_noted(pipe, noted)

    def _run_noted(self, pipe: int, noted: command_log.Noted) -> str:
        try:
            process = processes.start(self._argv, confined=True, stdin=pipe, stdout=subprocess.DEVNULL, directory="/")
        except OSError as error:
            return f"cannot start {self._argv[0]}: {error.strerror}"
        finally:
            os.close(pipe)
        with self._lock:
            self._process = process
            if self._ended:
                processes.kill(process)
        assert process.stderr is not None
        with process.stderr:
            said = b""
            while b"\n" not in said and len(said) < MOST_SAID:
                piece = process.stderr.read(MOST_SAID)
                if not piece:
                    break
                said += piece
        if said:
            processes.kill(process)  # it would go on with the next file, and with the next complaint
        # Without a limit: this is a thread of its own, and `__exit__` waits for it with one.
        status = noted.end = process.wait()
        if said:
            line = said.partition(b"\n")[0].decode("ascii", "backslashreplace")
            return "bsdtar: " + "".join(char if char.isprintable() else "?" for char in line)
        if status < 0:
            return f"bsdtar was ended by {signal.Signals(-status).name}"
        return f"bsdtar ended with status {status}" if status else ""
