"""What all share that work with the layers of one home, which is one Docker daemon's."""

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
    """A home: the pool and the layers in it, where they are on this host, and a lock for each."""

    def __init__(self, path: str, options: Options, pool: rbdcli.Pool) -> None:
        self.options = options
        self.pool = pool
        self.timeout = pool.timeout
        self.layers = Layers(pool, options, path)
        self.paths = Paths(path, "/".join((pool.name, pool.namespace, self.layers.image(""))))
        self.locks = Locks()
        self.daemon = Daemon()

    def bounds(self) -> contextlib.AbstractContextManager[None]:
        """Bound what is done in a `with` block: all of its commands together get twice the time of one.

        What must be undone then gets deadline.GRACE_SECONDS for each command.
        """
        return deadline.within(2 * self.timeout)
