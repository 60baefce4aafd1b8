"""What a driver needs before it can do anything: programs, a cluster that answers, a pool that is made for images.

Init makes these checks and ends with the first that fails. `doctor` makes them too, and tells of each.
host/programs.py lists the programs that are needed. `ceph` is not needed; without it, status.py and diagnosis.py cannot
tell the cluster's health.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import rbdcli
from cluster import rados_objects
from host import command, programs
from host.failure import Failure
from images.options import Options

# Settings of librbd that no command of `rbd` has an option for, each with the values that layers can live with. A
# setting of the pool wins over our command line (librbd, api/Config.cc, apply_pool_overrides).
_NEEDED = {"rbd_default_clone_format": ("2",), "rbd_move_to_trash_on_remove": ("false", "0")}


class NotReady(Failure):
    """Something that the driver needs is missing. `str()` is one line that says what, and how to get it."""


class Check(NamedTuple):
    """One thing to look at. `look` returns what it found, in words; it raises a Failure for what is wrong.

    `needs` names the checks without which this one makes no sense. `seconds` is what it may take.
    """

    name: str
    look: Callable[[], str]
    needs: Sequence[str] = ()
    seconds: float = 30.0


def check(pool: rbdcli.Pool, options: Options) -> None:
    """Look for the programs, the cluster and the pools that these options need. Changes nothing.

    Raises NotReady for the first of them that is missing or cannot be used. Raises command.CommandError if the cluster
    stops answering meanwhile, or if it refuses something and we do not know the remedy.
    """
    for item in Preconditions(pool, options).checks():
        item.look()


def rights(options: Options) -> str:
    """Return the command that lets our key do all that the driver does."""
    space = f" namespace={options.namespace}" if options.namespace else ""
    pools = (options.datapool, *filter(None, [options.objectpool]))
    of_pools = ", ".join(f"profile rbd pool={name}{space}" for name in pools)
    return (
        f"ceph auth caps client.{options.client} mon 'profile rbd' osd '{of_pools}' "
        f"mgr 'profile rbd pool={options.datapool}'"
    )


class Preconditions:
    """The checks of one pool and its options, in the order in which they build on each other."""

    def __init__(self, pool: rbdcli.Pool, options: Options) -> None:
        self._pool = pool
        self._options = options
        # The names of the cluster's pools, once it has answered.
        self._pools: Sequence[str] = ()

    def checks(self) -> list[Check]:
        """Return the checks. Each `look` raises NotReady, and those of the pools command.CommandError."""
        found = [
            Check("programs", self._programs),
            Check("configuration", self._configuration),
            Check("cluster", self._cluster, ("programs", "configuration")),
            Check("pool", self._named_pool, ("cluster",)),
            Check("pool init", self._made_for_images, ("pool",)),
        ]
        if self._pool.namespace:
            found.append(Check("namespace", self._namespace, ("pool init",)))
        if self._options.objectpool:
            found.append(Check("object pool", self._object_pool, ("pool init",)))
        return [*found, Check("pool settings", self._overrides, ("pool init",))]

    def _programs(self) -> str:
        needed = list(programs.needed(f"ceph.fs={self._options.fs}"))
        missing = [
            f"{name} is not installed; install the package {package} (Debian's name)"
            for name, package, _ in needed
            if command.find(name) is None
        ]
        if missing:
            raise NotReady("; ".join(missing))
        return f"{', '.join(program.name for program in needed)} are there"

    def _configuration(self) -> str:
        path = self._options.configfile
        if not os.path.exists(path):
            raise NotReady(f"{path} does not exist: give the Ceph configuration by ceph.configfile")
        return f"{path} is there"

    def _cluster(self) -> str:
        options = self._options
        try:
            self._pools = rados_objects.pools(self._pool)
        except command.CommandError as error:
            raise NotReady(
                f"no Ceph cluster answers client.{options.client} with {options.configfile} "
                f"(ceph.client, ceph.configfile, ceph.timeout={options.timeout:g}): {error}"
            ) from None
        return f"its monitors answer client.{options.client}"

    def _named_pool(self) -> str:
        name = self._pool.name
        if name not in self._pools:
            raise NotReady(
                f"pool {name} does not exist; make it with: ceph osd pool create {name} && "
                f"rbd pool init {name}, or name another by ceph.datapool"
            )
        return f"there is a pool {name}"

    def _made_for_images(self) -> str:
        name = self._pool.name
        if not rados_objects.is_made_for_images(self._pool):
            raise NotReady(f"pool {name} is not made for images; do: rbd pool init {name}")
        return f"pool {name} was made for images"

    def _namespace(self) -> str:
        name, space = self._pool.name, self._pool.namespace
        if not self._pool.has_namespace():
            raise NotReady(f"pool {name} has no namespace {space}; do: rbd namespace create {name}/{space}")
        return f"pool {name} has the namespace {space}"

    def _object_pool(self) -> str:
        """Ask the cluster whether the pool of ceph.objectpool can take the content of images."""
        pool, options = self._pool.beside(self._options.objectpool), self._options
        if pool.name not in self._pools:
            raise NotReady(
                f"pool {pool.name} of ceph.objectpool does not exist; make it with: ceph osd pool create {pool.name} "
                f"&& rbd pool init {pool.name}; or an erasure-coded one: ceph osd pool create {pool.name} erasure && "
                f"ceph osd pool set {pool.name} allow_ec_overwrites true && rbd pool init {pool.name}"
            )
        if not rados_objects.may_write(pool):
            raise NotReady(
                f"client.{options.client} may not write to pool {pool.name} of ceph.objectpool; let it, with all else "
                f"that it may: {rights(options)}"
            )
        if not rados_objects.can_overwrite(pool):
            raise NotReady(
                f"pool {pool.name} of ceph.objectpool is erasure-coded and takes no overwrites; do: "
                f"ceph osd pool set {pool.name} allow_ec_overwrites true"
            )
        if not rados_objects.is_made_for_images(pool):
            raise NotReady(f"pool {pool.name} of ceph.objectpool is not made for images; do: rbd pool init {pool.name}")
        return f"pool {pool.name} takes what the images hold"

    def _overrides(self) -> str:
        """Look for settings of the pool itself that layers cannot live with."""
        name = self._pool.name
        for key, value in self._pool.overrides().items():
            needed = _NEEDED.get(key)
            # Ceph keeps a value as the operator wrote it, in capital letters too.
            if needed and value.lower() not in needed:
                raise NotReady(
                    f"pool {name} itself says {key}={value}, which no command can overrule, but layers need "
                    f"{needed[0]}; do: rbd config pool remove {name} {key}, or name another pool by ceph.datapool"
                )
        return f"pool {name} itself sets nothing that layers cannot live with"
