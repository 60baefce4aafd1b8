"""The owner of a layer: a host, and a driver's home on it. Written as "HOST/MACHINE HOME" in the metadata of images.

MACHINE is the machine-id of systemd (machine-id(5)), which tells two hosts of one name apart, and stays when a host
gets another name. Where there is none, as in the managed plugin, or where an older version wrote it, it is "HOST HOME",
and the name alone counts. Clones of a machine share its machine-id, and so do containers whose image has one. So the
machine-id alone makes nobody the owner of a layer that was made under another name: a host of that name must not live
(layers.py), and gc keeps the layer (inspection.py). Two hosts that have all three in common are told apart by their
claims (claim.py).
"""

from __future__ import annotations

import hashlib
import re
import socket
from dataclasses import dataclass, replace

MACHINE_FILE = "/etc/machine-id"
BOOT_FILE = "/proc/sys/kernel/random/boot_id"
# "uninitialized" stands in images that were never started; zeros are no id.
_MACHINE = re.compile(r"(?!0{32})[0-9a-f]{32}")


@dataclass(frozen=True)
class Owner:
    """A host's name, its machine-id ("" where that is not known), and a driver's home."""

    host: str
    machine: str
    home: str

    @staticmethod
    def here(home: str) -> Owner:
        """Return this host with a home. The host's name is that of now: the driver keeps this owner while it runs."""
        return Owner(socket.gethostname(), machine_id(), home)

    @staticmethod
    def parse(text: str) -> Owner:
        """Read what `str` wrote, or an older version. Any text is an owner, perhaps an unknown one; raises nothing."""
        name, _, home = text.partition(" ")
        return Owner(*parse_host(name), home)

    def __str__(self) -> str:
        return f"{self.host}/{self.machine} {self.home}" if self.machine else f"{self.host} {self.home}"

    @property
    def by_name(self) -> Owner:
        """This owner without the machine-id: what all machines of that name have in common."""
        return replace(self, machine="")

    def is_same_host(self, other: Owner) -> bool:
        """Tell whether both have one machine-id, or, unless both have any, one name. Homes do not matter."""
        if self.machine and other.machine:
            return self.machine == other.machine
        return self.host == other.host

    def is_same(self, other: Owner) -> bool:
        """Tell whether both have one host and one home."""
        return self.is_same_host(other) and self.home == other.home

    def seen_from(self, other: Owner) -> str:
        """Name the host for a reader on host `other`: with the machine-id if both hosts have the same name."""
        namesake = self.host == other.host and self.machine not in ("", other.machine)
        return f"{self.host}/{self.machine}" if namesake else self.host

    def object(self, prefix: str) -> str:
        """Return the name of the object that this owner's driver watches."""
        return f"{prefix}_host.{self.digest[:16]}"

    @property
    def digest(self) -> str:
        """The sha256 of this owner, for use in a name."""
        return hashlib.sha256(str(self).encode("utf-8", "surrogateescape")).hexdigest()


def parse_host(name: str) -> tuple[str, str]:
    """Read "HOST/MACHINE" or "HOST"; return host and machine-id, the latter "" if it is not there."""
    host, _, machine = name.rpartition("/")
    return (host, machine) if host and _MACHINE.fullmatch(machine) else (name, "")


def machine_id() -> str:
    """Return this machine's id, "" where there is none."""
    try:
        with open(MACHINE_FILE, encoding="ascii", errors="replace") as source:
            text = source.read(64).strip()
    except OSError:
        return ""
    return text if _MACHINE.fullmatch(text) else ""


def boot_id() -> str:
    """Return the id of this boot, which no other boot of any machine has; containers share it. Raises OSError."""
    with open(BOOT_FILE, encoding="ascii") as source:
        return source.read().strip()
