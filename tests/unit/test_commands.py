"""What an operator gets from check and gc: lines, JSON and exit codes. The pool is a fake, the Docker a directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.fakes import failed
from unit.inspected import HOUR, Host

import rbdcli
from maintenance import commands, inspection

Run = Callable[..., int]
Said = pytest.CaptureFixture[str]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with a Docker that knows nothing."""
    return Host(tmp_path)


@pytest.fixture
def run(host: Host, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command for its home; its exit code."""
    monkeypatch.setattr(inspection, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(commands, "pool_of", lambda options: host.pool.as_pool())

    def main(*words: str) -> int:
        socket = str(host.directory / "no.sock")
        return commands.main([words[0], "--home", host.home, *words[1:]], socket)

    return main


def test_nothing_is_found(run: Run, capsys: Said) -> None:
    assert run("check") == run("gc") == run("gc", "--yes") == commands.NOTHING
    assert capsys.readouterr() == ("", "")


def test_what_is_dead_is_told_and_goes_when_it_is_wished(run: Run, host: Host, capsys: Said) -> None:
    layer = host.image(age=26 * HOUR + 60)
    assert run("check") == commands.FOUND
    assert capsys.readouterr().out.startswith(f"orphan-image {layer} age 1d2h size 0: ")
    for words in ((), ("--dry-run",)):
        assert run("gc", *words) == commands.FOUND
        assert capsys.readouterr().out.startswith(f"would remove: orphan-image {layer} ")
    assert len(host.pool.images) == 1
    assert run("gc", "--yes") == commands.NOTHING
    assert capsys.readouterr().out.startswith(f"removing: orphan-image {layer} ")
    assert host.pool.images == {}


def test_what_is_young_is_shown_when_it_is_wished_and_is_no_finding(run: Run, host: Host, capsys: Said) -> None:
    layer = host.image(age=60)
    assert run("check") == commands.NOTHING
    assert capsys.readouterr().out == ""
    assert run("check", "--all") == commands.NOTHING
    assert layer in capsys.readouterr().out
    assert run("check", "--min-age", "0") == commands.FOUND


def test_what_cannot_be_removed_is_told_and_stays(run: Run, host: Host, capsys: Said) -> None:
    layer = host.image()
    host.pool.fails["remove"] = [failed(rbdcli.RbdError, 5, "Input/output error")] * 3
    assert run("gc", "--yes", "--json") == commands.FOUND
    [told] = json.loads(capsys.readouterr().out)["dead"]
    assert (told["id"], told["removed"], "Input/output error" in told["reason"]) == (layer, False, True)
    assert len(host.pool.images) == 1


def test_json_says_the_same(run: Run, host: Host, capsys: Said) -> None:
    layer = host.image()
    assert run("check", "--json") == commands.FOUND
    assert [finding["id"] for finding in json.loads(capsys.readouterr().out)["findings"]] == [layer]
    assert run("gc", "--json") == commands.FOUND
    said = json.loads(capsys.readouterr().out)
    assert (said["dry_run"], [finding["id"] for finding in said["dead"]]) == (True, [layer])


def test_a_cluster_that_does_not_answer_is_one_line(run: Run, host: Host, capsys: Said) -> None:
    host.pool.fails["list"] = [failed(rbdcli.RbdError, 110, "it failed\nin two lines")]
    assert run("check") == commands.FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("check: ")
    assert said.err.count("\n") == 1


def test_no_driver_of_this_socket(tmp_path: Path, capsys: Said) -> None:
    assert commands.main(["check"], str(tmp_path / "no.sock")) == commands.FAILED
    assert f"{tmp_path}/no.sock.state does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["-1", "inf", "nan", "soon"])
def test_an_age_that_is_none(run: Run, capsys: Said, seconds: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run("check", "--min-age", seconds)
    assert ended.value.code == commands.FAILED
    assert "--min-age" in capsys.readouterr().err
