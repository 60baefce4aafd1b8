"""The first process of the managed plugin: makes the driver's command line of the plugin's settings and runs it.

The settings (`docker plugin set`, see config.json) are environment variables. They are defaults: what dockerd's
--storage-opt says wins. CONFIG and KEYRING are written into memory (/run/ceph is a tmpfs) and handed on no further.

It is not process 1: the plugin sees the host's processes. What outlives its parent (rbd-nbd puts itself into the
background) is reaped by containerd, which also ends all that is left of the plugin when this process has ended.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping
from types import FrameType

PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "docker_graph_driver.py")
SOCKET = "/run/docker/plugins/ceph.sock"
# Below the propagated mount, which outlives the process, `docker plugin disable` and an upgrade: Docker does not repeat
# Init after them. No home can have this name: it would be that of a storage driver `.init`.
STATE = "/graph/.init"
SECRETS = "/run/ceph"
CONFIG_FILE = "/etc/ceph/ceph.conf"
# dockerd tries to reach a plugin that it enables for 15 s. One that has ended by itself meanwhile it can neither reach
# nor enable again (20.10: "id already in use" until dockerd restarts), so a refusal is no reason to end at once.
REFUSED = 1
LINGER_SECONDS = 30
OPTIONS = ("DATAPOOL", "NAMESPACE", "IMAGEPREFIX", "CLIENT", "DEVICETYPE")


def defaults(settings: Mapping[str, str]) -> list[str]:
    """Return the storage options that the settings name; an empty setting is none."""
    named = [f"ceph.{name.lower()}={settings[name]}" for name in OPTIONS if settings.get(name)]
    return named + shlex.split(settings.get("OPTIONS", ""))


def write_secrets(settings: Mapping[str, str], directory: str, config_file: str) -> list[str]:
    """Write CONFIG and KEYRING, if given, and return the storage option that makes the driver use them.

    A keyring alone goes with the configuration of the host.
    """
    config, keyring = settings.get("CONFIG", ""), settings.get("KEYRING", "")
    if not (config or keyring):
        return []
    if not config:
        with open(config_file, encoding="utf-8") as source:
            config = source.read()
    if keyring:
        path = os.path.join(directory, "keyring")
        _write(path, keyring)
        config += f"\n[client]\nkeyring = {path}\n"
    path = os.path.join(directory, "ceph.conf")
    _write(path, config)
    return [f"ceph.configfile={path}"]


def _write(path: str, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as target:
        target.write(text.rstrip("\n") + "\n")


def command_line(settings: Mapping[str, str]) -> list[str]:
    """Return the driver's argv; writes the secrets."""
    options = [*write_secrets(settings, SECRETS, CONFIG_FILE), *defaults(settings)]
    argv = [sys.executable, PROGRAM, "--socket", SOCKET, "--state", STATE]
    argv += ["--log-level", settings.get("LOG_LEVEL") or "info"]
    return argv + [word for option in options for word in ("--default", option)]


def run(argv: list[str]) -> int:
    """Run the driver to its end, with signals handed on; return its exit status."""
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    # What comes on stderr is an error in dockerd's log, the driver's log is not: it goes to stdout.
    driver = os.posix_spawn(argv[0], argv, environment, file_actions=[(os.POSIX_SPAWN_DUP2, 1, 2)])

    def hand_on(number: int, _: FrameType | None) -> None:
        os.kill(driver, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    return os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1])


def linger() -> None:
    """Wait to be told to end."""
    signals = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.sigtimedwait(signals, LINGER_SECONDS)


def main() -> int:
    """Read the settings and run the driver; REFUSED if a setting cannot be used."""
    try:
        status = run(command_line(os.environ))
    except (OSError, ValueError) as error:
        print(f"the plugin's settings: {error}", flush=True)
        status = REFUSED
    if status == REFUSED:
        linger()
    return status


if __name__ == "__main__":
    sys.exit(main())
