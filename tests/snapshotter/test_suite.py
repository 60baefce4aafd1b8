"""containerd's own suite for snapshotters (snapshots/testsuite): each check by its name, so that `-k` finds it.

Written anew from what the checks ask for. Where a check of the suite takes any error, its code is looked at here too.
"""

from __future__ import annotations

import os
import stat
import time

import pytest
from changes import Change, all_of, directory, file, files, linked, owned, removed, renamed
from client import (
    ALREADY_EXISTS,
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    Info,
    Snapshots,
)
from services import Service
from work import Work, refused

# Whom the suite lets off by name: without redirect_dir an overlay cannot rename a directory of a layer below.
RENAMES_NO_DIRECTORIES = {"overlayfs", "fuse-overlayfs", "erofs"}
LABELS = {"containerd.io/gc.root": "suite"}


def test_Basic(snapshots: Snapshots, work: Work) -> None:
    """Two layers and a view of both: files, kinds and parents, and a parent that may not go before its child."""
    first = all_of(file("foo", "foo\n", 0o777), directory("a"), directory("a/b"), directory("a/b/c"))
    second = all_of(file("bar", "bar\n", 0o777), file("foo", "bar\n", 0o777), removed("a/b"))
    one, both = work.new_directory(), work.new_directory()
    first(one)
    all_of(first, second)(both)

    work.change(snapshots.prepare("/work/preparing", "", LABELS), first)
    snapshots.commit("/work/committed", "/work/preparing", LABELS)
    below = snapshots.stat("/work/committed")
    assert (below.parent, below.kind) == ("", "committed")
    refused(NOT_FOUND, snapshots.stat, "/work/preparing")

    with work.mounted(snapshots.prepare("/work/next", "/work/committed", LABELS)) as place:
        assert files(place) == files(one)
        second(place)
    active = snapshots.stat("/work/next")
    assert (active.parent, active.kind) == ("/work/committed", "active")
    snapshots.commit("/work/committed-next", "/work/next", LABELS)
    above = snapshots.stat("/work/committed-next")
    assert (above.parent, above.kind) == ("/work/committed", "committed")
    refused(NOT_FOUND, snapshots.stat, "/work/next")
    assert {info.name: info for info in snapshots.list()} == {below.name: below, above.name: above}

    assert work.files(snapshots.view("/work/view", "/work/committed-next", LABELS)) == files(both)
    snapshots.remove("/work/view")
    assert "remove" in refused(FAILED_PRECONDITION, snapshots.remove, "/work/committed")
    snapshots.remove("/work/committed-next")
    snapshots.remove("/work/committed")


def test_StatActive(snapshots: Snapshots, work: Work) -> None:
    """While it is mounted and written to."""
    with work.mounted(snapshots.prepare("preparing", "", LABELS)) as place:
        file("foo", "foo\n", 0o777)(place)
        found = snapshots.stat("preparing")
        assert (found.name, found.kind, found.parent, found.labels) == ("preparing", "active", "", LABELS)


def test_StatComitted(snapshots: Snapshots, work: Work) -> None:
    """Committed while it is still mounted, as the suite of 1.6 and 1.7 does; all that was written before is in it."""
    with work.mounted(snapshots.prepare("preparing", "", LABELS)) as place:
        file("foo", "foo\n", 0o777)(place)
        snapshots.commit("committed", "preparing", LABELS)
        found = snapshots.stat("committed")
        assert (found.name, found.kind, found.parent, found.labels) == ("committed", "committed", "", LABELS)
    with work.mounted(snapshots.view("view", "committed")) as place:
        assert content(place, "foo") == "foo\n"


def test_TransitivityTest(snapshots: Snapshots, work: Work) -> None:
    """The parents of a snapshot are found from one to the next."""
    work.layer("A", "", file("foo", "foo\n"))
    work.layer("B", "A", file("foo", "foo bar\n"))
    above = snapshots.stat("B")
    assert above.parent == "A"
    assert snapshots.stat(above.parent).parent == ""


