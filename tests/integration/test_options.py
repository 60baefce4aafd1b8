"""Storage options reach Ceph, and what is wrong with them or with the cluster is told by Init in one line."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile

import pytest
from lab import Cluster, StartPlugin, mounts_below, views_below
from lab_fixtures import NewId, refusal, restricted, whole_life
from plugin_client import Refused, make_tar, wait_until


def test_an_unknown_option_is_named_with_the_valid_ones(start_plugin: StartPlugin) -> None:
    text = refusal(start_plugin, basesise="1G")
    assert "'ceph.basesise'" in text
    for name in (
        "basesize",
        "datapool",
        "objectpool",
        "imageprefix",
        "client",
        "configfile",
        "fs",
        "mkfsarg",
        "mountopt",
    ):
        assert f"ceph.{name}" in text
    for name in ("namespace", "devicetype", "mapopt", "timeout"):
        assert f"ceph.{name}" in text


def test_a_bad_value_is_named(start_plugin: StartPlugin) -> None:
    text = refusal(start_plugin, basesize="huge")
    assert "ceph.basesize" in text
    assert "'huge'" in text


def test_a_missing_pool(start_plugin: StartPlugin) -> None:
    text = refusal(start_plugin, datapool="nosuch")
    assert re.search(r"pool nosuch does not exist.*ceph osd pool create nosuch", text)


def test_a_pool_that_was_not_initialised(start_plugin: StartPlugin, cluster: Cluster) -> None:
    cluster.ceph("osd", "pool", "create", "bare", "1")
    assert "rbd pool init bare" in refusal(start_plugin, datapool="bare")


def test_a_cluster_that_does_not_answer(start_plugin: StartPlugin, cluster: Cluster, session_directory: str) -> None:
    conf = os.path.join(session_directory, "away.conf")
    with open(cluster.conf, encoding="ascii") as source, open(conf, "w", encoding="ascii") as target:
        target.write(re.sub(r"mon_host = .*", "mon_host = [v2:127.0.0.1:9,v1:127.0.0.1:10]", source.read()))
    text = refusal(start_plugin, configfile=conf, timeout="3")
    assert "no Ceph cluster answers" in text
    assert conf in text


def test_a_configuration_that_is_not_there(start_plugin: StartPlugin) -> None:
    text = refusal(start_plugin, configfile="/nonexistent/ceph.conf")
    assert "/nonexistent/ceph.conf does not exist" in text
    assert "ceph.configfile" in text


def test_a_client_without_a_key(start_plugin: StartPlugin) -> None:
    assert "client.nobody" in refusal(start_plugin, client="nobody")


def test_a_namespace_that_is_not_there(start_plugin: StartPlugin) -> None:
    text = refusal(start_plugin, namespace="nosuch")
    assert "rbd namespace create rbd/nosuch" in text


def test_a_base_image_of_somebody_else(start_plugin: StartPlugin, cluster: Cluster) -> None:
    cluster.rbd("create", "--size", "1G", "rbd/foreign_base_image")
    text = refusal(start_plugin, imageprefix="foreign")
    assert "foreign_base_image" in text
    assert "was not made by this driver" in text


def test_a_pool_of_the_first_format(start_plugin: StartPlugin, cluster: Cluster) -> None:
    """One line that says what to do; nothing is changed."""
    cluster.rbd("create", "--size", "1G", "rbd/first_base_image")
    for key, value in {"format": "1", "fs": "xfs"}.items():
        cluster.rbd("image-meta", "set", "rbd/first_base_image", f"docker_graph_driver.{key}", value)
    before = [cluster.rbd("ls"), cluster.rbd("image-meta", "list", "rbd/first_base_image"), cluster.trash()]
    text = refusal(start_plugin, imageprefix="first")
    assert "first_base_image in pool rbd is of the first format" in text
    assert "choose another ceph.imageprefix or pool, or go on with a driver of version 1" in text
    assert [cluster.rbd("ls"), cluster.rbd("image-meta", "list", "rbd/first_base_image"), cluster.trash()] == before
    start_plugin(imageprefix="second")


def test_a_base_image_with_another_file_system(start_plugin: StartPlugin) -> None:
    start_plugin(imageprefix="other_fs", fs="ext4")
    text = refusal(start_plugin, imageprefix="other_fs", fs="xfs")
    assert "ceph.fs=ext4" in text


def test_a_tool_that_is_not_installed(start_plugin: StartPlugin) -> None:
    """Found by Init, with the package that has it; the plugin still serves."""
    plugin = start_plugin(init=False, fs="ext4")
    plugin.terminate()
    # The usual directories are looked at whatever PATH is; what lies there now is no program.
    hide = 'mount --bind /dev/null "$1" && shift && exec "$@"'
    plugin.before = ("unshare", "--mount", "sh", "-c", hide, "-", os.path.realpath("/usr/bin/rbd"))
    plugin.start(PATH="/usr/sbin:/usr/bin")
    plugin.before = ()
    with pytest.raises(Refused, match="rbd is not installed; install the package ceph-common"):
        plugin.init()


def test_a_restricted_key_in_a_namespace(
    start_plugin: StartPlugin, cluster: Cluster, session_directory: str, new_id: NewId
) -> None:
    """A key with `profile rbd` for one namespace, and no other key within reach, does everything."""
    cluster.rbd("namespace", "create", "rbd/team")
    caps = ("mon", "profile rbd", "osd", "profile rbd pool=rbd namespace=team", "mgr", "profile rbd pool=rbd")
    conf = restricted(cluster, session_directory, "team", caps)
    plugin = start_plugin(configfile=conf, client="team", namespace="team", imageprefix="ours", basesize="1G")
    client = plugin.client
    whole_life(client, new_id)
    assert client.status()["Namespace"] == "team"
    assert client.status()["Ceph Health"] == "HEALTH_OK"
    assert all(name.startswith("ours_") for name in cluster.images(spec="rbd/team"))
    assert [name for name in cluster.rbd("ls", "rbd").split() if name.startswith("ours")] == []
    for layer in client.created[::-1]:
        client.remove(layer)
    client.call("Cleanup")
    assert cluster.images(spec="rbd/team") == []
    assert cluster.trash(spec="rbd/team") == []


def test_a_restricted_key_in_a_pool(
    start_plugin: StartPlugin, cluster: Cluster, session_directory: str, new_id: NewId
) -> None:
    cluster.ceph("osd", "pool", "create", "docker", "4")
    cluster.rbd("pool", "init", "docker")
    caps = ("mon", "profile rbd", "osd", "profile rbd pool=docker")
    conf = restricted(cluster, session_directory, "docker", caps)
    plugin = start_plugin(configfile=conf, client="docker", datapool="docker", basesize="1G")
    whole_life(plugin.client, new_id)
    assert plugin.client.status()["Pool"] == "docker"
    assert plugin.client.metadata(plugin.client.created[0])["Pool"] == "docker"
    # What it removed goes behind.
    wait_until(lambda: len(cluster.images(spec="docker")) == 4, "four images are left")


def test_mount_options_are_those_of_the_mount(start_plugin: StartPlugin, new_id: NewId) -> None:
    """The Go driver broke on a plain flag; an option with a value works too."""
    plugin = start_plugin(mountopt=("nodiratime", "nodev,logbsize=32k", "noatime"), imageprefix="mountopt")
    root = plugin.client.get(plugin.client.create(new_id()))
    options = mount_options(files_of(root))
    assert {"nodiratime", "nodev", "logbsize=32k", "noatime", "nouuid"} <= options


def files_of(root: str) -> str:
    """Where the file system of a layer is mounted that Docker has got."""
    return os.path.join(os.path.dirname(root), "layer")


def mount_options(point: str) -> set[str]:
    """The options of a mount and of its file system."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        words = next(line.split() for line in table if line.split()[4] == point)
    return {*words[5].split(","), *words[words.index("-") + 3].split(",")}


