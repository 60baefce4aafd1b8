"""The first process of the managed plugin: makes the driver's command line of the plugin's settings and runs it.

The settings (`docker plugin set`, see config.json) are environment variables. They are defaults: --storage-opt of
dockerd wins. CONFIG and KEYRING are written into memory (/run/ceph is a tmpfs) and handed on no further.

This process is not process 1: the plugin sees the host's processes. containerd reaps a process that outlives its parent
(rbd-nbd puts itself into the background). It also ends all that is left of the plugin when this process has ended.
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
# Init after these. No home can have this name: its storage driver would have to be called `.init`.
STATE = "/graph/.init"
SECRETS = "/run/ceph"
CONFIG_FILE = "/etc/ceph/ceph.conf"
# dockerd tries for 15 s to reach a plugin that it enables. If that ends by itself meanwhile, dockerd cannot enable it
# again (20.10: "id already in use" until dockerd restarts). So a plugin whose driver refuses waits before it ends.
REFUSED = 1
LINGER_SECONDS = 30
OPTIONS = ("DATAPOOL", "NAMESPACE", "IMAGEPREFIX", "CLIENT", "DEVICETYPE")


def defaults(settings: Mapping[str, str]) -> list[str]:
    """Return the storage options that the settings give; an empty setting gives none. Raises ValueError: quotes."""
    named = [f"ceph.{name.lower()}={settings[name]}" for name in OPTIONS if settings.get(name)]
    return named + shlex.split(settings.get("OPTIONS", ""))


def write_secrets(settings: Mapping[str, str], directory: str, config_file: str) -> list[str]:
    """Write CONFIG and KEYRING, if given, and return the storage option that makes the driver use them.

    A keyring alone goes with the configuration of the host. Raises OSError.
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
    """Write the secrets and return the driver's argv. Raises OSError, ValueError."""
    options = [*write_secrets(settings, SECRETS, CONFIG_FILE), *defaults(settings)]
    argv = [sys.executable, PROGRAM, "--socket", SOCKET, "--state", STATE]
    argv += ["--log-level", settings.get("LOG_LEVEL") or "info"]
    return argv + [word for option in options for word in ("--default", option)]


def run(argv: list[str]) -> int:
    """Run the driver to its end, with signals handed on; return its exit status."""
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    # dockerd's log shows stderr as errors. The driver's log is not one: it goes to stdout.
    driver = os.posix_spawn(argv[0], argv, environment, file_actions=[(os.POSIX_SPAWN_DUP2, 1, 2)])

    def hand_on(number: int, _: FrameType | None) -> None:
        os.kill(driver, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    return os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1])


def linger() -> None:
    """Wait for a signal to end, LINGER_SECONDS at the most."""
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
