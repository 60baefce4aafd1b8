"""rbdcli.py: one command line per verb, exit codes as exceptions, and what Ceph's releases print.

A fake `rbd` (and `ceph`) that is first on PATH writes down its argv, prints what the test wants, and exits.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rbdcli
from host import command, environment
from rbdcli import Data, Info, Lock, Mapping, Parent, Pool, Trashed

CLIENT = ["--conf", "/etc/c.conf", "--id", "me", "--client-mount-timeout", "5"]
WHERE = ["--pool", "pool", "--namespace", "space"]
IMAGE = [*WHERE, "--image", "img"]
DESTINATION = ["--dest-pool", "pool", "--dest-namespace", "space", "--dest", "new"]
FORMAT_2 = ["--rbd-default-clone-format", "2"]


def layout(data_pool: str = "pool") -> list[str]:
    """All that librbd would take from a configuration otherwise."""
    return ["--object-size", "1048576B", "--stripe-unit", "1048576B", "--stripe-count", "1", "--data-pool", data_pool]


class Fake:
    """The fake programs, and what they were called with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("rbd", "ceph"):
            self.says(name=name)

    def says(self, stdout: Any = "", *, stderr: str = "", status: int = 0, name: str = "rbd") -> None:
        """Let it print this (JSON if it is no text) and exit so."""
        text = stdout if isinstance(stdout, str) else json.dumps(stdout)
        script = f"""#!/bin/sh
for word in {name} "$@"; do printf '%s\\0' "$word"; done >>{self.directory}/calls
printf '\\n' >>{self.directory}/calls
printf %s {shlex.quote(text)}
printf %s {shlex.quote(stderr)} >&2
exit {status}
"""
        path = self.directory / name
        path.write_text(script, encoding="utf-8")
        path.chmod(0o755)

    def calls(self) -> list[list[str]]:
        """The argv of each call so far."""
        lines = (self.directory / "calls").read_text(encoding="utf-8").splitlines()
        return [line.split("\0")[:-1] for line in lines]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Fake(tmp_path)


def pool(**changes: Any) -> Pool:
    values: dict[str, Any] = {
        "name": "pool",
        "namespace": "space",
        "client": "me",
        "configfile": "/etc/c.conf",
        "timeout": 10.0,
        "device_type": "krbd",
        "map_options": (),
    }
    return Pool(**{**values, **changes})


CALLS: list[tuple[Callable[[Pool], object], list[str]]] = [
    (
        lambda p: p.create("img", 1 << 30, ["layering", "object-map"], 1 << 20, ""),
        [
            *("create", *CLIENT, *IMAGE, "--image-feature", "layering", "--image-feature", "object-map"),
            *(*layout(), "--image-format", "2", "--size", "1073741824B"),
        ],
    ),
    (
        lambda p: p.clone(Parent("img", "empty"), "new", ["layering"], 1 << 20, ""),
        [
            "clone",
            *CLIENT,
            *IMAGE,
            "--snap",
            "empty",
            *DESTINATION,
            "--image-feature",
            "layering",
            *layout(),
            *FORMAT_2,
        ],
    ),
    (
        lambda p: p.deep_copy("img", "new", 1 << 20, "objects"),
        ["deep", "cp", *CLIENT, *IMAGE, *DESTINATION, *layout("objects"), *FORMAT_2, "--no-progress"],
    ),
    (lambda p: p.rename("img", "new"), ["rename", *CLIENT, *IMAGE, *DESTINATION]),
    (lambda p: p.resize("img", 5), ["resize", *CLIENT, *IMAGE, "--size", "5B", "--no-progress"]),
    (lambda p: p.remove("img"), ["rm", *CLIENT, *IMAGE, *rbdcli.REMOVAL, "--no-progress"]),
    (
        lambda p: p.set_metadata("img", "key", "--value"),
        ["image-meta", "set", *CLIENT, *IMAGE, "--", "key", "--value"],
    ),
    (
        lambda p: p.snapshot("img", "kept"),
        ["snap", "create", *CLIENT, *IMAGE, "--snap", "kept", "--no-progress"],
    ),
    (
        lambda p: p.remove_slowly("img", lambda: False),
        ["rm", *CLIENT, *IMAGE, *rbdcli.REMOVAL],
    ),
    (
        lambda p: p.remove_trashed("1234", lambda: False),
        ["trash", "rm", *CLIENT, *WHERE, "--image-id", "1234"],
    ),
]


