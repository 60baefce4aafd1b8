"""What check finds and gc removes, on a fake pool: of two prefixes, of somebody else, and what changed meanwhile."""

from __future__ import annotations

import dataclasses
import os
import time

import pytest
from unit.fakes import failed, recorded
from unit.inspected import HOUR, PREFIX, Host, family, host, new_id, no_pause

import mounts
import rbdcli
from cluster.owner import Owner
from cluster.shared_layers import SharedLayers
from host import deadline
from images.base_image import FORMAT_KEY
from images.layers import LayerError
from images.record import KEY, Record
from maintenance import inspection
from maintenance.takeover import Takeover

OTHER = f"{PREFIX}_more"


pytestmark = pytest.mark.usefixtures("no_pause")
__all__ = ["host", "no_pause"]


def found(host: Host, kind: str) -> list[inspection.Finding]:
    return [finding for finding in host.look().findings() if finding.kind == kind]


# -- looked at once more before it goes ------------------------------------------------------------


@pytest.mark.parametrize("change", ["nothing", "gone", "changed", "mapped", "mounted", "removed"])
def test_a_stale_directory(host: Host, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Somebody may have taken it into use since it was found, and gone away again."""
    path = host.directory_of(layer := new_id())
    look = host.look()
    (finding,) = look.findings()
    if change == "gone":
        os.rmdir(os.path.join(path, "docker"))
        os.rmdir(path)
    elif change == "changed":
        os.utime(path)
    elif change == "mapped":
        host.pool.devices[f"{PREFIX}_{layer}"] = "/dev/rbd7"
        monkeypatch.setattr(mounts, "in_use", lambda device: False)
    elif change == "mounted":
        host.image(layer)
        monkeypatch.setattr(mounts, "table", lambda: [mounts.Mount("8:1", f"{path}/docker", False, "")])
    elif change == "removed":
        os.mkdir(os.path.join(path, "removed"))
        os.utime(path, (time.time() - 9 * HOUR,) * 2)
    outcome = host.collect(look, [finding])[layer]
    assert outcome.removed is (change in ("nothing", "gone"))
    assert os.path.isdir(os.path.join(path, "docker")) is not outcome.removed


@pytest.mark.parametrize("change", ["nothing", "another's", "anew", "directory", "in use", "unmapped"])
def test_a_stale_mapping(host: Host, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """The name of a device is given out again."""
    image = f"{PREFIX}_{(layer := host.image())}"
    host.docker.layer(layer)
    host.pool.devices = {image: "/dev/rbd7"}
    monkeypatch.setattr(mounts, "in_use", lambda device: False)
    look = host.look()
    (finding,) = [item for item in look.findings() if item.kind == inspection.STALE_MAPPING]
    other = f"{PREFIX}_{new_id()}"
    if change == "another's":
        host.pool.devices = {other: "/dev/rbd7"}
    elif change == "anew":
        host.pool.devices = {other: "/dev/rbd7", image: "/dev/rbd8"}
    elif change == "directory":
        host.directory_of(layer)
    elif change == "in use":
        monkeypatch.setattr(mounts, "in_use", lambda device: True)
    elif change == "unmapped":
        host.pool.devices = {}
    before = dict(host.pool.devices)
    outcome = host.collect(look, [finding])[layer]
    assert outcome.removed is (change not in ("directory", "in use"))
    assert host.pool.devices == ({} if change == "nothing" else before)


@pytest.mark.parametrize("change", ["nothing", "restored", "moved again"])
def test_what_is_in_the_trash(host: Host, change: str) -> None:
    layer = host.image()
    host.pool.trash(f"{PREFIX}_{layer}")
    look = host.look()
    (finding,) = look.findings()
    assert finding.dead
    name, image = host.pool.trashed_images.pop(finding.place)
    if change == "restored":
        host.pool.images[name] = image
    elif change == "moved again":
        host.pool.sources[finding.place] = "USER"
        host.pool.trashed_images[finding.place] = (name, image)
    else:
        host.pool.trashed_images[finding.place] = (name, image)
    outcome = host.collect(look, [finding])[layer]
    assert (outcome.removed, outcome.why) == {
        "nothing": (True, ""),
        "restored": (True, "it went by itself"),
        "moved again": (False, "somebody has come to know or use it since"),
    }[change]
    assert (len(host.pool.images) + len(host.pool.trashed_images) == 0) is (change == "nothing")


# -- what others stand on ----------------------------------------------------------------------------


@pytest.mark.parametrize("living", ["named", "young", "another home's", "another host's", "mapped", "of no docker"])
def test_what_a_living_layer_stands_on_is_kept(host: Host, living: str) -> None:
    """Whatever Docker knows of it, and whoever has that layer."""
    first, second, third = family(host)
    image = host.pool.images[f"{PREFIX}_{third}"]
    if living == "named":
        host.docker.layer(third)
    elif living == "young":
        image.created = time.time()
    elif living.startswith("another"):
        owner = host.layers.owner()
        changes = {"home": "/another"} if living == "another home's" else {"host": "another", "machine": "f" * 32}
        image.metadata.update(recorded(dataclasses.replace(owner, **changes), second, first))
    elif living == "mapped":
        image.watchers.append("10.0.0.2:0/9")
    else:
        host.pool.images[f"{PREFIX}_by-hand"] = host.pool.images.pop(f"{PREFIX}_{third}")
    kept = {item.id: item for item in host.look().findings() if item.id in (first, second)}
    assert {(item.dead, item.why) for item in kept.values()} == {(False, "a layer that is not dead stands on it")}
    assert sorted(kept) == sorted([first, second])
    assert not {name for _, name in host.dead()} & {first, second, third}


def test_a_layer_that_is_on_its_way_out_keeps_nothing(host: Host) -> None:
    """The driver has removed it, and its image goes next, before those below it."""
    first, second, third = family(host)
    path = host.directory_of(third)
    os.mkdir(os.path.join(path, "removed"))
    assert host.dead() == {(inspection.ORPHAN, first), (inspection.ORPHAN, second)}


@pytest.mark.parametrize("verb", ["rados", "data"])
def test_a_pool_that_does_not_tell_what_stands_on_a_layer(host: Host, verb: str) -> None:
    """Nothing can be said then."""
    family(host)
    look = host.look()
    host.pool.fails[verb] = [None] * 20
    before = len(host.pool.named(verb))
    look.findings()
    count = len(host.pool.named(verb)) - before
    host.pool.fails[verb] = [None] * (count - 1) + [failed(rbdcli.RbdError, 110)]
    with pytest.raises(rbdcli.RbdError):
        look.findings()


def test_one_whose_record_cannot_be_read_lets_nothing_be_said(host: Host) -> None:
    """It may stand on anything."""
    family(host)
    host.pool.add(f"{PREFIX}_{new_id()}", metadata={KEY: "{}"})
    with pytest.raises(LayerError, match=KEY):
        host.look().findings()


def test_an_image_whose_create_was_killed(host: Host) -> None:
    """Between its image and the record of it; whosever it was, it stands on nothing, and is dead after its time."""
    layer = host.image()
    del host.pool.images[f"{PREFIX}_{layer}"].metadata[KEY]
    [finding] = host.look().findings()
    assert (finding.dead, finding.why) == (True, "it has no owner: its Create was killed")
    young = host.image(age=60)
    del host.pool.images[f"{PREFIX}_{young}"].metadata[KEY]
    assert {name for _, name in host.dead()} == {layer}


@pytest.mark.parametrize("metadata", [{}, {FORMAT_KEY: "1"}, {FORMAT_KEY: "1", "docker_graph_driver.owner": "x /y"}])
def test_what_is_no_layer_of_this_format_is_none_of_ours(host: Host, metadata: dict[str, str]) -> None:
    """An image that somebody made by hand, or a driver of the first format."""
    host.pool.add(f"{PREFIX}_{new_id()}", metadata=metadata, created=0.0)
    assert host.look().findings() == []


# -- the trash of others, and two prefixes ---------------------------------------------------------


def test_what_an_operator_moved_to_the_trash_stays(host: Host) -> None:
    kept = host.image()
    host.pool.trash(f"{PREFIX}_{kept}", "USER")
    assert host.dead() == set()
    (finding,) = host.look().findings()
    assert (finding.kind, finding.id, finding.idle) == (inspection.TRASH, kept, True)
    host.layers.trash.empty()
    host.collect(host.look(), [])
    assert [name for name, _ in host.pool.trashed_images.values()] == [f"{PREFIX}_{kept}"]


def test_the_trash_of_a_prefix_that_this_one_begins(host: Host) -> None:
    layer = new_id()
    host.image("base_image", prefix=OTHER)
    host.image(layer, prefix=OTHER)
    host.pool.trash(f"{OTHER}_{layer}")
    host.layers.trash.empty()
    assert len(host.pool.trashed_images) == 1


@pytest.fixture
def neighbours(host: Host) -> Host:
    """Two prefixes, one of which begins the other, of the same host and home: an operator has changed the option."""
    for prefix in (PREFIX, OTHER):
        host.image("base_image", prefix=prefix)
        host.image(prefix=prefix)
    host.image("base_image.0123456789ab", prefix=OTHER)
    return host


def test_the_images_of_a_prefix_that_this_one_begins(neighbours: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even looked at: neither the layers, nor their trash, nor what is mapped of them."""
    monkeypatch.setattr(mounts, "in_use", lambda device: False)
    theirs = [name for name in neighbours.pool.images if name.startswith(OTHER)]
    neighbours.pool.devices = dict.fromkeys(theirs, "/dev/rbd7")
    ours = next(name for name in neighbours.pool.images if name not in theirs and "base" not in name)
    neighbours.pool.trash(neighbours.layers.image(f"more_{neighbours.image(prefix=OTHER)}"))
    assert [finding.place for finding in neighbours.look().findings()] == [ours]
    assert neighbours.layers.count() == 1


def test_a_takeover_beside_a_prefix_that_this_one_begins(neighbours: Host) -> None:
    for image in neighbours.pool.images.values():
        image.metadata[KEY] = recorded("dead /home")[KEY]
    assert Takeover(neighbours.layers, PREFIX, "dead", "", lambda line: None).run() == 1
    owners = {name: str(image.record.owner) for name, image in neighbours.pool.images.items()}
    assert {owner for name, owner in owners.items() if name.startswith(OTHER)} == {"dead /home"}


def test_a_prefix_that_another_begins_is_that_ones_without_a_base_image(neighbours: Host) -> None:
    """Its images cannot be layers of a pool that has none; whose they are is told by what is there."""
    for name in [name for name in neighbours.pool.images if name.startswith(f"{OTHER}_base")]:
        del neighbours.pool.images[name]
    assert neighbours.layers.count() == 2


# -- layers of all hosts -----------------------------------------------------------------------------

CHAIN = f"sha256:{1:064x}"


def shared_image(host: Host, *parents: str, owner: str = "other /home", age: float = 9 * HOUR) -> str:
    """A layer that a host has shared, and that nobody can find."""
    layer = host.image(age=age)
    record = Record(Owner.parse(owner), parents, shared=True)
    host.pool.images[f"{PREFIX}_{layer}"].metadata[KEY] = str(record)
    return layer


def use(host: Host, layer: str, *, then: str = "") -> SharedLayers:
    """Let another host offer a layer, and then end its use, or begin to delete it."""
    other = SharedLayers(host.pool.as_pool(), PREFIX, Owner("other", "", "/home"))
    assert other.offer(CHAIN, layer, None, size=1, inodes=1)
    if then:
        other.release([layer])
    if then == "deletion":
        assert other.begin_delete(other.all()[0])
    return other


def test_a_shared_layer_that_nobody_can_find_or_uses_is_dead_whoever_made_it(host: Host) -> None:
    layer = shared_image(host)
    [finding] = host.look().findings()
    assert (finding.kind, finding.id, finding.dead) == (inspection.SHARED, layer, True)
    assert host.collect(host.look(), [finding])[layer].removed
    assert host.pool.images == {}


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ("listed and used", "shared by all hosts; used by other"),
        ("listed", "shared by all hosts; used by nobody now"),
        ("used", "shared by all hosts; used by other"),
        ("its deletion has begun", "its deletion has begun"),
        ("uses cannot be read", "the uses of a host, 'key', are 'x'"),
        ("the list cannot be read", "which no driver of this version wrote"),
        ("open", "it is open at 10.0.0.2:0/9"),
        ("mapped", "it is mapped as /dev/rbd7"),
        ("mounted", "it is mounted here"),
        ("directory", "exists"),
        ("young", "a host may be about to offer it"),
        ("a living layer stands on it", "a layer that is not dead stands on it"),
    ],
)
def test_a_shared_layer_is_kept(host: Host, monkeypatch: pytest.MonkeyPatch, why: str, words: str) -> None:
    monkeypatch.setattr(mounts, "in_use", lambda device: True)
    layer = shared_image(host, age=60 if why == "young" else 9 * HOUR)
    image = f"{PREFIX}_{layer}"
    if why in ("listed and used", "used", "listed", "its deletion has begun"):
        use(host, layer, then={"listed": "end", "its deletion has begun": "deletion"}.get(why, ""))
    if why == "used":
        host.pool.objects.omaps[f"{PREFIX}_chains"].clear()
    elif why == "uses cannot be read":
        host.pool.objects.omaps[f"{PREFIX}_uses"] = {"key": "x"}
    elif why == "the list cannot be read":
        host.pool.objects.omaps[f"{PREFIX}_chains"] = {"key": "x"}
    elif why == "open":
        host.pool.images[image].watchers.append("10.0.0.2:0/9")
    elif why in ("mapped", "directory"):
        host.directory_of(layer)
        host.pool.devices = {image: "/dev/rbd7"} if why == "mapped" else {}
    elif why == "mounted":
        point = f"{host.directory_of(layer)}/layer"
        monkeypatch.setattr(mounts, "table", lambda: [mounts.Mount("8:1", point, False, "")])
    elif why == "a living layer stands on it":
        host.docker.layer(host.image(parents=[layer]))
    [finding] = found(host, inspection.SHARED)
    assert (finding.dead, finding.id) == (False, layer)
    assert words in finding.why
    assert layer not in {name for kind, name in host.dead() if kind == inspection.SHARED}


