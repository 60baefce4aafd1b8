"""What containerd and Docker rely on, and containerd's suite does not look for: errors, keys, labels, usage, mounts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
from changes import all_of, directory, file
from client import (
    ALREADY_EXISTS,
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    UNIMPLEMENTED,
    Info,
    Mount,
    Refused,
    Snapshots,
)
from services import Service
from work import Work, refused

# -- errors ----------------------------------------------------------------------------------------


def test_what_nobody_made_is_not_found(snapshots: Snapshots) -> None:
    for call in (snapshots.stat, snapshots.mounts, snapshots.usage, snapshots.remove):
        refused(NOT_FOUND, call, "missing")
    refused(NOT_FOUND, snapshots.update, "missing", {"a": "b"})
    refused(NOT_FOUND, snapshots.update, "missing", {"a": "b"}, "labels.a")
    refused(NOT_FOUND, snapshots.commit, "name", "missing")
    for make in (snapshots.prepare, snapshots.view):
        refused(NOT_FOUND, make, "key", "missing")
    assert list(snapshots.list()) == []


def made(snapshots: Snapshots, kind: str, name: str, parent: str = "") -> str:
    """A snapshot of this kind."""
    if kind == "view":
        snapshots.view(name, parent)
    elif kind == "active":
        snapshots.prepare(name, parent)
    else:
        snapshots.prepare(f"{name} key", parent)
        snapshots.commit(name, f"{name} key")
    return name


KINDS = ["active", "view", "committed"]


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_names_are_one_space(snapshots: Snapshots, work: Work, kind: str) -> None:
    """Whatever has a name, nothing else gets it. What could not be committed stays, and can be by another name."""
    made(snapshots, kind, "taken")
    before = snapshots.stat("taken")
    refused(ALREADY_EXISTS, snapshots.prepare, "taken")
    refused(ALREADY_EXISTS, snapshots.view, "taken")
    work.change(snapshots.prepare("key"), file("kept", "whole"))
    refused(ALREADY_EXISTS, snapshots.commit, "taken", "key")
    assert snapshots.stat("key").kind == "active"
    assert snapshots.stat("taken") == before
    snapshots.commit("free", "key")
    assert work.names(snapshots.view("look", "free")) == ["kept"]


def test_a_snapshot_cannot_be_committed_to_its_own_key(snapshots: Snapshots) -> None:
    snapshots.prepare("key")
    before = snapshots.stat("key")
    refused(ALREADY_EXISTS, snapshots.commit, "key", "key")
    assert list(snapshots.list()) == [before]


@pytest.mark.parametrize("kind", ["active", "view"])
def test_only_what_is_committed_is_a_parent(snapshots: Snapshots, kind: str) -> None:
    """And what was refused has left nothing: its key is free."""
    made(snapshots, kind, "parent")
    for make in (snapshots.prepare, snapshots.view):
        refused(INVALID_ARGUMENT, make, "key", "parent")
        refused(NOT_FOUND, snapshots.stat, "key")
    snapshots.prepare("key")


def test_only_what_is_active_is_committed(snapshots: Snapshots) -> None:
    made(snapshots, "view", "view")
    made(snapshots, "committed", "committed")
    for key in ("view", "committed"):
        before = snapshots.stat(key)
        refused(FAILED_PRECONDITION, snapshots.commit, "name", key)
        refused(NOT_FOUND, snapshots.stat, "name")
        assert snapshots.stat(key) == before


def test_what_is_committed_has_no_mounts(snapshots: Snapshots) -> None:
    made(snapshots, "committed", "committed")
    refused(FAILED_PRECONDITION, snapshots.mounts, "committed")


@pytest.mark.parametrize("kind", KINDS)
def test_a_parent_stays(snapshots: Snapshots, kind: str) -> None:
    """Of any kind of child. An error other than this one would end containerd's collector."""
    made(snapshots, "committed", "parent")
    made(snapshots, kind, "child", "parent")
    refused(FAILED_PRECONDITION, snapshots.remove, "parent")
    assert snapshots.stat("parent").kind == "committed"
    snapshots.remove("child")
    snapshots.remove("parent")
    refused(NOT_FOUND, snapshots.remove, "parent")


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["name", "parent", "kind", "created_at", "updated_at", "size", "", "Labels.a"])
def test_only_labels_can_be_updated(snapshots: Snapshots, kind: str, path: str) -> None:
    """And nothing is, not even a label, if one of the paths is something else."""
    made(snapshots, kind, "one")
    before = snapshots.update("one", {"a": "1"})
    refused(INVALID_ARGUMENT, snapshots.update, "one", {"a": "2"}, path)
    refused(INVALID_ARGUMENT, snapshots.update, "one", {"a": "2"}, "labels.a", path)
    assert snapshots.stat("one") == before