@pytest.mark.parametrize(("call", "words"), CALLS, ids=[" ".join(words[:2]) for _, words in CALLS])
def test_the_command_line_of_each_verb(fake: Fake, call: Callable[[Pool], object], words: list[str]) -> None:
    call(pool())
    assert fake.calls() == [["rbd", *words]]


def test_without_a_namespace_none_is_named(fake: Fake) -> None:
    pool(namespace="").clone(Parent("img", "empty"), "new", [], 1 << 20, "")
    assert not [word for word in fake.calls()[0] if "namespace" in word]


def test_what_is_to_grow_is_not_mapped_exclusively(fake: Fake) -> None:
    fake.says("/dev/rbd0\n")
    pool().map("img", read_only=False, exclusive=False)
    words = ["rbd", "device", "map", *CLIENT, "--device-type", "krbd", *IMAGE, "--options", "noudev,rw"]
    assert fake.calls() == [words]


def test_a_writable_map_is_exclusive_and_a_read_only_one_is_not(fake: Fake) -> None:
    fake.says("/dev/rbd0\n", stderr="rbd: warning: image already mapped as /dev/rbd1\n")
    assert pool().map("img", read_only=False) == "/dev/rbd0"
    assert pool(map_options=("ms_mode=secure", "queue_depth=64")).map("img", read_only=True) == "/dev/rbd0"
    head = ["rbd", "device", "map", *CLIENT, "--device-type", "krbd", *IMAGE]
    assert fake.calls() == [
        [*head, "--exclusive", "--options", "noudev,rw"],
        [*head, "--read-only", "--options", "noudev,ro,ms_mode=secure,queue_depth=64"],
    ]


def test_a_map_is_known_by_its_command_line(fake: Fake) -> None:
    """Also that of an earlier life, with other options of the mapping."""
    fake.says("/dev/rbd0\n")
    pool(map_options=("queue_depth=64",)).map("img", read_only=True)
    [words] = fake.calls()
    assert pool().mapped_by(words) == "img"
    other = (
        {"name": "other"},
        {"namespace": ""},
        {"namespace": "other"},
        {"client": "other"},
        {"configfile": "/other"},
    )
    assert [pool(**changes).mapped_by(words) for changes in other] == [""] * 5
    pool(namespace="").map("img", read_only=True)
    words = fake.calls()[-1]
    assert [pool(namespace="").mapped_by(words), pool().mapped_by(words)] == ["img", ""]


def test_rbd_nbd_has_no_udev_option_and_as_many_devices_as_it_likes(fake: Fake) -> None:
    fake.says("/dev/nbd0\n")
    assert pool(device_type="nbd").map("img", read_only=False) == "/dev/nbd0"
    fake.says(mapped("img", "/dev/nbd0"))
    pool(device_type="nbd").unmap("/dev/nbd0", "img")
    asked = pool(device_type="nbd", map_options=("timeout=20",))
    fake.says("/dev/nbd0\n")
    asked.map("img", read_only=True)
    assert fake.calls() == [
        ["rbd", "device", "map", *CLIENT, "--device-type", "nbd", *IMAGE, "--exclusive", "--options", "try-netlink"],
        ["rbd", "device", "list", *CLIENT, "--device-type", "nbd", "--format", "json"],
        ["rbd", "device", "unmap", *CLIENT, "--device-type", "nbd", "/dev/nbd0"],
        [
            *("rbd", "device", "map", *CLIENT, "--device-type", "nbd", *IMAGE, "--read-only"),
            *("--options", "try-netlink,timeout=20"),
        ],
    ]


def mapped(image: str, device: str) -> str:
    return json.dumps([{"pool": "pool", "namespace": "space", "name": image, "device": device}])


def test_a_device_is_unmapped(fake: Fake) -> None:
    fake.says(mapped("img", "/dev/rbd7"))
    pool().unmap("/dev/rbd7", "img")
    assert fake.calls() == [
        ["rbd", "device", "list", *CLIENT, "--device-type", "krbd", "--format", "json"],
        ["rbd", "device", "unmap", *CLIENT, "--device-type", "krbd", "/dev/rbd7", "--options", "noudev"],
    ]


@pytest.mark.parametrize("listed", [("img", "/dev/rbd8"), ("other", "/dev/rbd7")])
def test_a_device_that_is_another_images_now_is_not_unmapped(fake: Fake, listed: tuple[str, str]) -> None:
    fake.says(mapped(*listed))
    with pytest.raises(rbdcli.NotMapped):
        pool().unmap("/dev/rbd7", "img")
    assert [words[2] for words in fake.calls()] == ["list"]