@pytest.mark.parametrize("change", ["used", "listed", "mapped", "directory", "gone"])
def test_a_shared_layer_is_looked_at_once_more_before_it_goes(host: Host, change: str) -> None:
    layer = shared_image(host)
    look = host.look()
    findings = look.findings()
    if change in ("used", "listed"):
        use(host, layer, then="" if change == "used" else "end")
        if change == "used":
            host.pool.objects.omaps[f"{PREFIX}_chains"].clear()
    elif change == "mapped":
        host.pool.images[f"{PREFIX}_{layer}"].watchers.append("10.0.0.2:0/9")
    elif change == "directory":
        host.directory_of(layer)
    else:
        host.pool.images.clear()
    outcome = host.collect(look, findings)[layer]
    assert (outcome.removed, bool(host.pool.images)) == ((True, False) if change == "gone" else (False, True))


def test_a_shared_layer_that_we_made_is_no_orphan_of_ours(host: Host) -> None:
    """Docker here does not know it, and others use it."""
    layer = shared_image(host, owner=str(host.layers.owner()))
    use(host, layer)
    [finding] = host.look().findings()
    assert (finding.kind, finding.dead, finding.idle) == (inspection.SHARED, False, True)


# -- what cannot be told --------------------------------------------------------------------------


def test_a_device_that_does_not_answer_is_in_use(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pool does not take what the kernel has to write to it."""

    def writes_back(device: str) -> bool:
        raise deadline.Overdue(f"{device}: no answer")

    layer = host.image()
    host.docker.layer(layer)
    host.pool.devices = {f"{PREFIX}_{layer}": "/dev/rbd7"}
    monkeypatch.setattr(mounts, "in_use", writes_back)
    [finding] = host.look().findings()
    assert (finding.kind, finding.dead) == (inspection.STALE_MAPPING, False)
