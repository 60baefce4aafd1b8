"""The contents of a pool as a picture (SVG) for a browser: the area of a layer is the bytes that it stores.

The layers of an image, and the containers on it, lie together in a frame, below its name. The strip for the name
takes the same share of each frame, so the areas of all layers can be compared. Where it is too thin for words, the name
stands in the largest layer. What has no room for words tells them when it is pointed at. Colours are of different
lightness, so they differ for the colour-blind, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from host import durations, logs, whole_file
from overview import listing
from overview.contents import CONTAINER, INIT, UNFINISHED, Contents, Layer
from overview.groups import Group, grouped
from overview.treemap import Box, squarified

WIDTH, MARGIN = 1280.0, 24.0
_MAP = Box(MARGIN, 92.0, WIDTH - 2 * MARGIN, 720.0)
_LEGEND_ROW, _SWATCH = 26.0, 16.0
# Of a letter: its height, and its width in that measure; those of most fonts are narrower.
_TEXT, _TITLE = 13.0, 20.0
_LETTER, _BOLD_LETTER = 0.61, 0.68
_LINE, _PAD = 16.0, 6.0
# The share of a frame that is its name's, and what words there need.
_STRIP, _LEAST_STRIP = 0.08, 14.0
# Smaller boxes have no words, and of a name so many letters at the least.
_LEAST, _LEAST_LETTERS = 24.0, 6
_SHARED, _BASE = "shared", "base"
# Kind, colour, and what the legend says. They were chosen to differ most for the colour-blind.
_KINDS = {
    "image": ("#8fc5ef", "layer of an image"),
    _SHARED: ("#f7e98a", "layer that hosts share"),
    CONTAINER: ("#ec9f4f", "container"),
    INIT: ("#ffcfa3", "what Docker prepares for a container"),
    UNFINISHED: ("#e39bb8", "never made to its end, or being made"),
    _BASE: ("#e9e9e9", "base image, made once"),
}
_STYLE = (
    "text{font-family:Helvetica,Arial,'Liberation Sans',sans-serif;fill:#1a1a1a}"
    ".b{font-weight:bold}.leaf:hover rect{stroke:#1a1a1a;stroke-width:3}"
)


class _Leaf(NamedTuple):
    """A layer as it is drawn: its kind in the legend, its bytes, its words, and all that is known of it.

    `words`: for each line what it may say, the most first; so the least still fits into a small box.
    """

    kind: str
    stored: int
    words: tuple[tuple[str, ...], ...]
    told: tuple[str, ...]


class _Frame(NamedTuple):
    """Layers that lie together, and what they are called."""

    name: str
    leaves: Sequence[_Leaf]

    @property
    def stored(self) -> int:
        """Bytes of all of them."""
        return sum(leaf.stored for leaf in self.leaves)


def drawn(contents: Contents) -> str:
    """Return the picture."""
    groups = grouped(contents)
    frames = [_frame(contents, group) for group in groups]
    if contents.base:
        size = listing.size_of(contents.base)
        told = ("base image: an empty file system", f"{size} ({contents.base} bytes)")
        words = (("made once for all layers", "made once"), (size,))
        frames.append(_Frame("base image", [_Leaf(_BASE, contents.base, words, told)]))
    legend, bottom = _legend(frames, _MAP.y + _MAP.height + 14.0)
    height = bottom + 12.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}" '
        f'height="{height:g}" role="img">',
        f"<title>{_escaped(listing.title(contents))}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{WIDTH:g}" height="{height:g}" fill="#ffffff"/>',
        *_head(contents, groups),
        *_map(frames),
        *legend,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def save(path: str, contents: Contents) -> None:
    """Write the picture into a file, whole or not at all, in place of what was there. Raises OSError."""
    whole_file.write(path, drawn(contents))


# -- what is drawn ---------------------------------------------------------------------------------


def _frame(contents: Contents, group: Group) -> _Frame:
    leaves: list[_Leaf] = []
    for standing in group.containers:
        words = listing.container_words(contents, standing, group)
        leaves.append(_leaf(contents, standing.layer, CONTAINER, words, group))
        if standing.init:
            init = (f"prepared {contents.container(standing.layer).name}", "")
            leaves.append(_leaf(contents, standing.init, INIT, init, group))
    for layer in (*group.layers, *group.rest):
        kind = _SHARED if layer.shared else contents.kind(layer)
        leaves.append(_leaf(contents, layer, kind, listing.layer_words(contents, layer, group), group))
    return _Frame(logs.printable(listing.name_of(contents, group)), leaves)


def _leaf(contents: Contents, layer: Layer, kind: str, words: tuple[str, str], group: Group) -> _Leaf:
    # Before it is seen what fits.
    name, more = map(logs.printable, words)
    age = "" if layer.created is None else f", {durations.written(contents.at - layer.created)} old"
    size = listing.size_of(layer.stored)
    told = (name, more, f"{size} ({layer.stored} bytes){age}", f"of {listing.name_of(contents, group)}", layer.image)
    # The colour tells the kind.
    lines = ((name, name.partition(" ")[2]), (f"{size}{age}", size), (more, more.partition(";")[0]))
    return _Leaf(kind, layer.stored, lines, tuple(filter(None, told)))


# -- how it is drawn -------------------------------------------------------------------------------


def _head(contents: Contents, groups: Sequence[Group]) -> Iterator[str]:
    yield _text(MARGIN, 38.0, listing.title(contents), _TITLE, bold=True, room=_MAP.width)
    yield _text(MARGIN, 60.0, listing.summary(contents, groups), 14.0, room=_MAP.width)
    seen = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(contents.at))
    words = f"seen from {contents.here.host} at {seen}; the area of a layer is the bytes that it stores"
    yield _text(MARGIN, 80.0, words, 14.0, room=_MAP.width)


def _map(frames: Sequence[_Frame]) -> Iterator[str]:
    boxes = squarified([frame.stored for frame in frames], _MAP)
    if not any(box.area for box in boxes):
        yield _text(MARGIN, _MAP.y + 40.0, "nothing is stored", _TITLE, room=_MAP.width)
    for frame, box in zip(frames, boxes):
        if box.area:
            yield from _drawn_frame(frame, box)
    for box in boxes:
        if box.area:
            # Last, over the edges of what is in it; it must not be pointed at.
            yield f'<rect {_at(box)} fill="none" stroke="#333333" stroke-width="2.5" pointer-events="none"/>'


def _drawn_frame(frame: _Frame, box: Box) -> Iterator[str]:
    strip = box.height * _STRIP
    title = f"{frame.name}, {listing.size_of(frame.stored)}"
    has_words = strip >= _LEAST_STRIP and box.width >= _LEAST
    yield f'<rect {_at(box._replace(height=strip))} fill="#f4f4f4"><title>{_escaped(title)}</title></rect>'
    if has_words:
        size = min(_TEXT, strip - 4.0)
        words = _title(title, frame.name, box.width - 2 * _PAD, size)
        yield _text(box.x + _PAD, box.y + (strip + 0.7 * size) / 2, words, size, bold=True, room=box.width - 2 * _PAD)
    rest = Box(box.x, box.y + strip, box.width, box.height - strip)
    inner = squarified([leaf.stored for leaf in frame.leaves], rest)
    largest = max(range(len(inner)), key=lambda at: frame.leaves[at].stored)
    for at, (leaf, place) in enumerate(zip(frame.leaves, inner)):
        if place.area:
            yield _drawn_leaf(leaf, place, "" if has_words or at != largest else frame.name)


def _drawn_leaf(leaf: _Leaf, box: Box, title: str) -> str:
    """Draw one layer. It is a picture of its own, so nothing of it is outside of its box."""
    told = _escaped("\n".join(leaf.told))
    parts = [
        f'<svg class="leaf" {_at(box)}><title>{told}</title>'
        f'<rect width="100%" height="100%" fill="{_KINDS[leaf.kind][0]}" stroke="#ffffff" stroke-width="2"/>'
    ]
    room, y = box.width - 2 * _PAD, _PAD + _TEXT
    if box.width >= _LEAST and box.height >= _LEAST:
        fitting = [_fitting(line, room, is_name=at == 0) for at, line in enumerate(leaf.words)]
        for line, bold in ((_title(title, title, room, _TEXT), True), *((line, False) for line in fitting)):
            if line and y <= box.height - _PAD:
                parts.append(_text(_PAD, y, line, _TEXT, bold=bold, room=room))
                y += _LINE
    return "".join([*parts, "</svg>"])


def _legend(frames: Sequence[_Frame], y: float) -> tuple[list[str], float]:
    """Draw the legend from `y` on, with the kinds that there are; return where it ends, too."""
    stored: dict[str, int] = {}
    for leaf in (leaf for frame in frames for leaf in frame.leaves):
        stored[leaf.kind] = stored.get(leaf.kind, 0) + leaf.stored
    parts: list[str] = []
    x = MARGIN
    for kind, (colour, words) in _KINDS.items():
        if kind not in stored:
            continue
        text = f"{words}: {listing.size_of(stored[kind])}"
        width = _SWATCH + 8.0 + len(text) * _TEXT * _LETTER + 20.0
        if x + width > WIDTH and x > MARGIN:
            x, y = MARGIN, y + _LEGEND_ROW
        swatch = Box(x, y, _SWATCH, _SWATCH)
        parts.append(f'<rect {_at(swatch)} fill="{colour}" stroke="#333333"/>')
        parts.append(_text(x + _SWATCH + 8.0, y + 13.0, text, _TEXT, room=width))
        x += width
    return parts, y + _LEGEND_ROW


def _title(most: str, name: str, room: float, size: float) -> str:
    """Return `most`, or as much of an image's name as there is room for: its end says most, REGISTRY/PATH/NAME:TAG."""
    first = name.partition(", ")[0]
    short = first.rpartition("/")[2]
    letters = _letters(room, size, bold=True)
    cut = f"…{short[1 - letters :]}" if name and letters >= _LEAST_LETTERS else ""
    alternatives = (most, name, first, f"…/{short}", short) if short != first else (most, name, first)
    return next((words for words in alternatives if len(words) <= letters), cut)


