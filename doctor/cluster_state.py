"""What the cluster tells of itself: its version, its health, the clocks of its monitors, and the state of the pool.

All of it is asked by `ceph`, which some hosts do not have.
"""

from __future__ import annotations

import rbdcli
from cluster import diagnosis
from doctor import tools
from doctor.finding import Broken, Improve
from graph import status
from graph.preconditions import Check
from images.options import Options, format_size

# A health check of the monitors (Ceph, doc/rados/operations/health-checks.rst).
SKEW = "MON_CLOCK_SKEW"
APPLICATION = "rbd"
# With less left, a pool is told to be nearly full.
LOW_BYTES = 1 << 30


class ClusterState:
    """The cluster and the pools of one driver."""

    def __init__(self, pool: rbdcli.Pool, options: Options) -> None:
        self._pool = pool
        # Where the images are, and what they hold.
        self._pools = [pool.name, *([options.objectpool] if options.objectpool else [])]

    def checks(self) -> list[Check]:
        """Return the checks."""
        return [
            Check("cluster version", self._version, ("cluster",)),
            Check("health", self._health, ("cluster",)),
            Check("clocks of the monitors", self._clocks, ("cluster",)),
            Check("application", self._application, ("pool", "object pool")),
            Check("space", self._space, ("pool", "object pool")),
        ]

    def _version(self) -> str:
        version = status.release(str(self._pool.ceph("version")["version"]))
        if tools.is_too_old(version):
            raise Broken(f"the cluster is of Ceph {version}; it takes {tools.OLDEST_CEPH} (Nautilus) or newer")
        return f"Ceph {version}"

    def _health(self) -> str:
        health = diagnosis.health(self._pool)
        if health.status != "HEALTH_OK":
            raise Improve(str(health))
        return health.status

    def _clocks(self) -> str:
        skew = diagnosis.health(self._pool).messages.get(SKEW)
        if skew:
            raise Improve(f"{'; '.join(skew)}; let their hosts set their clocks (chrony, ntpd): ceph time-sync-status")
        return "they agree"

    def _application(self) -> str:
        for name in self._pools:
            said = self._pool.ceph("osd", "pool", "application", "get", name)
            if APPLICATION not in said:
                others = f"is for {', '.join(said)}" if said else "has none"
                raise Improve(f"pool {name} {others}; do: ceph osd pool application enable {name} {APPLICATION}")
        return f"{', '.join(self._pools)}: {APPLICATION}"

    def _space(self) -> str:
        for name in self._pools:
            if diagnosis.is_full(self._pool.beside(name)):
                raise Broken(
                    f"pool {name} is full and takes no new data: remove images, add disks, or raise its quota: "
                    f"ceph df detail; ceph osd pool get-quota {name}"
                )
        free = {name: self._left(name) for name in self._pools}
        for name, left in free.items():
            if left < LOW_BYTES:
                raise Improve(
                    f"pool {name} has only {format_size(left)}B left: remove images, add disks, or raise its quota: "
                    f"ceph df detail"
                )
        return ", ".join(f"pool {name} has {format_size(left)}B left" for name, left in free.items())

    def _left(self, name: str) -> int:
        """Return the bytes that a pool can still take, by the disks and by its quota."""
        left, quota = status.space(self._pool, name).available, self._pool.ceph("osd", "pool", "get-quota", name)
        most = int(quota["quota_max_bytes"])
        # Before Octopus it does not tell how much there is.
        return max(0, min(left, most - int(quota.get("current_num_bytes", 0)))) if most else left
