"""The contents of a pool as lines for people: each image with what it adds, from the top layer down.

A line is cut at the width of the terminal, and the size at its end stays. A narrow one shows no ages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from host import durations
from host.terminal import Terminal, columns
from images.options import format_size
from overview.contents import INIT, UNFINISHED, Contents, Host, Layer
from overview.groups import Group, Standing, grouped

_AGE, _SIZE = 7, 8
# A terminal with fewer columns has no room for ages.
_WIDE = 60
# Digits of an id, as Docker shows them.
DIGITS = 12
_BOLD, _DIM, _GREEN, _END = "\033[1m", "\033[2m", "\033[32m", "\033[0m"


class _Line(NamedTuple):
    """What stands in one line: a mark of the tree, words, more words that matter less, and the columns at its end."""

    mark: str
    words: str
    more: str = ""
    age: str = ""
    size: str = ""
    style: str = ""


def lines(contents: Contents, terminal: Terminal) -> Iterator[str]:
    """Yield the lines, without their ends."""
    groups = grouped(contents)
    yield from _head(contents, groups, terminal)
    for group in groups:
        yield ""
        for line in _group(contents, group):
            yield _written(line, terminal)
    yield from _foot(contents, terminal)


def title(contents: Contents) -> str:
    """Name the pool in a few words."""
    namespace = f", namespace {contents.namespace}" if contents.namespace else ""
    return f"pool {contents.pool}{namespace}, images {contents.prefix}_*"


def summary(contents: Contents, groups: Sequence[Group]) -> str:
    """Say in one line how much there is."""
    images = len([group for group in groups if group.layers])
    containers = sum(len(group.containers) for group in groups)
    counted = (_count(images, "image"), _count(containers, "container"), _count(len(contents.layers), "layer"))
    return (
        f"{', '.join(counted)}; {size_of(contents.stored)} stored, of which {size_of(contents.base)} is the base image"
    )


def name_of(contents: Contents, group: Group) -> str:
    """Name what a group is, in the words of its user as far as these are known here."""
    if group.names:
        return ", ".join(group.names)
    if not group.top or not group.top.owner:
        return "of no image"
    if group.top.shared:
        return "image that hosts share"
    is_here = group.top.owner.is_same_host(contents.here)
    return "image without a name" if is_here else f"image of {group.top.owner.seen_from(contents.here)}"


def size_of(size: int) -> str:
    """Write bytes with their unit: 1.2M."""
    return f"{format_size(size)}B" if size < 1024 else _rounded(size)


def _rounded(size: int) -> str:
    """Three digits are enough for people."""
    text = format_size(size)
    number, unit = float(text[:-1]), text[-1]
    return f"{number:.0f}{unit}" if number >= 100 else f"{number:.1f}{unit}"


def _place_of(contents: Contents, layer: Layer, group: Group) -> str:
    """Say whose a layer is, who uses it and where it is open; not that it is this host's, or its image's host's."""
    said = {contents.here.host}
    if group.top and group.top.owner and not (group.names or group.top.shared):
        # As the name of the group does.
        said.add(group.top.owner.host)
    words: list[str] = []
    if layer.shared:
        words.append(f"shared, used by {' and '.join(layer.used_by) or 'nobody'}")
    elif layer.owner and layer.owner.host not in said:
        words.append(f"of {layer.owner.host}")
    if layer.open_at:
        words.append(f"open at {', '.join(layer.open_at)}")
    elif layer.open_at is None:
        words.append("not known where it is open")
    return "; ".join(words)


def layer_words(contents: Contents, layer: Layer, group: Group) -> tuple[str, str]:
    """Say what a layer is that is no container's, and what is known beside its id."""
    kind, place = contents.kind(layer), _place_of(contents, layer, group)
    odd = {UNFINISHED: "never made to its end, or being made", INIT: "prepared for a container that is not there"}
    return f"layer {short(layer)}", "; ".join(word for word in (odd.get(kind, ""), place) if word)


def container_words(contents: Contents, standing: Standing, group: Group) -> tuple[str, str]:
    """Say what a container is, and what is known beside its name."""
    container = contents.container(standing.layer)
    on = f"on layer {short(standing.on)}" if standing.on and standing.on is not group.top else ""
    place = _place_of(contents, standing.layer, group)
    return f"container {container.name}", "; ".join(word for word in (container.state, on, place) if word)