def test_PreareViewFailingtest(snapshots: Snapshots, work: Work) -> None:
    """A key is taken once: the second of two is refused, whatever the first one was."""
    work.layer("A", "")
    calls = {"prepare": snapshots.prepare, "view": snapshots.view}
    for first, make in calls.items():
        for second, again in calls.items():
            key = f"{first} {second}"
            make(key, "A", LABELS)
            before = snapshots.stat(key)
            refused(ALREADY_EXISTS, again, key, "A", LABELS)
            assert snapshots.stat(key) == before


BASE = {
    "c1": ("committed", ""),
    "c2": ("committed", "c1"),
    "a1": ("active", "c2"),
    "a2": ("active", ""),
    "v1": ("view", "c2"),
    "v2": ("view", ""),
}


def make_base(snapshots: Snapshots) -> None:
    for name, (kind, parent) in BASE.items():
        if kind == "view":
            snapshots.view(name, parent, LABELS)
        else:
            snapshots.prepare(f"{name}-a" if kind == "committed" else name, parent, LABELS)
            if kind == "committed":
                snapshots.commit(name, f"{name}-a", LABELS)


def test_Update(snapshots: Snapshots) -> None:
    """Labels of every kind of snapshot change as the mask says, and nothing else does, except when it was updated."""
    start = time.time_ns()
    make_base(snapshots)
    end = time.time_ns()
    for name, (kind, parent) in BASE.items():
        found = snapshots.stat(name)
        assert found == Info(name, parent, kind, found.created, found.created, LABELS)
        assert start <= found.created <= end

        labels = {"l1": "v1", "l2": "v2", "l3": "v3", **LABELS}
        before = time.time_ns()
        new = snapshots.update(name, labels, parent="doesnotexist")
        assert before <= new.updated <= time.time_ns()
        assert new == Info(name, parent, kind, found.created, new.updated, labels)

        new = snapshots.update(name, {"l1": "updated", "l4": "v4"}, "labels.l1", "labels.l2")
        assert new.labels == {"l1": "updated", "l3": "v3", **LABELS}
        new = snapshots.update(name, {"l4": "v4", **LABELS}, "labels")
        assert new.labels == {"l4": "v4", **LABELS}
        refused(INVALID_ARGUMENT, snapshots.update, name, {}, "parent", parent="doesnotexist")
        assert snapshots.stat(name) == new


def test_Remove(snapshots: Snapshots) -> None:
    """A key that was removed is free: for an active one, a view, and the name of a committed one."""
    snapshots.prepare("committed-a", "", LABELS)
    snapshots.commit("committed-1", "committed-a", LABELS)
    snapshots.prepare("reuse-1", "committed-1", LABELS)
    snapshots.remove("reuse-1")
    snapshots.view("reuse-1", "committed-1", LABELS)
    snapshots.remove("reuse-1")
    snapshots.prepare("reuse-1", "", LABELS)
    snapshots.remove("committed-1")
    snapshots.commit("committed-1", "reuse-1", LABELS)
    assert [info.name for info in snapshots.list()] == ["committed-1"]


WALKED = [
    ("a-np p a v p-wl a-wl v-wl a-np-wl", ['labels."containerd.io/gc.root"==check-walk']),
    ("a-np a a-wl a-np-wl", ['kind==active,labels."containerd.io/gc.root"==check-walk']),
    ("v v-wl", ['kind==view,labels."containerd.io/gc.root"==check-walk']),
    ("p p-wl", ['kind==committed,labels."containerd.io/gc.root"==check-walk']),
    ("p a-np-wl", ["name==p", "name==a-np-wl"]),
    ("a-wl", ["name==a-wl,labels.l"]),
    ("a v", ["parent==p"]),
    ("a v a-wl v-wl", ['parent!="",labels."containerd.io/gc.root"==check-walk']),
    ("p-wl a-wl v-wl a-np-wl", ["labels.l"]),
    ("a-wl a-np-wl", ["labels.l==2"]),
]


