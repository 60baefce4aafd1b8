"""command_log.py: each command is counted by a name of few, with how it ended, and is a part of its request's time."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from plugin_client import REPO

from host import command, command_log, environment, metrics, task
from host.command import CommandError

CONF = ("--conf", "/etc/ceph/ceph.conf", "--id", "docker", "--client-mount-timeout", "30")


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (("rbd", "device", "map", *CONF, "--pool", "rbd", "--image", "docker_image_a"), "rbd device map"),
        (
            ("rbd", "image-meta", "set", *CONF, "--pool", "rm", "--image", "a", "--", "key", "value"),
            "rbd image-meta set",
        ),
        (("rbd", "config", "pool", "list", *CONF, "--", "list"), "rbd config pool list"),
        (("rbd", "--version"), "rbd"),
        (("rados", *CONF, "--pool", "rm", "--namespace", "lock", "--force-full", "stat", "rm"), "rados stat"),
        (("rados", *CONF, "--pool", "x", "lock", "get", "docker_image.lock", "get"), "rados lock get"),
        (("rados", *CONF, "df", "--format", "json"), "rados df"),
        (("ceph", "osd", "blocklist", "add", "10.0.0.1:0/12345", "3600"), "ceph osd blocklist add"),
        (("ceph", "health", *CONF), "ceph health"),
        (("/usr/sbin/mkfs.xfs", "-f", "/dev/rbd0"), "mkfs.xfs"),
        (("mount", "-t", "overlay", "-o", "words", "none", "/x/rm"), "mount"),
        (environment.python("/opt/x/read_ahead_process.py", "word.py"), "read_ahead_process"),
        ((sys.executable, "--version"), Path(sys.executable).name),
    ],
)
def test_a_command_has_one_of_few_names(argv: Sequence[str], name: str) -> None:
    assert command_log.name_of(argv) == name


def test_every_verb_that_is_used_is_known() -> None:
    """A new one would be counted by its program alone."""
    first = re.compile(r"""self\._(?:rbd|json)\(\s*((?:"[a-z-]+", )*"[a-z-]+")""")
    calls = first.findall(Path(REPO, "rbdcli.py").read_text(encoding="utf-8"))
    for words in [re.findall(r'"([^"]+)"', call) for call in calls]:
        verbs = [word for word in words if not word.startswith("-")]
        assert command_log.name_of(["rbd", *verbs]) == " ".join(["rbd", *verbs])
    assert len(calls) > 15
    text = Path(REPO, "cluster", "rados_objects.py").read_text(encoding="utf-8")
    verbs = re.findall(r"""\.rados(?:_of_\w+|_argv)?\("(?:--force-full", ")?([a-z]+)""", text)
    assert len(verbs) > 15
    assert [verb for verb in verbs if not command_log.name_of(["rados", *CONF, verb]).endswith(verb)] == []


def counted(name: str) -> dict[str, int]:
    """How often a command was counted, by how it ended."""
    found = re.findall(
        rf'^docker_graph_driver_commands_total{{command="{name}",exit="(\w+)"}} (\d+)$', metrics.text({}), re.MULTILINE
    )
    return {end: int(count) for end, count in found}


def fails(run: Callable[[], object]) -> None:
    with pytest.raises(CommandError):
        run()


@pytest.mark.parametrize(
    ("script", "end"),
    [("exit 0", "0"), ("exit 16", "16"), ("kill -9 $$", "signal"), ("sleep 60", "timeout")],
)
@pytest.mark.parametrize("way", ["run", "run_on"])
def test_how_it_ended_is_counted(tmp_path: Path, script: str, end: str, way: str) -> None:
    program = tmp_path / f"test-{way}-{end}"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    program.chmod(0o755)
    seconds = 0.5 if end == "timeout" else 20

    def run() -> None:
        if way == "run":
            command.run([str(program)], timeout=seconds)
        else:
            command.run_on([str(program)], timeout=seconds, give_up=lambda: False)

    run() if end == "0" else fails(run)
    assert counted(program.name) == {end: 1}


def test_what_is_not_there_and_what_is_given_up() -> None:
    fails(lambda: command.run(["no-such-program-of-a-test"], timeout=20))
    assert counted("no-such-program-of-a-test") == {"not_started": 1}
    before = counted("sleep").get("given_up", 0)
    fails(lambda: command.run_on(["sleep", "60"], timeout=20, give_up=lambda: True))
    assert counted("sleep")["given_up"] == before + 1


def test_it_is_time_of_its_request_and_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "command")
    with task.request() as request:
        command.run(["true"], timeout=20)
        assert request.spent
        assert "(true 1 in 0." in request.spent.told(1.0)
    assert re.fullmatch(r"true -> 0 in \d+ ms", caplog.messages[-1])