@pytest.mark.parametrize(
    ("status", "listed", "kind"),
    [(22, "/dev/rbd8", rbdcli.NotMapped), (22, "/dev/rbd7", rbdcli.RbdError), (16, "/dev/rbd8", rbdcli.ImageBusy)],
)
def test_a_device_that_cannot_be_unmapped(fake: Fake, status: int, listed: str, kind: type[rbdcli.RbdError]) -> None:
    """Only the list of devices tells whether it was unmapped meanwhile."""
    script = f"""#!/bin/sh
case "$*" in
'device list '*)
    if mkdir {fake.directory}/once 2>/dev/null; then
        echo '{mapped("img", "/dev/rbd7")}'
    else
        echo '{mapped("img", listed)}'
    fi ;;
*) exit {status} ;;
esac
"""
    (fake.directory / "rbd").write_text(script, encoding="utf-8")
    with pytest.raises(rbdcli.RbdError) as raised:
        pool().unmap("/dev/rbd7", "img")
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("info_status", "lockers", "kind"),
    [
        (2, "", rbdcli.ImageMissing),
        (0, '[{"id":"auto 1","locker":"client.5","address":"127.0.0.1:0/9"}]', rbdcli.ImageLocked),
        (0, "[]", rbdcli.RbdError),
    ],
)
def test_rbd_nbd_that_fails_does_not_say_why(
    fake: Fake, info_status: int, lockers: str, kind: type[rbdcli.RbdError]
) -> None:
    """Whatever it was, `rbd device map` ends with 22 (seen on 16.2.15)."""
    info = {"name": "img", "size": 1}
    script = f"""#!/bin/sh
case $1 in
device) echo 'rbd: rbd-nbd failed with error: exit status: 1' >&2; exit 22 ;;
info) echo '{json.dumps(info)}'; exit {info_status} ;;
lock) echo '{lockers}' ;;
ls) echo '[]' ;;
esac
"""
    (fake.directory / "rbd").write_text(script, encoding="utf-8")
    with pytest.raises(rbdcli.RbdError) as raised:
        pool(device_type="nbd").map("img", read_only=False)
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (2, rbdcli.ImageMissing),
        (16, rbdcli.ImageBusy),
        (17, rbdcli.ImageExists),
        (30, rbdcli.ImageLocked),
        (39, rbdcli.ImageHasChildren),
        (22, rbdcli.RbdError),
        (1, rbdcli.RbdError),
    ],
)
def test_the_exit_status_is_the_meaning(fake: Fake, status: int, kind: type[rbdcli.RbdError]) -> None:
    """Whatever the text says: it is translated, reworded and extended between releases."""
    script = f"""#!/bin/sh
[ "$1" != ls ] || exec echo '[]'
echo 'rbd: (2) No such file or directory, exists already, busy' >&2
exit {status}
"""
    (fake.directory / "rbd").write_text(script, encoding="utf-8")
    with pytest.raises(rbdcli.RbdError) as caught:
        pool().remove("img")
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert str(caught.value).startswith("rbd rm: rbd: (2) No such file")


def test_no_image_is_missing_in_a_pool_that_cannot_be_listed(fake: Fake) -> None:
    """A deleted pool and a key that is not found end with 2 too: layers would be forgotten that are there."""
    fake.says(stderr="rbd: couldn't connect to the cluster!\n", status=2)
    for ask in (lambda: pool().info("img"), lambda: pool().remove("img"), pool().list):
        with pytest.raises(rbdcli.PoolMissing, match=r"rbd ls: rbd: couldn't connect to the cluster! \(exit 2\)"):
            ask()


def test_a_missing_rbd_and_a_hanging_one_are_no_answers_of_ceph(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake.directory / "rbd").write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    with pytest.raises(command.CommandTimeout, match=r"rbd ls: no answer within 0\.5 s"):
        pool(timeout=0.5).list()
    monkeypatch.setenv("PATH", str(fake.directory))
    monkeypatch.setattr(environment, "PLACES", ())
    (fake.directory / "rbd").unlink()
    with pytest.raises(command.CommandMissing):
        pool().list()


def test_noise_on_stderr_is_no_output(fake: Fake) -> None:
    fake.says(["a", "b"], stderr="2026-01-02T03:04:05.678+0000 7f 0 librbd: noise\n")
    assert pool().list() == ["a", "b"]


