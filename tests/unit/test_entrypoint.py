"""The managed plugin's entry point: its settings as the driver's command line, its key in memory."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from images import options

PLUGIN = Path(__file__).parents[2] / "plugin"


@pytest.fixture(scope="module")
def entrypoint() -> ModuleType:
    spec = importlib.util.spec_from_file_location("entrypoint", PLUGIN / "entrypoint.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_setting_for_an_option_names_one_that_there_is(entrypoint: ModuleType) -> None:
    config = json.loads((PLUGIN / "config.json").read_text())
    settings = {item["name"]: item for item in config["env"]}
    assert all(item["settable"] == ["value"] for item in settings.values())
    for name in entrypoint.OPTIONS:
        assert settings[name]["description"] == f"ceph.{name.lower()}"
        assert f"ceph.{name.lower()}" in options.names()
    assert set(settings) == {*entrypoint.OPTIONS, "OPTIONS", "CONFIG", "KEYRING", "LOG_LEVEL"}
    assert entrypoint.defaults({name: item["value"] for name, item in settings.items()}) == []


def test_settings_become_default_options_and_empty_ones_do_not(entrypoint: ModuleType) -> None:
    settings = {
        "DATAPOOL": "docker",
        "CLIENT": "",
        "OPTIONS": "ceph.basesize=20G  'ceph.mkfsarg=-n ftype=1'",
        "LOG_LEVEL": "",
    }
    argv = entrypoint.command_line(settings)
    given = [value for word, value in zip(argv, argv[1:]) if word == "--default"]
    assert given == ["ceph.datapool=docker", "ceph.basesize=20G", "ceph.mkfsarg=-n ftype=1"]
    assert options.parse(given).mkfsarg == ("-n ftype=1",)
    assert argv[argv.index("--log-level") + 1] == "info"


def test_configuration_and_key_are_written_for_root_alone(entrypoint: ModuleType, tmp_path: Path) -> None:
    host = tmp_path / "host.conf"
    host.write_text("[global]\nmon_host = 10.0.0.1\n")
    key = "[client.docker]\n\tkey = abc\n"
    for settings, first in (({"KEYRING": key}, host.read_text()), ({"KEYRING": key, "CONFIG": "[global]"}, "[global]")):
        assert entrypoint.write_secrets(settings, str(tmp_path), str(host)) == [f"ceph.configfile={tmp_path}/ceph.conf"]
        assert (tmp_path / "keyring").read_text() == key
        assert (tmp_path / "ceph.conf").read_text() == f"{first}\n[client]\nkeyring = {tmp_path}/keyring\n"
    for name in ("keyring", "ceph.conf"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_without_them_the_host_s_directory_is_used(entrypoint: ModuleType, tmp_path: Path) -> None:
    assert entrypoint.write_secrets({"KEYRING": "", "CONFIG": ""}, str(tmp_path), "/nonexistent") == []
    assert not os.listdir(tmp_path)


RUN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("entrypoint", sys.argv[1])
entrypoint = importlib.util.module_from_spec(spec)
spec.loader.exec_module(entrypoint)
sys.exit(entrypoint.run([sys.executable, "-c", sys.argv[2]]))
"""


def start(code: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", RUN, str(PLUGIN / "entrypoint.py"), code]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_driver_s_status_is_ours_and_its_log_goes_to_stdout() -> None:
    process = start("import os, sys; print('logged', file=sys.stderr); sys.exit(7)")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (7, "logged\n", "")


def test_sigterm_reaches_the_driver() -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(3)); print('up', flush=True); time.sleep(60)"
    )
    process = start(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    time.sleep(0.1)  # the handler is set after the driver is started
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 3
