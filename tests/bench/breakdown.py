"""Where the time goes: the requests in a debug log of the driver's, the commands of each, and the rest.

The log has a line per command and one per request, each written at its end with its time. A command belongs to the
request that was running around it; of several, to the one whose layer it names, else to the shortest. What no request
waited for is told apart.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from results import Window

_STAMP = r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) \w+ "
_COMMAND = re.compile(_STAMP + r"(.*) -> -?\d+ in (\d+) ms$")
_REQUEST = re.compile(_STAMP + r"(\w+) (\S*) (\d+) ms(?:: .*)?$")
# Times are rounded to a millisecond, and the request's line comes a little after its work.
SLACK = 0.003
# What the emptying of the trash consists of: it names images by number, and no request waits for it.
BACKGROUND = ("rbd trash ls", "rbd trash rm", "rbd snap ls", "rbd snap rm")


@dataclass
class Command:
    """One external command: `name` is the program and its verbs."""

    name: str
    words: list[str]
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass
class Request:
    """One call of Docker's, and the commands that it waited for."""

    method: str
    layer: str
    begin: float
    end: float
    commands: list[Command] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin

    def holds(self, command: Command) -> bool:
        """Whether the command ran within this request."""
        return self.begin - SLACK <= command.begin and command.end <= self.end + SLACK

    def names(self, command: Command) -> bool:
        """Whether the command names this request's layer as an image or a mount point."""
        return bool(self.layer) and any(
            word.endswith("_" + self.layer) or f"/{self.layer}/" in word for word in command.words
        )


@dataclass
class Log:
    """A log read: its requests with their commands, and the commands that nobody waited for."""

    requests: list[Request]
    background: list[Command]


def read(path: str) -> Log:
    """Read a log that was written with --log-level debug."""
    requests, commands = [], []
    with open(path, encoding="utf-8", errors="replace") as source:
        for line in source:
            if match := _COMMAND.match(line):
                words, end = match[2].split(), _seconds(match[1])
                commands.append(Command(_name(words), words, end - int(match[3]) / 1000, end))
            elif match := _REQUEST.match(line):
                end = _seconds(match[1])
                requests.append(Request(match[2], match[3], end - int(match[4]) / 1000, end))
    return Log(requests, [command for command in commands if not _assign(command, requests)])


def _assign(command: Command, requests: Sequence[Request]) -> bool:
    """Give a command to the request that it belongs to, if there is one."""
    if command.name in BACKGROUND:
        return False
    around = [request for request in requests if request.holds(command)]
    best = min(around, key=lambda request: (not request.names(command), request.seconds), default=None)
    if best:
        best.commands.append(command)
    return best is not None


def _seconds(stamp: str) -> float:
    return datetime.datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()


def _name(words: Sequence[str]) -> str:
    verbs = []
    for word in words[1:] if words[0] in ("rbd", "ceph") else ():
        if word.startswith("-"):
            break
        verbs.append(word)
    return " ".join([words[0].rpartition("/")[2], *verbs])


# -- telling -----------------------------------------------------------------------------------


def tell(log: Log, windows: Sequence[Window]) -> list[str]:
    """The lines for a row: `windows` are the times when it was measured; of the whole log without any."""
    requests = [item for item in log.requests if _within(item.begin, item.end, windows)]
    background = [item for item in log.background if _within(item.begin, item.end, windows)]
    times = len(windows) or 1
    lines = [f"{'':36}{'count':>8}{'ms each':>10}{'ms in all':>11}"]
    for method in dict.fromkeys(item.method for item in requests):
        lines += _tell_method([item for item in requests if item.method == method], times)
    if windows:
        rest = sum(window.end - window.begin for window in windows) - _covered(requests)
        lines.append(_line("outside of any request", 1, rest / times, rest / times))
    lines += [_line(f"background: {name}", *numbers) for name, *numbers in _by_name(background, times)]
    return lines


def _tell_method(requests: Sequence[Request], times: int) -> list[str]:
    whole = sum(item.seconds for item in requests)
    commands = [command for item in requests for command in item.commands]
    lines = [_line(requests[0].method, len(requests) / times, whole / len(requests), whole / times)]
    lines += [_line("    " + name, *numbers) for name, *numbers in _by_name(commands, times)]
    rest = whole - sum(_covered(item.commands) for item in requests)
    lines.append(_line("    the rest", len(requests) / times, rest / len(requests), rest / times))
    return lines


def _by_name(commands: Iterable[Command], times: int) -> list[tuple[str, float, float, float]]:
    names: dict[str, list[float]] = {}
    for command in commands:
        names.setdefault(command.name, []).append(command.seconds)
    return [
        (name, len(taken) / times, sum(taken) / len(taken), sum(taken) / times)
        for name, taken in sorted(names.items(), key=lambda item: -sum(item[1]))
    ]


def _line(text: str, count: float, each: float, whole: float) -> str:
    return f"{text:36}{count:8.1f}{1000 * each:10.0f}{1000 * whole:11.0f}"


def _within(begin: float, end: float, windows: Sequence[Window]) -> bool:
    """Whether most of it was in one of the windows, which may follow each other without a gap."""
    return not windows or any(window.begin <= (begin + end) / 2 <= window.end for window in windows)


def _covered(items: Sequence[Command] | Sequence[Request]) -> float:
    """Seconds in which at least one of them ran: they may run beside each other."""
    covered, reached = 0.0, 0.0
    for begin, end in sorted((item.begin, item.end) for item in items):
        covered += max(0.0, end - max(reached, begin))
        reached = max(reached, end)
    return covered
