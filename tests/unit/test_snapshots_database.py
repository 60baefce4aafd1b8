"""snapshots_database.py: what a snapshotter knows, read beside it, and what follows: nothing of a snapshot is taken.

The pool is a fake. The database is the snapshotter's own, in another process where that matters.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_client import REPO
from unit.fakes import FakeImage, recorded
from unit.inspected import HOUR, PREFIX, Host, new_id, no_pause

from cluster.shared_layers import SharedLayers
from images.layers import TAKEN_KEY
from images.record import KEY, Record
from maintenance import inspection
from maintenance.inspection import Inspection
from maintenance.knowledge import DatabaseMissing
from maintenance.snapshots_database import LAYER_ID, SnapshotsDatabase
from overview.contents import Container
from snapshots.info import IMAGE_LABEL, NOTHING, Kind
from snapshots.store import FILE, Store

pytestmark = pytest.mark.usefixtures("no_pause")
__all__ = ["no_pause"]
CHAIN = f"sha256:{1:064x}"
STRANGER = "0123456789abcdefghij"


class Root(Host):
    """A host with a snapshotter in place of Docker."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.store = Store(self.home)
        self.store.restore([])

    def look(self, min_age: float = HOUR) -> Inspection:
        """One look at all of it."""
        return Inspection(self.layers, PREFIX, self.home, SnapshotsDatabase(self.home), min_age=min_age)

    def named(self) -> dict[str, str]:
        """The layers that are named."""
        return SnapshotsDatabase(self.home).known().named

    def active(self, key: str = "key") -> str:
        """An active snapshot; its layer."""
        layer = self.store.begin_prepare(Kind.ACTIVE, key, "", {}).layer
        self.store.prepared(layer)
        return self.image(layer)

    def committed(self, name: str = "name", chain: str = "") -> str:
        """A committed snapshot; its layer."""
        layer = self.active(f"{name} key")
        self.store.begin_commit(f"{name} key", name, {})
        self.store.committed(layer, NOTHING, chain)
        return layer

    def shared_image(self, layer: str, *, offered: bool) -> FakeImage:
        """A layer of all hosts, hours old; others may be able to find it."""
        image = self.pool.images[f"{PREFIX}_{self.image(layer)}"]
        image.metadata[KEY] = str(Record(self.layers.owner(), (), shared=True))
        if offered:
            SharedLayers(self.layers.pool, PREFIX, self.layers.owner()).offer(CHAIN, layer, None, size=1, inodes=1)
        return image

    def found(self, layer: str) -> inspection.Finding:
        """The one finding of an image."""
        [finding] = [item for item in self.look().findings() if item.id == layer]
        return finding


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Root]:
    """A host with a snapshotter that has no snapshots."""
    root = Root(tmp_path)
    yield root
    root.store.close()


# -- what is named ---------------------------------------------------------------------------------


def test_every_snapshot_names_its_layer_whatever_its_state(host: Root) -> None:
    states = {}
    states[host.store.begin_prepare(Kind.ACTIVE, "preparing", "", {}).layer] = "being prepared, as snapshot 'preparing'"
    states[host.active("active")] = "snapshot 'active'"
    states[host.committed("committed")] = "snapshot 'committed'"
    states[host.active("committing")] = "snapshot 'committing', being committed"
    host.store.begin_commit("committing", "its name", {})
    states[host.active("removed")] = "being removed"
    host.store.begin_remove("removed")
    name = host.store.tell(CHAIN, "", {}, "another-hosts-layer", NOTHING).info.name
    host.store.begin_prepare(Kind.VIEW, "view", "committed", {})
    assert host.named() == {**states, "another-hosts-layer": f"snapshot {name!r}"}
    assert all(LAYER_ID.fullmatch(layer) for layer in states)
    assert host.dead() == set()


def test_of_several_snapshots_of_one_layer_the_one_that_stays_tells(host: Root) -> None:
    host.committed("parent")
    stays, goes = (host.store.tell(CHAIN, parent, {}, "layer", NOTHING).info.name for parent in ("", "parent"))
    host.store.begin_remove(goes)
    assert host.named()["layer"] == f"snapshot {stays!r}"
    assert "layer" not in SnapshotsDatabase(host.home).known().unmade


def test_what_is_being_prepared_or_removed_may_have_no_image(host: Root) -> None:
    host.store.begin_prepare(Kind.ACTIVE, "preparing", "", {})
    host.active("removed")
    host.store.begin_remove("removed")
    host.pool.images.clear()
    assert host.look().findings() == []
    missing = host.active("lost")
    host.pool.images.clear()
    finding = host.found(missing)
    assert finding.kind == inspection.MISSING
    assert finding.why == "the snapshotter names it (snapshot 'lost'), but the pool has no such image"


