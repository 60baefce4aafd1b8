"""Counts the commands of a plugin and kills it -9 at one of them: a link for each program, first on the plugin's PATH.

A link leads to `step` beside this file, whatever the program's name, so that a command that the driver learns to run
is found without being listed. The driver's own Python is one of them: the processes that archives are laid down by.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from plugin_client import PYTHON

STEP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "step")
# command.py looks there too.
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


class Killer:
    """The links for one plugin, below `directory`."""

    def __init__(self, directory: str, environment: Mapping[str, str]) -> None:
        self._directory = directory
        for name in ("bin", "real", "steps"):
            os.makedirs(os.path.join(directory, name))
        places = [*environment["PATH"].split(":"), *SBIN]
        programs: dict[str, str] = {}
        for place in filter(os.path.isdir, places):
            for name in os.listdir(place):
                programs.setdefault(name, os.path.join(place, name))
        programs["python3"] = PYTHON
        for name, path in programs.items():
            os.symlink(path, os.path.join(directory, "real", name))
            os.symlink(STEP, os.path.join(directory, "bin", name))
        self.python = os.path.join(directory, "bin", "python3")
        self.path = f"{directory}/bin:{environment['PATH']}"

    def arm(self, pid: int, step: int = 0, moment: str = "before") -> None:
        """Count from now on the commands of the process `pid`, and kill it at one of them (0: at none)."""
        for name in os.listdir(f"{self._directory}/steps"):
            os.unlink(f"{self._directory}/steps/{name}")
        self._write("pid", str(pid))
        self._write("armed", f"{step} {moment}")

    def disarm(self) -> list[str]:
        """Count no more; return the commands that were counted."""
        os.unlink(f"{self._directory}/armed")
        said = []
        for number in range(1, len(os.listdir(f"{self._directory}/steps")) + 1):
            with open(f"{self._directory}/steps/{number}", encoding="utf-8", errors="replace") as source:
                said.append(source.read().strip())
        return said

    def _write(self, name: str, text: str) -> None:
        with open(f"{self._directory}/{name}.new", "w", encoding="ascii") as target:
            target.write(text + "\n")
        os.replace(f"{self._directory}/{name}.new", f"{self._directory}/{name}")