UPDATES: list[tuple[dict[str, str], list[str], dict[str, str]]] = [
    ({}, [], {}),
    ({"b": "3"}, [], {"b": "3"}),
    ({"b": "3", "c": ""}, [], {"b": "3"}),
    ({"b": "3"}, ["labels"], {"b": "3"}),
    ({"c": "3"}, ["labels.c"], {"a": "1", "b.x/y": "2", "c": "3"}),
    ({"a": "3", "c": "4"}, ["labels.a"], {"a": "3", "b.x/y": "2"}),
    ({"b.x/y": "3"}, ["labels.b.x/y"], {"a": "1", "b.x/y": "3"}),
    ({"a": ""}, ["labels.a"], {"b.x/y": "2"}),
    ({}, ["labels.a"], {"b.x/y": "2"}),
    ({}, ["labels.missing"], {"a": "1", "b.x/y": "2"}),
    ({"a": "3"}, ["labels."], {"a": "1", "b.x/y": "2"}),
    ({}, ["labels"], {}),
    ({"a": "3"}, ["labels.a", "labels.b.x/y"], {"a": "3"}),
    ({"a": "ä 漢 = , \" '"}, ["labels.a"], {"a": "ä 漢 = , \" '", "b.x/y": "2"}),
]


@pytest.mark.parametrize(("labels", "paths", "after"), UPDATES)
def test_labels_are_replaced_set_and_removed(
    snapshots: Snapshots, labels: dict[str, str], paths: list[str], after: dict[str, str]
) -> None:
    """The answer is the whole of what Stat says then, and only the time of the update changes."""
    snapshots.prepare("one", "", {"a": "1", "b.x/y": "2"})
    before = snapshots.stat("one")
    start = time.time_ns()
    found = snapshots.update("one", labels, *paths)
    assert start <= found.updated <= time.time_ns()
    assert found == Info("one", "", "active", before.created, found.updated, after)
    assert snapshots.stat("one") == found
    assert list(snapshots.list()) == [found]


def test_labels_and_times_of_a_committed_snapshot_are_those_of_its_commit(snapshots: Snapshots) -> None:
    """Nothing is inherited from the active one, which began earlier; a child inherits nothing either."""
    snapshots.prepare("key", "", {"a": "1", "both": "1"})
    active = snapshots.stat("key")
    start = time.time_ns()
    snapshots.commit("with", "key", {"b": "2", "both": "2"})
    found = snapshots.stat("with")
    assert active.created < start <= found.created <= time.time_ns()
    assert found == Info("with", "", "committed", found.created, found.created, {"b": "2", "both": "2"})
    snapshots.prepare("key", "with", {"a": "1"})
    snapshots.commit("without", "key")
    assert snapshots.stat("without").labels == {}
    snapshots.view("view", "with")
    assert snapshots.stat("view").labels == {}
    assert snapshots.stat("with") == found


# -- keys ------------------------------------------------------------------------------------------

ODD_KEYS = [
    "default/1/extract-753446252-d9g0 sha256:f25a38e0c5a3",
    "a/../../b",
    "..",
    "/",
    "//",
    "-rf",
    "rbd/image@snap",
    "%41%2F",
    "quote \" and ' and \\",
    "ä 漢 😀",
    "two\nlines",
    " blanks ",
    "k" * 500,
]


@pytest.mark.parametrize("key", ODD_KEYS, ids=lambda key: repr(key)[:20])
def test_any_text_is_a_key(snapshots: Snapshots, work: Work, key: str) -> None:
    """It is no path and no name of an image: containerd puts blanks, slashes and colons into it."""
    work.change(snapshots.prepare(key), file("f", "x"))
    assert snapshots.stat(key).name == key
    name = f"{key} name"
    snapshots.commit(name, key)
    assert work.names(snapshots.prepare(key, name)) == ["f"]
    assert snapshots.stat(key).parent == name
    snapshots.update(key, {"a": "b"}, "labels.a")
    assert [info.name for info in snapshots.list("labels.a==b")] == [key]
    snapshots.remove(key)
    assert [info.name for info in snapshots.list()] == [name]


