"""Makes the man page of docker_graph_driver.py from the parsers of its command line.

    python3 manual/man_page.py >manual/docker_graph_driver.8

The page is made from the options themselves and not from the text of --help, which each Python wraps in its own way.
The source is man(7).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import docker_graph_driver
from host.subcommands import PROGRAM, SUBCOMMANDS, Parser

NAME = PROGRAM[: -len(".py")]


def page(front: Parser, version: str) -> str:
    """Return the page: `front` is the parser for no subcommand."""
    lines = [f'.TH {NAME.upper()} 8 "" "docker-graph-driver {version}" "System Administration"', ".nh", ".ad l"]
    lines += [".SH NAME", f"{NAME} \\- {_escaped(front.description or '')}"]
    lines += [".SH SYNOPSIS", *_synopsis(PROGRAM, front)]
    for each in SUBCOMMANDS:
        lines += [".br", *_synopsis(f"{PROGRAM} {each.name}", each.parser())]
    lines += [".SH OPTIONS", *_options(front), *_paragraphs(front.epilog or "")]
    for each in SUBCOMMANDS:
        parser = each.parser()
        lines += [f".SH {each.name.upper()}", _escaped(parser.description or "")]
        lines += [*_options(parser), *_paragraphs(parser.epilog or "")]
    return "\n".join(lines) + "\n"


def _synopsis(words: str, parser: Parser) -> Iterator[str]:
    """Yield a subcommand with the options that must be given; the others are told below."""
    needed = [
        f"\\fB{_escaped(action.option_strings[0])}\\fR \\fI{_value(action)}\\fR"
        for action in _actions(parser)
        if action.required
    ]
    yield " ".join([f"\\fB{_escaped(words)}\\fR", *needed, "[\\fIOPTION\\fR]..."])


def _options(parser: Parser) -> Iterator[str]:
    for action in _actions(parser):
        names = ", ".join(f"\\fB{_escaped(name)}\\fR" for name in action.option_strings)
        value = _value(action)
        yield ".TP"
        yield names + (f" \\fI{value}\\fR" if value else "")
        yield _escaped((action.help or "") % {"default": action.default})


def _actions(parser: Parser) -> list[argparse.Action]:
    # argparse has no other way to ask for them; every Python from 3.9 to 3.14 has this one.
    return [action for action in parser._actions if action.option_strings]


def _value(action: argparse.Action) -> str:
    if action.choices:
        return _escaped("|".join(action.choices))
    return "" if action.nargs == 0 else _escaped(str(action.metavar or action.dest.upper()))


def _paragraphs(text: str) -> Iterator[str]:
    """Yield what is told after the options: lines that stand further in are to be typed, or a table."""
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("  "):
            yield from (".PP", ".nf", ".RS", *(_escaped(line[2:]) for line in paragraph.splitlines()), ".RE", ".fi")
        elif paragraph:
            yield from (".PP", *(_escaped(line) for line in paragraph.splitlines()))


def _escaped(text: str) -> str:
    """Return a text as one that holds no request and no escape of roff's, and whose hyphens can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(['.])", r"\\&\1", text, flags=re.MULTILINE)


if __name__ == "__main__":
    print(page(docker_graph_driver.parser(), docker_graph_driver.VERSION), end="")