def test_Walk(snapshots: Snapshots) -> None:
    """Ten filters."""
    walk = {"containerd.io/gc.root": "check-walk"}
    snapshots.prepare("a-np", "", walk)
    snapshots.prepare("p-tmp", "", walk)
    snapshots.commit("p", "p-tmp", walk)
    snapshots.prepare("a", "p", walk)
    snapshots.view("v", "p", walk)
    snapshots.prepare("p-wl-tmp", "", walk)
    snapshots.commit("p-wl", "p-wl-tmp", {"l": "1", **walk})
    snapshots.prepare("a-wl", "p-wl", {"l": "2", **walk})
    snapshots.view("v-wl", "p-wl", {"l": "3", **walk})
    snapshots.prepare("a-np-wl", "", {"l": "2", **walk})
    for names, filters in WALKED:
        assert sorted(info.name for info in snapshots.list(*filters)) == sorted(names.split()), filters


def test_LayerFileupdate(work: Work) -> None:
    """A file changes in the next layer, though its size stays the same; five times, each in another second."""
    first = all_of(
        directory("etc", 0o700),
        file("etc/hosts", "mydomain 10.0.0.1"),
        file("etc/profile", "PATH=/usr/bin"),
    )
    second = all_of(
        file("etc/hosts", "mydomain 10.0.0.2"),
        file("etc/profile", "PATH=/usr/bin", 0o666),
        directory("root", 0o700),
        file("root/.bashrc", "PATH=/usr/sbin:/usr/bin"),
    )
    for _ in range(5):
        work.check_chain(first, second)
        # What is compared by its time in seconds would now differ: this is waited for, and no state.
        time.sleep(1 - time.time() % 1)


def test_RemoveDirectoryInLowerLayer(work: Work) -> None:
    """A directory that takes the place of another one does not show what was in that."""
    work.check_chain(
        all_of(directory("lib", 0o700), file("lib/hidden")),
        all_of(removed("lib"), directory("lib", 0o700), file("lib/not-hidden")),
        file("lib/newfile"),
    )


def test_Chown(work: Work) -> None:
    """Files and directories of the layer below change their owner."""
    work.check_chain(
        all_of(*(directory(name, 0o700) for name in ("opt", "opt/a", "opt/a/b")), file("opt/a/b/f", "hello")),
        all_of(*(owned(name, 1, 1) for name in ("opt", "opt/a", "opt/a/b", "opt/a/b/f"))),
    )


def test_DirectoryPermissionOnCommit(work: Work) -> None:
    """Owners of directories that are kept, changed, removed and made anew, over three layers."""
    first = [directory(f"dir{at}", 0o700) for at in range(1, 6)]
    first += [file("dir4/f1", "..."), file("dir5/f1", "...")]
    first += [owned(name, 1, 1) for name in ("dir1", "dir2", "dir3", "dir5", "dir5/f1")]
    second = [owned("dir2", 0, 0), removed("dir3"), owned("dir4", 1, 1), owned("dir4/f1", 1, 1)]
    third = [directory("dir3", 0o700), owned("dir3", 1, 1)]
    third += [removed("dir5"), directory("dir5", 0o700), owned("dir5", 1, 1)]
    work.check_chain(all_of(*first), all_of(*second), all_of(*third))


def test_RemoveIntermediateSnapshot(snapshots: Snapshots, work: Work) -> None:
    """What is below another one stays; from the top down all of them can be removed."""
    with work.mounted(snapshots.prepare("base", "", LABELS)):
        pass
    snapshots.commit("committed-base", "base", LABELS)
    snapshots.prepare("intermediate", "committed-base", LABELS)
    snapshots.commit("committed-inter", "intermediate", LABELS)
    snapshots.prepare("top", "committed-inter", LABELS)
    refused(FAILED_PRECONDITION, snapshots.remove, "committed-inter")
    for name in ("top", "committed-inter", "committed-base"):
        snapshots.remove(name)


def test_DeletedFilesInChildSnapshot(work: Work) -> None:
    """A file that was removed stays so in a layer that brings nothing."""
    work.check_chain(
        all_of(file("foo", "foo\n", 0o777), file("foobar", "foobar\n", 0o777)),
        removed("foobar"),
        all_of(),
    )


