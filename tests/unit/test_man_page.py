"""The man page: whole, the same as the options, and readable by man."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import man_page

import docker_graph_driver
from host.subcommands import SUBCOMMANDS, Parser

PAGE = Path(__file__).parents[2] / "manual" / "docker_graph_driver.8"


def read_by_man(path: Path) -> str:
    """What man shows of a page, on a wide terminal; it fails on a warning, too."""
    words = ["man", "--warnings", "--local-file", str(path)]
    environment = {"MANWIDTH": "120", "LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout


def test_the_page_is_of_these_options() -> None:
    # python3 manual/man_page.py >manual/docker_graph_driver.8
    made = man_page.page(docker_graph_driver.parser(), docker_graph_driver.VERSION)
    assert PAGE.read_text(encoding="ascii") == made


def test_man_shows_all_that_help_tells() -> None:
    shown = read_by_man(PAGE)
    for parser in (docker_graph_driver.parser(), *(each.parser() for each in SUBCOMMANDS)):
        assert parser.epilog
        told = [*re.findall(r"(?<=[ ,\[])--[a-z-]+", parser.format_usage()), *parser.epilog.split()]
        assert [word for word in told if word not in shown] == []
    for each in SUBCOMMANDS:
        assert f"\n{each.name.upper()}\n" in shown


def test_what_roff_would_take_for_its_own(tmp_path: Path) -> None:
    parser = Parser("docker_graph_driver.py", "Does things.\n.so /etc/passwd\n'br")
    parser.add_argument("--path", metavar="DIR", required=True, help=r"a \fBback\fR\slash, 100 %% of it")
    parser.add_example("", r"it 'is' \here", ".there")
    (tmp_path / "page.8").write_text(man_page.page(parser, "1.2.3"), encoding="ascii")
    shown = read_by_man(tmp_path / "page.8")
    for text in (".so /etc/passwd", "'br", r"a \fBback\fR\slash, 100 % of it", r"it 'is' \here", ".there", "1.2.3"):
        assert text in shown
    assert "docker_graph_driver.py --path DIR [OPTION]..." in shown
