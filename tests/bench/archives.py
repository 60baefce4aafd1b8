"""What the archive room costs, against GNU tar and find on the same file system in the same run.

    python3 tests/bench/archives.py [--runs 7] [--directory DIR] [--only NAME]

Makes an XFS in a file, mounts it, and takes turns: ours, the other, ours, ... For each case it prints the median times,
their ratio, the ratio of the processor times (which other work on the machine does not disturb), and the goal of the
issue. ApplyDiff runs on two cores where tar uses one: in processor time, and where other work leaves it but one, it
costs more. Exit status 1 if a ratio of times misses its goal. Needs root, xfsprogs and 12 GB in DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from archive import transfer

SMALL_FILES, SMALL_SIZE = 20_000, 2048
LAYER_SIZES = (
    200,
    900,
    2500,
    4000,
    7000,
    11_000,
    18_000,
    30_000,
    60_000,
    150_000,
)  # as /usr of a distribution has them
BIG = 1 << 30
TREE_FILES = 100_000


class Cost(NamedTuple):
    wall: float
    processor: float


class Case(NamedTuple):
    name: str
    goal: float | None
    ours: Callable[[], None]
    other: Callable[[], None]
    prepare: Callable[[], None] = lambda: None


@contextlib.contextmanager
def mounted(image: Path, point: Path) -> Iterator[Path]:
    point.mkdir()
    subprocess.run(["mount", "-o", "loop,nouuid,noatime", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def make_image(image: Path, size: str) -> None:
    subprocess.run(["truncate", f"--size={size}", image], check=True)
    subprocess.run(["mkfs.xfs", "-q", image], check=True)


def make_files(top: Path, count: int, *sizes: int, per_directory: int = 100) -> None:
    for number in range(count):
        size = sizes[number % len(sizes)]
        if number % per_directory == 0:
            directory = top / f"usr/lib/package-{number // per_directory}/data"
            directory.mkdir(parents=True)
        (directory / f"file-{number % per_directory}.txt").write_bytes(os.urandom(size))


def make_big(path: Path, size: int) -> None:
    with open(path, "wb") as out:
        for _ in range(size >> 20):
            out.write(os.urandom(1 << 20))


def tar_create(source: Path) -> None:
    """As our Diff is used: read from a pipe. (Into /dev/null GNU tar would not even open the files.)"""
    with subprocess.Popen(["tar", "-C", source, "-c", "."], stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        while os.read(process.stdout.fileno(), 1 << 20):
            pass
    assert process.returncode == 0


def tar_extract(target: Path, packed: Path) -> None:
    subprocess.run(["tar", "-C", target, "-xf", packed], check=True)


def diff(source: Path) -> None:
    for _ in transfer.diff(str(source), None):
        pass


def apply(target: Path, source: Path) -> None:
    with open(source, "rb", buffering=0) as stream:
        transfer.apply(str(target), stream)


def find(*trees: Path) -> None:
    for tree in trees:
        subprocess.run(["find", tree, "-printf", "%P %m %U %G %s %T@\\n"], stdout=subprocess.DEVNULL, check=True)


def changes(upper: Path, below: Path) -> None:
    assert len(transfer.changes(str(upper), str(below), own=True)) == 5  # one file and the directories above it


def empty(target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    target.mkdir()
    os.sync()


@contextlib.contextmanager
def overlay(disk: Path, lower: Path) -> Iterator[tuple[Path, Path]]:
    """A view of an upper directory on `lower`, and that directory."""
    view, upper, work = (disk / name for name in ("view", "upper", "work"))
    for directory in (view, upper, work):
        directory.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work},index=off,metacopy=off,redirect_dir=off,xino=on"
    subprocess.run(["mount", "-t", "overlay", "overlay", view, "-o", options], check=True)
    try:
        yield view, upper
    finally:
        subprocess.run(["umount", view], check=True)


def cases(top: Path, disk: Path, view: Path, upper: Path, below: Path) -> list[Case]:
    target = disk / "target"

    def apply_case(source: Path, what: str, goal: float | None) -> Case:
        packed = top / f"{source.name}.tar"
        subprocess.run(["tar", "-C", source, "-cf", packed, "."], check=True)
        return Case(
            f"ApplyDiff {what} / tar -x",
            goal,
            lambda: apply(target, packed),
            lambda: tar_extract(target, packed),
            lambda: empty(target),
        )

    def diff_case(source: Path, what: str, goal: float | None) -> Case:
        return Case(f"Diff {what} / tar -c", goal, lambda: diff(source), lambda: tar_create(source))

    return [
        apply_case(disk / "small", "20,000 small files", 1.3),
        apply_case(disk / "big", "one file of 1 GiB", 1.3),
        apply_case(disk / "layer", "a layer of 570 MB", None),
        diff_case(disk / "layer", "a layer of 570 MB", 1.3),
        diff_case(disk / "small", "20,000 small files", None),
        diff_case(disk / "big", "one file of 1 GiB", None),
        Case("Changes 1 of 100,000 files / 2 find", 0.2, lambda: changes(upper, below), lambda: find(view, below)),
    ]


def measure(work: Callable[[], None]) -> Cost:
    def processor() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(item.ru_utime + item.ru_stime for item in used)

    before, started = processor(), time.perf_counter()
    work()
    return Cost(time.perf_counter() - started, processor() - before)


def run(case: Case, runs: int) -> bool:
    """Measure a case, print its line, and say whether it meets its goal."""
    ours, other = [], []
    for _ in range(runs + 1):
        case.prepare()
        ours.append(measure(case.ours))
        case.prepare()
        other.append(measure(case.other))
    mine, theirs = median(ours[1:]), median(other[1:])  # the first round warms the caches
    ratio = mine.wall / theirs.wall
    goal = f"(goal {case.goal})" if case.goal is not None else "(no goal) "
    processor = mine.processor / theirs.processor
    times = f"{mine.wall:7.3f} s {theirs.wall:7.3f} s"
    print(f"{case.name:<40} {times}  ratio {ratio:4.2f} {goal}  processor {processor:4.2f}", flush=True)
    return case.goal is None or ratio <= case.goal


def median(costs: list[Cost]) -> Cost:
    return Cost(statistics.median(cost.wall for cost in costs), statistics.median(cost.processor for cost in costs))


def main() -> int:
    options = argparse.ArgumentParser(description="Measure the archive room against tar and find.")
    options.add_argument("--runs", type=int, default=7)
    options.add_argument("--directory", help="where to make the file systems (default: the temporary directory)")
    options.add_argument("--only", default="", help="only cases with this in their name")
    arguments = options.parse_args()
    with contextlib.ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.directory)))
        make_image(top / "disk.img", "8G")
        make_image(top / "old.img", "2G")
        disk = stack.enter_context(mounted(top / "disk.img", top / "disk"))
        make_files(disk / "small", SMALL_FILES, SMALL_SIZE)
        make_files(disk / "layer", SMALL_FILES, *LAYER_SIZES)
        (disk / "big").mkdir()
        make_big(disk / "big/blob", BIG)
        with mounted(top / "old.img", top / "making") as making:
            make_files(making, TREE_FILES, 10)
        old = stack.enter_context(mounted(top / "old.img", top / "old"))
        view, upper = stack.enter_context(overlay(disk, old))
        (view / "usr/lib/package-7/data/file-7.txt").write_bytes(b"changed")
        print(f"plain files are laid down by {transfer.extractor()}")
        print(f"{'':<40} {'ours':>9} {'other':>9}   medians of {arguments.runs} runs")
        chosen = [case for case in cases(top, disk, view, upper, old) if arguments.only in case.name]
        met = [run(case, arguments.runs) for case in chosen]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
