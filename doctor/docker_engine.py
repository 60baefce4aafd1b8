"""Docker on this host: its version, and how it is, or would be, started, for either of our front ends.

README, "Docker versions", has the rules.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from doctor import systemd_unit, tools
from doctor.finding import Broken, Missed, Unknown
from graph.preconditions import Check
from host import command
from images import options

CONFIG = "/etc/docker/daemon.json"
DATA_ROOT = "/var/lib/docker"
UNIT = "docker.service"
# Docker 27 has graph driver plugins only with this in its environment.
DEPRECATED = "DOCKERD_DEPRECATED_GRAPHDRIVER_PLUGINS"
OLDEST, DEPRECATING, REMOVED = (1, 13), (27, 0), (28, 0)
OLDEST_WITH_SNAPSHOTTERS, ALWAYS_WITH_SNAPSHOTTERS = (26, 0), (29, 0)


class Process(NamedTuple):
    """A dockerd that runs, and the words that it was started with."""

    pid: int
    words: Sequence[str]


class DockerEngine:
    """Docker with one configuration file. `name` is that of our storage driver, or snapshotter, to it."""

    def __init__(self, config: str, name: str) -> None:
        self._config = config
        self._name = name

    def data_root(self) -> str:
        """Return where Docker keeps its data; the default where its configuration says nothing, or is damaged."""
        return str(self._peek().get("data-root") or DATA_ROOT)

    def storage_options(self) -> Sequence[str]:
        """Return the storage options of its configuration, if that names our driver, else none."""
        said = self._peek()
        found = said.get("storage-opts")
        return list(map(str, found)) if said.get("storage-driver") == self._name and isinstance(found, list) else ()

    def names_us(self) -> bool:
        """Tell whether its configuration names our driver."""
        return self._peek().get("storage-driver") == self._name

    def process(self) -> Process | None:
        """Return the dockerd that runs on its data root, if there is one in our pid namespace. Raises OSError."""
        for pid, words in _named("dockerd"):
            root = _value(words, "--data-root", "-g", "--graph") or self.data_root()
            if os.path.normpath(root) == os.path.normpath(self.data_root()):
                return Process(pid, words)
        return None

    def checks_for_driver(self) -> list[Check]:
        """Return the checks of a Docker that uses the graph driver."""
        return [
            Check("docker", self._runs_plugins),
            Check("docker configuration", self._uses_driver),
        ]

    def checks_for_snapshotter(self) -> list[Check]:
        """Return the check of a Docker that may use the snapshotter."""
        return [Check("docker configuration", self._uses_snapshotter)]

    # -- version -----------------------------------------------------------------------------

    def _version(self) -> tuple[tuple[int, int], str]:
        try:
            text = tools.version("dockerd")
        except command.CommandMissing:
            raise Unknown("there is no dockerd here: its version is not known") from None
        found = re.match(r"(\d+)\.(\d+)", text)
        if not found:
            raise Missed(f"dockerd calls its version {text}")
        return (int(found[1]), int(found[2])), text

    def _runs_plugins(self) -> str:
        version, text = self._version()
        if version >= REMOVED:
            raise Broken(
                f"Docker {text} has no graph driver plugins: use the snapshotter (README, 'For containerd, and Docker "
                f"26 and newer'), and look at it with --front snapshotter"
            )
        if version < OLDEST:
            raise Broken(f"Docker {text} is too old; it takes {'.'.join(map(str, OLDEST))} or newer")
        if version >= DEPRECATING and not self._has_deprecated():
            raise Broken(
                f"Docker {text} runs graph driver plugins only with {DEPRECATED}=1 in its environment: set it by "
                f"systemctl edit {UNIT}, below [Service]: Environment={DEPRECATED}=1"
            )
        return f"Docker {text} has graph driver plugins"

    def _has_deprecated(self) -> bool:
        process = self.process()
        if process:
            with open(f"/proc/{process.pid}/environ", encoding="utf-8", errors="replace") as source:
                return f"{DEPRECATED}=1" in source.read().split("\0")
        return f"{DEPRECATED}=1" in systemd_unit.environment(UNIT)

    # -- configuration -----------------------------------------------------------------------

    def _uses_driver(self) -> str:
        said, words = self._read(), self._words()
        if not said and not words:
            raise Unknown(f"neither {self._config} nor a dockerd is here: how Docker is started is not known")
        driver = _value(words, "--storage-driver", "-s") or str(said.get("storage-driver", ""))
        if _has_snapshotter(said):
            raise Broken(
                f"{self._config} turns containerd-snapshotter on, so no storage driver is used: take it out, or use "
                f"the snapshotter"
            )
        if driver != self._name:
            raise Broken(
                f"Docker uses {'the storage driver ' + driver if driver else 'a storage driver of its own'}; write "
                f'into {self._config}: "storage-driver": "{self._name}"; then: systemctl restart docker'
            )
        if not (said.get("experimental") is True or {"--experimental", "--experimental=true"} & set(words)):
            raise Broken(
                f'Docker takes no plugin as its storage driver; write into {self._config}: "experimental": true'
            )
        options.parse(self.storage_options())
        return f"its storage driver is {driver}, and experimental is on"

    def _uses_snapshotter(self) -> str:
        said = self._read()
        if said.get("storage-driver") != self._name:
            return (
                f"{self._config} does not name {self._name}: Docker uses another storage, and containerd's clients may"
            )
        version, text = self._version()
        if version < OLDEST_WITH_SNAPSHOTTERS:
            raise Broken(f"Docker {text} cannot keep its images in a snapshotter; it takes 26 or newer")
        if version < ALWAYS_WITH_SNAPSHOTTERS and not _has_snapshotter(said):
            raise Broken(
                f'Docker {text} takes {self._name} for a storage driver; write into {self._config}: "features": '
                f'{{"containerd-snapshotter": true}}'
            )
        return f"Docker {text} keeps its images in the snapshotter {self._name}"

    def _words(self) -> Sequence[str]:
        """Return what dockerd is, or will be, started with; nothing if that is not known."""
        process = self.process()
        return process.words if process else systemd_unit.command_line(UNIT)

    def _read(self) -> Mapping[str, Any]:
        """Return the configuration, empty if there is none. Raises Broken if it cannot be read."""
        try:
            with open(self._config, "rb") as source:
                said = json.loads(source.read().strip() or b"{}")
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            raise Broken(f"{self._config} is not JSON, so dockerd does not start: {error}") from None
        if not isinstance(said, dict):
            raise Broken(f"{self._config} is no JSON object, so dockerd does not start")
        return said

    def _peek(self) -> Mapping[str, Any]:
        with contextlib.suppress(Broken, OSError):
            return self._read()
        return {}


def _has_snapshotter(said: Mapping[str, Any]) -> bool:
    features = said.get("features")
    return isinstance(features, dict) and features.get("containerd-snapshotter") is True


def running(name: str) -> int | None:
    """Return a process of that name, the first that was started; None if there is none in our pid namespace."""
    return next((pid for pid, _ in _named(name)), None)


def _named(name: str) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield the processes of a name, with their command lines."""
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        # It may have ended meanwhile.
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as source:
                if source.read().strip() != name:
                    continue
            with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="surrogateescape") as source:
                words = source.read().split("\0")
            yield pid, words


def _value(words: Sequence[str], *flags: str) -> str:
    """Return the value of a flag, `--flag VALUE` or `--flag=VALUE`; "" if it is not there."""
    for at, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in flags:
            return value if equals else next(iter(words[at + 1 :]), "")
    return ""