# ceph src/krbd.cc, dump_one_image: an object keyed by number up to Luminous, a list since; `namespace` since Nautilus.
KRBD_LUMINOUS = {"0": {"pool": "pool", "name": "a", "snap": "-", "device": "/dev/rbd0"}}
KRBD_MIMIC = [{"id": "0", "pool": "pool", "name": "a", "snap": "-", "device": "/dev/rbd0"}]
KRBD_NAUTILUS = [
    {"id": "0", "pool": "pool", "namespace": "", "name": "a", "snap": "-", "device": "/dev/rbd0"},
    {"id": "1", "pool": "pool", "namespace": "space", "name": "a", "snap": "-", "device": "/dev/rbd1"},
    {"id": "2", "pool": "other", "namespace": "", "name": "a", "snap": "-", "device": "/dev/rbd2"},
    {"id": "3", "pool": "pool", "namespace": "", "name": "b", "snap": "-", "device": "/dev/rbd3"},
]
# ceph src/tools/rbd_nbd/rbd-nbd.cc, do_list_mapped_devices: `image`, a number as id; with `cookie` on 16.2.15.
NBD_NAUTILUS = [{"id": 1683, "pool": "pool", "namespace": "", "image": "a", "snap": "", "device": "/dev/nbd0"}]
NBD_PACIFIC = [{**NBD_NAUTILUS[0], "cookie": ""}]


@pytest.mark.parametrize(
    ("kind", "said", "namespace", "expected"),
    [
        ("krbd", KRBD_LUMINOUS, "", [Mapping("a", "/dev/rbd0")]),
        ("krbd", KRBD_MIMIC, "", [Mapping("a", "/dev/rbd0")]),
        ("krbd", KRBD_NAUTILUS, "", [Mapping("a", "/dev/rbd0"), Mapping("b", "/dev/rbd3")]),
        ("krbd", KRBD_NAUTILUS, "space", [Mapping("a", "/dev/rbd1")]),
        ("krbd", [], "", []),
        ("krbd", {}, "", []),
        ("krbd", "", "", []),
        ("nbd", NBD_NAUTILUS, "", [Mapping("a", "/dev/nbd0")]),
        ("nbd", NBD_PACIFIC, "", [Mapping("a", "/dev/nbd0")]),
        ("nbd", NBD_PACIFIC, "space", []),
    ],
)
def test_device_list(fake: Fake, kind: str, said: Any, namespace: str, expected: list[Mapping]) -> None:
    fake.says(said)
    assert pool(namespace=namespace, device_type=kind).mappings() == expected
    assert fake.calls()[0] == ["rbd", "device", "list", *CLIENT, "--device-type", kind, "--format", "json"]


def test_what_a_pool_says_of_its_own_is_told_from_what_is_configured_elsewhere(fake: Fake) -> None:
    fake.says(
        [
            {"name": "rbd_default_clone_format", "value": "1", "source": "pool"},
            {"name": "rbd_move_to_trash_on_remove", "value": "true", "source": "config"},
        ]
    )
    assert pool().overrides() == {"rbd_default_clone_format": "1"}
    assert fake.calls() == [["rbd", "config", "pool", "list", *CLIENT, "--format", "json", "--", "pool"]]


# ceph src/test/cli-integration/rbd/formatted-output.t; `pool_namespace`, `trash` and `id` of the parent since Nautilus.
INFO = {
    "name": "img", "id": "5e2d", "size": 536870912, "objects": 128, "order": 22, "object_size": 4194304,
    "block_name_prefix": "rbd_data.5e2d", "format": 2, "features": ["layering"], "op_features": [], "flags": [],
}  # fmt: skip
PARENT_MIMIC = {"pool": "pool", "image": "base", "snapshot": "empty", "overlap": 536870912}
PARENT_NAUTILUS = {**PARENT_MIMIC, "pool_namespace": "space", "id": "5e2c", "trash": False}
# Seen on 16.2.15: the parent is in the trash, and so is its snapshot, which has lost its name.
PARENT_TRASHED = {**PARENT_NAUTILUS, "trash": True}


@pytest.mark.parametrize("parent", [None, PARENT_MIMIC, PARENT_NAUTILUS, PARENT_TRASHED])
def test_info(fake: Fake, parent: dict[str, Any] | None) -> None:
    fake.says({**INFO, "parent": parent} if parent else INFO)
    assert pool().info("img") == Info(536870912)
    assert fake.calls() == [["rbd", "info", *CLIENT, *IMAGE, "--format", "json"]]


