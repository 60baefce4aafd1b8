"""The subcommands of docker_graph_driver.py: what each is for, and the module that knows its options.

A module of a subcommand has two functions:

    add_arguments(parser)   adds its options, an example and what its exit statuses mean
    run(arguments) -> int   does the work, and returns the exit status

It is imported when it is needed only: for the process that serves Docker, its memory would be wasted. The text that a
parser prints for --help is also that of the man page (man_page.py) and of the completion for bash.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

PROGRAM = "docker_graph_driver.py"
# Where dockerd looks for the plugin named ceph.
SOCKET = "/run/docker/plugins/ceph.sock"


class Subcommand(NamedTuple):
    """One subcommand: its name, its module, and its line in a list of all."""

    name: str
    module: str
    summary: str

    def parser(self) -> Parser:
        """Return the parser of its options."""
        text = f"{self.summary[0].upper()}{self.summary[1:]}."
        parser = Parser(prog=f"{PROGRAM} {self.name}", description=text)
        parser.set_defaults(command=self.name)
        self._module().add_arguments(parser)
        return parser

    def main(self, argv: Sequence[str]) -> int:
        """Run it with these words, and return its exit status."""
        status: int = self._module().run(self.parser().parse_args(argv))
        return status

    def _module(self) -> Any:
        return importlib.import_module(self.module)


SUBCOMMANDS = (
    Subcommand("snapshotter", "snapshotter.front", "serve containerd: one pull is enough for all hosts of a pool"),
    Subcommand("doctor", "doctor.doctor_command", "look whether all is ready for the driver, and say what to do"),
    Subcommand("tree", "maintenance.commands", "show what is in the pool: images, their layers, containers, hosts"),
    Subcommand("check", "maintenance.commands", "say what in the pool and on this host belongs to nobody"),
    Subcommand("gc", "maintenance.commands", "remove what is proven to belong to nobody"),
    Subcommand("takeover", "maintenance.commands", "use the layers of a host that died here, and keep it off them"),
)


class Parser(argparse.ArgumentParser):
    """A parser of options whose help ends with an example, and with what the exit statuses mean."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add_example(self, when: str, *lines: str) -> None:
        """Show the lines that a reader can type."""
        head = f"example, {when}:" if when else "example:"
        self.add_paragraph("\n".join([head, "", *(f"  {line}" for line in lines)]))

    def add_exits(self, meanings: Mapping[int, str]) -> None:
        """Tell what each exit status means, of a command that interruption.py ends."""
        told = [f"  {status:<3}  {meaning}" for status, meaning in {**meanings, 130: "after Ctrl-C"}.items()]
        self.add_paragraph("\n".join(["exit status:", "", *told]))

    def add_paragraph(self, text: str) -> None:
        """Show a text after the options. It is printed as it is, so it has its line ends."""
        self.epilog = f"{self.epilog}\n\n{text}" if self.epilog else text

    def add_log_level(self, default: str) -> None:
        """Add the option that all of them have."""
        levels = ("debug", "info", "warning", "error")
        self.add_argument("--log-level", default=default, choices=levels, help="what is logged (default %(default)s)")


def named(name: str) -> Subcommand | None:
    """Return the subcommand of a name, or None."""
    return next((each for each in SUBCOMMANDS if each.name == name), None)


def listed() -> str:
    """Return the subcommands, a line each."""
    width = max(len(each.name) for each in SUBCOMMANDS)
    return "\n".join(["subcommands:", "", *(f"  {each.name:{width}}  {each.summary}" for each in SUBCOMMANDS)])


def seconds(text: str) -> float:
    """Return the value of an option that is a time. Raises ValueError, which argparse explains."""
    found = float(text)
    if not 0 <= found < float("inf"):
        raise ValueError
    return found