def _fitting(alternatives: Sequence[str], room: float, *, is_name: bool) -> str:
    """Return the first that there is room for. A name that does not fit is cut, and anything else left out."""
    letters = _letters(room, _TEXT)
    last = alternatives[-1]
    cut = f"{last[: letters - 1]}…" if is_name and letters >= _LEAST_LETTERS else ""
    return next((words for words in alternatives if len(words) <= letters), cut)


def _letters(room: float, size: float, *, bold: bool = False) -> int:
    """Return how many letters there is room for."""
    return int(room / (size * (_BOLD_LETTER if bold else _LETTER)))


def _text(x: float, y: float, words: str, size: float, *, bold: bool = False, room: float) -> str:
    """Write words, of which what does not fit into `room` is cut."""
    letters = _letters(room, size, bold=bold)
    if len(words) > letters:
        words = words[: max(0, letters - 1)].rstrip() + "…"
    weight = ' class="b"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}"{weight}>{_escaped(words)}</text>'


def _at(box: Box) -> str:
    return f'x="{box.x:.3f}" y="{box.y:.3f}" width="{box.width:.3f}" height="{box.height:.3f}"'


def _escaped(text: str) -> str:
    """Return a text for XML, which takes no control characters."""
    return "\n".join(escape(logs.printable(line)) for line in text.split("\n"))
