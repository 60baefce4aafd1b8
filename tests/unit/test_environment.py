"""What the driver and its commands run in, whatever the world of the caller is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_client import REPO

from host import command, environment


@pytest.mark.parametrize("path", [None, "", ":", ".:bin", "/opt/x:/usr/bin", "/opt/x::.:/usr/bin:"])
def test_the_usual_directories_are_on_path_and_the_current_one_is_not(
    monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    """The caller's own come first, in his order."""
    monkeypatch.setenv("PATH", path or "") if path is not None else monkeypatch.delenv("PATH")
    places = command.run(["sh", "-c", "echo $PATH"], timeout=20).stdout.strip().split(":")
    assert {"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} <= set(places)
    assert all(place.startswith("/") for place in places)
    assert len(places) == len(set(places))
    assert not (path or "").startswith("/opt/x") or places[:2] == ["/opt/x", "/usr/bin"]


def test_what_would_change_a_command_does_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CEPH_ARGS", "PYTHONPATH", "LIBMOUNT_MTAB", "MKE2FS_CONFIG", "POSIXLY_CORRECT", "RBD_STAND_IN_DIR"):
        monkeypatch.setenv(name, "x")
    names = {line.partition("=")[0] for line in command.run(["env"], timeout=20).stdout.splitlines()}
    assert names & set(os.environ) >= {"PATH", "RBD_STAND_IN_DIR"}
    assert not names & {"CEPH_ARGS", "PYTHONPATH", "LIBMOUNT_MTAB", "MKE2FS_CONFIG", "POSIXLY_CORRECT"}


def test_a_program_that_has_loaded_all_loads_nothing_more() -> None:
    """Where it goes then, a file may have the name of a module (CVE-2019-14271)."""
    script = "from host import environment; environment.load_nothing_more(); import colorsys"
    ended = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "No module named 'colorsys'" in ended.stderr


def test_standard_descriptors_that_were_closed_are_open(tmp_path: Path) -> None:
    """The next file would be taken for one of them, and be written to."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {REPO!r})\n"
        "from host import environment\n"
        "environment.enter(__file__)\n"
        "said = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "os.write(said, f'{said > 2} {os.readlink(\"/proc/self/fd/2\")} {os.umask(0):o}'.encode())\n"
    )
    script = 'umask 077; exec "$0" "$@" 0<&- 1>&- 2>&-'
    subprocess.run(["sh", "-c", script, sys.executable, program, tmp_path / "said"], check=True)
    assert (tmp_path / "said").read_text() == "True /dev/null 22"


def test_what_a_program_says_last_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert environment.fail("it\nfailed: \udcff") == 1
    assert capfd.readouterr().err == "it failed: \\udcff\n"
