"""A host, or a minimal container, without Ceph's bindings for Python: `ceph` imports them, and is not there either."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from lab import Cluster, StartPlugin
from plugin_client import PluginProcess, Refused, make_tar, tar_names, wait_until

# A mount namespace whose /usr lacks them; what the driver mounts stays in there with it.
HIDE = """
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/usr,upperdir=/mnt/upper,workdir=/mnt/work overlay /usr
rm -r /usr/bin/ceph /usr/lib/python3/dist-packages/rados* /usr/lib/python3/dist-packages/rbd*
! command -v ceph
! /usr/bin/python3 -c 'import rados' 2>/dev/null
exec "$@"
"""


@pytest.fixture
def bare(start_plugin: StartPlugin) -> PluginProcess:
    plugin = start_plugin(init=False)
    plugin.terminate()
    plugin.before = ["unshare", "--mount", "sh", "-c", HIDE, "-"]
    plugin.start()
    return plugin


def test_a_whole_life(bare: PluginProcess, new_id: Callable[[], str]) -> None:
    bare.init()
    client = bare.client
    image = client.create(new_id())
    client.apply_diff(image, make_tar({"etc": None, "etc/file": "content"}))
    init = client.create(f"{new_id()}-init", image, writable=True)
    container = client.create(init.removesuffix("-init"), init, size="11G", writable=True)
    client.get(container)
    assert client.diff(container, init) == client.diff(container, image)
    assert tar_names(client.diff(container)) == ["etc", "etc/file"]
    client.put(container)
    rows = client.status()
    assert rows["Pool Used"][0].isdigit()
    assert rows["Layers"] == "3"
    for row in ("Pool Available", "Ceph Health", "Ceph Cluster"):
        assert rows[row] == "unknown (ceph is not installed)"
    for layer in (container, init, image):
        client.remove(layer)


def test_a_pool_that_is_missing_or_not_made_for_images_is_named(bare: PluginProcess, cluster: Cluster) -> None:
    cluster.ceph("osd", "pool", "create", "bare-too", "1")
    options = bare.options
    bare.options = [*options, "ceph.datapool=nosuch"]
    with pytest.raises(Refused, match="pool nosuch does not exist; make it with: ceph osd pool create nosuch"):
        bare.init()
    bare.options = [*options, "ceph.datapool=bare-too"]
    with pytest.raises(Refused, match="rbd pool init bare-too"):
        bare.init()
    bare.options = options


@pytest.mark.parametrize(
    ("daemon", "words"),
    [("osd.0", "the monitors answer, so an OSD hangs"), ("mon.a", "no monitor lets client.admin in")],
)
def test_a_sick_cluster_is_explained(bare: PluginProcess, cluster: Cluster, daemon: str, words: str) -> None:
    bare.options.append("ceph.timeout=3")
    bare.init()
    os.kill(cluster.daemon(daemon), signal.SIGSTOP)
    try:
        with pytest.raises(Refused, match=words):
            bare.client.create("layer")
    finally:
        os.kill(cluster.daemon(daemon), signal.SIGCONT)
        # It may be taken for dead only now.
        cluster.rbd("create", "--size", "1M", "trial")
        cluster.rbd("rm", "--no-progress", "trial")
        wait_until(lambda: "HEALTH_OK" in cluster.ceph("health"), "the cluster is well")
    bare.client.remove(bare.client.create("layer"))
