"""Who we are, and the programs of this host: their versions, and those that the driver can do without."""

from __future__ import annotations

import os
import re

import rbdcli
from doctor.finding import Broken, Improve
from graph.preconditions import Check
from host import command, programs
from images.options import Options

# Nautilus; README, "What you need".
OLDEST_CEPH = 14
# What is lacking where a program of programs.IF_THERE is.
WITHOUT = {
    "bsdtar": "large layers are laid down more slowly",
    "ceph": "takeover fails, and neither errors nor `docker info` tell the cluster's health",
}
# How each program is asked. Those that are not named here take --version.
_ASK = {"mkfs.xfs": "-V", "mkfs.ext4": "-V", "e2fsck": "-V", "xfs_growfs": "-V"}
# Of the others the version says nothing: they are of a package whose version is told already.
_ASKED = ("mkfs.xfs", "mkfs.ext4", "mount", "bsdtar", "rbd-nbd")


class Tools:
    """The programs of this host, for the storage options of one driver."""

    def __init__(self, pool: rbdcli.Pool, options: Options) -> None:
        self._pool = pool
        self._options = options

    def checks(self) -> list[Check]:
        """Return the checks."""
        return [
            Check("user", self._user),
            Check("other programs", self._other_programs),
            Check("versions", self._versions, ("programs",)),
        ]

    def _user(self) -> str:
        if os.geteuid() != 0:
            raise Improve("not root: nothing is mapped or mounted for a trial, and some files cannot be read; be root")
        return "root"

    def _other_programs(self) -> str:
        of_use = [program for program in programs.PROGRAMS if program.when == programs.IF_THERE]
        if missing := [program for program in of_use if command.find(program.name) is None]:
            raise Improve(
                "; ".join(
                    f"{name} is not installed, so {WITHOUT[name]}; install the package {package} (Debian's name)"
                    for name, package, _ in missing
                )
            )
        return f"{', '.join(program.name for program in of_use)} are there"

    def _versions(self) -> str:
        ceph = self._pool.client_version()
        if is_too_old(ceph):
            raise Broken(f"rbd is of Ceph {ceph}; it takes {OLDEST_CEPH} (Nautilus) or newer")
        needed = [program.name for program in programs.needed(f"ceph.fs={self._options.fs}")]
        there = [name for name in _ASKED if name in needed or (name == "bsdtar" and command.find(name))]
        return ", ".join([f"rbd {ceph}", *(f"{name} {version(name)}" for name in there)])


def is_too_old(ceph: str) -> bool:
    """Tell whether a version of Ceph is too old. One that cannot be read is not."""
    release = re.match(r"\d+", ceph)
    return release is not None and int(release[0]) < OLDEST_CEPH


def version(program: str) -> str:
    """Return the version that a program tells of itself, "unknown" if it tells none. Raises command.CommandError."""
    said = command.run((program, _ASK.get(program, "--version")), timeout=5.0, accept=range(256))
    found = re.search(r"\d+\.\d+[\w.~+-]*", said.stdout + said.stderr)
    return found[0] if found else "unknown"
