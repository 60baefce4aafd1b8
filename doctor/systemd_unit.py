"""The units of systemd, as it has loaded them: of the driver, and of the dockerd that it serves.

systemd/*.service say why each setting is as it is.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

from doctor.finding import Broken, Improve, Missed
from graph.preconditions import Check
from host import command

BOOTED = "/run/systemd/system"
# Each of them gives a service a mount namespace of its own: dockerd, or containerd, does not see what it mounts.
_SEPARATING = (
    *("PrivateMounts", "PrivateTmp", "PrivateDevices", "ProtectSystem", "ProtectHome", "ProtectKernelModules"),
    *("ProtectKernelTunables", "ProtectControlGroups", "ProtectKernelLogs", "MountFlags", "RootDirectory"),
)
_NONE = ("", "no", "0")
# How an older systemd writes that there is no limit.
_LIMITS = {"18446744073709551615": "infinity"}
# What the unit must say, and what happens otherwise.
_NEEDED = {
    "Type": ("notify", "what comes after it starts too early"),
    "KillMode": ("process", "its end also ends each rbd-nbd that serves a running container"),
    "TasksMax": ("infinity", "a host with many layers may run out of tasks"),
    "RequiredBy": ("", "Docker is restarted with the driver; the unit file is of an older version"),
    "NeedDaemonReload": ("no", "the unit file has changed; do: systemctl daemon-reload"),
}


def properties(unit: str, *names: str) -> Mapping[str, str]:
    """Return properties of a unit; none where systemd does not run. Raises Missed if systemd does not answer."""
    if not os.path.isdir(BOOTED) or command.find("systemctl") is None:
        return {}
    argv = ("systemctl", "show", unit, *(f"--property={name}" for name in names))
    try:
        lines = command.run(argv, timeout=10.0).stdout.splitlines()
    except command.CommandError as error:
        raise Missed(f"systemd does not tell of {unit}: {error}") from None
    return {name: _LIMITS.get(value, value) for name, _, value in (line.partition("=") for line in lines)}


def environment(unit: str) -> Sequence[str]:
    """Return the assignments of a unit's Environment= settings. Raises Missed."""
    try:
        return shlex.split(properties(unit, "Environment").get("Environment", ""))
    except ValueError:
        # Some value has a quote. It is not ours.
        return []


def command_line(unit: str) -> Sequence[str]:
    """Return the words that a unit starts its program with; none if there is no such unit. Raises Missed."""
    # { path=/usr/bin/dockerd ; argv[]=/usr/bin/dockerd -H fd:// ; ignore_errors=no ; ... }
    text = properties(unit, "ExecStart").get("ExecStart", "")
    return text.partition("argv[]=")[2].partition(" ; ")[0].split()


class SystemdUnit:
    """The unit that starts a driver, or a snapshotter."""

    def __init__(self, unit: str) -> None:
        self._unit = unit

    def checks(self) -> list[Check]:
        """Return the checks."""
        return [Check("systemd unit", self._look)]

    def _look(self) -> str:
        found = properties(self._unit, "LoadState", "UnitFileState", *_SEPARATING, *_NEEDED)
        if not found:
            return "systemd does not run here: something else starts it"
        if found.get("LoadState") != "loaded":
            return f"there is no {self._unit}: something else starts it"
        # An older systemd does not know all of them.
        if separating := [f"{name}={found[name]}" for name in _SEPARATING if found.get(name, "") not in _NONE]:
            raise Broken(
                f"{self._unit} has {', '.join(separating)}, so nobody else sees what it mounts: take that out of its "
                f"file and drop-ins (systemctl cat {self._unit})"
            )
        wrong = [
            f"{name}={found[name]} in place of {name}={value}: {why}"
            for name, (value, why) in _NEEDED.items()
            if name in found and found[name] != value
        ]
        if found.get("UnitFileState") not in ("enabled", "enabled-runtime"):
            wrong.append(f"it does not start with the machine; do: systemctl enable {self._unit}")
        if wrong:
            raise Improve(
                f"{self._unit}: {'; '.join(wrong)} (ours is systemd/{self._unit}; copy it over that, then: systemctl "
                f"daemon-reload; systemctl reenable {self._unit})"
            )
        return f"{self._unit} is enabled, and as it must be"
