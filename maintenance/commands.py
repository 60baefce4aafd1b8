"""The commands for an operator: check, gc and takeover.

They find pool, namespace, client and home where the driver keeps them: in Init's state file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import NamedTuple

from cluster.claim import Claim
from graph.driver import pool_of
from host import logs
from host.failure import EXPECTED_OF_PROGRAMS, Failure
from images import options
from images.layers import Layers
from maintenance import collector, docker_database, inspection, takeover
from protocol import init_state

# Exit codes, for monitoring.
NOTHING, FOUND, FAILED = 0, 1, 2


class NoHome(Failure):
    """It is not known which driver is meant: one line that says what to give."""


class Site(NamedTuple):
    """One driver: its home and its layers."""

    home: str
    options: options.Options
    layers: Layers


def main(argv: Sequence[str], socket: str) -> int:
    """Run one command and return its exit status: FAILED, with a line on stderr, if it could not do its work."""
    arguments = _parser(socket).parse_args(argv)
    logs.start("%(levelname)s %(message)s", arguments.log_level)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except (*EXPECTED_OF_PROGRAMS, LookupError) as error:
        print(f"{arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED


def _parser(socket: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="docker_graph_driver.py")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="say what belongs to nobody: 0 nothing, 1 something, 2 could not look")
    check.add_argument(
        "--all",
        action="store_true",
        help="also what looks so in a pool in order: young layers, what somebody else moved to the trash",
    )
    check.set_defaults(run=_check)
    gc = commands.add_parser("gc", help="remove what is proven dead; says only what it would do, without --yes")
    wish = gc.add_mutually_exclusive_group()
    wish.add_argument("--dry-run", action="store_true", help="only say it (default)")
    wish.add_argument("--yes", action="store_true", help="do it")
    gc.set_defaults(run=_gc)
    take = commands.add_parser("takeover", help="use the layers of a host that died here, and keep it off them")
    take.add_argument("--host", required=True, help="its host name, as errors name it; or NAME/MACHINE-ID")
    take.add_argument("--home", default="", metavar="DIR", help="only the layers of this home of it")
    take.set_defaults(run=_takeover)
    _add_site(take, socket, own_home="--own-home")
    for each in (check, gc):
        _add_site(each, socket)
        each.add_argument("--data-root", metavar="DIR", help="Docker's data root (default: the directory of the home)")
        text = "what is younger may be about to be used (default %(default)g; less only if Docker makes no layers now)"
        each.add_argument("--min-age", type=_seconds, default=inspection.MIN_AGE_SECONDS, metavar="SECONDS", help=text)
        each.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_site(parser: argparse.ArgumentParser, socket: str, own_home: str = "--home") -> None:
    parser.add_argument("--socket", default=socket, metavar="PATH", help="the driver's socket (default %(default)s)")
    parser.add_argument("--state", metavar="FILE", help="where it keeps Init's settings (default: PATH.state)")
    text = "the driver's home, such as /var/lib/docker/ceph, where there is no such file"
    parser.add_argument(own_home, dest="own_home", metavar="DIR", help=text)
    text = "storage option, where the state file has none, such as ceph.datapool=docker; repeatable"
    parser.add_argument("--default", action="append", default=[], metavar="OPTION=VALUE", help=text)
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", default="warning", choices=levels, help="what is logged (default %(default)s)")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError
    return seconds


def _site(arguments: argparse.Namespace) -> Site:
    """Find the driver that the arguments name. Raises NoHome, BadRequest, OptionError."""
    defaults = options.parse(arguments.default)
    state = arguments.state or arguments.socket + ".state"
    try:
        home, wanted, _ = init_state.read(state, defaults)
    except FileNotFoundError:
        if not arguments.own_home:
            raise NoHome(
                f"{state} does not exist: no Docker ever used this driver; "
                f"give --socket, --state, or the home and --default"
            ) from None
        home, wanted = arguments.own_home, defaults
    home = os.path.normpath(arguments.own_home or home)
    return Site(home, wanted, Layers(pool_of(wanted), wanted, home))


def _docker(site: Site, arguments: argparse.Namespace) -> docker_database.DockerDatabase:
    data_root = arguments.data_root or os.path.dirname(site.home)
    return docker_database.DockerDatabase(data_root, os.path.basename(site.home))


def _look(site: Site, docker: docker_database.DockerDatabase, arguments: argparse.Namespace) -> inspection.Inspection:
    return inspection.Inspection(site.layers, site.options.imageprefix, site.home, docker, min_age=arguments.min_age)


def _check(arguments: argparse.Namespace) -> int:
    site = _site(arguments)
    found = _look(site, _docker(site, arguments), arguments).findings()
    shown = [finding for finding in found if arguments.all or not finding.idle]
    if arguments.json:
        print(json.dumps({"findings": [asdict(finding) for finding in shown]}, indent=2))
    else:
        for finding in shown:
            print(_line(finding) + ("; gc removes it" if finding.dead else ""))
    return FOUND if any(not finding.idle for finding in found) else NOTHING


def _gc(arguments: argparse.Namespace) -> int:
    site = _site(arguments)
    docker = _docker(site, arguments)
    look = _look(site, docker, arguments)
    dead = [finding for finding in look.findings() if finding.dead]
    # The Docker of this machine does not know the layers of another machine of our name.
    Claim(site.layers.pool, site.options.imageprefix, site.layers.owner()).wait_single()
    outcomes: list[collector.Outcome] = []
    if not arguments.json:
        for finding in dead:
            print(("removing: " if arguments.yes else "would remove: ") + _line(finding), flush=True)
    if arguments.yes:
        outcomes = collector.collect(dead, look, site.layers, docker)
    kept = [item for item in outcomes if not item.removed]
    if arguments.json:
        done = [{**asdict(item.finding), "removed": item.removed, "reason": item.why} for item in outcomes]
        print(json.dumps({"dry_run": not arguments.yes, "dead": done or [asdict(item) for item in dead]}, indent=2))
    else:
        for item in kept:
            print(f"kept: {item.finding.kind} {item.finding.id}: {item.why}")
    return FOUND if kept or (dead and not arguments.yes) else NOTHING


def _takeover(arguments: argparse.Namespace) -> int:
    site = _site(arguments)

    def say(line: str) -> None:
        print(line, flush=True)

    home = os.path.normpath(arguments.home) if arguments.home else ""
    taken = takeover.Takeover(site.layers, site.options.imageprefix, arguments.host, home, say).run()
    say(f"{taken} layers of {arguments.host} are now of {site.layers.owner().by_name}")
    return NOTHING


def _line(finding: inspection.Finding) -> str:
    age = "-" if finding.age is None else _duration(finding.age)
    size = "-" if finding.size is None else options.format_size(finding.size)
    return f"{finding.kind} {finding.id} age {age} size {size}: {finding.why}"


def _duration(seconds: float) -> str:
    """Write seconds in the largest two units: 93784 -> 1d2h."""
    words: list[str] = []
    left = max(0, int(seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= length or words or unit == "s":
            words.append(f"{left // length}{unit}")
        left %= length
    return "".join(words[:2])