# -- read beside the snapshotter -------------------------------------------------------------------


def other_process(home: str, last: str) -> None:
    """A snapshotter that makes a snapshot, and then does what `last` says."""
    script = f"from snapshots.store import Store; from snapshots.info import Kind; import os\ns = Store({home!r})\n"
    script += f"s.restore([])\ns.begin_prepare(Kind.ACTIVE, 'theirs', '', {{}})\n{last}"
    subprocess.run([sys.executable, "-c", script], cwd=REPO, check=False)


@pytest.mark.parametrize("last", ["s.close()", "os.kill(os.getpid(), 9)"])
def test_it_is_read_when_the_snapshotter_has_ended_in_any_way(tmp_path: Path, last: str) -> None:
    other_process(str(tmp_path), last)
    for _ in range(2):
        assert list(SnapshotsDatabase(str(tmp_path)).known().named.values()) == ["being prepared, as snapshot 'theirs'"]
    store = Store(str(tmp_path))
    assert len(store.leftovers()) == 1
    store.close()


def test_it_is_read_while_the_snapshotter_writes(host: Root) -> None:
    """In the middle of a transaction it is what was there before, and nobody waits for the other."""
    layer = host.active("before")
    with host.store._database.write() as database:
        database.execute("DELETE FROM snapshot")
        script = "from maintenance.snapshots_database import SnapshotsDatabase as S; import sys\n"
        script += "print(*S(sys.argv[1]).known().named)"
        argv = [sys.executable, "-c", script, host.home]
        done = subprocess.run(argv, cwd=REPO, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [layer]
    assert host.named() == {}


def test_nothing_is_known_before_the_pool_has_told_what_was_there(tmp_path: Path) -> None:
    """All layers of a root that lost its database would be taken for orphans."""
    store = Store(str(tmp_path))
    with pytest.raises(DatabaseMissing, match="yet to be made anew from the pool: wait until the snapshotter is ready"):
        SnapshotsDatabase(str(tmp_path)).known()
    store.restore([])
    assert SnapshotsDatabase(str(tmp_path)).known().named == {}
    store.close()


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "no database", "another version"])
def test_a_database_that_is_not_whole_is_one_line_and_nothing_is_removed(tmp_path: Path, damage: str) -> None:
    host = Root(tmp_path)
    for at in range(200):
        host.store.begin_prepare(Kind.ACTIVE, f"key {at}", "", {"label": "x" * 50})
    if damage == "another version":
        with host.store._database.write() as database:
            database.execute("PRAGMA user_version = 99")
    host.store.close()
    layer = host.image(STRANGER)
    path = Path(host.home, FILE)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage != "another version":
        path.write_bytes({"empty": b"", "cut": content[:8192], "no database": b"x" * 8192}[damage])
    before = sorted(os.listdir(host.home))
    with pytest.raises(DatabaseMissing, match=rf"^\S*{FILE}") as raised:
        host.look().findings()
    assert "\n" not in str(raised.value)
    assert f"{PREFIX}_{layer}" in host.pool.images
    assert [name for name in before if name not in os.listdir(host.home)] == []


def test_one_that_is_damaged_meanwhile_keeps_what_was_found(host: Root) -> None:
    layer = host.image(STRANGER)
    look = host.look()
    found = look.findings()
    host.store.close()
    Path(host.home, FILE).write_bytes(b"x" * 8192)
    outcome = host.collect(look, found)[layer]
    assert not outcome.removed
    assert "nothing is removed" in outcome.why


# -- what belongs to nobody ------------------------------------------------------------------------


def test_an_image_without_a_snapshot_is_dead_in_the_words_of_containerd(host: Root) -> None:
    layer, kept = host.image(STRANGER), host.active()
    finding = host.found(layer)
    assert (finding.kind, finding.dead, finding.why) == (
        inspection.ORPHAN,
        True,
        "the snapshotter knows no such layer",
    )
    host.collect(host.look(), host.look().findings())
    assert list(host.pool.images) == [f"{PREFIX}_{kept}"]


@pytest.mark.parametrize("layer", ["0123456789abcdefghi", "0123456789abcdefghijk", "0123456789ABCDEFGHIJ", new_id()])
def test_what_has_another_id_is_none_of_its_layers(host: Root, layer: str) -> None:
    finding = host.found(host.image(layer))
    assert (finding.dead, finding.why) == (False, "its name is not an id of the snapshotter's")


def test_a_young_one_is_kept(host: Root) -> None:
    assert not host.found(host.image(STRANGER, age=60)).dead