def test_where_the_content_of_an_image_lies(fake: Fake) -> None:
    """`rbd info` names a pool for it only if that is another one."""
    fake.says(INFO)
    assert pool().info("img").data_pool == ""
    assert pool().data("img") == Data("5e2d", "rbd_data.5e2d", 1 << 22, "pool")
    fake.says({**INFO, "data_pool": "objects", "block_name_prefix": "rbd_data.3.5e2d"})
    assert pool().info("img").data_pool == "objects"
    assert pool().data("img") == Data("5e2d", "rbd_data.3.5e2d", 1 << 22, "objects")


# ceph src/tools/rbd/action/Status.cc: an array since Nautilus, before it an object keyed by a number.
WATCHER = {"address": "10.0.0.1:0/123", "client": 4123, "cookie": 18446462598732840961}


@pytest.mark.parametrize("said", [{"watchers": [WATCHER]}, {"watchers": {"watcher": WATCHER}}])
def test_watchers(fake: Fake, said: Any) -> None:
    fake.says(said)
    assert pool().watchers("img") == ["10.0.0.1:0/123"]
    assert fake.calls() == [["rbd", "status", *CLIENT, *IMAGE, "--format", "json"]]


# ceph src/tools/rbd/action/Lock.cc: an array since Nautilus, before it an object keyed by the lock's id.
LOCKER = {"locker": "client.4123", "address": "10.0.0.1:0/123"}


@pytest.mark.parametrize("said", [[{"id": "auto 1", **LOCKER}], {"auto 1": LOCKER}])
def test_locks(fake: Fake, said: Any) -> None:
    fake.says(said)
    assert pool().locks("img") == [Lock("auto 1", "client.4123", "10.0.0.1:0/123")]
    fake.says("")
    assert pool().locks("img") == []


def test_created_is_read_as_utc(fake: Fake) -> None:
    """As ceph prints it (src/tools/rbd/action/Info.cc), by ctime(3)."""
    fake.says({**INFO, "create_timestamp": "Thu Jan  1 01:00:01 1970"})
    assert pool().created("img") == 3601.0


