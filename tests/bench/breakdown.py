"""Where the time goes: the requests in a debug log of the driver's, the commands of each, and the rest.

The log has a line per command and one per request, each written at its end with its time. Each names what its thread
works for. A request has a number, so its commands are told from all others. What no request waited for is told apart.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from results import Window

# When, and for what: "[4711 #17]" is thread 4711, which works for request 17 (host/logs.py).
_HEAD = r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) \[\d+ ([^\]]*)\] \w+ "
_COMMAND = re.compile(_HEAD + r"(.*) -> \S+ in (\d+) ms$")
_REQUEST = re.compile(_HEAD + r"(\w+) (?:(\S*) )?(\d+) ms(?:: .*)?$")


@dataclass
class Command:
    """One external command: `name` is the program and its verbs."""

    name: str
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass
class Request:
    """One call of Docker's or containerd's (whose line names no layer), and the commands that it waited for."""

    method: str
    layer: str
    begin: float
    end: float
    commands: list[Command] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass
class Log:
    """A log read: its requests with their commands, and the commands that nobody waited for."""

    requests: list[Request]
    background: list[Command]


def read(path: str) -> Log:
    """Read a log that was written with --log-level debug."""
    requests: list[Request] = []
    background: list[Command] = []
    # The commands of each request that has not ended yet, by its number.
    running: dict[str, list[Command]] = {}
    with open(path, encoding="utf-8", errors="replace") as source:
        for line in source:
            if match := _COMMAND.match(line):
                stamp, task, words, took = match.groups()
                end = _seconds(stamp)
                command = Command(_name(words.split()), end - int(took) / 1000, end)
                (running.setdefault(task, []) if task.startswith("#") else background).append(command)
            elif match := _REQUEST.match(line):
                stamp, task, method, layer, took = match.groups()
                end = _seconds(stamp)
                requests.append(Request(method, layer or "", end - int(took) / 1000, end, running.pop(task, [])))
    # A process that was killed has told of no end.
    return Log(requests, [*background, *(command for commands in running.values() for command in commands)])


def _seconds(stamp: str) -> float:
    return datetime.datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()


def _name(words: Sequence[str]) -> str:
    ours = next((at for at, word in enumerate(words) if word.endswith("/archive/confined.py")), None)
    if ours is not None:
        return f"archive {words[ours + 1]}"
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
