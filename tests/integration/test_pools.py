"""What Ceph is configured to make by default changes no image of ours; a pool of its own for the content."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from lab import Cluster, StartPlugin
from lab_fixtures import NewId, plugins, refusal, restricted, whole_life
from plugin_client import Client, PluginProcess, make_tar, wait_until

from images.options import parse_size

# What librbd takes from its configuration when it makes, copies, removes or maps an image.
HOSTILE = {
    "rbd_default_format": "1",
    "rbd_default_order": "20",
    "rbd_default_stripe_unit": "65536",
    "rbd_default_stripe_count": "4",
    "rbd_default_features": "127",
    "rbd_default_data_pool": "objects",
    "rbd_default_clone_format": "1",
    "rbd_default_map_options": "ro",
    "rbd_journal_pool": "objects",
    "rbd_journal_order": "20",
    "rbd_journal_splay_width": "8",
    "rbd_move_to_trash_on_remove": "true",
    "rbd_move_to_trash_on_remove_expire_seconds": "3600",
    "rbd_move_parent_to_trash_on_remove": "true",
}
# For these no command has an option of its own, and a pool's own word wins over the command line's.
REFUSED = {"rbd_default_clone_format", "rbd_move_to_trash_on_remove"}
# These no pool can say.
NOT_OF_POOLS = {"rbd_default_format"}
# Of an image that is neither a clone nor has clones.
PLAIN: dict[str, Any] = {
    "format": 2,
    "features": {"layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"},
    "object_size": 256 << 10,
    "data_pool": "",
}


@pytest.fixture
def objects(cluster: Cluster) -> str:
    """A second pool; its name."""
    if "objects" not in cluster.ceph("osd", "pool", "ls").split():
        cluster.ceph("osd", "pool", "create", "objects", "4")
        cluster.rbd("pool", "init", "objects")
    return "objects"


@pytest.fixture(params=["file", "monitors", "pool"])
def hostile(request: pytest.FixtureRequest, cluster: Cluster, objects: str, session_directory: str) -> Iterator[str]:
    """A configuration in which every default is another one; its path."""
    assert objects == HOSTILE["rbd_default_data_pool"]
    if request.param == "file":
        conf = os.path.join(session_directory, "hostile.conf")
        with open(cluster.conf, encoding="ascii") as source, open(conf, "w", encoding="ascii") as target:
            target.write(source.read() + "".join(f"{key} = {value}\n" for key, value in HOSTILE.items()))
        yield conf
    elif request.param == "monitors":
        for key, value in HOSTILE.items():
            cluster.ceph("config", "set", "client", key, value)
        yield cluster.conf
        for key in HOSTILE:
            cluster.ceph("config", "rm", "client", key)
    else:
        names = [key for key in HOSTILE if key not in REFUSED | NOT_OF_POOLS]
        for key in names:
            cluster.rbd("config", "pool", "set", "rbd", key, HOSTILE[key])
        yield cluster.conf
        for key in names:
            cluster.rbd("config", "pool", "rm", "rbd", key)


def layout(cluster: Cluster, image: str) -> dict[str, Any]:
    """What `rbd info` says of an image that is not its own: all but name, size, times and who its parent is."""
    said = cluster.info(image)
    features = set(said["features"]) - {"operations"}
    found = {"format": said["format"], "features": features, "object_size": said["object_size"]}
    others = ("stripe_unit", "stripe_count", "journal", "mirroring")
    return {**found, "data_pool": said.get("data_pool", ""), **{key: said[key] for key in others if key in said}}


def all_kinds(client: Client, new_id: NewId) -> Sequence[str]:
    """Make a layer in each way: a clone, a copy of one, and on more layers than the kernel maps as one chain."""
    layers = [""]
    for number in range(17):
        layers.append(client.create(new_id(), layers[-1]))
        client.apply_diff(layers[-1], make_tar({f"f{number}": os.urandom(3 << 20)}))
    container = client.create(new_id() + "-init", layers[2], writable=True)
    client.write(container, "f", "x")
    return [*layers[1:], container, client.create(container[: -len("-init")], container, writable=True)]


def test_defaults_of_any_configuration_change_no_image(
    start_plugin: StartPlugin, cluster: Cluster, hostile: str, new_id: NewId, request: pytest.FixtureRequest
) -> None:
    prefix = f"hostile_{request.node.callspec.params['hostile']}"
    plugin = start_plugin(configfile=hostile, imageprefix=prefix, basesize="1G")
    client = plugin.client
    whole_life(client, new_id)
    for layer in ("base_image", *client.created):
        assert layout(cluster, f"{prefix}_{layer}") == PLAIN
    if request.node.callspec.params["hostile"] == "pool":
        made = all_kinds(client, new_id)
        assert {cluster.ancestors(f"{prefix}_{layer}") for layer in made} == {1}
        assert [layout(cluster, f"{prefix}_{layer}") for layer in made] == [PLAIN] * len(made)
    assert client.status()["Object Pool"] == "rbd"
    remove_all(client, cluster, prefix)


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_a_pool_says_and_we_cannot_overrule_is_refused(
    start_plugin: StartPlugin, cluster: Cluster, key: str
) -> None:
    cluster.rbd("config", "pool", "set", "rbd", key, HOSTILE[key])
    try:
        text = refusal(start_plugin, imageprefix="overruled")
    finally:
        cluster.rbd("config", "pool", "rm", "rbd", key)
    assert f"do: rbd config pool remove rbd {key}" in text
    start_plugin(imageprefix="overruled", basesize="1G")


def content(cluster: Cluster, pool: str) -> set[str]:
    """The objects of a pool that hold content of images."""
    names = cluster.run(["rados", "--conf", cluster.conf, "--pool", pool, "ls"]).split()
    return {name for name in names if name.startswith("rbd_data.")}


def live_in(plugin: PluginProcess, cluster: Cluster, new_id: NewId, prefix: str, pool: str) -> None:
    """Every kind of layer has all of its content in that pool, also after a restart, and leaves it again."""
    client = plugin.client
    elsewhere, empty = content(cluster, "rbd"), content(cluster, pool)
    whole_life(client, new_id)
    made = all_kinds(client, new_id)
    plugin.kill()
    plugin.start()
    made = [*made, client.create(new_id(), made[1])]
    assert client.listing(made[-1]) == ["f0", "f1"]
    assert {layout(cluster, f"{prefix}_{layer}")["data_pool"] for layer in ("base_image", *made)} == {pool}
    assert content(cluster, "rbd") == elsewhere
    # 17 times 3 MiB and one of 8, in objects of 256 KiB.
    assert len(content(cluster, pool) - empty) > 4 * 59
    status = client.status()
    assert (status["Pool"], status["Object Pool"]) == ("rbd", pool)
    # What it says of the other pool would be less.
    assert parse_size(status["Pool Used"]) > 59 << 20
    assert parse_size(status["Pool Available"]) > 1 << 30
    assert client.metadata(made[0])["Pool"] == "rbd"
    remove_all(client, cluster, prefix)
    assert content(cluster, pool) == empty


def remove_all(client: Client, cluster: Cluster, prefix: str, spec: str = "rbd") -> None:
    """Remove a plugin's layers; they are gone from the pool soon, and not put aside until a date."""
    for layer in client.created[::-1]:
        client.remove(layer)
    client.call("Cleanup")
    wait_until(lambda: cluster.images(prefix, spec) == [], "no layer is left in the pool")
    wait_until(lambda: cluster.trash(prefix, spec) == [], "the trash is empty")