def test_mkfs_arguments_reach_mkfs(start_plugin: StartPlugin, cluster: Cluster, new_id: NewId) -> None:
    plugin = start_plugin(mkfsarg=("-m reflink=0", "-i size=1024"), imageprefix="mkfsarg")
    root = plugin.client.get(plugin.client.create(new_id()))
    said = cluster.run(["xfs_info", files_of(root)])
    assert "isize=1024" in said
    assert "reflink=0" in said


def test_base_size_is_that_of_new_layers(start_plugin: StartPlugin, cluster: Cluster, new_id: NewId) -> None:
    """A base image that is smaller than the option says today: new roots grow, old layers stay."""
    first = start_plugin(basesize="1G", imageprefix="basesize")
    old = first.client.create(new_id())
    second = start_plugin(basesize="20G", imageprefix="basesize")
    new = second.client.create(new_id())
    assert cluster.info(f"basesize_{old}")["size"] == 1 << 30
    assert cluster.info(f"basesize_{new}")["size"] == 20 << 30
    root = second.client.get(new)
    said = os.statvfs(root)
    assert said.f_blocks * said.f_frsize > 19 << 30
    second.client.put(new)
    assert second.client.status()["Base Size"] == "20G"


def test_map_options_reach_the_map(start_plugin: StartPlugin, new_id: NewId) -> None:
    """A good one maps; one that no kernel knows is refused, by the base image already."""
    plugin = start_plugin(mapopt=("queue_depth=64", "notrim"), imageprefix="mapopt")
    assert plugin.client.listing(plugin.client.create(new_id())) == []
    assert "queue_depth=64" in plugin.log_text()
    assert "bogus" in refusal(start_plugin, mapopt="bogus=1", imageprefix="mapopt2")


