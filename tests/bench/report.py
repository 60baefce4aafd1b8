"""The table of a run, two runs side by side, the rows that miss their goals, and what the documents say of it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from goals import FLOOR, PEER, Row, in_order, row_of
from plugin_client import REPO
from results import OURS, Results, quantile
from stack import BenchError

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
# What README.md shows of the whole table in BENCHMARK.md: what people ask first.
TELLING = ("run", "load_big", "diff", "save", "second_read", "shared_memory", "copy_up", "stored_big")
TELLING_CELLS = (0, 1, 2, 4, 5, 6, 7)
HEAD = ("", "unit", "ours p50", "p90", "overlay2", "ratio", "floor", "ratio", "runs", "goal", "")


def floor_of(results: Results, row: Row) -> float | None:
    """The floor of a row: the bare commands and, where Docker itself has work to do, what that takes with overlay2."""
    commands, peer = results.p50(row.key, FLOOR), results.p50(row.key, PEER)
    if commands is None or not row.on_peer:
        return commands
    return commands + (peer or 0.0)


def bound(results: Results, row: Row) -> float | None:
    """What our median may be at most in this run; None without a goal, or where what it is relative to is missing."""
    limits = [] if row.limit is None else [row.limit]
    others = [_other(results, row, ratio.against) for ratio in row.ratios]
    if others and all(others):
        limits.append(min(ratio.factor * other for ratio, other in zip(row.ratios, others) if other))
    return max(limits, default=None)


def _other(results: Results, row: Row, against: str) -> float | None:
    return floor_of(results, row) if against == FLOOR else results.p50(row.key, against)


def misses(results: Results, row: Row) -> str:
    """Why a row misses its goal, or nothing. A row without a goal, or that was not measured, misses none."""
    ours, most = results.p50(row.key), bound(results, row)
    # What the table shows as equal is no miss.
    if ours is None or most is None or ours <= most or _number(ours) == _number(most):
        return ""
    peer = _peer(results)
    text = f"{row.title}: {_number(ours)} {row.unit}".rstrip() + f", goal {row.goal(peer)}"
    if not row.ratios:
        return text
    others = [(ratio.against, _other(results, row, ratio.against)) for ratio in row.ratios]
    ratios = [f"{_ratio(ours, value)} x {peer if name == PEER else name}" for name, value in others]
    return f"{text}: is {' and '.join(ratios)}"


def _peer(results: Results) -> str:
    """What the peer of a run is called."""
    return results.facts.get("peer", PEER)


def check(results: Results) -> list[str]:
    """The rows that miss their goals, a line for each."""
    return [line for key in in_order(results.rows) if (line := misses(results, row_of(key)))]


def table(results: Results) -> list[tuple[str, ...]]:
    """The table as cells, its head first."""
    lines: list[tuple[str, ...]] = [tuple(_peer(results) if cell == PEER else cell for cell in HEAD)]
    lines += [_cells(results, row_of(key)) for key in in_order(results.rows)]
    return lines


def _cells(results: Results, row: Row) -> tuple[str, ...]:
    samples = results.rows[row.key].get(OURS, [])
    ours, peer, floor = quantile(samples, 0.5), results.p50(row.key, PEER), floor_of(results, row)
    mark = "" if bound(results, row) is None else "misses" if misses(results, row) else "met"
    return (
        row.title,
        row.unit,
        _number(ours),
        _number(quantile(samples, 0.9)) if len(samples) > 1 else "",
        _number(peer),
        _ratio(ours, peer),
        _number(floor),
        _ratio(ours, floor),
        str(len(samples)),
        row.goal(_peer(results)),
        mark,
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == int(value) and abs(value) < 1000:
        return f"{value:.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _ratio(ours: float | None, other: float | None) -> str:
    return f"{ours / other:.2f}" if ours and other else ""


def text(results: Results) -> str:
    """Everything about a run, for a terminal."""
    lines = [*aligned(table(results)), "", "bytes in the pool, beyond those of an empty one:"]
    lines += [f"  {step:44}{size / 1e6:10.1f} MB" for step, size in results.stored]
    lines += ["", "the bare commands of the floors (p50, p90 in ms):"]
    for name, taken in sorted(results.steps.items()):
        p50, p90 = quantile(taken, 0.5) or 0.0, quantile(taken, 0.9) or 0.0
        lines.append(f"  {name:24}{1000 * p50:8.0f}{1000 * p90:8.0f}   {len(taken)} times")
    return "\n".join([*lines, "", *(f"{key}: {value}" for key, value in results.facts.items())])


def spread(results: Results) -> list[str]:
    """Between which times the samples of each row lie: how much noise there is."""
    cells: list[tuple[str, ...]] = [("", "whose", "least", "median", "most", "samples")]
    for key in in_order(results.rows):
        for who, taken in results.rows[key].items():
            numbers = (min(taken), quantile(taken, 0.5), max(taken))
            whose = _peer(results) if who == PEER else who
            if len(taken) > 1:
                cells.append((row_of(key).title, whose, *map(_number, numbers), str(len(taken))))
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Cells as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in cells
    ]


def compare(first: Results, second: Results, names: Sequence[str]) -> str:
    """Our medians of two runs side by side, and what became of the peer's: a machine that changed shows there."""
    cells: list[tuple[str, ...]] = [("", *names, "ratio", "overlay2", "overlay2", "ratio")]
    for key in in_order(first.rows.keys() & second.rows.keys()):
        row = row_of(key)
        ours, peers = [run.p50(key) for run in (first, second)], [run.p50(key, PEER) for run in (first, second)]
        numbers = (*map(_number, ours), _ratio(ours[1], ours[0]), *map(_number, peers), _ratio(peers[1], peers[0]))
        cells.append((row.title, *numbers))
    return "\n".join(aligned(cells))


def markdown(results: Results) -> str:
    """The table for BENCHMARK.md."""
    return _markdown(results, table(results))


def telling(results: Results) -> str:
    """The rows and columns of it that README.md shows."""
    rows = [_cells(results, row_of(key)) for key in TELLING if key in results.rows]
    return _markdown(results, [[row[at] for at in TELLING_CELLS] for row in (HEAD, *rows)])


def _markdown(results: Results, cells: Sequence[Sequence[str]]) -> str:
    """What was measured where, and these rows of cells, the head first."""
    facts = results.facts
    about = (
        f"Measured by bench.sh on {facts['date']}: {facts['machine']}, Linux {facts['kernel']}, {facts['ceph']}, "
        f"Docker {facts['docker']}; mapped by: {facts['mapped by']}; load {facts['load at the start']} at the start, "
        f"{facts.get('load at the end', 'unknown')} at the end. Seconds and megabytes, medians. Floor: the bare "
        f"commands that the row needs, plus overlay2's time where Docker has work to do."
    )
    head, *rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return "\n".join([about, "", head, "|" + "---|" * len(cells[0]), *rows])


def write_documents(results: Results) -> None:
    """Replace what stands between the marks in BENCHMARK.md and README.md. Raises BenchError if marks are missing."""
    for name, section in (("BENCHMARK.md", markdown(results)), ("README.md", telling(results))):
        path = os.path.join(REPO, name)
        with open(path, encoding="utf-8") as source:
            before, begun, rest = source.read().partition(BEGIN)
        _, ended, after = rest.partition(END)
        if not (begun and ended):
            raise BenchError(f"{name} has no section between {BEGIN} and {END}")
        with open(path, "w", encoding="utf-8") as target:
            target.write(f"{before}{BEGIN}\n{section}\n{END}{after}")
