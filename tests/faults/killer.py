"""Counts the commands of a plugin and kills it -9 at one of them: a link for each program, first on the plugin's PATH.

A link leads to `step` beside this file, whatever the program's name, so that a command that the driver learns to run
is found without being listed. The driver's own Python is one of them: the processes that archives are laid down by.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping

from plugin_client import PYTHON, UNANSWERED, PluginProcess, wait_until
from turns import turn

STEP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "step")
# command.py looks there too.
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
# After the answer; for what is done behind it, the caller waits.
QUIET_SECONDS = 0.3


# To kill at each command, before it begins and after it has ended, takes more than an hour: a commit kills at every
# third one, in turn at one moment and at the other.
STRIDE = 3
TURN = turn(2 * STRIDE)
TURNS = 2 if TURN is None else 1


def kills(at_turn: int) -> Iterator[tuple[int, str]]:
    """Yield the numbers of the steps at which to kill, each with its moment."""
    first, by = (1, 1) if TURN is None else (1 + TURN % STRIDE, STRIDE)
    moment = at_turn if TURN is None else TURN // STRIDE
    for at, number in enumerate(itertools.count(first, by)):
        yield number, ("before", "after")[(moment + at) % 2]


def kills_the_first() -> bool:
    """Tell whether an operation of one command is killed, too."""
    return TURN is None or TURN % STRIDE == 0


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
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._directory}/killed")
        self._write("pid", str(pid))
        self._write("armed", f"{step} {moment}")

    def disarm(self, plugin: PluginProcess) -> list[str]:
        """Count no more; return the commands that were counted. From now on nothing kills the plugin.

        A command may just have begun, of what is done later in the background, and be the one to kill it.
        """
        os.unlink(f"{self._directory}/armed")
        wait_until(lambda: not plugin.running or not commands(plugin), "no command counts itself any more")
        if os.path.exists(f"{self._directory}/killed"):
            wait_until(lambda: not plugin.running, "it is killed")
        said = []
        for number in range(1, len(os.listdir(f"{self._directory}/steps")) + 1):
            with open(f"{self._directory}/steps/{number}", encoding="utf-8", errors="replace") as source:
                said.append(source.read().strip())
        return said

    def _write(self, name: str, text: str) -> None:
        with open(f"{self._directory}/{name}.new", "w", encoding="ascii") as target:
            target.write(text + "\n")
        os.replace(f"{self._directory}/{name}.new", f"{self._directory}/{name}")


def under(killer: Killer, plugin: PluginProcess) -> None:
    """Let a plugin that runs be one that is killed."""
    assert plugin.terminate() == 0
    plugin.environment["PATH"] = killer.path
    plugin.python = killer.python
    plugin.start()


def pid(plugin: PluginProcess) -> int:
    """Its process."""
    assert plugin.process
    return plugin.process.pid


def commands(plugin: PluginProcess) -> list[str]:
    """The processes that it runs at the moment; none once it has gone."""
    running: list[str] = []
    for path in glob.glob(f"/proc/{pid(plugin)}/task/*/children"):
        # The thread may have ended meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(path, encoding="ascii") as said:
            running += said.read().split()
    return [child for child in running if not _is_watcher(child)]


def _is_watcher(child: str) -> bool:
    """Tell whether a process shows that the host lives (liveness.py), which it does as long as the plugin."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{child}/cmdline", "rb") as said:
        words = said.read().split(b"\0")
        return os.path.basename(words[0]) == b"rados" and any(b"_host." in word for word in words)
    return False


def wait_quiet(plugin: PluginProcess) -> None:
    """Wait until nothing is done behind the caller's back: the commands that are counted must be the operation's."""
    for _ in range(3):
        wait_until(lambda: not commands(plugin), "the plugin runs no command")
        time.sleep(0.02)


def act_until_killed(plugin: PluginProcess, act: Callable[[], None]) -> None:
    """Do what is answered by nobody any more, and what is begun behind the answer."""
    with contextlib.suppress(*UNANSWERED):
        act()
    quiet = time.monotonic() + QUIET_SECONDS
    while plugin.running and time.monotonic() < quiet:
        if commands(plugin):
            quiet = time.monotonic() + QUIET_SECONDS
        time.sleep(0.01)
