"""systemd_unit.py: what a unit must say, by what a fake systemctl prints."""

from __future__ import annotations

import configparser
import os
from pathlib import Path

import pytest
from plugin_client import REPO
from unit.doctored import outcome

from doctor import systemd_unit
from doctor.checkup import UNITS
from doctor.finding import BROKEN, IMPROVE, NOT_CHECKED, OK

UNIT = "docker-graph-driver.service"
GOOD = {
    "LoadState": "loaded",
    "UnitFileState": "enabled",
    "PrivateMounts": "no",
    "PrivateTmp": "no",
    "ProtectSystem": "no",
    "MountFlags": "",
    "Type": "notify",
    "KillMode": "process",
    "TasksMax": "infinity",
    "RequiredBy": "",
    "NeedDaemonReload": "no",
}


class Systemd:
    """A host that systemd has booted, with a systemctl that says so."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.says(**GOOD)

    def says(self, **values: str) -> None:
        text = "".join(f"{name}={value}\n" for name, value in values.items())
        (self.directory / "said").write_text(text, encoding="ascii")
        program = self.directory / "systemctl"
        program.write_text(f"#!/bin/sh\ncat {self.directory}/said\n", encoding="ascii")
        program.chmod(0o755)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(systemd_unit, "BOOTED", str(tmp_path))
    return Systemd(tmp_path)


def look() -> tuple[str, str]:
    return outcome(systemd_unit.SystemdUnit(UNIT).checks(), "systemd unit")


def test_a_unit_as_it_must_be(systemd: Systemd) -> None:
    assert look() == (OK, f"{UNIT} is enabled, and as it must be")


def test_an_older_systemd(systemd: Systemd) -> None:
    known = {name: value for name, value in GOOD.items() if name not in ("PrivateMounts", "NeedDaemonReload")}
    systemd.says(**{**known, "TasksMax": "18446744073709551615", "MountFlags": "0"})
    assert look()[0] == OK


def test_no_systemd_and_no_unit(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else may start the driver."""
    systemd.says(LoadState="not-found", Type="simple", KillMode="control-group")
    assert look() == (OK, f"there is no {UNIT}: something else starts it")
    monkeypatch.setattr(systemd_unit, "BOOTED", "/nonexistent")
    assert look() == (OK, "systemd does not run here: something else starts it")
    assert systemd_unit.environment("docker.service") == []
    assert systemd_unit.command_line("docker.service") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("PrivateTmp", "yes"), ("ProtectSystem", "strict"), ("MountFlags", "524288"), ("PrivateMounts", "yes")],
)
def test_a_mount_namespace_of_its_own(systemd: Systemd, name: str, value: str) -> None:
    systemd.says(**{**GOOD, name: value})
    status, text = look()
    assert status == BROKEN
    assert text.startswith(f"{UNIT} has {name}={value}, so nobody else sees what it mounts")


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("KillMode", "control-group", "KillMode=control-group in place of KillMode=process: its end also ends each"),
        ("Type", "simple", "starts too early"),
        ("TasksMax", "4915", "run out of tasks"),
        ("RequiredBy", "docker.service", "of an older version"),
        ("NeedDaemonReload", "yes", "systemctl daemon-reload"),
        ("UnitFileState", "disabled", f"do: systemctl enable {UNIT}"),
    ],
)
def test_what_is_to_be_improved(systemd: Systemd, name: str, value: str, word: str) -> None:
    systemd.says(**{**GOOD, name: value})
    status, text = look()
    assert status == IMPROVE
    assert word in text


def test_a_systemd_that_does_not_answer(systemd: Systemd) -> None:
    program = systemd.directory / "systemctl"
    program.write_text("#!/bin/sh\necho 'Failed to connect to bus' >&2; exit 1\n", encoding="ascii")
    status, text = look()
    assert status == NOT_CHECKED
    assert "Failed to connect to bus" in text


def test_how_a_unit_starts_its_program(systemd: Systemd) -> None:
    exec_start = "{ path=/usr/bin/dockerd ; argv[]=/usr/bin/dockerd -H fd:// --experimental ; ignore_errors=no }"
    systemd.says(ExecStart=exec_start, Environment='A=1 "B=two words"')
    assert systemd_unit.command_line("docker.service") == ["/usr/bin/dockerd", "-H", "fd://", "--experimental"]
    assert systemd_unit.environment("docker.service") == ["A=1", "B=two words"]
    systemd.says(Environment='A="1')
    assert systemd_unit.environment("docker.service") == []


@pytest.mark.parametrize("unit", UNITS.values())
def test_our_own_units_are_as_they_must_be(unit: str) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(Path(REPO, "systemd", unit), encoding="utf-8")
    service = parser["Service"]
    ours = {name: value for name, (value, _) in systemd_unit._NEEDED.items() if name in service}
    assert {name: service[name] for name in ours} == ours
    assert {"Type", "KillMode", "TasksMax"} <= ours.keys()
    assert not set(systemd_unit._SEPARATING) & set(service)
    assert "RequiredBy" not in parser["Install"]
