"""preconditions.py: what is missing is named, with how to get it. The programs are fakes that a test lets fail."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import rbdcli
from graph import preconditions
from graph.preconditions import NotReady
from host import command
from images.options import Options


class Host:
    """A host with these programs and a cluster that has these pools."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "ceph.conf").write_text("[global]\n", encoding="ascii")
        for program in ("mkfs.xfs", "xfs_growfs", "mount", "umount"):
            self.has(program, "exit 1")
        self.has("rados", 'case "$*" in *lspools*) echo other; echo pool ;; esac')
        self.has("rbd", "echo '[]'")

    def has(self, program: str, script: str) -> None:
        path = self.directory / program
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        path.chmod(0o755)

    def check(self, **changes: str) -> None:
        options = Options(**{"datapool": "pool", "configfile": str(self.directory / "ceph.conf"), **changes})  # type: ignore[arg-type]
        pool = rbdcli.Pool(options.datapool, options.namespace, "me", options.configfile, 10.0, "krbd", ())
        preconditions.check(pool, options)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Host(tmp_path)


def test_all_is_there(host: Host) -> None:
    host.check()
    host.check(namespace="space")


def test_all_programs_that_are_missing_are_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find", lambda name: None if name.endswith("mount") else f"/usr/bin/{name}")
    with pytest.raises(NotReady) as caught:
        host.check()
    assert str(caught.value) == (
        "mount is not installed; install the package mount (Debian's name); "
        "umount is not installed; install the package mount (Debian's name)"
    )


def test_each_check_tells_what_it_found_and_stands_after_what_it_needs(host: Host) -> None:
    """So that the doctor can make them one by one."""
    options = Options(datapool="pool", configfile=str(host.directory / "ceph.conf"), namespace="space")
    pool = rbdcli.Pool("pool", "space", "me", options.configfile, 10.0, "krbd", ())
    names: list[str] = []
    for check in preconditions.Preconditions(pool, options).checks():
        assert set(check.needs) <= set(names)
        assert check.look()
        names.append(check.name)
    assert names == ["programs", "configuration", "cluster", "pool", "pool init", "namespace", "pool settings"]


def test_the_rights_that_a_key_needs() -> None:
    options = Options(client="me", datapool="pool", objectpool="objects", namespace="space")
    assert preconditions.rights(options) == (
        "ceph auth caps client.me mon 'profile rbd' osd 'profile rbd pool=pool namespace=space, profile rbd "
        "pool=objects namespace=space' mgr 'profile rbd pool=pool'"
    )


def test_a_configuration_that_is_missing(host: Host) -> None:
    with pytest.raises(NotReady, match=r"/nonexistent does not exist: .*ceph\.configfile"):
        host.check(configfile="/nonexistent")


def test_a_cluster_that_does_not_answer(host: Host) -> None:
    host.has("rados", "echo 'no such key' >&2; exit 1")
    with pytest.raises(NotReady, match=r"no Ceph cluster answers client\.admin with .*: no such key"):
        host.check()


def test_a_pool_that_is_missing(host: Host) -> None:
    with pytest.raises(NotReady, match="pool third does not exist; make it with: ceph osd pool create third && rbd"):
        host.check(datapool="third")


def test_a_pool_that_was_not_made_for_images(host: Host) -> None:
    missing = "error stat-ing pool/rbd_info: (2) No such file or directory"
    host.has("rados", f'case "$*" in *lspools*) echo pool ;; *) echo "{missing}" >&2; exit 1 ;; esac')
    with pytest.raises(NotReady, match="pool pool is not made for images; do: rbd pool init pool"):
        host.check()


def test_a_pool_that_does_not_answer_in_time_is_not_taken_for_one_that_was_not_made(host: Host) -> None:
    """It answers again by the time that `rbd` asks."""
    late = "error stat-ing pool/rbd_info: (110) Connection timed out"
    host.has("rados", f'case "$*" in *lspools*) echo pool ;; *) echo "{late}" >&2; exit 1 ;; esac')
    with pytest.raises(rbdcli.RbdError, match="Connection timed out"):
        host.check()