def short(layer: Layer) -> str:
    """Return the beginning of a layer's id."""
    return layer.id[:DIGITS]


# -- parts of the listing --------------------------------------------------------------------------


def _head(contents: Contents, groups: Sequence[Group], terminal: Terminal) -> Iterator[str]:
    yield _written(_Line("", title(contents), style=_BOLD), terminal)
    yield from _wrapped(summary(contents, groups), terminal)


def _group(contents: Contents, group: Group) -> Iterator[_Line]:
    below = f"and {size_of(group.stored_below)} below" if group.on else ""
    yield _Line("", name_of(contents, group), below, "", size_of(group.stored), _BOLD)
    inner = list(_inner(contents, group))
    for at, line in enumerate(inner):
        yield line._replace(mark="last" if at == len(inner) - 1 else "one")


def _inner(contents: Contents, group: Group) -> Iterator[_Line]:
    for standing in group.containers:
        words, more = container_words(contents, standing, group)
        style = _GREEN if more.startswith("running") else ""
        yield _Line("", words, more, _age(contents, standing.layer), size_of(standing.stored), style)
    for layer in (*group.layers, *group.rest):
        words, more = layer_words(contents, layer, group)
        yield _Line("", words, more, _age(contents, layer), size_of(layer.stored))
    if group.on:
        other = name_of(contents, group.on) if group.on.names else f"layer {short(group.on.layers[0])}"
        yield _Line("", f"on {_count(group.layers_below, 'layer')} of {other}", style=_DIM)


def _foot(contents: Contents, terminal: Terminal) -> Iterator[str]:
    yield ""
    yield _written(_Line("", "hosts", style=_BOLD), terminal)
    for at, host in enumerate(contents.hosts):
        mark = "last" if at == len(contents.hosts) - 1 else "one"
        yield _written(_Line(mark, *_host(contents, host)), terminal)
    if contents.names.missing:
        yield ""
        yield from _wrapped(contents.names.missing, terminal)


def _host(contents: Contents, host: Host) -> tuple[str, str]:
    own = [layer for layer in contents.layers.values() if layer.owner == host.owner and not layer.shared]
    name = host.owner.seen_from(contents.here)
    opened = len([layer for layer in contents.layers.values() if layer.open_at and name in layer.open_at])
    used = len([layer for layer in contents.layers.values() if name in layer.used_by])
    answers = {None: "not asked", True: "answers", False: "no driver answers"}[host.answers]
    words = [f"{len(own)} own"] + [f"{used} shared"] * bool(used) + [f"{opened} open"] * bool(opened)
    this = ", this host" if host.owner == contents.here else ""
    return f"{name} {host.owner.home}", f"{answers}{this}; layers: {', '.join(words)}"


# -- how a line is written -------------------------------------------------------------------------


def _written(line: _Line, terminal: Terminal) -> str:
    """Write one line within the width. The words come before what matters less, and that goes first."""
    marks = {"one": "├─ ", "last": "└─ "} if terminal.draws else {"one": "|- ", "last": "`- "}
    mark = marks.get(line.mark, "")
    end = f"{line.size:>{_SIZE}}" if line.size else ""
    if end and terminal.width >= _WIDE:
        end = f"{line.age:>{_AGE}} {end}"
    room = terminal.width - columns(mark) - (len(end) + 1 if end else 0)
    words = terminal.cut(terminal.shown(line.words), room)
    more = terminal.cut(terminal.shown(line.more), room - columns(words) - 2) if line.more else ""
    more = f"  {more}" if more else ""
    gap = " " * (room - columns(words) - columns(more) + 1) if end else ""
    if terminal.colours:
        mark = f"{_DIM}{mark}{_END}" if mark else ""
        words = f"{line.style}{words}{_END}" if line.style else words
        more = f"{_DIM}{more}{_END}" if more else ""
    return f"{mark}{words}{more}{gap}{end}"


def _wrapped(text: str, terminal: Terminal) -> Iterator[str]:
    """Write a sentence on as many lines as it needs."""
    line = ""
    for word in terminal.shown(text).split():
        if line and columns(line) + 1 + columns(word) > terminal.width:
            yield line
            line = ""
        line = f"{line} {terminal.cut(word, terminal.width)}".strip()
    yield line


def _age(contents: Contents, layer: Layer) -> str:
    return "-" if layer.created is None else durations.written(contents.at - layer.created)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