def test_a_pool_for_the_content(start_plugin: StartPlugin, cluster: Cluster, objects: str, new_id: NewId) -> None:
    plugin = start_plugin(objectpool=objects, imageprefix="apart", basesize="1G")
    live_in(plugin, cluster, new_id, "apart", objects)


def test_a_base_image_with_its_content_elsewhere(
    start_plugin: StartPlugin, cluster: Cluster, objects: str, session_directory: str
) -> None:
    """Such as one that was made by the defaults of a ceph.conf. The option that fits is named."""
    start_plugin(objectpool=objects, imageprefix="elsewhere", basesize="1G")
    text = refusal(start_plugin, imageprefix="elsewhere")
    assert "ceph.objectpool is not given, but elsewhere_base_image in pool rbd has its content in pool objects" in text
    assert "use ceph.objectpool=objects or another ceph.imageprefix" in text
    start_plugin(imageprefix="here", basesize="1G")
    assert "use ceph.objectpool=rbd or another" in refusal(start_plugin, imageprefix="here", objectpool=objects)
    start_plugin(imageprefix="here", objectpool="rbd")


def test_a_pool_for_the_content_that_is_missing(start_plugin: StartPlugin) -> None:
    text = refusal(start_plugin, objectpool="nosuch", imageprefix="nosuch")
    assert "pool nosuch of ceph.objectpool does not exist; make it with: ceph osd pool create nosuch" in text