def test_keys_that_differ_little_are_not_the_same(snapshots: Snapshots) -> None:
    keys = ["a", "A", "a ", "a/", "a\u0308", "\u00e4", "a\nb"]
    for key in keys:
        snapshots.prepare(key, "", {"is": "x"})
    assert sorted(info.name for info in snapshots.list()) == sorted(keys)


def test_a_key_is_free_again(snapshots: Snapshots, work: Work) -> None:
    """After Commit and after Remove at once; what comes then is empty."""
    for at in range(3):
        mounts = snapshots.prepare("key")
        assert work.names(mounts) == []
        work.change(mounts, file("f"))
        if at == 1:
            snapshots.remove("key")
        else:
            snapshots.commit(f"layer {at}", "key")
    assert sorted(info.name for info in snapshots.list()) == ["layer 0", "layer 2"]


def test_cleanup_harms_nothing(snapshots: Snapshots, work: Work) -> None:
    work.layer("kept", "", file("f"))
    work.layer("gone", "kept")
    snapshots.remove("gone")
    snapshots.prepare("active", "kept")
    try:
        snapshots.cleanup()
    except Refused as error:
        assert error.code == UNIMPLEMENTED
    assert work.names(snapshots.mounts("active")) == ["f"]


# -- usage -----------------------------------------------------------------------------------------

MIB = 1 << 20


def big(name: str, mebibytes: int) -> Callable[[str], None]:
    """A file of random bytes, which nothing on the way makes smaller."""

    def change(top: str) -> None:
        with open(os.path.join(top, name), "wb") as target:
            for _ in range(mebibytes):
                target.write(os.urandom(MIB))

    return change


def test_usage_is_what_a_snapshot_brings(snapshots: Snapshots, work: Work) -> None:
    """Not what is below it. What is active is measured when it is asked for; what is committed stays as it was then."""
    work.layer("below", "", big("below", 8))
    assert 8 * MIB <= snapshots.usage("below").size < 9 * MIB
    mounts = snapshots.prepare("key", "below")
    assert snapshots.usage("key").size < MIB
    work.change(mounts, big("one", 2), *(file(f"f{at}") for at in range(20)))
    first = snapshots.usage("key")
    assert 2 * MIB <= first.size < 3 * MIB
    assert 21 <= first.inodes < 40
    work.change(snapshots.mounts("key"), big("two", 3))
    second = snapshots.usage("key")
    assert 5 * MIB <= second.size < 6 * MIB
    assert second.inodes == first.inodes + 1
    snapshots.commit("name", "key")
    committed = snapshots.usage("name")
    assert 5 * MIB <= committed.size < 6 * MIB
    assert committed.inodes == second.inodes
    snapshots.update("name", {"a": "b"})
    snapshots.view("view", "name")
    assert snapshots.usage("view").size < MIB
    assert snapshots.usage("name") == committed


def test_usage_of_a_snapshot_that_is_written_to(snapshots: Snapshots, work: Work) -> None:
    """The kubelet asks every ten seconds, while containers run."""
    work.layer("below", "")
    with work.mounted(snapshots.prepare("key", "below")) as place:
        big("one", 4)(place)
        os.sync()
        assert 4 * MIB <= snapshots.usage("key").size < 5 * MIB


# -- mounts ----------------------------------------------------------------------------------------


def parents(work: Work) -> list[str]:
    """No parent, one, and several."""
    work.layer("one", "", file("of one"))
    work.layer("two", "one", file("of two"))
    work.layer("three", "two", directory("of three"))
    return ["", "one", "three"]


