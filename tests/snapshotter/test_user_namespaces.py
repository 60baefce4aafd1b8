"""Snapshots for containers in user namespaces: what root owns in an image, the container's root owns, by this kernel.

containerd 1.6 and its overlayfs know nothing of these labels, so there is no reference.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from changes import all_of, directory, file, owned
from client import FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND, Mount, Snapshots
from conftest import remove_all
from lab import Cluster, mounts_below
from lab_fixtures import lab_options
from mounting import mounted, unmount_all
from plugin_client import PYTHON, wait_until
from services import Ceph
from work import Work, depths, refused

UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"
UID, GID, SIZE = 100000, 200000, 65536
IMAGE = "three"
MANY = 12
LABELS = {UID_LABEL: f"0:{UID}:{SIZE}", GID_LABEL: f"0:{GID}:{SIZE}"}
# A process in a user namespace of its own does something at a directory.
_INSIDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
there, ready = os.pipe()
gone, go = os.pipe()
child = os.fork()
if not child:
    os.close(go)
    assert libc.unshare(0x10000000) == 0, os.strerror(ctypes.get_errno())
    os.write(ready, b"x")
    os.read(gone, 1)
    os.setgroups([])
    os.setgid(0)
    os.setuid(int(sys.argv[3]))
    os.chdir(sys.argv[4])
    exec(sys.argv[5])
    os._exit(0)
os.read(there, 1)
for name, line in (("uid_map", sys.argv[1]), ("gid_map", sys.argv[2])):
    with open(f"/proc/{child}/{name}", "w") as target:
        target.write(line)
os.write(go, b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def inside(place: str, script: str, uid: int = 0) -> str:
    """What a script prints that a user of the namespace runs, in a directory."""
    argv = [sys.executable, "-c", _INSIDE, f"0 {UID} {SIZE}", f"0 {GID} {SIZE}", str(uid), place, script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def service(cluster: Cluster, session_directory: str) -> Iterator[Ceph]:
    """A service with an image of three layers: files of root, of a user, and of one without an id in the namespace."""
    made = Ceph(cluster, os.path.join(session_directory, uuid.uuid4().hex[:6]), lab_options())
    made.start()
    client = made.client()
    place = os.path.join(session_directory, f"w-{uuid.uuid4().hex[:6]}")
    os.mkdir(place)
    work = Work(client, place)
    work.layer("one", "", file("of-root", "one", 0o600), file("of-seven", "one", 0o600), owned("of-seven", 7, 8))
    work.layer("two", "one", directory("d", 0o700), file("d/f", "two"), file("secret", "s", 0o600))
    change = all_of(file("of-nobody", "three"), owned("of-nobody", 70000, 70000))
    work.layer(IMAGE, "two", change, file("run", "x", 0o4755))
    yield made
    remove_all(made)
    client.close()
    wait_until(lambda: not made.left(), "what was removed has gone", 600)
    made.end()
    assert mounts_below(made.root) == []


@pytest.fixture
def snapshots(service: Ceph) -> Iterator[Snapshots]:
    """Its client, after which nothing is left but the image."""
    client = service.client()
    yield client
    print(f"--- log\n{service.log_tail()}")
    for name, _ in sorted(depths(client.list()).items(), key=lambda pair: -pair[1]):
        if name not in ("one", "two", IMAGE):
            client.remove(name)
    client.close()
    assert mapped_mounts(service) == []


def mapped_mounts(service: Ceph) -> list[str]:
    """The mounts with mapped owners."""
    return [point for point in mounts_below(service.root) if "/idmapped/" in point]


def option(mounts: Sequence[Mount], name: str) -> str:
    """An option of the one mount."""
    [mount] = mounts
    return next(word for word in mount.options if word.startswith(f"{name}=")).partition("=")[2]


def owner(path: str) -> tuple[int, int]:
    """User and group, as the host has them."""
    found = os.lstat(path)
    return found.st_uid, found.st_gid


def test_root_s_files_are_the_container_s_root_s(snapshots: Snapshots, work: Work) -> None:
    with work.mounted(snapshots.prepare("key", IMAGE, LABELS)) as place:
        assert owner(place) == owner(f"{place}/of-root") == owner(f"{place}/d") == (UID, GID)
        assert owner(f"{place}/of-seven") == (UID + 7, GID + 8)
        assert os.stat(f"{place}/run").st_mode & 0o7777 == 0o4755
        said = inside(place, "print([(n, *os.stat(n)[4:6]) for n in ('.', 'of-root', 'of-seven', 'd/f', 'of-nobody')])")
        assert said == str(
            [(".", 0, 0), ("of-root", 0, 0), ("of-seven", 7, 8), ("d/f", 0, 0), ("of-nobody", 65534, 65534)]
        )
        assert inside(place, "print(open('of-root').read(), open('d/f').read())") == "one two"
        assert inside(place, "print(os.access('secret', os.R_OK), open('of-seven').read())", uid=7) == "False one"


def test_what_a_container_writes_is_owned_by_ids_of_the_host(snapshots: Snapshots, work: Work) -> None:
    """New files, files that are copied up, and removed ones; the layers below stay as they are."""
    mounts = snapshots.prepare("key", IMAGE, LABELS)
    upper = option(mounts, "upperdir")
    assert owner(upper) == (UID, GID)
    with work.mounted(mounts) as place:
        inside(
            place,
            "open('new', 'w').write('n'); os.mkdir('e'); os.chown('new', 5, 6); open('of-root', 'a').write('+');"
            "open('d/f', 'a').write('+'); os.unlink('secret'); os.chmod('of-seven', 0o640); os.symlink('x', 'link')",
        )
        inside(place, "open('of-seven', 'a').write('+')", uid=7)
        assert owner(f"{place}/new") == (UID + 5, GID + 6)
    for name in ("e", "of-root", "d", "d/f", "link"):
        assert owner(f"{upper}/{name}") == (UID, GID)
    assert owner(f"{upper}/new") == (UID + 5, GID + 6)
    assert owner(f"{upper}/of-seven") == (UID + 7, GID + 8)
    with work.mounted(snapshots.mounts("key")) as place:
        assert inside(place, "print(open('of-root').read(), open('d/f').read(), os.path.exists('secret'))") == (
            "one+ two+ False"
        )


def test_others_see_owners_as_they_are(snapshots: Snapshots, work: Work) -> None:
    """A view and a container of the host, before, beside and after; and one with other ids."""
    before = work.files(snapshots.view("before", IMAGE))
    other = {UID_LABEL: f"0:300000:{SIZE}", GID_LABEL: f"0:300000:{SIZE}"}
    with work.mounted(snapshots.prepare("key", IMAGE, LABELS)) as place:
        with work.mounted(snapshots.view("other", IMAGE, other)) as look:
            assert owner(f"{look}/of-root") == (300000, 300000)
            with pytest.raises(OSError, match="Read-only"):
                file("f")(look)
        inside(place, "open('of-root', 'a').write('+'); os.chown('d', 9, 9)")
        assert work.files(snapshots.view("beside", IMAGE)) == before
        assert work.files(snapshots.prepare("plain", IMAGE)) == before
    snapshots.remove("key")
    assert work.files(snapshots.view("after", IMAGE)) == before


def test_on_nothing_and_on_one_layer(snapshots: Snapshots, work: Work) -> None:
    mounts = snapshots.prepare("on nothing", "", LABELS)
    with work.mounted(mounts) as place:
        assert owner(place) == (UID, GID)
        inside(place, "open('f', 'w')")
        assert owner(f"{place}/f") == (UID, GID)
    with work.mounted(snapshots.view("of one", "one", LABELS)) as place:
        assert owner(f"{place}/of-root") == owner(place) == (UID, GID)
    with work.mounted(snapshots.view("of nothing", "", LABELS)) as place:
        assert os.listdir(place) == []


def test_several_ranges(snapshots: Snapshots, work: Work) -> None:
    labels = {UID_LABEL: "0:5000:1,1:6000:65535", GID_LABEL: "0:5000:65536"}
    with work.mounted(snapshots.prepare("key", IMAGE, labels)) as place:
        assert owner(f"{place}/of-root") == (5000, 5000)
        assert owner(f"{place}/of-seven") == (6006, 5008)


def test_a_commit_changes_no_owner(snapshots: Snapshots, work: Work) -> None:
    """As with containerd's overlayfs."""
    with work.mounted(snapshots.prepare("key", IMAGE, LABELS)) as place:
        inside(place, "open('new', 'w')")
    snapshots.commit("name", "key")
    with work.mounted(snapshots.view("look", "name")) as place:
        assert owner(f"{place}/new") == (UID, GID)
        assert owner(f"{place}/of-root") == (0, 0)


