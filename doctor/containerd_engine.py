"""containerd on this host: its version, and whether its configuration names the snapshotter.

The configuration is TOML, for which Python has no module before 3.11. What is looked for stands in lines of a simple
form, which people and `containerd config dump` write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from doctor import tools
from doctor.finding import Broken, Missed, Unknown
from graph.preconditions import Check
from host import command

CONFIG = "/etc/containerd/config.toml"
# The name of the snapshotter in the documentation. containerd's clients use the one of the configuration.
NAME = "ceph"
OLDEST = (1, 6)
_SECTION = re.compile(r"^\s*\[([^\[\]]+)\]\s*(?:#.*)?$")
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([\w-]+)")
_ASSIGNMENT = re.compile(r"""^\s*([\w-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")


class ContainerdEngine:
    """containerd with one configuration file. `address` is the socket of our snapshotter."""

    def __init__(self, config: str, address: str) -> None:
        self._config = config
        self._address = address

    def checks(self) -> list[Check]:
        """Return the checks."""
        return [Check("containerd", self._version), Check("containerd configuration", self._configuration)]

    def name(self) -> str:
        """Return the name under which containerd knows our snapshotter; "" if it does not. Raises OSError."""
        try:
            with open(self._config, encoding="utf-8", errors="replace") as source:
                return self._name_in(source.read())
        except FileNotFoundError:
            return ""

    def _version(self) -> str:
        try:
            text = tools.version("containerd")
        except command.CommandMissing:
            raise Unknown("there is no containerd here: its version is not known") from None
        found = re.match(r"(\d+)\.(\d+)", text)
        if not found:
            raise Missed(f"containerd calls its version {text}")
        if (int(found[1]), int(found[2])) < OLDEST:
            raise Broken(f"containerd {text} is too old; it takes {'.'.join(map(str, OLDEST))} or newer")
        return f"containerd {text}"

    def _configuration(self) -> str:
        name = self.name() or self._name_in(self._dumped())
        if not name:
            raise Broken(
                f"{self._config} names no snapshotter at {self._address}; add to it, and start containerd anew: "
                f'[proxy_plugins.{NAME}] type = "snapshot", address = "{self._address}" (three lines)'
            )
        return f"its clients find the snapshotter by the name {name}"

    def _name_in(self, text: str) -> str:
        for name, said in _proxies(text):
            if said.get("type") == "snapshot" and said.get("address") == self._address:
                return name
        return ""

    def _dumped(self) -> str:
        """Return the configuration with the files that it imports; nothing if containerd does not tell."""
        try:
            return command.run(("containerd", "--config", self._config, "config", "dump"), timeout=10.0).stdout
        except command.CommandError:
            # It takes a version of containerd that can, and a file without an error: the check of the version tells.
            return ""


def _proxies(text: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the proxy plugins of a configuration: the name, and the settings that are strings."""
    path: Sequence[str] = ()
    said: dict[str, str] = {}
    for line in [*text.splitlines(), "[end]"]:
        section = _SECTION.match(line)
        if section:
            if len(path) == 2 and path[0] == "proxy_plugins":
                yield path[1], said
            path, said = [one or two or three for one, two, three in _PART.findall(section[1])], {}
        elif found := _ASSIGNMENT.match(line):
            said[found[1]] = found[2] or found[3] or ""
