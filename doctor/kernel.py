"""What the kernel of this host can do of what layers need: file systems, overlays, devices, image features.

A module that is not loaded yet is loaded by the first mount or map. In a container it may be there unseen.
"""

from __future__ import annotations

import os
import re

import rbdcli
from doctor.finding import Broken, Improve, Missed, Unknown
from graph.preconditions import Check
from host import command
from images.options import Options

# krbd knows none of the clones that we make before (RBD_FEATURE_OPERATIONS).
OLDEST = (4, 19)


class Kernel:
    """The running kernel, for the storage options of one driver. `root` is where /proc, /sys and /lib are."""

    def __init__(self, options: Options, release: str = "", root: str = "/") -> None:
        self._options = options
        self._release = release or os.uname().release
        self._root = root

    def checks(self) -> list[Check]:
        """Return the checks."""
        return [
            Check("kernel", self._version),
            Check("file systems", self._file_systems),
            Check("device type", self._device_type),
            Check("image features", self._features, ("device type",)),
        ]

    def _version(self) -> str:
        found = re.match(r"(\d+)\.(\d+)", self._release)
        if not found:
            raise Missed(f"the kernel calls itself {self._release}")
        if (int(found[1]), int(found[2])) < OLDEST:
            raise Broken(f"Linux {self._release} is too old; it takes {OLDEST[0]}.{OLDEST[1]} or newer")
        return f"Linux {self._release}"

    def _file_systems(self) -> str:
        names = ("overlay", self._options.fs)
        with open(self._path("proc/filesystems"), encoding="ascii", errors="replace") as source:
            known = {line.split()[-1] for line in source if line.split()}
        self._need([name for name in names if name not in known])
        return f"the kernel has {' and '.join(names)}"

    def _device_type(self) -> str:
        if self._options.devicetype == "nbd":
            if command.find("rbd-nbd") is None:
                raise Broken("rbd-nbd is not installed; install the package rbd-nbd (Debian's name)")
            self._need([] if os.path.exists(self._path("sys/module/nbd")) else ["nbd"])
            return "rbd-nbd and the kernel's nbd map images"
        self._need([] if os.path.exists(self._path("sys/bus/rbd")) else ["rbd"])
        return "the kernel's rbd maps images"

    def _features(self) -> str:
        if self._options.devicetype == "krbd" and not os.path.exists(self._path("sys/bus/rbd/supported_features")):
            raise Unknown("the kernel's rbd is not loaded, and does not tell yet what it can do: modprobe rbd")
        ours, all_of_them = rbdcli.features(self._options.devicetype), rbdcli.features("nbd")
        if lacking := [name for name in all_of_them if name not in ours]:
            raise Improve(
                f"the kernel's rbd cannot do {', '.join(lacking)}: images are made without, and removed and copied "
                f"more slowly; Linux 5.3 and newer can"
            )
        return f"the kernel can do all that images are made with: {', '.join(ours)}"

    def _need(self, modules: list[str]) -> None:
        """Look for modules that are not loaded. Raises Broken if one does not exist, Unknown if none can be seen."""
        directory = self._path(f"lib/modules/{self._release}")
        known = _modules(directory) if modules else set()
        if missing := [name for name in modules if name not in known]:
            names = ", ".join(missing)
            if not os.path.isdir(directory):
                raise Unknown(
                    f"{names}: not loaded, and the kernel's modules are not to be seen here; where they are: "
                    f"modprobe {missing[0]}"
                )
            raise Broken(f"Linux {self._release} has no {names}: it takes a kernel with it")

    def _path(self, path: str) -> str:
        return os.path.join(self._root, path)


def _modules(directory: str) -> set[str]:
    """Name the modules of a kernel, and those that are built into it; none if its directory is not here."""
    found: set[str] = set()
    for name in ("modules.dep", "modules.builtin"):
        try:
            with open(os.path.join(directory, name), encoding="ascii", errors="replace") as source:
                found |= {os.path.basename(line.split(":")[0]).partition(".ko")[0] for line in source}
        except OSError:
            continue
    return {name.strip() for name in found}
