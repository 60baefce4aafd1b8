"""metrics_file.py: the file is kept while the process serves, and tells afterwards that it does not any more."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

import pytest
from plugin_client import PluginProcess, Refused, wait_until

from host import metrics_file, whole_file
from host.metrics_file import kept


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "driver.prom"


def value(path: Path, name: str) -> float:
    """The value of one sample, of a family with one."""
    [found] = re.findall(rf"^docker_graph_driver_{name}{{.*}} (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return float(found)


def test_it_is_there_at_once_and_says_at_the_end_that_it_is_over(path: Path) -> None:
    began = time.time()
    with kept(str(path), "/s.sock", lambda _: None):
        wait_until(path.exists, "it is written")
        assert value(path, "up") == 1
        assert abs(value(path, "written_timestamp_seconds") - began) < 30
    assert value(path, "up") == 0
    assert began - 1 <= value(path, "start_time_seconds") <= value(path, "written_timestamp_seconds")
    assert 'docker_graph_driver_up{socket="/s.sock"} 0\n' in path.read_text(encoding="utf-8")
    assert os.listdir(path.parent) == [path.name]


def test_it_is_written_again_and_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_file, "WRITE_SECONDS", 0.05)
    filled: list[bool] = []
    with kept(str(path), "s", filled.append):
        wait_until(lambda: len(filled) > 3, "its gauges are set several times")
    assert all(filled[:-1])
    assert not filled[-1], "it is the last time"


def test_a_failure_ends_it_too(path: Path) -> None:
    with pytest.raises(OSError, match="no"), kept(str(path), "s", lambda _: None):
        wait_until(path.exists, "it is written")
        raise OSError("no")
    assert value(path, "up") == 0


def test_without_a_path_there_is_none() -> None:
    with kept(None, "s", lambda _: pytest.fail("nobody reads it")):
        pass


def test_a_file_that_cannot_be_written_is_told_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metrics_file, "WRITE_SECONDS", 0.02)
    filled: list[bool] = []
    with kept(str(path / "missing" / "x.prom"), "s", filled.append):
        wait_until(lambda: len(filled) > 3, "it was tried several times")
    assert len(caplog.records) == 1
    assert "no metrics are written to " in caplog.text


def test_a_defect_of_the_figures_ends_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fails(_: bool) -> None:
        raise KeyError("oops")

    with kept(str(path), "s", fails):
        wait_until(path.exists, "it is written all the same")
    assert value(path, "up") == 0
    assert caplog.text.count("Traceback") == 1


@pytest.mark.parametrize("serving", [True, False])
def test_a_disk_that_does_not_answer_keeps_nobody_from_ending(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, serving: bool
) -> None:
    """Whichever of its writes it is that hangs, the last one too."""
    monkeypatch.setattr(metrics_file, "END_SECONDS", 0.2)
    answers, hangs = threading.Event(), threading.Event()

    def write(*_: str) -> None:
        if filled[-1] == serving:
            hangs.set()
            answers.wait(20)

    filled: list[bool] = []
    monkeypatch.setattr(whole_file, "write", write)
    with kept(str(path), "s", filled.append):
        wait_until(lambda: filled, "it is written")
        assert not serving or hangs.wait(20)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert "are not written to" in caplog.text
    answers.set()
    wait_until(lambda: not [one for one in threading.enumerate() if one.name == "metrics"], "the thread ends")
    assert filled == [True, False]


def test_a_driver_keeps_it(short: Path) -> None:
    """By its option; killed, it leaves a file that grows old."""
    process = PluginProcess(str(short / "p"), os.environ)
    path = short / "driver.prom"
    options = process.arguments()
    process.arguments = lambda: [*options, "--metrics", str(path)]  # type: ignore[method-assign]
    process.start()
    assert process.client.call("Capabilities")
    with pytest.raises(Refused):
        process.client.call("NoSuch" * 3)
    with pytest.raises(Refused):
        process.client.get("a")
    assert process.terminate() == 0
    text = path.read_text(encoding="utf-8")
    common = f'socket="{process.socket}",method='
    assert f'docker_graph_driver_requests_total{{{common}"Capabilities",result="ok"}} 1\n' in text
    assert f'docker_graph_driver_requests_total{{{common}"other",result="refused"}} 1\n' in text
    assert f'docker_graph_driver_requests_total{{{common}"Get",result="failed"}} 1\n' in text
    assert 'where="request",kind="NotServing"} 1\n' in text
    assert "NoSuch" not in text
    process.start()
    wait_until(lambda: value(path, "up") == 1, "the next one writes it")
    process.kill()
    assert value(path, "up") == 1, "its time tells that it is old"
