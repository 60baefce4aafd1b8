"""Notices that two machines live under one name: clones that share the machine-id too, or that have none.

Each driver watches its owner's object (liveness.py) and holds a lock of that object, its claim, which names the boot of
its kernel. A claim has no end. Whoever finds the claim of another boot asks whether anybody watches:

- nobody: it was an earlier boot, or another machine that has gone. The claim is taken over.
- somebody: another machine lives under our name. Or we have just booted anew: the cluster takes the dead for living for
  30 s (osd_client_watch_timeout), so it is asked again for a bit longer than that.

Who looks, claims and begins to watch does so alone, under a lock that ends by itself: so a claim that nobody watches is
nobody's. What shares the boot as well (two drivers of one home in containers of one host, or a virtual machine of which
one memory image goes on twice) is seen by its second watcher, once our own former one must have gone.

The object that the name alone gives ("HOST HOME") lists the machines of that name, as attributes. Where the machine-id
is not known, or the driver is older than this, it is the one that is watched: such a driver and one with a machine-id
are taken for each other.
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
# With the machine-id behind it, on the object of the name alone.
MACHINE_ATTRIBUTE = "docker_graph_driver.machine."
# The claim, and who may look and take it now.
CLAIM, CLAIMING = "owner", "claiming"
# A bit longer than the cluster takes a client for living that says nothing any more.
REBOOT_SECONDS = 40.0
PAUSE_SECONDS = 1.0
# A claim is a few short commands. In a full pool they do not end: then it goes without.
TAKE_SECONDS = 15.0
# Longer than they take when each needs the grace that is given after a deadline.
CLAIMING_SECONDS = 60.0
# The lock in the cluster does not tell one boot's drivers apart: in this process, one at a time.
_ours = threading.Lock()


class OwnerTaken(Failure):
    """Another machine lives under our name: one line that says where, and what to do."""


class Claim:
    """The claim of one owner, as this boot of this machine has it."""

    def __init__(self, pool: rbdcli.Pool, prefix: str, owner: Owner) -> None:
        self._pool = pool
        self._prefix = prefix
        self._owner = owner
        self.object = owner.object(prefix)

    def wait_alone(self) -> None:
        """Wait until nobody else lives under our name, as long as it may be ourselves before a reboot.

        Changes nothing. Raises OwnerTaken, rbdcli.RbdError, command.CommandTimeout.
        """
        self._wait(self._rivals, REBOOT_SECONDS)

    def wait_single(self) -> None:
        """Do the same for those who share our boot, too. Raises what `wait_alone` does."""
        self._wait(self._doubles, REBOOT_SECONDS)

    def take_when_alone(self, watch: Callable[[], None]) -> None:
        """Do what `take` does, and wait before that for whoever may be ourselves before a reboot."""
        try:
            self.take(watch)
        except OwnerTaken:
            self.wait_alone()
            self.take(watch)

    def take(self, watch: Callable[[], None]) -> None:
        """Take the claim and begin to watch our object by `watch`, unless another lives under our name.

        Raises OwnerTaken then, rbdcli.RbdError or command.CommandTimeout, and what `watch` raises.
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
        """Wait for the lock of those who claim. It ends by itself; one from before our own crash is broken."""
        until = time.monotonic() + 2 * CLAIMING_SECONDS
        while not rados_objects.lock(self._pool, self.object, CLAIMING, boot_id(), CLAIMING_SECONDS):
            if time.monotonic() > until:
                raise OwnerTaken(f"others have been about to claim the name {self._owner.host} for too long; try again")
            time.sleep(PAUSE_SECONDS / 5)

    def _rivals(self) -> Sequence[str]:
        """Return the addresses of those who live under our name on another machine, or before a reboot of this one."""
        if self._owner.machine:
            names = [self.object, self._by_name]
        else:
            others = machines(self._pool, self._prefix, self._owner)
            names = [self.object, *(other.object(self._prefix) for other in others)]
        return [address for name in names if not self._is_ours(name) for address in self._watching(name)]

    def _is_ours(self, name: str) -> bool:
        """Tell whether the claim of an object is this boot's: of ourselves, or of the plugin, whose gc runs outside."""
        return boot_id() in rados_objects.holders(self._pool, name, CLAIM)

    def _doubles(self) -> Sequence[str]:
        """Return the same, or all who watch our object if they are several."""
        rivals, ours = self._rivals(), self._watching(self.object)
        return rivals or (ours if len(ours) > 1 else [])

    def _watching(self, name: str) -> Sequence[str]:
        return rados_objects.watching(self._pool, name)

    @property
    def _by_name(self) -> str:
        return self._owner.by_name.object(self._prefix)

    def _wait(self, look: Callable[[], Sequence[str]], patience: float) -> None:
        """Wait until nobody is seen. Raises OwnerTaken after `patience` seconds, or when one comes that is new."""
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
        said = (
            f"another driver lives as host {self._owner.host} with home {self._owner.home}: it answers from "
            f"{', '.join(addresses)}, and would take our layers for its own; "
        )
        if self._owner.machine:
            return said + (
                f"if that is a clone of this machine, which has its machine-id {self._owner.machine} too, do on one of "
                f"them: rm -f /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup; then hostnamectl "
                f"set-hostname NAME; and start the driver there anew"
            )
        return said + (
            "there is no machine-id here to tell them apart: give one of them another host name (hostnamectl "
            "set-hostname NAME) and start the driver there anew"
        )


def machines(pool: rbdcli.Pool, prefix: str, owner: Owner) -> Sequence[Owner]:
    """Return the owners with a machine-id that have the same name and home, whether they live or not."""
    keys = rados_objects.signed(pool, owner.by_name.object(prefix))
    found = [key[len(MACHINE_ATTRIBUTE) :] for key in keys if key.startswith(MACHINE_ATTRIBUTE)]
    return [Owner(owner.host, machine, owner.home) for machine in found]


def forget(pool: rbdcli.Pool, prefix: str, owner: Owner) -> None:
    """Take an owner whose layers are another's now from the list of the machines of its name."""
    if owner.machine:
        rados_objects.unsign(pool, owner.by_name.object(prefix), MACHINE_ATTRIBUTE + owner.machine)
