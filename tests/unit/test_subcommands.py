"""The subcommands: each is there, tells what it does, and shows an example that a suite has typed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from readme import REPO, every_command

import docker_graph_driver
from host.subcommands import SUBCOMMANDS, Parser, Subcommand, named, seconds

PYTHON = sys.executable
EVERY = pytest.mark.parametrize("each", SUBCOMMANDS, ids=lambda each: each.name)
PARSERS = (docker_graph_driver.parser(), *(each.parser() for each in SUBCOMMANDS))


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    line = [PYTHON, "docker_graph_driver.py", *words]
    return subprocess.run(line, cwd=REPO, capture_output=True, text=True, timeout=60, check=False)


def test_the_front_door_lists_them() -> None:
    shown = typed("--help").stdout
    for each in SUBCOMMANDS:
        assert re.search(rf"^  {each.name} +{re.escape(each.summary)}$", shown, re.MULTILINE)


@EVERY
def test_the_help_of_each(each: Subcommand) -> None:
    done = typed(each.name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: docker_graph_driver.py {each.name} ")
    assert each.summary[1:] in done.stdout


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.prog)
def test_its_example_is_typed_by_a_suite(parser: Parser) -> None:
    # test_readme.py sees to it that a suite types what the documents tell.
    shown = re.findall(r"^  (python3 .*)$", parser.epilog or "", re.MULTILINE)
    assert shown
    assert set(shown) <= set(every_command())


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.prog)
def test_a_terminal_of_105_columns_has_room(parser: Parser) -> None:
    assert max(len(line) for line in (parser.epilog or "").splitlines()) <= 105


def test_an_unknown_one() -> None:
    done = typed("statsu", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(
        "docker_graph_driver.py: no subcommand is named 'statsu'; expected one of snapshotter, doctor"
    )


@EVERY
def test_an_unknown_option(each: Subcommand) -> None:
    done = typed(each.name, "--no-such-option")
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr or "required: --host" in done.stderr


def test_what_serves_docker_loads_none_of_them() -> None:
    line = "import sys, docker_graph_driver; docker_graph_driver.parser(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", line], cwd=REPO, capture_output=True, text=True, timeout=60, check=True
    )
    assert {each.module for each in SUBCOMMANDS} & set(done.stdout.split()) == set()


def test_by_name() -> None:
    assert named("check") in SUBCOMMANDS
    assert named("--check") is None


@pytest.mark.parametrize("text", ["-1", "inf", "nan", "one"])
def test_no_time(text: str) -> None:
    with pytest.raises(ValueError):
        seconds(text)
    assert seconds("0.5") == 0.5