# ceph src/tools/rbd/action/Trash.cc; an empty trash is [].
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], []),
        (
            [
                {
                    "id": "5e2d",
                    "name": "img",
                    "source": "USER_PARENT",
                    "deleted_at": "Thu Jan  1 00:00:07 1970",
                    "status": "expired at Thu Jan  1 00:00:07 1970",
                }
            ],
            [Trashed("5e2d", "img", "USER_PARENT", 7.0)],
        ),
    ],
)
def test_trash_ls(fake: Fake, said: Any, expected: list[Trashed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    fake.says(said)
    assert pool().trashed() == expected
    assert fake.calls() == [["rbd", "trash", "ls", *CLIENT, "--all", "--long", *WHERE, "--format", "json"]]


# ceph src/tools/rbd/action/DiskUsage.cc: one entry for each snapshot and one for the image. Seen on 16.2.15.
def test_what_an_image_holds_itself(fake: Fake) -> None:
    entry = {"name": "img", "id": "5e2d", "provisioned_size": 1 << 30, "used_size": 4 << 20}
    fake.says({"images": [{**entry, "snapshot": "backup", "snapshot_id": 4}, entry], "total_used_size": 8 << 20})
    assert pool().used("img") == 8 << 20
    assert fake.calls() == [["rbd", "du", *CLIENT, *IMAGE, "--format", "json"]]


# ceph src/tools/rbd/action/Diff.cc; with --whole-object each extent is an object, whichever ancestor has it.
def test_where_an_image_is_read_from(fake: Fake) -> None:
    extent = {"length": 1 << 18, "exists": "true"}
    fake.says([{"offset": 0, **extent}, {"offset": 1 << 18, **extent}])
    assert pool().extents("img") == [0, 1 << 18]
    assert fake.calls() == [["rbd", "diff", *CLIENT, *IMAGE, "--whole-object", "--format", "json"]]


def test_when_an_image_was_written_to_last(fake: Fake) -> None:
    """Ceph before Mimic does not tell."""
    fake.says({**INFO, "modify_timestamp": "Thu Jan  1 00:00:07 1970"})
    assert pool().written("img") == "Thu Jan  1 00:00:07 1970"
    fake.says(INFO)
    assert pool().written("img") == ""


def test_metadata(fake: Fake) -> None:
    fake.says({"docker_graph_driver.fs": "xfs", "number": 1})
    assert pool().metadata("img") == {"docker_graph_driver.fs": "xfs", "number": "1"}
    fake.says("")
    assert pool().metadata("img") == {}


def test_snapshots_of_a_trashed_image_are_removed_one_by_one(fake: Fake) -> None:
    fake.says([{"id": 4, "name": "empty", "size": 5, "protected": "false", "timestamp": "Mon"}])
    assert pool().remove_snapshots_of_trashed("5e2d") == 1
    assert fake.calls() == [
        ["rbd", "snap", "ls", *CLIENT, *WHERE, "--image-id", "5e2d", "--format", "json"],
        ["rbd", "snap", "rm", *CLIENT, *WHERE, "--image-id", "5e2d", "--snap", "empty", "--no-progress"],
    ]


def test_a_snapshot_that_goes_by_itself_does_not_keep_the_others(fake: Fake) -> None:
    """Every driver of the pool empties the trash."""
    script = f"""#!/bin/sh
case "$*" in
'snap ls '*) echo '[{{"id": 4, "name": "kept"}}, {{"id": 5, "name": "also"}}]' ;;
'snap rm '*'--snap kept '*) exit 2 ;;
'ls '*) echo '[]' ;;
*) echo "$*" >>{fake.directory}/done ;;
esac
"""
    (fake.directory / "rbd").write_text(script, encoding="utf-8")
    assert pool().remove_snapshots_of_trashed("5e2d") == 2
    assert "--snap also " in (fake.directory / "done").read_text(encoding="utf-8")


def test_ceph_commands_have_a_deadline_of_their_own(fake: Fake) -> None:
    fake.says({"status": "HEALTH_OK"}, name="ceph")
    assert pool().ceph("health") == {"status": "HEALTH_OK"}
    words = ["health", "--conf", "/etc/c.conf", "--id", "me", "--connect-timeout", "5", "--format", "json"]
    assert fake.calls() == [["ceph", *words]]


def test_a_namespace_is_there_if_it_can_be_listed(fake: Fake) -> None:
    fake.says([])
    assert pool().has_namespace()
    fake.says(status=2, stderr="rbd: namespace 'space' does not exist.")
    assert not pool().has_namespace()
    fake.says(status=1, stderr="rbd: error asserting namespace: (1) Operation not permitted")
    with pytest.raises(rbdcli.RbdError, match="Operation not permitted"):
        pool().has_namespace()


def test_client_version(fake: Fake) -> None:
    fake.says("ceph version 16.2.15 (618f440892089921c3e944a991122ddc44e60516) pacific (stable)\n")
    assert pool().client_version() == "16.2.15 pacific"


def test_features_are_those_that_the_kernel_can_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supported = tmp_path / "supported_features"
    monkeypatch.setattr(rbdcli, "_SUPPORTED", str(supported))
    every = ("layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten")
    assert rbdcli.features("krbd") == every
    supported.write_text("0x1bf\n", encoding="ascii")  # Linux 6.1
    assert rbdcli.features("krbd") == every
    supported.write_text("0x1a5\n", encoding="ascii")  # Linux 5.0: 5.1 has deep-flatten, 5.3 object-map and fast-diff
    assert rbdcli.features("krbd") == ("layering", "exclusive-lock", "deep-flatten")
    assert rbdcli.features("nbd") == every


def test_what_all_images_hold_is_one_command(fake: Fake) -> None:
    fake.says(
        {
            "images": [
                {"name": "base", "id": "1a", "snapshot": "empty", "provisioned_size": 9, "used_size": 7},
                {"name": "base", "id": "1a", "provisioned_size": 9, "used_size": 1},
                {"name": "img", "id": "2b", "provisioned_size": 9, "used_size": 5},
            ],
            "total_used_size": 13,
        },
        stderr="warning: fast-diff map is not enabled for img. operation may be slow.",
    )
    assert pool().usage() == {"base": rbdcli.Usage("1a", 8), "img": rbdcli.Usage("2b", 5)}
    assert fake.calls() == [["rbd", "du", *CLIENT, *WHERE, "--format", "json"]]
    pool().usage("img")
    assert fake.calls()[-1] == ["rbd", "du", *CLIENT, *IMAGE, "--format", "json"]


def test_what_hundreds_of_images_hold_may_take_longer(fake: Fake) -> None:
    fake.says({"images": []})
    assert pool().usage(more_seconds=90.0) == {}
    assert fake.calls()[-1][6:8] == ["--client-mount-timeout", "50"]
