"""The completion for bash: what is offered for a line that is being typed."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from host.subcommands import SUBCOMMANDS, Subcommand

REPO = Path(__file__).parents[2]
# As bash calls it: the program, the word, the word before; COMP_WORDS has = as a word of its own.
SCRIPT = """
. manual/docker_graph_driver.bash
compopt() { :; } # bash has it while it completes only
read -ra COMP_WORDS <<<"$2"
[[ $2 != *' ' ]] || COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
cd "$1"
_docker_graph_driver "$3" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def offered(line: str, directory: Path = REPO, program: str = os.fspath(REPO / "docker_graph_driver.py")) -> set[str]:
    words = ["bash", "-c", SCRIPT, "bash", os.fspath(directory), line, program]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_the_first_word() -> None:
    assert offered("docker_graph_driver.py ") == {each.name for each in SUBCOMMANDS}
    assert offered("docker_graph_driver.py t") == {"tree", "takeover"}
    assert offered("docker_graph_driver.py --s") == {"--socket", "--state"}


@pytest.mark.parametrize("each", SUBCOMMANDS, ids=lambda each: each.name)
def test_the_options_of_a_subcommand(each: Subcommand) -> None:
    options = {name for action in each.parser()._actions for name in action.option_strings if name.startswith("--")}
    assert offered(f"docker_graph_driver.py {each.name} -") == options


def test_the_values_of_an_option(tmp_path: Path) -> None:
    assert offered("docker_graph_driver.py check --log-level ") == {"debug", "info", "warning", "error"}
    assert offered("docker_graph_driver.py doctor --front = s") == {"snapshotter"}
    (tmp_path / "here").mkdir()
    (tmp_path / "hello.svg").touch()
    assert offered("docker_graph_driver.py check --root h", tmp_path) == {"here"}
    assert offered("docker_graph_driver.py tree --svg = h", tmp_path) == {"here", "hello.svg"}
    assert offered("docker_graph_driver.py takeover --host h", tmp_path) == set()


def test_a_program_below_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "docker_graph_driver.py").symlink_to(REPO / "docker_graph_driver.py")
    assert offered("docker_graph_driver.py ta", program="~/docker_graph_driver.py") == {"takeover"}


def test_an_unknown_subcommand() -> None:
    assert offered("docker_graph_driver.py statsu --") == set()


def test_bash_calls_it_for_our_program() -> None:
    line = ". manual/docker_graph_driver.bash && complete -p docker_graph_driver.py"
    done = subprocess.run(["bash", "-c", line], cwd=REPO, capture_output=True, text=True, timeout=60, check=True)
    assert shlex.split(done.stdout) == ["complete", "-F", "_docker_graph_driver", "docker_graph_driver.py"]
