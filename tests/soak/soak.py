"""Random Docker operations on the driver while it and all around it are killed, against a model of what must exist.

    ./test.sh soak [--minutes N] [--seed S]

Ends with 1 if a file of a container or an image is not what was written, if an operation fails for no reason, or if
something is left when everything was removed: in the pool, on this machine, in Docker. What a killed daemon leaves
without ever having told anybody (Docker's own drivers leave it too) must be found and removed by the driver's gc.
"""

from __future__ import annotations

import argparse
import glob
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from lab import lib_argv
from machine import DockerError, Host
from plugin_client import REPO, wait_until
from worker import Lost, Worker

WORKERS = 3
BASE = "small:latest"
# Between two faults: long enough for some work to be done in peace.
QUIET_SECONDS = (2.0, 12.0)
TELL_SECONDS = 30.0


class Soak:
    """One run: workers, and faults beside them, until the time is over or something is lost."""

    def __init__(self, host: Host, seed: int, minutes: float) -> None:
        self._host = host
        self._chance = random.Random(f"{seed} faults")
        self._end = time.monotonic() + 60 * minutes
        self._over = threading.Event()
        self.lost: list[str] = []
        self.orphans = self.kept = 0
        self.workers = [
            Worker(host, f"w{number}", BASE, random.Random(f"{seed} {number}")) for number in range(WORKERS)
        ]

    def run(self) -> None:
        """All of it."""
        self._prepare()
        threads = [threading.Thread(target=self._guarded, args=(worker.step,)) for worker in self.workers]
        for thread in threads:
            thread.start()
        self._disturb()
        for thread in threads:
            thread.join()
        self._over.clear()
        for worker in self.workers:
            self._once(worker.finish)
        if not self.lost:
            self._once(self._clear)

    def tell(self) -> str:
        """What happened so far, in one line."""
        done = sum((worker.done for worker in self.workers), Counter[str]())
        again = sum(worker.again for worker in self.workers)
        verified = sum(worker.verified for worker in self.workers)
        return (
            f"{done.total()} operations ({_counts(done)}), {self._host.faults.total()} faults "
            f"({_counts(self._host.faults)}), {again} times once more, {verified} files verified"
        )

    @property
    def operations(self) -> int:
        """How many succeeded."""
        return sum(worker.done.total() for worker in self.workers)

    def _prepare(self) -> None:
        directory = self._host.directory
        make = 'busybox_image >"$2/root" && "$repo/tests/make_image.py" --base "$2/root" --layers 3 "$3" "$2/small.tar"'
        self._host.cluster.run(lib_argv(make, directory, BASE))
        self._host.docker("load", "--input", f"{directory}/small.tar")
        # Every tree has a /data, so that it can always be copied out.
        self._host.docker("run", "--name", "base", "--network", "none", BASE, "mkdir", "/data")
        self._host.docker("commit", "base", BASE)
        self._host.docker("rm", "base")

    def _disturb(self) -> None:
        told = time.monotonic()
        while not self._over.is_set() and time.monotonic() < self._end:
            self._over.wait(self._chance.uniform(*QUIET_SECONDS))
            self._once(lambda: self._host.disturb(self._chance))
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                print(f"soak: {self.tell()}", flush=True)
        self._over.set()

    def _guarded(self, step: Callable[[], None]) -> None:
        while not self._over.is_set():
            self._once(step)

    def _once(self, step: Callable[[], None]) -> None:
        """Do it; what goes wrong ends the run and is told at its end."""
        try:
            step()
        except (Lost, AssertionError, DockerError, OSError, subprocess.SubprocessError) as error:
            self.lost.append(f"{time.strftime('%H:%M:%S')} {error}")
            self._over.set()

    # -- the end -----------------------------------------------------------------------------

    def _clear(self) -> None:
        """Nothing may be left once everything was removed. Raises AssertionError."""
        host = self._host
        # What was never tagged, or was made of layers of which a killed daemon had told nobody.
        for words in (("container", "prune", "--force"), ("image", "prune", "--all", "--force")):
            host.docker(*words)
        host.docker("builder", "prune", "--all", "--force")
        left = [*host.docker("ps", "--all", "--quiet").split(), *host.docker("images", "--all", "--quiet").split()]
        assert not left, f"Docker still has {left}"
        # BuildKit's files keep the ids of what was pruned; gc would believe them.
        host.end_dockerd(signal.SIGTERM)
        for path in glob.glob(f"{host.directory}/data/buildkit/*.db"):
            os.unlink(path)
        # A Put whose answer was lost with the driver is not repeated: the next daemon's start unmounts what it finds.
        host.start_dockerd()
        host.end_dockerd(signal.SIGTERM)
        host.cluster.wait_unmapped()
        collected = host.operator("gc", "--yes", "--min-age", "0")
        # Records of containers that a killed dockerd was making or removing: only an operator knows that they are gone.
        while collected.returncode == 2 and ": rm -r " in collected.stderr:
            for record in collected.stderr.rpartition(": rm -r ")[2].split():
                shutil.rmtree(record)
            collected = host.operator("gc", "--yes", "--min-age", "0")
        assert collected.returncode == 0, f"gc: {collected.stdout} {collected.stderr}"
        self.orphans = collected.stdout.count("removing: orphan-image")
        print(collected.stdout, end="")
        # What was removed may have waited for layers of which nobody had told Docker.
        homes = f"{host.directory}/data/{host.name}/mnt"
        wait_until(lambda: not os.listdir(homes), "what was removed is gone")
        wait_until(lambda: not host.cluster.trash(), "the trash is empty")
        # A dockerd that is killed while it makes or removes something keeps records of layers for which it has no
        # image, for ever and with every storage driver (moby, layer/layer_store.go): what it names must be there.
        named = {f"docker_image_{layer}" for layer in host.named()}
        images = [image for image in host.cluster.images() if image not in named]
        assert not images, f"left in the pool, and not known to Docker: {images}"
        self.kept = len(named)
        log = host.plugin.log_text()
        for word in ("Traceback", "a defect of the driver"):
            assert word not in log, f"the driver's log has {word!r}"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{what} {number}" for what, number in sorted(counter.items()))