def read_only(mounts: list[Mount]) -> list[Mount]:
    """As containerd's clients make them to look at a container that runs: its upper directory becomes a lower one."""
    found = []
    for mount in mounts:
        words = [word for word in mount.options if word not in ("rw", "ro") and not word.startswith("workdir=")]
        upper = next((word.partition("=")[2] for word in words if word.startswith("upperdir=")), "")
        if upper:
            words = [
                word.replace("lowerdir=", f"lowerdir={upper}:", 1) if word.startswith("lowerdir=") else word
                for word in words
                if not word.startswith("upperdir=")
            ]
        found.append(Mount(mount.type, mount.source, mount.target, (*words, "ro")))
    return found


def test_mounts_are_the_same_at_any_time(service: Service, snapshots: Snapshots, work: Work) -> None:
    """It is the only call before a stopped container starts again, also when the service was restarted or died."""
    answers = {}
    for parent in parents(work):
        answers[f"active on {parent}"] = snapshots.prepare(f"active on {parent}", parent)
        answers[f"view of {parent}"] = snapshots.view(f"view of {parent}", parent)
    for key, mounts in answers.items():
        assert mounts
        assert snapshots.mounts(key) == mounts
        work.files(mounts)
        assert snapshots.mounts(key) == mounts
    for kill in (False, True):
        service.restart(kill=kill)
        client = service.client()
        assert {key: client.mounts(key) for key in answers} == answers
        assert work.names(client.mounts("active on three")) == ["of one", "of three", "of two"]
        assert work.names(client.mounts("view of one")) == ["of one"]
        client.close()


def test_a_view_of_nothing_is_an_empty_directory(snapshots: Snapshots, work: Work) -> None:
    """No check of the suite mounts one."""
    with work.mounted(snapshots.view("view")) as place:
        assert os.listdir(place) == []
        with pytest.raises(OSError, match="Read-only"):
            file("f")(place)


def test_an_active_snapshot_is_never_read_only(snapshots: Snapshots, work: Work) -> None:
    """Newer containerds take the layer of such an answer for one that is filled already."""
    for parent in parents(work):
        mounts = snapshots.prepare(f"on {parent}", parent)
        assert "ro" not in mounts[-1].options
        work.change(mounts, file("new"))


def test_snapshots_are_mounted_several_times_at_once(snapshots: Snapshots, work: Work) -> None:
    """A view at two places; a container that runs, and the same again, read-only, as docker commit does it."""
    for parent in parents(work):
        view = snapshots.view(f"view of {parent}", parent)
        with work.mounted(view) as one, work.mounted(view) as two:
            assert os.listdir(one) == os.listdir(two)
        active = snapshots.prepare(f"active on {parent}", parent)
        with work.mounted(active) as running:
            file("new", "seen")(running)
            with work.mounted(read_only(snapshots.mounts(f"active on {parent}"))) as look:
                assert sorted(os.listdir(look)) == sorted(os.listdir(running))
                with pytest.raises(OSError, match="Read-only"):
                    file("other")(look)
            file("after")(running)


def test_what_was_committed_does_not_change_any_more(snapshots: Snapshots, work: Work) -> None:
    """Its children write to themselves only, and they do not see each other."""
    work.layer("below", "", file("f", "below"), directory("d"))
    before = work.files(snapshots.view("before", "below"))
    for at in range(3):
        mounts = snapshots.prepare(f"child {at}", "below")
        assert work.files(mounts) == before
        work.change(mounts, file("f", f"child {at}"), file("d/new"))
    assert work.files(snapshots.view("after", "below")) == before
    work.layer("other", "below", all_of())
    assert work.files(snapshots.view("other view", "other")) == before


def test_state_outlives_the_process(service: Service, snapshots: Snapshots, work: Work) -> None:
    """Infos to the nanosecond, usage, and a mount that is in use while the service dies."""
    work.layer("below", "", file("f", "below"))
    snapshots.update("below", {"a": "1"})
    snapshots.view("view", "below", {"v": "1"})
    with work.mounted(snapshots.prepare("active", "below", {"l": "1"})) as place:
        file("early")(place)
        before = sorted(snapshots.list(), key=lambda info: info.name)
        usage = snapshots.usage("below")
        for kill in (True, False):
            service.restart(kill=kill)
            client = service.client()
            assert sorted(client.list(), key=lambda info: info.name) == before
            assert client.usage("below") == usage
            file(f"late {kill}")(place)
            client.close()
    client = service.client()
    client.commit("above", "active")
    assert work.names(client.view("look", "above")) == ["early", "f", "late False", "late True"]
    client.close()
