"""In which control group of systemd's the driver runs: what ends that one, ends the driver and the commands it runs.

Whoever starts it by hand puts it into a session's, or into that of another service, such as Docker's own (cgroups(7);
systemd.kill(5), KillMode=; logind.conf(5), KillUserProcesses=).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from doctor.finding import Improve, Missed
from graph.preconditions import Check

# Of cgroup v1 the hierarchy that systemd keeps; of v2 the only one.
_SYSTEMD = re.compile(r"^(?:\d+:name=systemd|0:):(/.*)$", re.MULTILINE)
_SESSION = re.compile(r"session-.*\.scope|user@\d+\.service")


class ControlGroup:
    """The control group of one driver. `unit` should run it; `server` tells its process, None if there is none."""

    def __init__(self, unit: str, server: Callable[[], int | None], *, proc: str = "/proc") -> None:
        self._unit = unit
        self._server = server
        self._proc = proc

    def checks(self) -> list[Check]:
        """Return the check."""
        return [Check("control group", self._look)]

    def _look(self) -> str:
        pid = self._server()
        if pid is None:
            return "no process of ours is to be seen"
        try:
            with open(f"{self._proc}/{pid}/cgroup", encoding="utf-8", errors="replace") as source:
                paths = _SYSTEMD.findall(source.read())
        except (FileNotFoundError, ProcessLookupError):
            raise Missed(f"process {pid}, which served, has ended meanwhile") from None
        # A systemd keeps one of them or both; in one that it does not keep, all processes are at the top.
        path = max(paths, key=len, default="/")
        of = path.rpartition("/")[2]
        if of == self._unit or not of.endswith((".service", ".scope")):
            return f"process {pid} is in {path}"
        if "user.slice" in path.split("/") or _SESSION.fullmatch(of):
            raise Improve(
                f"process {pid}, which serves, is in {path}: it may end with the session of who started it; start it "
                f"by a unit such as systemd/{self._unit}"
            )
        if of.endswith(".scope"):
            # Of a container: who runs it has chosen.
            return f"process {pid} is in {path}"
        raise Improve(
            f"process {pid}, which serves, is in {path}: it and its commands end with {of}; start it by a unit of its "
            f"own, such as systemd/{self._unit}"
        )
