"""What all modules share that work with the layers of one home. A home belongs to one Docker daemon."""

from __future__ import annotations

import contextlib

import rbdcli
from host import deadline
from host.locks import Locks
from images.layers import Layers
from images.options import Options
from mapped.daemon import Daemon
from mapped.paths import Paths


class Home:
    """A home: the pool, its layers, their paths on this host, a lock for each. It decides the deadline of a request."""

    def __init__(self, path: str, options: Options, pool: rbdcli.Pool, *, clients_mount: bool = False) -> None:
        """`clients_mount`: clients mount the layers' views themselves, at any time and more than once."""
        self.clients_mount = clients_mount
        self.options = options
        self.pool = pool
        self.timeout = pool.timeout
        self.layers = Layers(pool, options, path)
        self.paths = Paths(path, "/".join((pool.name, pool.namespace, self.layers.image(""))))
        self.locks = Locks()
        self.daemon = Daemon()

    def bounds(self) -> contextlib.AbstractContextManager[None]:
        """Bound the `with` block: all of its commands together get twice the time of one command.

        After that time, each command that undoes something still gets deadline.GRACE_SECONDS.
        """
        return deadline.within(2 * self.timeout)