def test_nbd(start_plugin: StartPlugin, cluster: Cluster, new_id: NewId) -> None:
    """rbd-nbd's lists and exit codes are other than krbd's; what it maps is found again after kill -9."""
    plugin = start_plugin(devicetype="nbd", imageprefix="nbd")
    client = plugin.client
    layer = client.create(new_id())
    client.write(layer, "f", "x")
    root = client.get(layer)
    plugin.kill()
    plugin.start()
    assert client.get(layer) == root
    client.put(layer)
    client.put(layer)
    assert views_below(plugin.home) == []
    cluster.wait_unmapped()
    assert mounts_below(plugin.home) == []
    assert client.status()["Device Type"] == "nbd"


def test_ext4(start_plugin: StartPlugin, new_id: NewId) -> None:
    client = start_plugin(fs="ext4", imageprefix="ext4").client
    image = client.create(new_id())
    client.apply_diff(image, make_tar({"f": "x", "d": None}))
    layer = client.create(new_id(), image)
    root = client.get(layer)
    os.unlink(os.path.join(root, "f"))
    client.put(layer)
    assert client.changes(layer, image) == {"/f": 2}
    assert client.listing(layer) == ["d"]
    assert client.status()["Backing Filesystem"] == "ext4"
    assert client.metadata(layer)["Filesystem"] == "ext4"


def test_ids_of_a_remapped_daemon(start_plugin: StartPlugin, cluster: Cluster, new_id: NewId) -> None:
    """userns-remap: new roots belong to the container's root, archives are mapped both ways, paths are searchable."""
    plugin = start_plugin(init=False, imageprefix="remap")
    ranges = [{"container_id": 0, "host_id": 100_000, "size": 65_536}]
    plugin.init(UIDMaps=ranges, GIDMaps=ranges)
    client = plugin.client
    layer = client.create(new_id())
    client.apply_diff(layer, make_tar({"f": "x"}))
    root = client.get(layer)
    assert (os.stat(root).st_uid, os.stat(root).st_gid) == (100_000, 100_000)
    assert os.stat(os.path.join(root, "f")).st_uid == 100_000
    cluster.run(["setpriv", "--reuid=100000", "--regid=100000", "--clear-groups", "cat", os.path.join(root, "f")])
    client.put(layer)
    with tarfile.open(fileobj=io.BytesIO(client.diff(layer))) as archive:
        assert archive.getmember("f").uid == 0
    plugin.kill()
    plugin.start()
    other = client.create(new_id())
    assert os.stat(client.get(other)).st_uid == 100_000


def test_status_tells_what_the_cluster_does_not_tell(start_plugin: StartPlugin, cluster: Cluster) -> None:
    """docker info must come while Ceph is away, and say so."""
    plugin = start_plugin(timeout="3", imageprefix="away")
    with open(plugin.socket + ".state", encoding="utf-8") as source:
        state = json.load(source)
    away = os.path.join(os.path.dirname(plugin.socket), "away.conf")
    with open(cluster.conf, encoding="ascii") as source, open(away, "w", encoding="ascii") as target:
        target.write(re.sub(r"mon_host = .*", "mon_host = [v2:127.0.0.1:9,v1:127.0.0.1:10]", source.read()))
    plugin.kill()
    changed = {**state, "Opts": [f"ceph.configfile={away}", "ceph.timeout=3"]}
    with open(plugin.socket + ".state", "w", encoding="utf-8") as target:
        json.dump(changed, target)
    plugin.start()
    assert plugin.client.status()["Ceph Health"].startswith("unknown")
    assert plugin.client.status()["Pool"] == "rbd"
    plugin.kill()
    with open(plugin.socket + ".state", "w", encoding="utf-8") as target:
        json.dump(state, target)
