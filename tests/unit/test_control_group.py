"""control_group.py: where a driver runs, by what the kernel says of its process."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.doctored import outcome

from doctor.control_group import ControlGroup
from doctor.finding import IMPROVE, NOT_CHECKED, OK

UNIT = "docker-graph-driver.service"


def look(proc: Path, *lines: str) -> tuple[str, str]:
    (proc / "4711").mkdir(exist_ok=True)
    (proc / "4711" / "cgroup").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
    return outcome(ControlGroup(UNIT, lambda: 4711, proc=str(proc)).checks(), "control group")


@pytest.mark.parametrize(
    "path",
    [f"/system.slice/{UNIT}", "/", "/docker/4f3a", "/system.slice/docker-4f3a.scope", "/../.."],
    ids=["its unit", "no systemd", "a container", "a container by systemd", "seen from a container"],
)
def test_where_it_may_be(tmp_path: Path, path: str) -> None:
    assert look(tmp_path, f"0::{path}") == (OK, f"process 4711 is in {path}")


def test_systemd_with_the_older_control_groups(tmp_path: Path) -> None:
    lines = ["9:memory:/somewhere.service", f"1:name=systemd:/system.slice/{UNIT}", "0::/"]
    assert look(tmp_path, *lines) == (OK, f"process 4711 is in /system.slice/{UNIT}")
    assert look(tmp_path, "9:name=systemd:/", f"0::/system.slice/{UNIT}") == (
        OK,
        f"process 4711 is in /system.slice/{UNIT}",
    )
    assert look(tmp_path, "9:memory:/somewhere.service") == (OK, "process 4711 is in /")


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/user.slice/user-0.slice/session-3.scope", "may end with the session of who started it"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope", "may end with the session"),
        ("/system.slice/docker.service", "it and its commands end with docker.service"),
        ("/system.slice/ssh.service", "start it by a unit of its own, such as systemd/docker-graph-driver.service"),
    ],
)
def test_what_ends_it_by_the_way(tmp_path: Path, path: str, word: str) -> None:
    status, text = look(tmp_path, f"0::{path}")
    assert status == IMPROVE
    assert text.startswith(f"process 4711, which serves, is in {path}: ")
    assert word in text


def test_it_does_not_run(tmp_path: Path) -> None:
    checks = ControlGroup(UNIT, lambda: None, proc=str(tmp_path)).checks()
    assert outcome(checks, "control group") == (OK, "no process of ours is to be seen")


def test_it_ends_while_we_look(tmp_path: Path) -> None:
    checks = ControlGroup(UNIT, lambda: 4711, proc=str(tmp_path)).checks()
    assert outcome(checks, "control group") == (NOT_CHECKED, "process 4711, which served, has ended meanwhile")
