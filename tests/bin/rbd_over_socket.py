"""Lets a container map images with the stand-in for krbd outside of it, as if it were the kernel.

    rbd_over_socket.py serve NAME CONF    outside: runs tests/bin/rbd for whoever asks on the abstract socket NAME
    rbd device map|unmap|list ...         inside: this file, installed by `install` as rbd, before the real one on PATH
    rbd_over_socket.py install NAME ROOT  puts it there

A mapping that a container makes by krbd belongs to the kernel and outlives the container. The stand-in's belong to a
process; that must then be outside too. The socket is in the network namespace, so the container needs the host's.
CONF is the configuration outside, in the place of the container's, whose path and keyring are unknown there.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__)
NAME_FILE = HERE.with_name("rbd.socket")
REAL_RBD = "/usr/bin/rbd"


class Handler(socketserver.StreamRequestHandler):
    """One command: a line of JSON in (argv), one out (status, stdout, stderr)."""

    def handle(self) -> None:
        argv: list[str] = json.loads(self.rfile.readline())
        argv = [sys.argv[3] if before == "--conf" else word for before, word in zip(["", *argv], argv)]
        done = subprocess.run([str(HERE.with_name("rbd")), *argv], capture_output=True, text=True, check=False)
        self.wfile.write(json.dumps([done.returncode, done.stdout, done.stderr]).encode() + b"\n")


class Server(socketserver.ThreadingUnixStreamServer):
    """Ends with its process, whatever runs."""

    daemon_threads = True
    block_on_close = False


def ask(argv: list[str]) -> int:
    """Have a command run outside and end as it did."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("\0" + NAME_FILE.read_text(encoding="ascii"))
        with connection.makefile("rwb") as stream:
            stream.write(json.dumps(argv).encode() + b"\n")
            stream.flush()
            status, stdout, stderr = json.loads(stream.readline())
    sys.stdout.write(stdout)
    sys.stderr.write(stderr)
    return int(status)


def install(name: str, root: str) -> None:
    """Put this file into a root file system."""
    place = Path(root) / "usr/local/bin"
    place.mkdir(parents=True, exist_ok=True)
    (place / "rbd.socket").write_text(name, encoding="ascii")
    (place / "rbd").write_text("#!/usr/bin/python3 -ISE\n" + HERE.read_text(encoding="utf-8"), encoding="utf-8")
    (place / "rbd").chmod(0o755)


def main(argv: list[str]) -> int:
    """Do what the arguments say; without any of our own, be rbd."""
    if argv[:1] == ["serve"]:
        Server("\0" + argv[1], Handler).serve_forever()
    elif argv[:1] == ["install"]:
        install(*argv[1:])
    elif argv[:1] == ["device"]:
        return ask(argv)
    else:
        os.execv(REAL_RBD, ["rbd", *argv])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
