"""Docker on a real kernel, with an image of some layers. Runs in the guest, see conftest.py."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from lab import Cluster, mounts_below
from plugin_client import REPO, wait_until

TYPE = os.environ.get("LAB_DEVICE_TYPE", "krbd")
# What a docker command may take here.
PATIENCE = 600


class Site:
    """A dockerd and a plugin below LAB_SITE, started by tests/lib.bash."""

    def __init__(self, cluster: Cluster) -> None:
        self.directory = os.environ["LAB_SITE"]
        self.graph = os.environ["LAB_GRAPH"]
        self.cluster = cluster

    def bash(self, script: str) -> str:
        """Run a script with the functions of tests/lib.bash; its output."""
        environment = {"SITE": self.directory, "GRAPH": self.graph, "DOCKER_SECONDS": str(PATIENCE)}
        done = subprocess.run(
            ["/bin/bash", "-euc", f"source {REPO}/tests/lib.bash\n{script}"],
            env={**self.cluster.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE + 60,
            check=False,
        )
        assert done.returncode == 0, f"{script}\nexit {done.returncode}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
        return done.stdout.strip()

    def start(self) -> None:
        """Start both."""
        options = {
            "configfile": self.cluster.conf,
            "devicetype": TYPE,
            "imageprefix": "deep",
            "timeout": "300",
        }
        words = " ".join(f"--storage-opt ceph.{name}={value}" for name, value in options.items())
        self.bash(
            f"""
            start_plugin "$SITE/plugin.log" "/run/docker/plugins/$GRAPH.sock" --log-level debug
            echo "$plugin_pid" >"$SITE/plugin.pid"
            start_dockerd "$SITE" "$GRAPH" {words}
            """
        )

    def docker(self, words: str) -> str:
        """One docker command; its output."""
        return self.bash(f'docker_cli "$SITE" {words}')

    def end(self) -> None:
        """End what runs of it, and fail if it had to be killed."""
        self.bash(
            """
            for daemon in docker containerd plugin; do
                pid=$(cat "$SITE/$daemon.pid" 2>/dev/null) && kill "$pid" 2>/dev/null || continue
                until_true 60 process_gone "$pid" || { kill -KILL "$pid" && echo "$daemon: killed" >&2 && failed=1; }
                rm -f "$SITE/$daemon.pid"
            done
            exit "${failed:-0}"
            """
        )


@pytest.fixture
def site(cluster: Cluster) -> Iterator[Site]:
    """The site, running; at the end both have ended, and nothing is mounted or mapped."""
    site = Site(cluster)
    try:
        site.start()
        yield site
    finally:
        site.end()
        with open(os.path.join(site.directory, "plugin.log"), encoding="utf-8") as source:
            print("--- log of the plugin\n" + "".join(source.readlines()[-40:]))
    assert mounts_below(os.path.join(site.directory, "data", site.graph)) == []
    assert [image for image in cluster.mapped() if image.startswith("deep_")] == []


def test_an_image_of_many_layers(site: Site, cluster: Cluster) -> None:
    """Run, diff, commit, run that, remove both. Each layer has its device, and each command takes seconds here."""
    before = cluster.images("deep_")
    assert len(before) == 8
    # Layer 0 brought the shell, the others a number each.
    script = "ls /layers | wc -l; cat /last /layers/1; head -c 7000000 /dev/urandom >/new; rm /layers/5"
    assert site.docker(f"run --name first --network none deep sh -c '{script}'").split() == ["7", "7", "1"]
    assert sorted(site.docker("diff first").splitlines()) == ["A /new", "C /layers", "D /layers/5"]
    site.docker("commit first second")
    site.docker("rm first")
    script = "stat -c %s /new; cat /last; ls /layers | wc -l"
    assert site.docker(f"run --rm --network none second sh -c '{script}'").split() == ["7000000", "7", "6"]
    site.docker("rmi second")
    cluster.wait_images(before, "deep_")
    # What is ended in the middle of that is done by the next start.
    wait_until(lambda: cluster.mapped() == [], "all is unmapped")
