"""Plain files that ApplyDiff hands over to a bsdtar: nothing but the speed may tell (untar.py, bsdtar_feed.py)."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.archives import (
    FIFO,
    MANY,
    apply,
    at_once,
    children,
    file,
    folder,
    hardlink,
    header,
    layer,
    needs_root,
    pax,
    program,
    symlink,
    tar,
)
from unit.test_archive_properties import EXAMPLES, contents

from archive import transfer

pytestmark = [needs_root, pytest.mark.usefixtures("at_once")]
__all__ = ["at_once", "layer", "program"]

ACL = bytes.fromhex("0200000001000600ffffffff020007006300000004000400ffffffff10000700ffffffff20000000ffffffff")


# -- the same as without ------------------------------------------------------------------------

NAMES = [b"a", b"b", b"d", b"d/a", b"d/b", b"s", b"s/a", b"s/b", b"d/e/a", b"low/a", b"low/d/a", b"t/d/a", b"new/x/y"]
ENTRIES = st.one_of(
    st.builds(
        file, st.sampled_from(NAMES), st.sampled_from([b"", b"1", b"22" * 600]), mode=st.sampled_from([0o640, 0o666])
    ),
    st.builds(file, st.sampled_from(NAMES), st.just(b"s"), mode=st.just(0o6755), uid=st.just(3), gid=st.just(4)),
    st.builds(folder, st.sampled_from(NAMES), mode=st.sampled_from([0o755, 0o2770]), gid=st.just(5)),
    st.builds(lambda name: pax({b"SCHILY.xattr.system.posix_acl_default": ACL}) + folder(name), st.sampled_from(NAMES)),
    st.builds(symlink, st.sampled_from([b"s", b"t", b"d/e", b"a"]), st.sampled_from([b"d", b"/low", b"nowhere", b"."])),
    st.builds(hardlink, st.sampled_from(NAMES), st.sampled_from(NAMES), mtime=st.just(7)),
    st.builds(header, st.sampled_from(NAMES), st.just(FIFO)),
    st.sampled_from(NAMES).map(
        lambda name: file(os.path.join(os.path.dirname(name), b".wh." + os.path.basename(name)))
    ),
    st.sampled_from([b"", b"d/", b"s/", b"low/"]).map(lambda name: file(name + b".wh..wh..opq")),
)


def outcome(root: Path, data: bytes, patience: int) -> tuple[object, ...]:
    """What an archive makes of a layer with something in it, error and all."""
    (root / "low/d").mkdir(parents=True)
    (root / "low/a").write_bytes(b"low")
    (root / "t").symlink_to("low")
    for name in ("low/a", "t"):
        os.utime(root / name, (9, 9), follow_symlinks=False)
    transfer.PATIENCE = patience
    try:
        result = transfer.apply(str(root), io.BytesIO(data))
    except transfer.ArchiveError as error:
        return (str(error),)  # and a part of the archive, which part is not said
    return result, contents(root), by_inode(root)


def by_inode(root: Path) -> list[list[Path]]:
    """The names of what has several."""
    found: dict[int, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        found.setdefault(path.lstat().st_ino, []).append(path.relative_to(root))
    return sorted(paths for paths in found.values() if len(paths) > 1)


@settings(max_examples=4 * EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ENTRIES, max_size=12), st.sampled_from([0, 0, 2]))
def test_nothing_tells_who_laid_it_down(
    tmp_path_factory: pytest.TempPathFactory, entries: list[bytes], patience: int
) -> None:
    """Whatever meets whatever: the tree, the size and the error are those of untar.py alone."""
    data = tar(*entries)
    with_bsdtar = outcome(tmp_path_factory.mktemp("layer"), data, patience)
    assert with_bsdtar == outcome(tmp_path_factory.mktemp("layer"), data, 1 << 30)


@pytest.mark.parametrize(
    ("entries", "present"),
    [
        ([file(b"d/.wh.f299")], {b"d/f299": None}),
        ([file(b".wh.d")], {b"d": None}),
        ([file(b"d/.wh..wh..opq")], {b"d/f299": b"x" * 3000}),
        ([hardlink(b"h", b"d/f299")], {b"h": b"x" * 3000}),
        ([symlink(b"s", b"d"), hardlink(b"h", b"s/f299")], {b"h": b"x" * 3000}),
        ([symlink(b"s", b"d"), file(b"s/f299", b"new")], {b"d/f299": b"new"}),
        ([symlink(b"s", b"d"), file(b"s/.wh.f299")], {b"d/f299": None}),
        ([file(b"d/f299", b"new")], {b"d/f299": b"new"}),
        ([folder(b"d/f299"), file(b"d/f299/x", b"y")], {b"d/f299/x": b"y"}),
        ([file(b".wh.d"), folder(b"e"), symlink(b"d", b"e"), file(b"d/x", b"y"), hardlink(b"h", b"e/x")], {b"h": b"y"}),
        ([file(b"d", b"file")], {b"d": b"file"}),
        ([symlink(b"d", b"e"), folder(b"e"), file(b"d/f299", b"new")], {b"e/f299": b"new"}),
    ],
)
def test_an_entry_waits_for_what_it_meets(
    layer: Path, entries: list[bytes], present: dict[bytes, bytes | None]
) -> None:
    apply(layer, *MANY, *entries, file(b"z/last", b"z"))
    for name, content in {**present, b"z/last": b"z"}.items():
        path = layer / os.fsdecode(name)
        assert (path.read_bytes() if path.exists() else None) == content


def test_a_file_is_no_parent(layer: Path) -> None:
    with pytest.raises(transfer.ArchiveError, match="'d/f299/x': Not a directory"):
        apply(layer, *MANY, file(b"d/f299/x"))


def test_a_default_acl_is_for_later_files(layer: Path) -> None:
    apply(layer, *MANY, pax({b"SCHILY.xattr.system.posix_acl_default": ACL}), folder(b"d"), file(b"d/later"))
    assert [os.listxattr(layer / "d" / name) for name in ("f0", "f299")] == [[], []]
    assert os.listxattr(layer / "d/later") == ["system.posix_acl_access"]


# -- what goes through the pipe -------------------------------------------------------------------


def test_what_bsdtar_reads_is_ours(program: Path, layer: Path, tmp_path: Path) -> None:
    """A first header that says nothing of the layer, then resolved names, numbers of users, and no more."""
    seen = tmp_path / "seen"
    program.write_text(f"#!/bin/sh\nexec cat >{seen}\n")
    name = b"BZh91AY&SY\nbegin 644 x"
    raw = header(
        b"./d//../" + name, size=3, mode=0o4751, uid=8, gid=9, mtime=77, link=b"evil", prefix=b"p"
    ) + b"abc".ljust(512, b"!")
    apply(layer, folder(b"p"), raw, pax({b"path": b"p/" + b"n" * 240, b"x": b"evil"}), file(b"x", b"data"))
    data = seen.read_bytes()
    assert (
        data[:157]
        == b"././@LongLink".ljust(100, b"\0") + b"0000000\0" * 3 + b"00000000032\00000000000000\0" + data[148:157]
    )
    assert data[156:512] == b"L".ljust(101, b"\0") + b"ustar  \0".ljust(255, b"\0")
    for word in (b"evil", b"!", b"..", b"//"):
        assert word not in data[512:]
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        members = [(m.name, m.mode, m.uid, m.gid, m.mtime, m.size, m.uname) for m in found]
    assert members == [
        ("/p/" + name.decode(), 0o4751, 8, 9, 77, 3, ""),
        ("/p/" + "n" * 240, 0o644, 0, 0, 1_500_000_000, 4, ""),
    ]


@pytest.mark.parametrize(
    "what",
    [
        pax({b"mtime": b"5.5"}) + file(b"d/x"),
        pax({b"atime": b"5"}) + file(b"d/x"),
        pax({b"SCHILY.xattr.user.x": b"1"}) + file(b"d/x"),
        file(b"d/x", mtime=0),
        pax({b"uid": b"3000000"}) + file(b"d/x"),
        file(b"d/x", b"x" * 65537),
        symlink(b"l", b"d") + file(b"l/x"),
    ],
)
def test_what_is_not_for_bsdtar(program: Path, layer: Path, what: bytes) -> None:
    program.write_text("#!/bin/sh\nexit 1\n")
    apply(layer, folder(b"d"), what)
    assert (layer / "d/x").exists()


def test_nothing_is_loaded_from_the_layer(layer: Path) -> None:
    """CVE-2019-14271. Baits lie where the libraries, locales, converters and users of this host are."""
    baits = [
        *Path("/etc").glob("*.conf"),
        *map(Path, ("/etc/passwd", "/etc/group", "/etc/ld.so.cache", "/etc/localtime")),
    ]
    for top in ("/usr/lib/x86_64-linux-gnu/gconv", "/usr/lib/aarch64-linux-gnu/gconv", "/usr/lib/locale", "/lib64"):
        baits += (path for path in Path(top).rglob("*") if path.is_file())
    libraries = subprocess.run(["ldd", transfer.extractor()], capture_output=True, text=True, check=True).stdout
    baits += (Path(word) for word in libraries.split() if word.startswith("/"))
    for lib in ("/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib"):
        baits += (Path(lib, f"libnss_{name}.so.2") for name in ("files", "compat", "systemd", "dns"))
    for bait in baits:
        copy = layer / str(bait)[1:]
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"bait")
        os.utime(copy, (1, 2))
    with_owners = [file(b"d/\xff%d" % n, b"x", uid=n, gid=n, mode=0o4755) for n in range(200)]
    apply(layer, file(b"etc/new"), *with_owners, pax({b"path": "d/ü".encode(), b"uname": b"x"}), file(b"x"))
    copies = [layer / str(bait)[1:] for bait in baits]
    assert {copy for copy in copies if copy.stat().st_atime != 1} == set()
    copies[0].read_bytes()
    assert copies[0].stat().st_atime != 1, "this file system does not tell who reads"


# -- what goes wrong ----------------------------------------------------------------------------


def test_a_full_file_system_says_so(layer: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", layer], check=True)
    try:
        with pytest.raises(transfer.ArchiveError, match=r"^bsdtar: /d/f[0-9]+: .*No space left on device$"):
            apply(layer, *MANY, *(file(b"e/f%d" % number, b"x" * 60_000) for number in range(100)))
        assert children() == []
    finally:
        subprocess.run(["umount", layer], check=True)


def test_few_files_are_not_worth_a_bsdtar(program: Path, layer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PATIENCE", 300)
    program.write_text("#!/bin/sh\nexit 1\n")
    assert apply(layer, *MANY) == 900_000
    with pytest.raises(transfer.ArchiveError):
        apply(layer, *MANY, file(b"one-more"))
