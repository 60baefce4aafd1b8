"""Notices that two machines live under one name: clones that share the machine-id too, or that have none.

Each driver watches its owner's object (liveness.py) and holds a lock of that object, its claim, which names the boot of
its kernel. A claim has no end. A driver that finds the claim of another boot asks who watches the object:

- Nobody: the claim is of an earlier boot, or of another machine that has gone. It is taken over.
- Somebody: another machine lives under our name. Or we have just booted anew: the cluster takes the dead for living for
  30 s (osd_client_watch_timeout), so it is asked again for a bit longer than that.

A driver looks, claims and begins to watch under a lock that ends by itself, so only one at a time does. Therefore a
claim that nobody watches belongs to nobody. Two drivers may share the boot as well: of one home in containers of one
host, or in a virtual machine of which one memory image goes on twice. Two watchers of the object tell that, once the
watch of our own former process must have ended.

The object that the name alone gives ("HOST HOME") lists the machines of that name, as attributes. A driver that knows
no machine-id, or is older than this, watches that object. Such a driver and one with a machine-id are taken for each
other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import rbdcli
from cluster import rados_objects
from cluster.owner import Owner, boot_id
from host import deadline
from host.failure import Failure

log = logging.getLogger("claim")

OWNER_ATTRIBUTE = "docker_graph_driver.owner"
# Followed by the machine-id; an attribute of the object of the name alone.
MACHINE_ATTRIBUTE = "docker_graph_driver.machine."
# Two locks of the object: the claim, and the one under which a driver looks and takes it.
CLAIM, CLAIMING = "owner", "claiming"
# A bit longer than the cluster takes a client for living that says nothing any more.
REBOOT_SECONDS = 40.0
PAUSE_SECONDS = 1.0
# A claim is a few short commands. In a full pool they do not end: then the driver goes on without a claim.
TAKE_SECONDS = 15.0
# Longer than these commands take when each needs the grace that is given after a deadline.
CLAIMING_SECONDS = 60.0
# The lock in the cluster does not tell the drivers of one boot apart. In this process, one at a time claims.
_ours = threading.Lock()


class OwnerTaken(Failure):
    """Another machine lives under our name. The text is one line that says where, and what to do."""


class Claim:
    """The claim of one owner, as this boot of this machine has it."""

    def __init__(self, pool: rbdcli.Pool, prefix: str, owner: Owner) -> None:
        self._pool = pool
        self._prefix = prefix
        self._owner = owner
        self.object = owner.object(prefix)

    def wait_alone(self) -> None:
        """Wait until nobody else lives under our name, for as long as that may be this machine before a reboot.

        Changes nothing. Raises OwnerTaken if somebody still lives then, command.CommandError, OSError.
        """
        self._wait(self._rivals, REBOOT_SECONDS)

    def wait_single(self) -> None:
        """Do what `wait_alone` does, also for other drivers that share our boot. Raises what `wait_alone` does."""
        self._wait(self._doubles, REBOOT_SECONDS)

    def take_when_alone(self, watch: Callable[[], None]) -> None:
        """Do what `take` does; if another lives under our name, `wait_alone` first. Raises what they raise."""
        try:
            self.take(watch)
        except OwnerTaken:
            self.wait_alone()
            self.take(watch)

    def take(self, watch: Callable[[], None]) -> None:
        """Take the claim and begin to watch our object by `watch`, unless another lives under our name.

        Raises OwnerTaken then, command.CommandError, OSError, and what `watch` raises; the claim stays if that fails.
        """
        with deadline.within(TAKE_SECONDS):
            rados_objects.sign(self._pool, self.object, OWNER_ATTRIBUTE, str(self._owner))
            if self._owner.machine:
                key = MACHINE_ATTRIBUTE + self._owner.machine
                rados_objects.sign(self._pool, self._by_name, key, str(self._owner))
        with _ours:
            self._enter()
            try:
                with deadline.within(TAKE_SECONDS):
                    self._wait(self._rivals, 0)
                    rados_objects.hold(self._pool, self.object, CLAIM, boot_id())
                    watch()
            finally:
                rados_objects.unlock(self._pool, self.object, CLAIMING)

    def _enter(self) -> None:
        """Take the lock `CLAIMING`. It ends by itself; one from before our own crash is broken.

        Raises OwnerTaken if others have it for twice CLAIMING_SECONDS, command.CommandError.
        """
        until = time.monotonic() + 2 * CLAIMING_SECONDS
        while not rados_objects.lock(self._pool, self.object, CLAIMING, boot_id(), CLAIMING_SECONDS):
            if time.monotonic() > until:
                raise OwnerTaken(f"others have been about to claim the name {self._owner.host} for too long; try again")
            time.sleep(PAUSE_SECONDS / 5)

    def _rivals(self) -> Sequence[str]:
        """Return the addresses of the drivers of our name on another machine, or on this one before a reboot."""
        if self._owner.machine:
            names = [self.object, self._by_name]
        else:
            others = machines(self._pool, self._prefix, self._owner)
            names = [self.object, *(other.object(self._prefix) for other in others)]
        return [address for name in names if not self._is_ours(name) for address in self._watching(name)]

    def _is_ours(self, name: str) -> bool:
        """Tell whether the claim of an object is of this boot: ours, or the plugin's when gc runs outside of it."""
        return boot_id() in rados_objects.holders(self._pool, name, CLAIM)

    def _doubles(self) -> Sequence[str]:
        """Return what `_rivals` returns; if that is nothing, all watchers of our object if they are several."""
        rivals, ours = self._rivals(), self._watching(self.object)
        return rivals or (ours if len(ours) > 1 else [])

    def _watching(self, name: str) -> Sequence[str]:
        return rados_objects.watching(self._pool, name)

    @property
    def _by_name(self) -> str:
        return self._owner.by_name.object(self._prefix)

    def _wait(self, look: Callable[[], Sequence[str]], patience: float) -> None:
        """Wait until `look` sees nobody. Raises OwnerTaken after `patience` seconds, or when a new address comes."""
        until, first = time.monotonic() + patience, None
        while seen := set(look()):
            if first is None:
                first = seen
                if patience:
                    log.info("%s lives at %s; that may be itself before a reboot", self._owner, ", ".join(sorted(seen)))
            if seen - first or time.monotonic() > until:
                raise OwnerTaken(self._refusal(sorted(seen)))
            time.sleep(PAUSE_SECONDS)

    def _refusal(self, addresses: Sequence[str]) -> str:
        text = (
            f"another driver lives as host {self._owner.host} with home {self._owner.home}: it answers from "
            f"{', '.join(addresses)}, and would take our layers for its own; "
        )
        if self._owner.machine:
            return text + (
                f"if that is a clone of this machine, which has its machine-id {self._owner.machine} too, do on one of "
                f"them: rm -f /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup; then hostnamectl "
                f"set-hostname NAME; and start the driver there anew"
            )
        return text + (
            "there is no machine-id here to tell them apart: give one of them another host name (hostnamectl "
            "set-hostname NAME) and start the driver there anew"
        )


def machines(pool: rbdcli.Pool, prefix: str, owner: Owner) -> Sequence[Owner]:
    """Return the owners with a machine-id that have the same name and home, whether they live or not.

    Raises command.CommandError.
    """
    keys = rados_objects.signed(pool, owner.by_name.object(prefix))
    found = [key[len(MACHINE_ATTRIBUTE) :] for key in keys if key.startswith(MACHINE_ATTRIBUTE)]
    return [Owner(owner.host, machine, owner.home) for machine in found]


def forget(pool: rbdcli.Pool, prefix: str, owner: Owner) -> None:
    """Remove an owner, whose layers were taken over, from the list of the machines of its name.

    Raises command.CommandError.
    """
    if owner.machine:
        rados_objects.unsign(pool, owner.by_name.object(prefix), MACHINE_ATTRIBUTE + owner.machine)