def test_what_was_made_in_the_namespace_is_not_mapped_again(snapshots: Snapshots, work: Work) -> None:
    """A commit of such a container; and the copy that containerd 2.x makes for a snapshotter without `remap-ids`.

    It passes the labels all the same (client/snapshotter_opts_unix.go, client/container_opts.go).
    """

    def change_owners(place: str) -> None:
        for top, directories, files in os.walk(place):
            for path in (top, *(os.path.join(top, name) for name in (*directories, *files))):
                uid, gid = owner(path)
                os.lchown(path, UID + uid, GID + gid)

    work.layer("copy", "two", change_owners)
    with work.mounted(snapshots.prepare("on the copy", "copy", LABELS)) as place:
        assert owner(place) == owner(f"{place}/of-root") == owner(f"{place}/d/f") == (UID, GID)
        assert owner(f"{place}/of-seven") == (UID + 7, GID + 8)
    with work.mounted(snapshots.prepare("key", IMAGE, LABELS)) as place:
        inside(place, "open('new', 'w')")
    snapshots.commit("name", "key")
    with work.mounted(snapshots.prepare("on the commit", "name", LABELS)) as place:
        assert owner(f"{place}/new") == owner(f"{place}/of-root") == owner(place) == (UID, GID)


def test_many_layers(snapshots: Snapshots, work: Work, service: Ceph) -> None:
    """Each is mounted once more, and all go again."""
    top = ""
    for at in range(MANY):
        top = work.layer(f"layer {at}", top, file(f"f{at}"))
    began = time.monotonic()
    mounts = snapshots.prepare("key", top, LABELS)
    print(f"{MANY} layers mapped in {time.monotonic() - began:.3f} s")
    with work.mounted(mounts) as place:
        assert len(os.listdir(place)) == MANY
        assert owner(f"{place}/f0") == owner(f"{place}/f{MANY - 1}") == (UID, GID)
    assert len(mapped_mounts(service)) == MANY
    began = time.monotonic()
    snapshots.remove("key")
    print(f"and removed in {time.monotonic() - began:.3f} s")
    assert mapped_mounts(service) == []