def test_MoveFileFromLowerLayer(work: Work) -> None:
    """A file of the layer below gets a second name, and loses its first."""
    work.check_chain(
        all_of(directory("dir1", 0o700), file("dir1/f1", "Hello"), directory("dir2", 0o700), file("dir2/f2", "...")),
        all_of(
            directory("dir3", 0o700),
            file("dir3/f1", "Hello"),
            removed("dir1"),
            linked("dir2/f2", "dir3/f2"),
            removed("dir2/f2"),
        ),
    )


def test_ViewReadonly(snapshots: Snapshots, work: Work) -> None:
    """The kernel refuses to write to a view, whatever the options of its mount look like."""
    work.layer("committed", "")
    with work.mounted(snapshots.view("view", "committed", LABELS)) as place, pytest.raises(OSError, match="Read-only"):
        file("testfile", "testcontent", 0o777)(place)
    snapshots.remove("view")
    snapshots.remove("committed")


def test_StatInWalk(snapshots: Snapshots) -> None:
    """Stat answers while a List goes on, and both tell the same."""
    make_base(snapshots)
    other = []
    for info in snapshots.list():
        other.append(snapshots.stat(info.name))
        assert other[-1] == info
    assert sorted(info.name for info in other) == sorted(BASE)


def test_CloseTwice(snapshots: Snapshots, service: Service) -> None:
    """Client side only: closing is no call of the service. A client that was closed twice is no harm to others."""
    client = service.client()
    client.prepare("prepare", "", LABELS)
    client.commit("committed", "prepare", LABELS)
    client.remove("committed")
    client.close()
    client.close()
    assert list(snapshots.list()) == []


def test_RootPermission(snapshots: Snapshots, work: Work) -> None:
    """The root of an empty snapshot is what users of a container other than root can enter."""
    with work.mounted(snapshots.prepare("preparing", "", LABELS)) as place:
        found = os.stat(place)
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o755, 0, 0)
        assert os.listdir(place) == []


def test_Rename(work: Work, snapshots: Snapshots) -> None:
    """rename(2) of files of the layer below, and of a directory, unless the suite lets the snapshotter off."""
    second: list[Change] = [
        file("somefiles/f1-overwrite", "new content 1"),
        renamed("somefiles/f1-overwrite", "somefiles/f1"),
        renamed("somefiles/f2", "somefiles/f3"),
    ]
    if snapshots.snapshotter not in RENAMES_NO_DIRECTORIES:
        second.insert(0, renamed("dir1", "dir2"))
    work.check_chain(
        all_of(
            directory("dir1", 0o700),
            directory("somefiles", 0o700),
            file("somefiles/f1", "was here first!"),
            file("somefiles/f2", "nothing interesting"),
        ),
        all_of(*second),
    )


def bottom_layer() -> Change:
    return all_of(
        file("bottom", "way at the bottom\n", 0o777),
        file("overwriteme", "FIRST!\n", 0o777),
        directory("addhere"),
        directory("onlyme"),
        file("onlyme/bottom", "bye!\n", 0o777),
    )


def next_layer(number: int) -> Change:
    return all_of(
        file("overwriteme", f"{number} WAS HERE!\n", 0o777),
        file(f"addhere/file-{number}", "same\n", 0o755),
        removed("onlyme"),
        directory("onlyme"),
        file(f"onlyme/file-{number}", "only me!\n", 0o777),
    )


@pytest.mark.timeout(1800)
def test_128LayersMount(snapshots: Snapshots, work: Work) -> None:
    """128 layers: each is mounted on those below it, and in the end a view of them all."""
    flat, parent = work.new_directory(), ""
    for number in range(128):
        layer = next_layer(number) if number else bottom_layer()
        key = f"{work.directory}/prepare-layer-{number}"
        with work.mounted(snapshots.prepare(key, parent, LABELS)) as place:
            assert files(place) == files(flat), f"layer {number} before"
            layer(flat)
            layer(place)
            assert files(place) == files(flat), f"layer {number}"
        parent = f"{work.directory}/committed-{number}"
        snapshots.commit(parent, key, LABELS)
    assert work.files(snapshots.view("fullview", parent, LABELS)) == files(flat)


def content(place: str, name: str) -> str:
    with open(os.path.join(place, name), encoding="utf-8") as source:
        return source.read()
