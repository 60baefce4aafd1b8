"""plugin.py: one daemon after another. A driver that serves goes on whole until another one is ready to."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from graph.lifetime import StillAtWork
from graph.preconditions import NotReady
from protocol import plugin as plugin_module
from protocol.plugin import Plugin


class FakeDriver:
    """Notes what it is told in `log`; a step that is in `fails` raises."""

    timeout = 1.0

    def __init__(self, name: str, log: list[str], fails: dict[str, Exception]) -> None:
        self._name, self._log, self._fails = name, log, fails
        self.lifetime = self.bounds = self

    def request(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def __getattr__(self, step: str) -> object:
        def do(*_: object) -> None:
            self._log.append(f"{self._name} {step}")
            if step in self._fails:
                raise self._fails[step]

        return do


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def fails() -> dict[str, Exception]:
    return {}


@pytest.fixture
def plugin(tmp_path: Path, log: list[str], fails: dict[str, Exception], monkeypatch: pytest.MonkeyPatch) -> Plugin:
    """A plugin that a daemon has initialised already, by the driver "first"."""
    names = iter(("first", "second", "third"))
    monkeypatch.setattr(plugin_module, "Driver", lambda *_: FakeDriver(next(names), log, fails))
    made = Plugin(str(tmp_path / "state"))
    init(made)
    log.clear()
    return made


def init(plugin: Plugin) -> None:
    plugin.call("Init", json.dumps({"Home": "/home", "Opts": []}).encode())


def test_the_former_driver_is_stopped_last(plugin: Plugin, log: list[str]) -> None:
    init(plugin)
    steps = (
        "second claim",
        "second prepare",
        "first pause",
        "second learn",
        "second settle",
        "first end",
        "second start",
    )
    assert log == [*steps]


@pytest.mark.parametrize(
    ("step", "done"),
    [
        ("claim", ["second claim", "second end"]),
        ("prepare", ["second claim", "second prepare", "second end"]),
        ("learn", ["second claim", "second prepare", "first pause", "second learn", "first resume", "second end"]),
        (
            "settle",
            [
                *("second claim", "second prepare", "first pause", "second learn", "second settle"),
                *("first resume", "second end"),
            ],
        ),
        ("pause", ["second claim", "second prepare", "first pause", "second end"]),
    ],
)
def test_an_init_that_fails_leaves_the_former_driver_whole(
    plugin: Plugin, log: list[str], fails: dict[str, Exception], step: str, done: list[str]
) -> None:
    """What it waits for, and what shows that its host lives, goes on."""
    fails[step] = {"prepare": NotReady("no pool"), "pause": StillAtWork("still unmapping")}.get(step, OSError("no"))
    with pytest.raises(type(fails[step])):
        init(plugin)
    assert log == done
    fails.clear()
    log.clear()
    plugin.call("Cleanup", b"{}")
    assert log == ["first cleanup"]


def test_what_init_said_cannot_be_kept(plugin: Plugin, log: list[str], tmp_path: Path) -> None:
    """Then the next start would not know what the daemon has been told."""
    (tmp_path / "state.new").mkdir()
    with pytest.raises(IsADirectoryError):
        init(plugin)
    assert log == ["second claim", "second prepare", "first pause", "second learn", "first resume", "second end"]
