"""The command line of bench.sh."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import breakdown
import plot
import report
import results
import rows
import scale
from plugin_client import REPO
from stack import BenchError, Stack, running

from host.progress import Progress

BUILD = os.path.join(REPO, "build")
PROFILE = rows.Plan(runs=5, few=1, depths=(2, 20), cold=(2, 20), seconds=120, peer=False)


def measure(arguments: argparse.Namespace) -> int:
    """Run the rows and tell of them."""
    plan = rows.QUICK if arguments.quick else rows.FULL
    names = arguments.only.split(",") if arguments.only else rows.SMALL if arguments.quick else list(rows.ALL)
    unknown = [name for name in names if name not in rows.ALL]
    if unknown:
        raise BenchError(f"no rows {', '.join(unknown)}; there are {', '.join(rows.ALL)}")
    found = results.Results(quick=arguments.quick)
    with _progress() as progress, running(docker=True, keep_log=f"{BUILD}/bench-driver.log") as stack:
        _note_versions(stack, found)
        with rows.prepared(stack, plan, found) as bench:
            rows.measure(bench, names, progress)
    return _finish(arguments, found)


def measure_scale(arguments: argparse.Namespace) -> int:
    """Fill a pool and tell how the cost of a container grows."""
    found = results.Results(quick=False)
    size = scale.Size(arguments.layers, arguments.containers, arguments.seconds)
    with _progress() as progress, running(docker=False, keep_log=f"{BUILD}/scale-driver.log") as stack:
        _note_versions(stack, found)
        scale.Scale(stack, size, found).measure(progress)
    return _finish(arguments, found)


def measure_snapshotter(arguments: argparse.Namespace) -> int:
    """Measure the snapshotter, and containerd's overlayfs beside it."""
    # It needs gRPC, which the other verbs go without.
    import pulls

    log = f"{BUILD}/bench-snapshotter.log"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(log)
    found = results.Results(quick=arguments.quick)
    found.facts["peer"] = "overlayfs"
    with _progress() as progress, running(docker=False, driver=False) as stack:
        _note_versions(stack, found)
        found.facts["containerd"] = stack.run(["containerd", "--version"]).split()[2]
        plan = pulls.QUICK if arguments.quick else pulls.FULL
        pulls.Pulls(stack, plan, found, log).measure(progress)
    found.save(arguments.json)
    print(report.text(found), "", *report.spread(found), f"\nwritten: {arguments.json} {log}", sep="\n")
    read = breakdown.read(log)
    for key in dict.fromkeys(window.key for window in found.windows):
        windows = [window for window in found.windows if window.key == key]
        print(f"\n{key}: {len(windows)} times", *breakdown.tell(read, windows), sep="\n")
    return _check(found) if arguments.check else 0


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    with Progress("bench.sh") as progress:
        progress.begin("starting what is measured")
        yield progress


def _finish(arguments: argparse.Namespace, found: results.Results) -> int:
    found.save(arguments.json)
    with open(arguments.svg, "w", encoding="utf-8") as target:
        target.write(plot.svg(found))
    print(report.text(found))
    print(f"\nwritten: {arguments.json} {arguments.svg}")
    if arguments.readme:
        report.write_documents(found)
    return _check(found) if arguments.check else 0


def _check(found: results.Results) -> int:
    missed = report.check(found)
    print("\n" + "\n".join(["misses its goal:", *missed] if missed else ["every row that was measured meets its goal"]))
    return 1 if missed else 0


def _note_versions(stack: Stack, found: results.Results) -> None:
    words = stack.run(["ceph", "--version"]).split()
    found.facts["ceph"] = f"Ceph {words[2]}"
    found.facts["docker"] = stack.ours.version() if os.path.exists(f"{stack.directory}/ours/docker.sock") else "none"
    found.facts["mapped by"] = stack.how_mapped