@pytest.mark.parametrize("kill", [False, True], ids=["ended", "killed"])
@pytest.mark.parametrize("kind", ["active", "view"])
def test_the_same_after_a_restart(kill: bool, kind: str, service: Ceph, work: Work) -> None:
    """And what runs goes on."""
    calls = service.client()
    told = (calls.prepare if kind == "active" else calls.view)("key", IMAGE, LABELS)
    with work.mounted(told) as place:
        service.restart(kill=kill)
        calls.close()
        calls = service.client()
        assert calls.mounts("key") == told
        assert owner(f"{place}/of-root") == (UID, GID)
        assert len(mapped_mounts(service)) == 3
        with work.mounted(calls.view("look", IMAGE)) as look:
            assert owner(f"{look}/of-root") == (0, 0)
    with work.mounted(calls.mounts("key")) as place:
        assert owner(f"{place}/of-root") == (UID, GID)
    calls.close()


def test_the_same_after_a_loss_of_all_mounts(service: Ceph, work: Work) -> None:
    """As after the start of the host; and if somebody unmounts what is ours."""
    calls = service.client()
    told = calls.prepare("key", IMAGE, LABELS)
    for point in mapped_mounts(service)[:2]:
        unmount_all(point)
    assert calls.mounts("key") == told
    service.kill()
    for point in reversed(mounts_below(service.root)):
        unmount_all(point)
    service.start()
    calls.close()
    calls = service.client()
    assert calls.mounts("key") == told
    with work.mounted(told) as place:
        assert owner(f"{place}/of-root") == (UID, GID)
    calls.close()


def test_what_a_crash_left_is_unmounted(service: Ceph, work: Work) -> None:
    """The snapshot has gone meanwhile."""
    calls = service.client()
    calls.prepare("key", IMAGE, LABELS)
    [name] = {point.split("/idmapped/")[1].split("/")[0] for point in mapped_mounts(service)}
    service.kill()
    there, gone = (os.path.join(service.root, "idmapped", each) for each in (name, "of-before"))
    os.makedirs(f"{gone}/0")
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["mount", "--bind", f"{there}/0", f"{gone}/0"], check=True)
    service.start()
    wait_until(lambda: not os.path.exists(gone), "what nobody knows is unmounted")
    assert len(mapped_mounts(service)) == 3
    calls.close()
    calls = service.client()
    calls.remove("key")
    wait_until(lambda: os.listdir(os.path.dirname(there)) == [], "all are gone")
    calls.close()


def test_a_container_that_runs_when_its_snapshot_goes(snapshots: Snapshots, work: Work) -> None:
    """It has what it needs; containerd itself removes the container first."""
    with work.mounted(snapshots.prepare("key", IMAGE, LABELS)) as place:
        snapshots.remove("key")
        assert inside(place, "print(open('of-root').read())") == "one"