def test_a_pool_for_the_content_that_was_not_made_for_images(start_plugin: StartPlugin, cluster: Cluster) -> None:
    cluster.ceph("osd", "pool", "create", "raw", "1")
    text = refusal(start_plugin, objectpool="raw", imageprefix="raw")
    assert "pool raw of ceph.objectpool is not made for images; do: rbd pool init raw" in text


@pytest.mark.parametrize(("right", "space"), [("", ""), (", profile rbd-read-only pool=objects", "crew")])
def test_a_key_without_a_right_to_the_pool_for_the_content(
    start_plugin: StartPlugin,
    cluster: Cluster,
    objects: str,
    session_directory: str,
    new_id: NewId,
    right: str,
    space: str,
) -> None:
    """Init says so; with the command that it tells, all goes well."""
    name = f"apart{space}"
    pool = f"profile rbd pool=rbd namespace={space}" if space else "profile rbd pool=rbd"
    if space:
        cluster.rbd("namespace", "create", f"rbd/{space}")
    conf = restricted(cluster, session_directory, name, ("mon", "profile rbd", "osd", pool + right))
    options = {"client": name, "configfile": conf, "objectpool": objects, "imageprefix": name, "basesize": "1G"}
    text = refusal(start_plugin, **options, namespace=space)
    assert f"client.{name} may not write to pool objects of ceph.objectpool" in text
    cluster.run(["sh", "-c", f"ceph --conf {cluster.conf} {text[text.index('auth caps') :]}"])
    plugin = start_plugin(**options, namespace=space)
    whole_life(plugin.client, new_id)
    remove_all(plugin.client, cluster, name, "/".join(filter(None, ("rbd", space))))


@pytest.fixture(scope="module")
def wide_cluster(session_directory: str) -> Iterator[Cluster]:
    """A cluster with as many OSDs as an erasure-coded pool needs."""
    directory = os.path.join(session_directory, "wide")
    os.mkdir(directory)
    lab = Cluster(directory, osds=3)
    lab.up()
    yield lab
    lab.down()


def test_an_erasure_coded_pool_for_the_content(wide_cluster: Cluster, session_directory: str, new_id: NewId) -> None:
    """What the README tells to type, and Init says is missing, one after the other; then the whole life goes well."""
    cluster = wide_cluster
    # Three OSDs of one machine are what there is.
    small = ("k=2", "m=1", "crush-failure-domain=osd", "--force")
    cluster.ceph("osd", "erasure-code-profile", "set", "default", *small)
    cluster.typed("ceph osd pool create docker-data 32 32 erasure")
    with plugins(cluster, session_directory) as start:
        options = {"objectpool": "docker-data", "basesize": "1G", "imageprefix": "coded"}
        text = refusal(start, **options)
        assert "takes no overwrites; do: ceph osd pool set docker-data allow_ec_overwrites true" in text
        cluster.typed("ceph osd pool set docker-data allow_ec_overwrites true")
        assert "do: rbd pool init docker-data" in refusal(start, **options)
        cluster.typed("rbd pool init docker-data")
        live_in(start(**options), cluster, new_id, "coded", "docker-data")


def test_on_layers_that_were_made_by_other_defaults(
    start_plugin: StartPlugin, cluster: Cluster, objects: str, new_id: NewId
) -> None:
    """What stands on a striped image with its content elsewhere is as ever; a copy lies where it does, and plainly."""
    prefix = "before"
    plugin = start_plugin(imageprefix=prefix, basesize="1G")
    client = plugin.client
    layer, init = client.create(new_id()), client.create(f"{new_id()}-init")
    data = os.urandom(12 << 20)
    client.apply_diff(layer, make_tar({"f": data}))
    client.write(init, "f", data)
    client.call("Cleanup")
    cluster.wait_unmapped()
    defaults = ("--stripe-unit", "64K", "--stripe-count", "4", "--data-pool", objects)
    for image in (f"rbd/{prefix}_{layer}", f"rbd/{prefix}_{init}"):
        cluster.rbd("deep", "cp", image, f"{image}.new", *defaults, "--rbd-default-clone-format", "2", "--no-progress")
        cluster.rbd("rm", "--no-progress", image)
        cluster.rbd("rename", f"{image}.new", image)
    plugin.kill()
    plugin.start()
    child = client.create(new_id(), layer, writable=True)
    copy = client.create(init.removesuffix("-init"), init, writable=True)
    assert client.read(child, "f") == client.read(copy, "f") == data
    assert layout(cluster, f"{prefix}_{child}") == PLAIN
    features = PLAIN["features"] | {"data-pool"}
    assert layout(cluster, f"{prefix}_{copy}") == {**PLAIN, "features": features, "data_pool": objects}