def profile(arguments: argparse.Namespace) -> int:
    """Tell where the time of rows goes, from a log or from a run of our own without the peer."""
    if arguments.log:
        print("\n".join(breakdown.tell(breakdown.read(arguments.log), [])))
        return 0
    log, found = f"{BUILD}/profile-driver.log", results.Results(quick=True)
    with _progress() as progress, running(docker=True, keep_log=log) as stack, contextlib.ExitStack() as ends:
        bench = ends.enter_context(rows.prepared(stack, PROFILE, found))
        for number, row in enumerate(arguments.row):
            progress.begin(row, len(arguments.row), number)
            rows.ALL[row](bench)
    read = breakdown.read(log)
    for key in dict.fromkeys(window.key for window in found.windows):
        windows = [window for window in found.windows if window.key == key]
        p50 = found.p50(key) or 0.0
        print(f"\n{key}: {len(windows)} times, p50 {p50:.3f} s, floor (commands) {found.p50(key, 'floor') or 0:.3f} s")
        print("\n".join(breakdown.tell(read, windows)))
    return 0


def of_a_run(arguments: argparse.Namespace) -> int:
    """What can be said of a run that was saved."""
    found = results.read(arguments.run)
    if arguments.verb == "plot":
        print(plot.svg(found), end="")
    elif arguments.verb == "readme":
        report.write_documents(found)
    else:
        print(report.text(found))
    return _check(found) if arguments.verb == "check" else 0


def compare(arguments: argparse.Namespace) -> int:
    """Two saved runs side by side."""
    names = [os.path.basename(path) for path in (arguments.first, arguments.second)]
    print(report.compare(results.read(arguments.first), results.read(arguments.second), names))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.sh", description="Without a verb: measure every row.")
    parser.add_argument("--quick", action="store_true", help="few runs of the small rows")
    parser.add_argument("--only", metavar="ROWS", help=f"some of: {','.join(rows.ALL)}")
    _add_outputs(parser, "bench")
    parser.set_defaults(action=measure)
    verbs = parser.add_subparsers(title="verbs")
    verb = verbs.add_parser("scale", help="how cost grows with the pool")
    verb.add_argument("--layers", type=int, default=scale.LAYERS)
    verb.add_argument("--containers", type=int, default=scale.CONTAINERS)
    verb.add_argument("--seconds", type=float, default=600, help="fill no longer than that (default %(default)s)")
    _add_outputs(verb, "scale")
    verb.set_defaults(action=measure_scale)
    verb = verbs.add_parser("snapshotter", help="the snapshotter against containerd's overlayfs")
    verb.add_argument("--quick", action="store_true", help="few runs and three hosts")
    verb.add_argument("--check", action="store_true", help="end with the rows that miss their goal; 1 if any does")
    verb.add_argument("--json", metavar="FILE", default=f"{BUILD}/snapshotter.json", help="default: build/ here")
    verb.set_defaults(action=measure_snapshotter)
    verb = verbs.add_parser("profile", help="where the time of a row goes")
    verb.add_argument("row", nargs="*", help=f"some of: {', '.join(rows.ALL)}")
    verb.add_argument("--log", metavar="FILE", help="a log of the driver's with --log-level debug")
    verb.set_defaults(action=profile)
    for name in ("show", "plot", "readme", "check"):
        verb = verbs.add_parser(name, help="of a run that was saved")
        verb.add_argument("run", metavar="RUN.json")
        verb.set_defaults(action=of_a_run, verb=name)
    verb = verbs.add_parser("compare", help="two runs that were saved")
    verb.add_argument("first", metavar="A.json")
    verb.add_argument("second", metavar="B.json")
    verb.set_defaults(action=compare)
    return parser


def _add_outputs(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--check", action="store_true", help="end with the rows that miss their goal; 1 if any does")
    parser.add_argument("--readme", action="store_true", help="put the table into BENCHMARK.md and README.md")
    parser.add_argument("--json", metavar="FILE", default=f"{BUILD}/{name}.json", help="default: build/ here")
    parser.add_argument("--svg", metavar="FILE", default=f"{BUILD}/{name}.svg", help="default: build/ here")


def _stop(number: int, _: FrameType | None) -> NoReturn:
    """A signal ends it the orderly way, and no second one disturbs the clearing up."""
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> int:
    """Read the command line and do it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    arguments = _parser().parse_args()
    started = time.monotonic()
    try:
        status = int(arguments.action(arguments))
    except BenchError as error:
        print(f"bench.sh: {error}", file=sys.stderr)
        return 1
    if time.monotonic() - started > 5:
        print(f"bench.sh: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
