"""bsdtar, which lays the plain files of an archive down while untar.py reads on. Seen from the server, unconfined.

untar.py can start no program any more once it is locked into the layer, so it asks us (bsdtar_feed.py): with each
request comes the reading end of a pipe. There is at most one bsdtar at a time, and none when the `with` ends. It locks
itself into the layer before it creates anything. Host command: bsdtar (libarchive).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from typing import Any

from host import command, environment

MOST_SAID = 1 << 15


def find() -> str | None:
    """The absolute path of bsdtar, None if this host has none."""
    return command.find("bsdtar")


def _argv(program: str, root: str) -> list[str]:
    return [
        program,
        "--extract",
        "--chroot",
        "--absolute-paths",  # the names are absolute; locked in, they need no check of every directory on the way
        "--numeric-owner",  # a look at users and groups would load nsswitch's libraries out of the layer
        "--preserve-permissions",  # with setuid, and whatever the umask
        *("--file", "-"),
        *("--directory", root),
    ]


REAP_SECONDS = 2.0


class Bsdtar:
    """The bsdtar processes of one archive: `control` is for bsdtar_feed.py, and once it is passed on comes `serve`."""

    def __init__(self, program: str, root: str) -> None:
        self._argv = _argv(program, root)
        self._ours, self.control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process: subprocess.Popen[bytes] | None = None
        # Taken to end what runs, and to write down what was just started: that must end too.
        self._lock = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="bsdtar", daemon=True)

    def __enter__(self) -> Bsdtar:
        return self

    def serve(self) -> None:
        """Answer from now on, in a thread, until the last copy of `control` is closed; ours is closed now."""
        self.control.close()
        self._thread.start()

    def __exit__(self, *_: Any) -> None:
        """End all of it. The other end of `control` must be closed."""
        self.control.close()
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()
        if self._thread.is_alive():
            # One that hangs in the kernel ends with its device.
            self._thread.join(REAP_SECONDS)
        self._ours.close()

    def _serve(self) -> None:
        with contextlib.suppress(ConnectionError):  # who asked is gone, and its pipe is closed
            while True:
                request, pipes, _, _ = socket.recv_fds(self._ours, 1, 1)
                if not request:
                    return
                failure = self._run(pipes[0])
                self._ours.send(failure.encode("ascii", "backslashreplace")[:MOST_SAID] or b"+")

    def _run(self, pipe: int) -> str:
        """Have an archive laid down; return why it failed, on one line, or nothing."""
        try:
            process = subprocess.Popen(
                self._argv,
                stdin=pipe,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd="/",
                env=environment.CONFINED,
                start_new_session=True,
            )
        except OSError as error:
            return f"cannot start {self._argv[0]}: {error.strerror}"
        finally:
            os.close(pipe)
        with self._lock:
            self._process = process
            if self._ended:
                process.kill()
        assert process.stderr is not None
        with process.stderr:
            said = b""
            while b"\n" not in said and len(said) < MOST_SAID:
                piece = process.stderr.read(MOST_SAID)
                if not piece:
                    break
                said += piece
        if said:
            process.kill()  # it would go on with the next file, and with the next complaint
        status = process.wait()
        if said:
            line = said.partition(b"\n")[0].decode("ascii", "backslashreplace")
            return "bsdtar: " + "".join(char if char.isprintable() else "?" for char in line)
        if status < 0:
            return f"bsdtar was ended by {signal.Signals(-status).name}"
        return f"bsdtar ended with status {status}" if status else ""
