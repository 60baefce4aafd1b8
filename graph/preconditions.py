"""What a driver needs before it can do anything: programs, a cluster that answers, a pool that is made for images.

host/programs.py lists the programs that are needed. `ceph` is not needed; without it, status.py and diagnosis.py cannot
tell the cluster's health.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

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


def check(pool: rbdcli.Pool, options: Options) -> None:
    """Look for the programs, the cluster and the pools that these options need. Changes nothing.

    Raises NotReady for the first of them that is missing or cannot be used. Raises command.CommandError if the cluster
    stops answering meanwhile, or if it refuses something and we do not know the remedy.
    """
    for name, package, _ in programs.needed(f"ceph.fs={options.fs}"):
        if command.find(name) is None:
            raise NotReady(f"{name} is not installed; install the package {package} (Debian's name)")
    if not os.path.exists(options.configfile):
        raise NotReady(f"{options.configfile} does not exist: give the Ceph configuration by ceph.configfile")
    _check_pool(pool, options)


def _check_pool(pool: rbdcli.Pool, options: Options) -> None:
    """Ask the cluster whether the pool is there and was made ready for images.

    Raises NotReady, and command.CommandError if the pool is there but cannot be used.
    """
    try:
        pools = rados_objects.pools(pool)
    except command.CommandError as error:
        raise NotReady(
            f"no Ceph cluster answers client.{options.client} with {options.configfile} "
            f"(ceph.client, ceph.configfile, ceph.timeout={options.timeout:g}): {error}"
        ) from None
    if pool.name not in pools:
        raise NotReady(
            f"pool {pool.name} does not exist; make it with: ceph osd pool create {pool.name} && "
            f"rbd pool init {pool.name}, or name another by ceph.datapool"
        )
    if not rados_objects.is_made_for_images(pool):
        raise NotReady(f"pool {pool.name} is not made for images; do: rbd pool init {pool.name}")
    if pool.namespace and not pool.has_namespace():
        raise NotReady(
            f"pool {pool.name} has no namespace {pool.namespace}; do: rbd namespace create {pool.name}/{pool.namespace}"
        )
    if options.objectpool:
        _check_object_pool(pool.beside(options.objectpool), pools, options)
    _check_overrides(pool)


def _check_object_pool(pool: rbdcli.Pool, pools: Sequence[str], options: Options) -> None:
    """Ask the cluster whether a pool can take the content of images. Raises NotReady and command.CommandError."""
    if pool.name not in pools:
        raise NotReady(
            f"pool {pool.name} of ceph.objectpool does not exist; make it with: ceph osd pool create {pool.name} && "
            f"rbd pool init {pool.name}; or an erasure-coded one: ceph osd pool create {pool.name} erasure && "
            f"ceph osd pool set {pool.name} allow_ec_overwrites true && rbd pool init {pool.name}"
        )
    if not rados_objects.may_write(pool):
        space = f" namespace={pool.namespace}" if pool.namespace else ""
        raise NotReady(
            f"client.{options.client} may not write to pool {pool.name} of ceph.objectpool; let it, with all else that "
            f"it may: ceph auth caps client.{options.client} mon 'profile rbd' osd 'profile rbd pool="
            f"{options.datapool}{space}, profile rbd pool={pool.name}{space}' mgr 'profile rbd pool={options.datapool}'"
        )
    if not rados_objects.can_overwrite(pool):
        raise NotReady(
            f"pool {pool.name} of ceph.objectpool is erasure-coded and takes no overwrites; do: "
            f"ceph osd pool set {pool.name} allow_ec_overwrites true"
        )
    if not rados_objects.is_made_for_images(pool):
        raise NotReady(f"pool {pool.name} of ceph.objectpool is not made for images; do: rbd pool init {pool.name}")


def _check_overrides(pool: rbdcli.Pool) -> None:
    """Look for settings of the pool itself that layers cannot live with. Raises NotReady and command.CommandError."""
    for name, value in pool.overrides().items():
        needed = _NEEDED.get(name)
        # Ceph keeps a value as the operator wrote it, in capital letters too.
        if needed and value.lower() not in needed:
            raise NotReady(
                f"pool {pool.name} itself says {name}={value}, which no command can overrule, but layers need "
                f"{needed[0]}; do: rbd config pool remove {pool.name} {name}, or name another pool by ceph.datapool"
            )
