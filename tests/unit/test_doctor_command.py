"""What an operator gets from doctor: lines, JSON and exit codes, also when it is interrupted. The cluster is a fake."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from plugin_client import REPO, wait_until
from unit.doctored import DoctoredPool, found, let_trials_mount
from unit.fake_host import FakeHost

from cluster.owner import Owner
from doctor import checkup, docker_engine, doctor_command, systemd_unit, tools
from doctor.finding import Unknown
from doctor.kernel import Kernel
from doctor.propagation import Propagation
from doctor.trial import Trial
from host import command, programs
from host.subcommands import SUBCOMMANDS
from images.options import DEFAULTS

Run = Callable[..., int]
[DOCTOR] = [each for each in SUBCOMMANDS if each.name == "doctor"]
Said = pytest.CaptureFixture[str]
DAEMON = {"experimental": True, "storage-driver": "ceph", "storage-opts": ["ceph.datapool=pool"]}
NOT_SEEN = "rbd: not loaded, and the kernel's modules are not to be seen here"
# A pool without the rights, and what `ceph` tells then.
DENIED = command.CommandError(("ceph", "osd"), 13, "access denied")


@pytest.fixture
def pool() -> DoctoredPool:
    return DoctoredPool()


@pytest.fixture
def run(pool: DoctoredPool, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run it on a host on which all is as it must be; its exit code."""
    assert host.pool is pool
    let_trials_mount(monkeypatch)
    # Its process ends with it, and ours does not.
    monkeypatch.setattr(command, "_over", threading.Event())
    for name in ("ceph.conf", "daemon.json"):
        (tmp_path / name).write_text(json.dumps(DAEMON), encoding="ascii")
    monkeypatch.setattr(command, "find", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(tools, "version", lambda name: "20.10")
    monkeypatch.setattr(Kernel, "_need", lambda *_: None)
    monkeypatch.setattr(Propagation, "_look", lambda _: "seen")
    monkeypatch.setattr(systemd_unit, "BOOTED", "/nonexistent")
    monkeypatch.setattr(docker_engine, "DATA_ROOT", str(tmp_path))
    monkeypatch.setattr(doctor_command, "pool_of", lambda options: pool.as_pool())
    monkeypatch.setattr(doctor_command, "Trial", partial(Trial, directory=str(tmp_path)))

    def main(*words: str) -> int:
        given = ["--front", "docker", "--docker-config", str(tmp_path / "daemon.json")]
        given += ["--socket", str(tmp_path / "ceph.sock")]
        option = ["--option", f"ceph.configfile={tmp_path}/ceph.conf"]
        return DOCTOR.main([*given, *option, *words])

    return main


def lines(capsys: Said) -> dict[str, str]:
    """What each check said."""
    said = capsys.readouterr()
    assert said.err == ""
    return dict(line.split(": ", 1) for line in said.out.splitlines())


def test_all_is_ok(run: Run, pool: DoctoredPool, capsys: Said) -> None:
    pool.add("docker_image_other")
    assert run() == 0
    said = lines(capsys)
    assert {words.split(":")[0] for words in said.values()} <= {"ok", "not checked"}
    assert said["user"] == "ok: root"
    assert said["front end"].startswith("ok: docker (as told), home ")
    assert said["front end"].endswith(", pool pool, client.admin")
    assert said["remove"] == "ok: client.admin may remove images; the trial left nothing"
    assert [*pool.images] == ["docker_image_other"]


def test_something_is_to_be_improved(run: Run, pool: DoctoredPool, capsys: Said) -> None:
    pool.answers["osd pool application get"] = {}
    assert run() == 1
    assert lines(capsys)["application"].startswith("improve: pool pool has none; do: ceph osd pool application enable ")


def test_it_does_not_work(run: Run, pool: DoctoredPool, capsys: Said) -> None:
    """A full pool takes no trial either."""
    pool.answers["osd pool ls detail"] = [{"pool_name": "pool", "flags_names": "full"}]
    assert run() == 2
    said = lines(capsys)
    assert said["space"].startswith("broken: pool pool is full")
    assert said["create"] == "not checked: it makes no sense without: space"
    assert said["blocklist"].startswith("ok: ")
    assert pool.named("create") == []


def test_a_program_that_is_missing_keeps_the_cluster_from_being_asked(
    run: Run, pool: DoctoredPool, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find", lambda name: None if name == "mkfs.xfs" else f"/usr/bin/{name}")
    assert run() == 2
    said = lines(capsys)
    assert said["programs"] == "broken: mkfs.xfs is not installed; install the package xfsprogs (Debian's name)"
    assert said["cluster"] == "not checked: it makes no sense without: programs"
    assert pool.calls == []


def test_json_says_the_same(run: Run, pool: DoctoredPool, capsys: Said) -> None:
    pool.fails["blocklist"] = [DENIED]
    assert run("--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["status"] == 1
    [improve] = [check for check in said["checks"] if check["status"] == "improve"]
    assert improve["check"] == "blocklist"
    assert "takeover fails" in improve["text"]
    assert [check["check"] for check in said["checks"]][:2] == ["front end", "user"]


@pytest.mark.parametrize("words", [["--option", "ceph.nothing=1"], ["--default", "ceph.timeout=never"]])
def test_an_option_that_is_none(run: Run, capsys: Said, words: list[str]) -> None:
    assert run(*words) == 2
    [(check, text)] = lines(capsys).items()
    assert check == "options"
    assert text.startswith("broken: ")
    assert words[1].partition("=")[0] in text


def test_another_doctor_is_at_work(run: Run, pool: DoctoredPool, capsys: Said, tmp_path: Path) -> None:
    """Nothing was tried: that is no "all is ok"."""
    other = Trial(pool.as_pool(), DEFAULTS, Owner.here(str(tmp_path / "ceph")), str(tmp_path))
    found(other.checks()[:1], pool)
    try:
        assert run() == 1
        assert lines(capsys)["create"].startswith("not checked: another doctor of this host and home is at work")
        assert run("--json") == 1
        checks = json.loads(capsys.readouterr().out)["checks"]
        assert [check["check"] for check in checks if check["missed"]] == ["create"]
    finally:
        other.close()


def test_a_host_that_has_not_loaded_the_kernel_s_modules_is_ok(
    run: Run, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first map loads them. Nor is it wrong that they are not to be seen from inside of a container."""

    def unseen(*_: object) -> None:
        raise Unknown(NOT_SEEN)

    monkeypatch.setattr(Kernel, "_need", unseen)
    assert run() == 0
    said = lines(capsys)
    assert [said[name] for name in ("file systems", "device type")] == [f"not checked: {NOT_SEEN}"] * 2
    assert said["image features"].startswith("not checked: the kernel's rbd is not loaded")


def test_a_cluster_that_answers_what_nobody_understands(run: Run, pool: DoctoredPool, capsys: Said) -> None:
    pool.answers["version"] = {"another": "shape"}
    assert run() == 1
    assert lines(capsys)["cluster version"].startswith("not checked: what a program or a file says is not understood")


def test_what_may_be_left_is_told(run: Run, pool: DoctoredPool, capsys: Said) -> None:
    pool.fails["remove"] = [OSError(5, "Input/output error")] * 3
    assert run() == 2
    assert "the next doctor removes them" in lines(capsys)["trial"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("json_wanted", [False, True])
def test_interrupted(
    run: Run,
    pool: DoctoredPool,
    host: FakeHost,
    capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    json_wanted: bool,
) -> None:
    """While an image is mapped: it says so, leaves nothing, and the signals are as they were."""
    waiting = threading.Event()
    make = host.make

    def slow(*words: Any, **options: Any) -> None:
        os.kill(os.getpid(), number)
        waiting.wait(10)
        make(*words, **options)

    monkeypatch.setattr("mounts.make", slow)
    monkeypatch.setattr(command, "end_running", lambda *_: waiting.set())
    before = signal.getsignal(number)
    assert run(*["--json"] * json_wanted) == 128 + number
    out = capsys.readouterr().out
    if json_wanted:
        assert json.loads(out)["status"] == 128 + number
        last = json.loads(out)["checks"][-1]
        assert (last["check"], last["status"]) == ("doctor", "not checked")
    else:
        assert out.splitlines()[-1] == "doctor: not checked: interrupted: the rest was not looked at"
    assert (pool.images, pool.devices, host.mounted) == ({}, {}, {})
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_command_outlives_a_doctor_that_is_interrupted(
    run: Run, capsys: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    """Not one of a check before the trial either, nor what its thread goes on with."""
    ends: list[str] = []
    interrupt = f"kill -{number:d} {os.getpid()}"

    def hanging(_: str) -> str:
        for word in ("first", "second"):
            try:
                command.run(["sh", "-c", f"touch {tmp_path}/{word}; {interrupt}; sleep 600"], timeout=60)
            except command.CommandError as error:
                ends.append(error.reason)
        return "20.10"

    monkeypatch.setattr(tools, "version", hanging)
    assert run() == 128 + number
    assert capsys.readouterr().out.splitlines()[-1].startswith("doctor: not checked: interrupted")
    wait_until(lambda: len(ends) > 1, "its thread goes on")
    assert ends[:2] == ["ended by signal 9", "this process ends"]
    assert not (tmp_path / "second").exists()


def test_interrupted_while_the_trial_is_closed(run: Run, pool: DoctoredPool, host: FakeHost, capsys: Said) -> None:
    """Whatever was found before: nobody may take it for all that there is to find."""
    pool.fails["map"] = [OSError(5, "Input/output error")]
    pool.fails["remove"] = [OSError(5, "Input/output error"), KeyboardInterrupt(signal.SIGTERM)]
    assert run() == 128 + signal.SIGTERM
    said = lines(capsys)
    assert said["map"].startswith("broken: ")
    assert said["doctor"].startswith("not checked: interrupted")
    assert (pool.images, pool.devices, host.mounted) == ({}, {}, {})


def test_a_reader_that_goes_away(run: Run, pool: DoctoredPool, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `doctor | head` does: it ends, and leaves nothing."""

    def gone(*_: object, **where: object) -> None:
        if pool.images and not where.get("file"):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("builtins.print", gone)
    assert run() == 2
    assert (pool.images, pool.devices) == ({}, {})


def test_the_units_are_ours() -> None:
    assert all(os.path.exists(os.path.join(REPO, "systemd", unit)) for unit in checkup.UNITS.values())
    assert [program.name for program in programs.needed(f"ceph.fs={DEFAULTS.fs}")][:2] == ["rbd", "rados"]
