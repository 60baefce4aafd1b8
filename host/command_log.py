"""What is noted of each command of the host: its line in the log, its part of a request's time, and what is counted.

A process that works beside us, such as one that lays down an archive, is noted as a command is.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence

from host import task
from host.metrics import Counter, Histogram

# The line names the module that all know.
log = logging.getLogger("command")

# How a command ended that has no exit status.
NOT_STARTED, TIMEOUT, GIVEN_UP, SIGNAL = "not_started", "timeout", "given_up", "signal"

# The verbs of Ceph's programs that we use. What is not among them is an argument, and no part of the name.
_VERBS = {
    "rbd": re.compile(
        "clone|config|copy|cp|create|deep|device|diff|du|image-meta|info|list|lock|ls|map|pool|rename|resize|rm|set|snap|"
        "status|trash|unmap"
    ),
    "ceph": re.compile("add|blacklist|blocklist|detail|df|health|ls|osd|pool|version"),
    "rados": re.compile(
        "break|create|df|get|getomapval|getxattr|info|listomapkeys|listomapvals|listwatchers|listxattr|lock|ls|lspools|"
        "rm|rmomapkey|rmxattr|setomapval|setxattr|stat|truncate|watch"
    ),
}
# Of `rados`, only this one has a verb of its own: the next word of others is the name of an object.
_OF_TWO = "lock"
# The options of `rados` that have no value.
_FLAGS = frozenset(["--force-full"])
_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)

_COMMANDS = Counter(
    "docker_graph_driver_commands_total",
    "Commands of the host that have ended, by program with its verbs, and by exit status (or a word: timeout, signal, "
    "given_up, not_started).",
    ("command", "exit"),
)
_SECONDS = Histogram(
    "docker_graph_driver_command_duration_seconds",
    "How long commands of the host took, by program with its verbs.",
    ("command",),
    _BOUNDS,
)


class Noted:
    """How a command ended: its exit status, or a word for why it has none."""

    def __init__(self) -> None:
        self.end: int | str = NOT_STARTED


@contextlib.contextmanager
def noted(argv: Sequence[str], name: str = "") -> Iterator[Noted]:
    """Note the command that the `with` block runs, by a `name` of few ("": that of `name_of`). The block sets `end`."""
    began, command = time.monotonic(), Noted()
    try:
        yield command
    finally:
        seconds, name = time.monotonic() - began, name or name_of(argv)
        end = command.end
        _COMMANDS.add(name, SIGNAL if isinstance(end, int) and end < 0 else str(end))
        _SECONDS.observe(seconds, name)
        if spent := task.spent():
            spent.command(name, began)
        log.debug("%s -> %s in %.0f ms", " ".join(argv), end, 1000 * seconds)


def name_of(argv: Sequence[str]) -> str:
    """Name a command by its program and the verbs of it; a program of ours, which Python runs, by its file."""
    program = os.path.basename(argv[0])
    if program.startswith("python"):
        ours = next((word for word in argv[1:] if word.endswith(".py")), program)
        return os.path.basename(ours).partition(".py")[0]
    if program not in _VERBS:
        return program
    words = _operands(argv[1:]) if program == "rados" else argv[1:]
    verbs = list(itertools.takewhile(_VERBS[program].fullmatch, words))
    if program == "rados" and verbs[:1] != [_OF_TWO]:
        del verbs[1:]
    return " ".join([program, *verbs])


def _operands(words: Sequence[str]) -> Iterator[str]:
    """Yield the words of a command of `rados` that are neither options nor their values."""
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            if word not in _FLAGS:
                next(rest, "")
        else:
            yield word
