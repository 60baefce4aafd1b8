"""containerd_engine.py: whether its configuration names the snapshotter, in the ways in which people write it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from readme import block
from unit.doctored import outcome

from doctor import tools
from doctor.containerd_engine import ContainerdEngine
from doctor.finding import BROKEN, NOT_CHECKED, OK
from host.command import CommandMissing
from snapshotter import front

AT = 'type = "snapshot"\naddress = "/s.sock"\n'


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration; the containerd that is here reads none."""
    program = tmp_path / "containerd"
    program.write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "config.toml"


def look(config: Path, name: str = "containerd configuration", address: str = "/s.sock") -> tuple[str, str]:
    return outcome(ContainerdEngine(str(config), address).checks(), name)


@pytest.mark.parametrize(
    "text",
    [
        f"[proxy_plugins.ceph]\n{AT}",
        f'version = 2\n[proxy_plugins]\n  [proxy_plugins."ceph"] # ours\n{AT}[other]\ntype = "x"\n',
        "  [ proxy_plugins . 'ceph' ]\n  type='snapshot' # snapshots\n  address = '/s.sock'\n",
        f"[proxy_plugins.other]\n{AT.replace('/s', '/o')}[proxy_plugins.ceph]\n{AT}[proxy_plugins.ceph.exports]\n",
    ],
)
def test_a_configuration_that_names_it(config: Path, text: str) -> None:
    config.write_text(text, encoding="utf-8")
    assert look(config) == (OK, "its clients find the snapshotter by the name ceph")


def test_the_one_of_the_readme(config: Path) -> None:
    config.write_text(block("config.toml"), encoding="utf-8")
    assert look(config, address=front.ADDRESS)[0] == OK


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"# [proxy_plugins.ceph]\n{AT}",
        f"[plugins.ceph]\n{AT}",
        f"[proxy_plugins.ceph]\n{AT.replace('snapshot', 'content')}",
        f"[proxy_plugins.ceph]\n{AT.replace('/s', '/other')}",
        "[[proxy_plugins.ceph]]\n" + AT,
    ],
)
def test_one_that_does_not(config: Path, text: str) -> None:
    config.write_text(text, encoding="utf-8")
    status, said = look(config)
    assert status == BROKEN
    assert said.startswith(f"{config} names no snapshotter at /s.sock; add to it")


def test_no_configuration(config: Path) -> None:
    assert look(config)[0] == BROKEN
    assert ContainerdEngine(str(config), "/s.sock").name() == ""


def test_what_it_imports_counts(config: Path) -> None:
    """containerd itself joins the files."""
    config.write_text('imports = ["/elsewhere/*.toml"]\n', encoding="ascii")
    program = config.parent / "containerd"
    program.write_text(f"#!/bin/sh\nprintf '%s' '[proxy_plugins.mine]\n{AT}'\n", encoding="ascii")
    assert look(config) == (OK, "its clients find the snapshotter by the name mine")


@pytest.mark.parametrize(
    ("version", "status"), [("1.6.20~ds1", OK), ("2.1.9", OK), ("1.5.11", BROKEN), ("odd", NOT_CHECKED)]
)
def test_versions(config: Path, monkeypatch: pytest.MonkeyPatch, version: str, status: str) -> None:
    monkeypatch.setattr(tools, "version", lambda _: version)
    said = look(config, "containerd")
    assert said[0] == status
    assert version in said[1]


def test_no_containerd(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(_: str) -> str:
        raise CommandMissing(("containerd",), None, "not found")

    monkeypatch.setattr(tools, "version", version)
    assert look(config, "containerd") == (NOT_CHECKED, "there is no containerd here: its version is not known")