def _stop(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def soak(minutes: float, seed: int) -> int:
    """Run it with everything below one directory; the exit status."""
    directory = tempfile.mkdtemp(prefix="dgd-soak-", dir="/var/tmp")
    os.chmod(directory, 0o711)
    host = Host(directory)
    soak = Soak(host, seed, minutes)
    print(f"soak: {minutes:g} min, seed {seed}, {WORKERS} workers", flush=True)
    try:
        host.start()
        soak.run()
    finally:
        host.stop()
        if soak.lost:
            _keep_logs(directory)
        shutil.rmtree(directory)
    print(f"soak: {soak.tell()}")
    for line in soak.lost:
        print(f"soak: FAILED: {' '.join(line.split())}")
    print(
        f"soak: {soak.orphans} layers of killed daemons were left for gc, which removed them; {soak.kept} are in the "
        f"layer store of Docker, which has no image of them; nothing else was left"
    )
    print(f"{soak.operations} passed, {len(soak.lost)} failed")
    return 1 if soak.lost else 0


def _keep_logs(directory: str) -> None:
    kept = os.path.join(REPO, "build", "soak-logs")
    os.makedirs(kept, exist_ok=True)
    for path in (f"{directory}/plugin/log", f"{directory}/dockerd.log", f"{directory}/containerd.log"):
        if os.path.exists(path):
            shutil.copy(path, kept)
    print(f"soak: the logs are kept in {kept}")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="test.sh soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="how long (default %(default)g)")
    text = "begin with the same operations and faults as another run (they then depend on how fast things are)"
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"), help=text)
    arguments = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    return soak(arguments.minutes, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
