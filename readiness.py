"""What a driver needs before it can do anything: programs, a cluster that answers, a pool that is made for images.

Of Ceph's programs only `rbd` and `rados` are needed. `ceph` is a program of Python's that imports Ceph's bindings: a
minimal container, or a host without them, does without its words about the cluster's health (status.py, diagnosis.py).
"""

from __future__ import annotations

import os

import command
import mounts
import objects
import rbdcli
from options import Options

_PACKAGES = {
    "rbd": "ceph-common",
    "rados": "ceph-common",
    "mkfs.xfs": "xfsprogs",
    "xfs_growfs": "xfsprogs",
    "mkfs.ext4": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
}


class NotReady(Exception):
    """Something is not there: one line that says what, and how to get it."""


def check(pool: rbdcli.Pool, options: Options) -> None:
    """Raise NotReady unless the programs, the cluster and the pool that the options name are there."""
    for program in ("rbd", "rados", *mounts.tools(options.fs)):
        if command.find(program) is None:
            package = _PACKAGES.get(program, program)
            raise NotReady(f"{program} is not installed; install the package {package} (Debian's name)")
    if not os.path.exists(options.configfile):
        raise NotReady(f"{options.configfile} does not exist: give the Ceph configuration by ceph.configfile")
    _check_pool(pool, options)


def _check_pool(pool: rbdcli.Pool, options: Options) -> None:
    """Ask for the pool, and whether it was made ready for images.

    Raises NotReady, and command.CommandError if the pool is there and cannot be used.
    """
    try:
        pools = objects.pools(pool)
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
    if not objects.is_made_for_images(pool):
        raise NotReady(f"pool {pool.name} is not made for images; do: rbd pool init {pool.name}")
    if pool.namespace and not pool.has_namespace():
        raise NotReady(
            f"pool {pool.name} has no namespace {pool.namespace}; do: rbd namespace create {pool.name}/{pool.namespace}"
        )
