"""The commands for an operator: check, gc, takeover and tree.

They find pool, namespace, client and home where the driver keeps them, in Init's state file, or a snapshotter in its
root.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import NamedTuple

from cluster import diagnosis
from cluster.claim import Claim
from host import durations, interruption, logs, screen
from host.failure import EXPECTED
from host.progress import Progress
from host.subcommands import SOCKET, Parser, seconds
from host.terminal import Terminal
from images import options
from images.layers import Layers
from images.options import pool_of
from maintenance import collector, inspection, root_settings, takeover
from maintenance.docker_database import DockerDatabase
from maintenance.knowledge import Database
from maintenance.root_settings import NoHome
from maintenance.snapshots_database import SnapshotsDatabase
from overview import listing, picture, report
from overview.gathering import Gathering
from protocol import init_state

# Exit codes, for monitoring. A command that a signal interrupts ends with 128 and the signal's number, as in a shell:
# 130 after Ctrl-C.
NOTHING, FOUND, FAILED = 0, 1, 2


class Site(NamedTuple):
    """One driver or snapshotter: its home, its layers, and the database of who uses them."""

    home: str
    options: options.Options
    layers: Layers
    database: Database


def add_arguments(parser: Parser) -> None:
    """Add the options of the subcommand that the parser is for."""
    command: str = parser.get_default("command")
    {"check": _add_to_check, "gc": _add_to_gc, "tree": _add_to_tree, "takeover": _add_to_takeover}[command](parser)
    parser.add_log_level("warning")


def run(arguments: argparse.Namespace) -> int:
    """Run one command and return its exit status: FAILED, with a line on stderr, if it could not do its work."""
    logs.start_plain(arguments.log_level)
    try:
        with interruption.by_signals(commands_too=True):
            return _RUN[arguments.command](arguments)
    except KeyboardInterrupt as error:
        print(f"{arguments.command}: interrupted", file=sys.stderr)
        return 128 + interruption.number_of(error)
    except (*EXPECTED, *diagnosis.NOT_UNDERSTOOD) as error:
        # What is no words of ours has its kind before it: 'images' alone says nothing.
        words = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
        print(logs.printable(f"{arguments.command}: {' '.join(words.split())}"), file=sys.stderr)
        return FAILED


def _add_to_check(parser: Parser) -> None:
    text = "also what looks so in a pool in order: young layers, what somebody else moved to the trash"
    parser.add_argument("--all", action="store_true", help=text)
    _add_min_age(parser)
    _add_site(parser)
    _add_reading(parser)
    parser.add_example("", "python3 docker_graph_driver.py check")
    parser.add_exits({0: "nothing belongs to nobody", 1: "something does", 2: "it could not look"})


def _add_to_gc(parser: Parser) -> None:
    wish = parser.add_mutually_exclusive_group()
    wish.add_argument("--dry-run", action="store_true", help="only say it (default)")
    wish.add_argument("--yes", action="store_true", help="do it")
    _add_min_age(parser)
    _add_site(parser)
    _add_reading(parser)
    parser.add_example("", "python3 docker_graph_driver.py gc", "python3 docker_graph_driver.py gc --yes")
    parser.add_exits({0: "nothing is left", 1: "something would be removed, or was kept", 2: "it failed"})


def _add_to_tree(parser: Parser) -> None:
    text = "draw it into a file, too: a picture for a browser, in which the area of a layer is the bytes that it stores"
    parser.add_argument("--svg", metavar="FILE", help=text)
    _add_site(parser)
    _add_reading(parser)
    parser.add_example(
        "", "python3 docker_graph_driver.py tree", "python3 docker_graph_driver.py tree --svg /tmp/pool.svg"
    )
    parser.add_exits({0: "shown", 2: "it could not look"})


def _add_to_takeover(parser: Parser) -> None:
    parser.add_argument("--host", required=True, help="its host name, as errors name it; or NAME/MACHINE-ID")
    parser.add_argument("--home", default="", metavar="DIR", help="only the layers of this home of it")
    _add_site(parser, own_home="--own-home")
    parser.add_example("", "python3 docker_graph_driver.py takeover --host node1")
    parser.add_exits({0: "its layers are ours", 2: "they are not, or not all"})


def _add_min_age(parser: Parser) -> None:
    text = "what is younger may be about to be used (default %(default)g; less only if no layers are made now)"
    parser.add_argument("--min-age", type=seconds, default=inspection.MIN_AGE_SECONDS, metavar="SECONDS", help=text)


def _add_reading(parser: Parser) -> None:
    parser.add_argument("--data-root", metavar="DIR", help="Docker's data root (default: the directory of the home)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_site(parser: Parser, own_home: str = "--home") -> None:
    parser.add_argument("--socket", metavar="PATH", help=f"the driver's socket (default {SOCKET})")
    parser.add_argument("--state", metavar="FILE", help="where it keeps Init's settings (default: PATH.state)")
    text = "the driver's home, such as /var/lib/docker/ceph, where there is no such file"
    parser.add_argument(own_home, dest="own_home", metavar="DIR", help=text)
    text = "the root of a snapshotter, such as /var/lib/docker-graph-driver, in place of all these: all is found there"
    parser.add_argument("--root", metavar="DIR", help=text)
    parser.set_defaults(own_home_word=own_home, data_root=None)
    text = "storage option, where the state file has none, such as ceph.datapool=docker; repeatable"
    parser.add_argument("--default", action="append", default=[], metavar="OPTION=VALUE", help=text)


def _site(arguments: argparse.Namespace) -> Site:
    """Find the driver that the arguments name. Raises NoHome, BadRequest, OptionError, OSError."""
    defaults = options.parse(arguments.default)
    home, wanted = _snapshotter(arguments, defaults) if arguments.root else _driver(arguments, defaults)
    database: Database
    if arguments.root:
        database = SnapshotsDatabase(home)
    else:
        database = DockerDatabase(arguments.data_root or os.path.dirname(home), os.path.basename(home))
    return Site(home, wanted, Layers(pool_of(wanted), wanted, home), database)


def _driver(arguments: argparse.Namespace, defaults: options.Options) -> tuple[str, options.Options]:
    state = arguments.state or (arguments.socket or SOCKET) + ".state"
    try:
        home, wanted, _ = init_state.read(state, defaults)
    except FileNotFoundError:
        if not arguments.own_home:
            raise NoHome(
                f"{state} does not exist: no Docker ever used this driver; "
                f"give --socket, --state, or the home and --default; for a snapshotter --root"
            ) from None
        home, wanted = arguments.own_home, defaults
    return os.path.normpath(arguments.own_home or home), wanted


def _snapshotter(arguments: argparse.Namespace, defaults: options.Options) -> tuple[str, options.Options]:
    words = {arguments.own_home_word: arguments.own_home, "--data-root": arguments.data_root}
    words.update({"--socket": arguments.socket, "--state": arguments.state})
    if others := sorted(word for word, value in words.items() if value):
        raise NoHome(f"--root is a snapshotter's, and {', '.join(others)} is of a driver for Docker: give one of them")
    return root_settings.read(os.path.abspath(arguments.root), defaults)


def _look(site: Site, arguments: argparse.Namespace, progress: Progress) -> inspection.Inspection:
    return inspection.Inspection(
        site.layers,
        site.options.imageprefix,
        site.home,
        site.database,
        min_age=arguments.min_age,
        progress=progress,
    )


def _check(arguments: argparse.Namespace) -> int:
    site = _site(arguments)
    with Progress(arguments.command) as progress:
        found = _look(site, arguments, progress).findings()
    shown = [finding for finding in found if arguments.all or not finding.idle]
    if arguments.json:
        screen.say(json.dumps({"findings": [asdict(finding) for finding in shown]}, indent=2))
    else:
        for finding in shown:
            _say(_line(finding) + ("; gc removes it" if finding.dead else ""))
    return FOUND if any(not finding.idle for finding in found) else NOTHING


def _gc(arguments: argparse.Namespace) -> int:
    site = _site(arguments)
    with Progress(arguments.command) as progress:
        look = _look(site, arguments, progress)
        dead = [finding for finding in look.findings() if finding.dead]
        progress.begin("looking whether another machine has this host's name")
        # Who uses the layers of this machine does not know those of another machine of our name.
        Claim(site.layers.pool, site.options.imageprefix, site.layers.owner()).wait_single()
    outcomes: list[collector.Outcome] = []
    if not arguments.json:
        for finding in dead:
            _say(("removing: " if arguments.yes else "would remove: ") + _line(finding))
    if arguments.yes:
        with Progress(arguments.command) as progress:
            outcomes = collector.collect(dead, look, site.layers, site.database, progress)
    kept = [item for item in outcomes if not item.removed]
    if arguments.json:
        done = [{**asdict(item.finding), "removed": item.removed, "reason": item.why} for item in outcomes]
        screen.say(
            json.dumps({"dry_run": not arguments.yes, "dead": done or [asdict(item) for item in dead]}, indent=2)
        )
    else:
        for item in kept:
            _say(f"kept: {item.finding.kind} {item.finding.id}: {item.why}")
    return FOUND if kept or (dead and not arguments.yes) else NOTHING


def _takeover(arguments: argparse.Namespace) -> int:
    site = _site(arguments)
    home = os.path.normpath(arguments.home) if arguments.home else ""
    # Read before anything is done: a takeover without it would not know which shared layers are needed.
    named = site.database.known().named if arguments.root else None
    with Progress(arguments.command) as progress:
        take = takeover.Takeover(site.layers, site.options.imageprefix, arguments.host, home, _say)
        taken = take.run(named, progress)
    _say(f"{taken} layers of {arguments.host} are now of {site.layers.owner().by_name}")
    return NOTHING


def _tree(arguments: argparse.Namespace) -> int:
    site = _site(arguments)
    with Progress(arguments.command) as progress:
        progress.begin("reading the names of images and containers")
        names = site.database.names()
        contents = Gathering(site.layers, site.options.imageprefix, names, progress).look()
    if arguments.svg:
        picture.save(arguments.svg, contents)
    if arguments.json:
        screen.say(report.written(contents))
    else:
        screen.say("\n".join(listing.lines(contents, Terminal.of(sys.stdout, os.environ))))
    return NOTHING


def _say(text: str) -> None:
    # Others chose the names in the pool; they must not command a terminal.
    screen.say(logs.printable(text))


def _line(finding: inspection.Finding) -> str:
    age = "-" if finding.age is None else durations.written(finding.age)
    size = "-" if finding.size is None else options.format_size(finding.size)
    return f"{finding.kind} {finding.id} age {age} size {size}: {finding.why}"


_RUN = {"check": _check, "gc": _gc, "tree": _tree, "takeover": _takeover}