def test_a_pool_that_the_key_may_not_use_is_not_taken_for_one_that_was_not_made(host: Host) -> None:
    host.has("rados", 'case "$*" in *lspools*) echo pool ;; *) exit 1 ;; esac')
    host.has("rbd", "echo 'rbd: (1) Operation not permitted' >&2; exit 1")
    with pytest.raises(rbdcli.RbdError, match="Operation not permitted"):
        host.check()


@pytest.mark.parametrize("is_made", ["exit 0", "exit 1"])
def test_a_namespace_that_is_missing(host: Host, is_made: str) -> None:
    host.has("rados", f'case "$*" in *lspools*) echo pool ;; *) {is_made} ;; esac')
    host.has("rbd", "echo 'rbd: namespace does not exist' >&2; exit 2")
    with pytest.raises(NotReady, match="pool pool has no namespace space; do: rbd namespace create pool/space"):
        host.check(namespace="space")


# -- a pool for the content ----------------------------------------------------------------------

WITH_OBJECTS = 'case "$*" in *lspools*) echo other; echo pool; echo objects ;; %s esac'


def rados_says(host: Host, cases: str) -> None:
    host.has("rados", WITH_OBJECTS % cases)


def test_a_pool_for_the_content_that_can_be_used(host: Host) -> None:
    rados_says(host, '*--pool\\ objects*\\ rm\\ *) echo "(2) No such file or directory" >&2; exit 1 ;;')
    host.check(objectpool="objects")


def test_a_pool_for_the_content_that_is_missing(host: Host) -> None:
    with pytest.raises(NotReady, match=r"pool third of ceph\.objectpool does not exist; .*allow_ec_overwrites"):
        host.check(objectpool="third")


def test_a_pool_for_the_content_that_the_key_may_not_write_to(host: Host) -> None:
    rados_says(host, '*--pool\\ objects*\\ rm\\ *) echo "(1) Operation not permitted" >&2; exit 1 ;;')
    with pytest.raises(
        NotReady, match=r"client\.me may not write to pool objects of ceph\.objectpool; .*ceph auth caps"
    ):
        host.check(objectpool="objects", client="me")


def test_an_erasure_coded_pool_without_overwrites(host: Host) -> None:
    rados_says(host, '*--pool\\ objects*\\ truncate\\ *) echo "error 95: (95) Operation not supported" >&2; exit 1 ;;')
    with pytest.raises(NotReady, match="takes no overwrites; do: ceph osd pool set objects allow_ec_overwrites true"):
        host.check(objectpool="objects")


def test_a_full_pool_for_the_content_keeps_nobody_from_starting(host: Host) -> None:
    """It does not say whether it could be changed, but was used before."""
    rados_says(host, '*truncate*) echo "error 110: (110) Connection timed out" >&2; exit 1 ;;')
    host.check(objectpool="objects")


def test_a_pool_for_the_content_that_was_not_made_for_images(host: Host) -> None:
    missing = "error stat-ing objects/rbd_info: (2) No such file or directory"
    rados_says(host, f'*--pool\\ objects*stat*) echo "{missing}" >&2; exit 1 ;;')
    with pytest.raises(NotReady, match=r"pool objects of ceph\.objectpool is not made for images; do: rbd pool init"):
        host.check(objectpool="objects")


# -- what the pool says ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "source", "is_refused"),
    [
        ("rbd_move_to_trash_on_remove", "true", "pool", True),
        ("rbd_move_to_trash_on_remove", "1", "pool", True),
        ("rbd_move_to_trash_on_remove", "False", "pool", False),
        ("rbd_move_to_trash_on_remove", "0", "pool", False),
        ("rbd_move_to_trash_on_remove", "true", "config", False),
        ("rbd_default_clone_format", "auto", "pool", True),
        ("rbd_default_clone_format", "2", "pool", False),
        ("rbd_default_order", "20", "pool", False),
    ],
)
def test_what_a_pool_says_of_its_own(host: Host, name: str, value: str, source: str, is_refused: bool) -> None:
    said = [{"name": name, "value": value, "source": source}]
    host.has("rbd", f"""case "$*" in *config*) echo '{json.dumps(said)}' ;; *) echo '[]' ;; esac""")
    if not is_refused:
        host.check()
        return
    with pytest.raises(NotReady, match=f"pool pool itself says {name}={value}.*do: rbd config pool remove pool {name}"):
        host.check()