@pytest.mark.parametrize("make", ["prepare", "view"])
@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ({UID_LABEL: "0:100000:65536"}, f"{GID_LABEL} is '', and the other one is not"),
        ({GID_LABEL: "0:100000:65536"}, f"{UID_LABEL} is '', and the other one is not"),
        (
            {UID_LABEL: "0:100000", GID_LABEL: "0:100000:65536"},
            f"{UID_LABEL} is '0:100000', which is not three numbers",
        ),
        ({UID_LABEL: "0:1:5,3:9:5", GID_LABEL: "0:1:5"}, "which has an id twice"),
        ({UID_LABEL: "0:1:5", GID_LABEL: "1:1:5"}, "which has no root"),
        ({UID_LABEL: "0:1:0", GID_LABEL: "0:1:5"}, "which has a range without ids"),
    ],
)
def test_labels_that_are_wrong(
    make: str, labels: dict[str, str], fault: str, snapshots: Snapshots, service: Ceph
) -> None:
    said = refused(INVALID_ARGUMENT, getattr(snapshots, make), "the key", IMAGE, labels)
    assert "'the key'" in said
    assert fault in said
    assert "0:100000:65536" in said
    refused(NOT_FOUND, snapshots.stat, "the key")
    assert mapped_mounts(service) == []


def test_labels_that_become_wrong(snapshots: Snapshots, work: Work) -> None:
    """It can be removed."""
    snapshots.prepare("key", IMAGE, LABELS)
    snapshots.update("key", {**LABELS, UID_LABEL: "x"})
    assert "which is not three numbers" in refused(INVALID_ARGUMENT, snapshots.mounts, "key")
    snapshots.update("key", LABELS)
    with work.mounted(snapshots.mounts("key")) as place:
        assert owner(f"{place}/of-root") == (UID, GID)


def _limited(limit: str) -> str:
    """A Python that goes to no user namespace while a file is there."""
    path = f"{limit}-python3"
    Path(path).write_text(
        "#!/bin/bash\n"
        f'[[ "$*" != *user_namespace_process* || ! -e {limit} ]] || '
        '{ echo "unshare: No space left on device" >&2; exit 1; }\n'
        f'exec -a "$0" {PYTHON} "$@"\n',
        encoding="utf-8",
    )
    os.chmod(path, 0o755)
    return path


def test_a_host_that_cannot(cluster: Cluster, session_directory: str) -> None:
    """It says why, and nothing is left. The limit is the host's; here the program says that there is one."""
    made = Ceph(cluster, os.path.join(session_directory, uuid.uuid4().hex[:6]), lab_options())
    limit = os.path.join(session_directory, f"limit-{uuid.uuid4().hex[:6]}")
    made.run_by(_limited(limit))
    made.start()
    client = made.client()
    work = Work(client, os.path.join(session_directory, f"w-{uuid.uuid4().hex[:6]}"))
    os.mkdir(work.directory)
    work.layer("one", "", file("f"))
    Path(limit).touch()
    said = refused(FAILED_PRECONDITION, client.prepare, "the key", "one", LABELS)
    os.unlink(limit)
    assert re.search(r"'the key'.*user namespace.*No space left on device", said)
    refused(NOT_FOUND, client.stat, "the key")
    assert mapped_mounts(made) == []
    with mounted(client.prepare("the key", "one", LABELS), work.new_directory()) as place:
        assert owner(f"{place}/f") == (UID, GID)
    client.close()
    remove_all(made)
    wait_until(lambda: mounts_below(made.root) == [], "nothing is mounted")
    made.end()


def test_what_is_for_a_user_namespace_is_not_shared(
    cluster: Cluster, session_directory: str, service: Ceph, snapshots: Snapshots, work: Work
) -> None:
    """Not even with the key and the label of a layer that is unpacked, and it is not told of those that are shared."""
    chains = [f"sha256:{number:064x}" for number in (0xABC, 0xABD)]
    reference = "containerd.io/snapshot.ref"
    for chain, labels in zip(chains, ({}, LABELS)):
        key, said = f"default/1/extract-5-a {chain}", {reference: chain, **labels}
        work.change(snapshots.prepare(key, "", said), file("f"))
        snapshots.commit(f"default/2/{chain}", key, {reference: chain})
    other = Ceph(cluster, os.path.join(session_directory, uuid.uuid4().hex[:6]), lab_options())
    other.start()
    client = other.client()

    def is_found(chain: str) -> bool:
        try:
            client.prepare(f"default/1/extract-6-a {chain}", "", {reference: chain})
        except Exception as error:
            assert "another snapshot of this pool is the same" in str(error)
            return True
        client.remove(f"default/1/extract-6-a {chain}")
        return False

    wait_until(lambda: is_found(chains[0]), "what is shared is found", 60)
    assert not is_found(chains[1])
    client.prepare(f"default/1/extract-7-a {chains[0]}", "", {reference: chains[0], **LABELS})
    remove_all(other)
    client.close()
    wait_until(lambda: mounts_below(other.root) == [], "nothing is mounted")
    other.end()
    assert service.running