def test_a_snapshot_that_comes_meanwhile_keeps_its_layer(host: Root) -> None:
    """Its row is there before its image: this one came to be known between the look and the removal."""
    layer = host.image(STRANGER)
    look = host.look()
    found = look.findings()
    host.store.tell(CHAIN, "", {}, layer, NOTHING)
    assert not host.collect(look, found)[layer].removed


def test_what_was_removed_and_cannot_go_is_said_in_its_words(host: Root) -> None:
    path = host.directory_of(STRANGER)
    os.mkdir(os.path.join(path, "removed"))
    os.utime(path, (time.time() - 9 * HOUR,) * 2)
    assert host.found(STRANGER).why.startswith("containerd removed it, but the snapshotter has not been able to")


@pytest.mark.parametrize("is_named", [True, False])
def test_what_was_taken_over_is_kept_if_the_database_that_names_it_is_here(host: Root, is_named: bool) -> None:
    layer = host.active() if is_named else host.image(STRANGER)
    host.pool.images[f"{PREFIX}_{layer}"].metadata[TAKEN_KEY] = f"{PREFIX}_{layer}"
    assert host.dead() == (set() if is_named else {(inspection.ORPHAN, layer)})


# -- shared layers -----------------------------------------------------------------------------------


def test_a_shared_layer_is_told_and_is_in_order(host: Root) -> None:
    layer = host.committed(chain=CHAIN)
    host.shared_image(layer, offered=True)
    host.store.offered(layer, shared=True)
    finding = host.found(layer)
    assert (finding.kind, finding.dead, finding.idle) == (inspection.SHARED, False, True)
    assert finding.why == f"shared by all hosts; used by {host.layers.owner().host}"


def test_one_that_is_to_be_shared_and_is_this_host_s_still_is_no_orphan(host: Root) -> None:
    host.committed(chain=CHAIN)
    assert host.look().findings() == []


def test_one_that_is_still_to_be_offered_is_kept(host: Root) -> None:
    """Its host was killed after it had made it everybody's, and before anybody could find it."""
    layer = host.committed(chain=CHAIN)
    host.shared_image(layer, offered=False)
    finding = host.found(layer)
    assert (finding.dead, finding.idle) == (False, True)
    assert finding.why == "the snapshotter names it (snapshot 'name')"


def test_a_shared_layer_that_a_snapshot_comes_to_name_meanwhile(host: Root) -> None:
    host.shared_image(STRANGER, offered=False)
    look = host.look()
    found = [finding for finding in look.findings() if finding.dead]
    assert [finding.kind for finding in found] == [inspection.SHARED]
    host.store.tell(CHAIN, "", {}, STRANGER, NOTHING)
    assert not host.collect(look, found)[STRANGER].removed


def test_a_layer_of_another_host_alone_is_none_of_ours(host: Root) -> None:
    host.pool.add(f"{PREFIX}_{STRANGER}", metadata=recorded("other /home"), created=0.0)
    assert host.look().findings() == []


# -- what tree shows ----------------------------------------------------------------------------------


def test_containers_are_called_by_their_keys(host: Root) -> None:
    layers = {key: host.active(key) for key in ("k8s.io/7/pod", "k8s.io/8/extract-1-a sha256:1", "bare")}
    unfinished = host.store.begin_prepare(Kind.ACTIVE, "k8s.io/9/new", "", {}).layer
    committed = host.committed()
    names = SnapshotsDatabase(host.home).names()
    assert names.committed == {committed}
    assert names.containers == {
        layers["k8s.io/7/pod"]: Container("pod", "active"),
        layers["k8s.io/8/extract-1-a sha256:1"]: Container("extract-1-a sha256:1", "being unpacked"),
        layers["bare"]: Container("bare", "active"),
        unfinished: Container("new", "being prepared"),
    }


def test_an_image_that_a_kubelet_pulled_is_called_at_its_top_layer(host: Root) -> None:
    labels = {IMAGE_LABEL: "registry/image:1"}
    parent = ""
    layers = []
    for name in ("low", "high"):
        layers.append(host.store.begin_prepare(Kind.ACTIVE, f"{name} key", parent, labels).layer)
        host.store.prepared(layers[-1])
        host.store.begin_commit(f"{name} key", name, labels)
        host.store.committed(layers[-1], NOTHING, "")
        parent = name
    assert SnapshotsDatabase(host.home).names().images == {layers[-1]: ("registry/image:1",)}


def test_without_a_database_there_are_no_names_and_it_is_said_why(host: Root) -> None:
    os.unlink(os.path.join(host.home, FILE))
    names = SnapshotsDatabase(host.home).names()
    assert (names.images, names.containers) == ({}, {})
    assert f"{FILE} does not exist" in names.missing
