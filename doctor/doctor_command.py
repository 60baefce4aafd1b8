"""The command `docker_graph_driver.py doctor`: its options, its lines or JSON, its exit status, and how it ends."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from cluster import diagnosis
from cluster.owner import Owner
from doctor import checkup, containerd_engine, docker_engine, target
from doctor.examination import examine
from doctor.finding import BROKEN, DOES_NOT_WORK, NOT_CHECKED, Finding, exit_status
from doctor.target import DOCKER, SNAPSHOTTER, Wanted
from doctor.trial import Trial, closing
from host import command, interruption, logs
from host.failure import EXPECTED
from host.subcommands import SOCKET, Parser
from images.options import pool_of

# One command is given no longer, whatever ceph.timeout is: an operator waits.
COMMAND_SECONDS = 15.0


def add_arguments(parser: Parser) -> None:
    """Add its options."""
    text = "who uses it: Docker's storage driver, or a snapshotter for containerd (default: what is found here)"
    parser.add_argument("--front", choices=(DOCKER, SNAPSHOTTER), default="", help=text)
    text = "storage option such as ceph.datapool=docker, in place of that of its last start; repeatable"
    parser.add_argument(
        "--option", "--default", dest="option", action="append", default=[], metavar="OPTION=VALUE", help=text
    )
    text = f"its socket (default {SOCKET}, or that of a snapshotter)"
    parser.add_argument("--socket", "--address", dest="socket", default="", metavar="PATH", help=text)
    parser.add_argument("--state", default="", metavar="FILE", help="a driver's: Init's settings (default: PATH.state)")
    parser.add_argument("--root", default="", metavar="DIR", help="a snapshotter's root")
    text = "Docker's configuration (default %(default)s)"
    parser.add_argument("--docker-config", default=docker_engine.CONFIG, metavar="FILE", help=text)
    text = "containerd's configuration (default %(default)s)"
    parser.add_argument("--containerd-config", default=containerd_engine.CONFIG, metavar="FILE", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_log_level("error")
    parser.add_paragraph(
        "Each line is CHECK: ok, or improve, broken or not checked, with what to do.\n"
        "What was not checked because of some trouble, such as another doctor at work, counts as improve;\n"
        "what cannot be known here, or follows from what is broken, counts for nothing."
    )
    line = "python3 docker_graph_driver.py doctor --option ceph.datapool=docker --option ceph.client=docker"
    parser.add_example("before the first start", line)
    to_improve = "it works, but something is to be improved, or was missed"
    parser.add_exits({0: "all is ok", 1: to_improve, 2: "it does not work"})


def run(arguments: argparse.Namespace) -> int:
    """Make all checks, tell of each, and return the exit status. Interrupted or not, nothing of the trial is left."""
    logs.start_plain(arguments.log_level)
    try:
        return _examined(arguments)
    except OSError as error:
        # Who reads our lines has gone. What was not written is not tried again when Python ends.
        sys.stdout = io.StringIO()
        print(f"doctor: {error}", file=sys.stderr)
        return DOES_NOT_WORK


def _examined(arguments: argparse.Namespace) -> int:
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if not arguments.json:
            print(finding, flush=True)

    try:
        # A check that was interrupted, or took too long, has left a command, or is about to start another one.
        with command.none_left(), interruption.by_signals():
            _look(arguments, tell)
    except KeyboardInterrupt as error:
        tell(Finding("doctor", NOT_CHECKED, "interrupted: the rest was not looked at", missed=True))
        # As a shell has it, and the other commands of an operator.
        return _end(arguments, findings, 128 + interruption.number_of(error))
    return _end(arguments, findings, exit_status(findings))


def _look(arguments: argparse.Namespace, tell: Callable[[Finding], None]) -> None:
    try:
        found = target.find(_wanted(arguments))
        pool = pool_of(replace(found.options, timeout=min(found.options.timeout, COMMAND_SECONDS)))
        trial = Trial(pool, found.options, Owner.here(found.home))
    except (*EXPECTED, *diagnosis.NOT_UNDERSTOOD) as error:
        tell(Finding("options", BROKEN, str(error)))
        return
    with closing(trial, lambda text: tell(Finding("trial", BROKEN, text))):
        for finding in examine(checkup.checks(found, pool, trial), pool):
            tell(finding)


def _end(arguments: argparse.Namespace, findings: Sequence[Finding], status: int) -> int:
    if arguments.json:
        print(json.dumps({"status": status, "checks": [finding._asdict() for finding in findings]}, indent=2))
    return status


def _wanted(arguments: argparse.Namespace) -> Wanted:
    return Wanted(
        arguments.front,
        arguments.socket,
        arguments.state,
        arguments.root,
        arguments.option,
        arguments.docker_config,
        arguments.containerd_config,
        SOCKET,
    )
