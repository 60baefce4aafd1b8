"""ApplyDiff, rule by rule. Each test names where its rule comes from: "moby" is pkg/archive of v27.5.1."""

from __future__ import annotations

import io
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from unit.archives import (
    BLOCKDEV,
    CHARDEV,
    FIFO,
    WHEN,
    apply,
    either_extractor,
    extractor,
    file,
    folder,
    hardlink,
    header,
    layer,
    long_name,
    needs_root,
    padded,
    pax,
    symlink,
    tar,
)

from archive import transfer

pytestmark = [needs_root, pytest.mark.usefixtures("extractor")]
__all__ = ["extractor", "layer"]

NS = 10**9


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


# -- what is read ---------------------------------------------------------------------------


class Chunky(io.BytesIO):
    """A stream that returns little at a time, as a chunked request body does, and counts."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 70_001) if size != -1 else 70_001)


def test_reads_the_stream_to_its_very_end(layer: Path) -> None:
    """PROTOCOL 5: the body must be read to its end, or Go closes the pipe and the digest is wrong (moby: flush)."""
    stream = Chunky(tar(file(b"a", b"x")) + bytes(3 << 20) + b"garbage after the archive, beyond what a pipe holds")
    assert transfer.apply(str(layer), stream) == 1
    assert stream.read(1) == b""


@pytest.mark.parametrize("data", [b"", bytes(512), bytes(1024), bytes(10240)])
def test_empty_archives(layer: Path, data: bytes) -> None:
    """Go archive/tar readHeader: nothing, one and two zero blocks are an end. PROTOCOL 5: size 0."""
    assert transfer.apply(str(layer), io.BytesIO(data)) == 0
    assert names(layer) == set()


def test_an_archive_may_lack_its_end(layer: Path) -> None:
    """Go archive/tar Next: io.EOF where a header would begin ends the archive."""
    assert transfer.apply(str(layer), io.BytesIO(file(b"a", b"x"))) == 1


def test_padding_of_the_last_file_may_lack(layer: Path) -> None:
    """Go archive/tar skipUnread: "it is okay to hit io.EOF in the padding"."""
    assert transfer.apply(str(layer), io.BytesIO(header(b"a", size=3) + b"abc")) == 3
    assert (layer / "a").read_bytes() == b"abc"


@either_extractor
@pytest.mark.parametrize(
    ("data", "needle"),
    [
        (header(b"first/name", size=600) + bytes(512), "first/name"),
        (header(b"first/name", size=600), "first/name"),
        (file(b"first/name", b"x") + bytes(100) + b"x" * 100, "first/name"),
        (file(b"first/name", b"x") + header(b"b", checksum=b"000000\0 "), "first/name"),
        (file(b"first/name", b"x") + b"\1" * 512, "first/name"),
        (file(b"first/name", b"x") + bytes(512) + file(b"b"), "first/name"),
        (file(b"first/name", b"x") + header(b"b", size=b"12x4567890\0"), "first/name"),
        (file(b"first/name", b"x") + header(b"b", size=b"\xff" * 12), "first/name"),
        (file(b"first/name", b"x") + header(b"b", mode=b"1_0\0"), "first/name"),
        (file(b"first/name", b"x") + header(b"b", mode=b"0o7\0"), "first/name"),
        (file(b"first/name", b"x") + header(b"b", uid=b"-1\0"), "first/name"),
        (file(b"first/name", b"x") + pax(b"12 path"), "first/name"),
        (file(b"first/name", b"x") + pax(b"99 path=x\n"), "first/name"),
        (file(b"first/name", b"x") + pax(b"9 path=xx "), "first/name"),
        (file(b"first/name", b"x") + pax({b"path": b"a\0b"}) + file(b"c"), "first/name"),
        (file(b"first/name", b"x") + pax({b"size": b"-5"}) + file(b"c"), "first/name"),
        (file(b"first/name", b"x") + pax({b"mtime": b"1.x"}) + file(b"c"), "first/name"),
        (file(b"first/name", b"x") + pax({b"uid": b"1_0"}) + file(b"c"), "first/name"),
        (file(b"first/name", b"x") + header(b"p", b"x", size=2 << 20), "first/name"),
        (header(b"the/name", b"V"), "the/name"),
        (header(b"the/name", b"7"), "the/name"),
        (hardlink(b"the/name", b"nowhere"), "the/name"),
        (file(b"plain") + file(b"plain/the/name"), "plain/the/name"),
    ],
)
def test_malformed_or_truncated_names_the_entry(layer: Path, data: bytes, needle: str) -> None:
    """Issue 3: an error of one line that names the entry (where its header is broken: the one before)."""
    with pytest.raises(transfer.ArchiveError) as caught:
        transfer.apply(str(layer), io.BytesIO(data))
    assert needle in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "Error at" not in str(caught.value)


def test_newline_in_a_name_does_not_break_the_line(layer: Path) -> None:
    with pytest.raises(transfer.ArchiveError) as caught:
        apply(layer, hardlink(b"a\nb\x1b\xff", b"nowhere"))
    assert str(caught.value) == "'a\\nb\\x1b\\xff': No such file or directory"


# -- sizes ------------------------------------------------------------------------------------


def test_size_is_the_sum_of_the_header_sizes(layer: Path) -> None:
    """moby UnpackLayer: `size += hdr.Size`, whatever the entry is; graphtest wants it equal to DiffSize."""
    members = [folder(b"d"), file(b"d/a", b"12345"), hardlink(b"d/b", b"d/a"), symlink(b"s", b"target")]
    members += [file(b"d/a", b"123"), file(b"d/.wh.gone"), hardlink(b"old", b"d/a", size=7)]
    assert apply(layer, *members) == 5 + 3 + 7


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"x/y", b"./x/y", b"/x/y", b"x//y", b"x/./y", b"x/z/../y", b"../x/y", b"/../../x/y"])
def test_names_are_cleaned_and_stay_inside(layer: Path, name: bytes) -> None:
    """moby UnpackLayer: filepath.Clean, joined with "/" in a chroot."""
    apply(layer, file(name, b"data"))
    assert names(layer) == {"x", "x/y"}


def test_metadata_of_the_root(layer: Path) -> None:
    """moby UnpackLayer: "./" is a directory entry like any other."""
    apply(layer, folder(b"./", mode=0o1751, uid=3, gid=4, mtime=77), file(b"a"))
    status = layer.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime) == (0o1751, 3, 4, 77)


def test_names_that_are_not_utf8(layer: Path) -> None:
    """Issue 3; in ustar, pax and GNU headers."""
    raw = b"caf\xe9-\xff\xfe"
    apply(layer, file(raw), pax({b"path": b"p" + raw}), file(b"short"), long_name(b"g" + raw), file(b"short"))
    assert set(os.listdir(os.fsencode(layer))) == {raw, b"p" + raw, b"g" + raw}


def test_prefix_of_ustar(layer: Path) -> None:
    """POSIX ustar: prefix "/" name."""
    apply(layer, file(b"name", prefix=b"some/prefix"))
    assert "some/prefix/name" in names(layer)


def test_times_of_gnu_are_no_prefix(layer: Path) -> None:
    """GNU tar has atime and ctime where ustar has the prefix."""
    apply(layer, file(b"name", magic=b"ustar  \0", prefix=b"13112345670\x0013112345670\0"))
    assert names(layer) == {"name"}


def test_prefix_in_gnu_headers_of_old_go(layer: Path) -> None:
    """Go readHeader: before Go 1.8 the Writer put a prefix into GNU headers; old registries hold such layers."""
    apply(layer, file(b"name", magic=b"ustar  \0", prefix=b"some/prefix"))
    assert "some/prefix/name" in names(layer)


def test_star_headers(layer: Path) -> None:
    """Go getFormat: star has a shorter prefix, with two times behind it."""
    prefix = b"pre".ljust(131, b"\0") + b"13112345670 13112345670 "
    data = bytearray(header(b"name", prefix=prefix))
    data[508:512] = b"tar\0"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    apply(layer, bytes(data))
    assert names(layer) == {"pre", "pre/name"}


def test_v7_headers_tell_directories_by_their_name(layer: Path) -> None:
    """Go Next: TypeRegA with a trailing slash is a directory."""
    apply(layer, header(b"d/", b"\0", magic=b"", mode=0o755), header(b"f", b"\0", magic=b""))
    assert (layer / "d").is_dir()
    assert (layer / "f").is_file()


@pytest.mark.parametrize("length", [99, 100, 101, 255])
def test_long_names_and_links_of_gnu(layer: Path, length: int) -> None:
    """GNU @LongLink headers."""
    name = b"n" * length
    apply(layer, long_name(name), file(name[:100]), long_name(b"t/" + name, b"K"), symlink(b"s", b"cut"))
    assert os.listdir(os.fsencode(layer)) == [b"s", name] or set(os.listdir(os.fsencode(layer))) == {b"s", name}
    assert os.readlink(os.fsencode(layer / "s")) == b"t/" + name


def test_pax_records_override_the_header(layer: Path) -> None:
    """Go mergePAX: path, linkpath, size, uid, gid, mtime; an empty value overrides nothing."""
    records = {b"path": b"real", b"size": b"4", b"uid": b"3000000", b"gid": b"3000001", b"mtime": b"12.3456789012"}
    apply(
        layer,
        pax(records),
        header(b"cut", size=0) + padded(b"data"),
        pax({b"linkpath": b"l" * 300, b"path": b""}),
        symlink(b"kept", b"cut"),
    )
    status = (layer / "real").stat()
    assert (layer / "real").read_bytes() == b"data"
    assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (3000000, 3000001, 12 * NS + 345678901)
    assert os.readlink(layer / "kept") == "l" * 300


def test_global_pax_headers_are_ignored(layer: Path) -> None:
    """moby createTarFile: "PAX Global Extended Headers found and ignored"."""
    apply(layer, pax({b"comment": b"x", b"uid": b"77"}, b"g"), file(b"a"))
    assert names(layer) == {"a"}
    assert (layer / "a").stat().st_uid == 0


def test_signed_checksums_are_taken(layer: Path) -> None:
    """Go readHeader: some old writers added signed bytes."""
    block = header(b"\xff\xfe")
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:])
    apply(layer, header(b"\xff\xfe", checksum=b"%06o\0 " % signed))
    assert os.listdir(os.fsencode(layer)) == [b"\xff\xfe"]


def test_base_256_numbers(layer: Path) -> None:
    """GNU and star: a set first bit means binary. Negative times are set to 0 (moby: boundTime)."""
    apply(
        layer,
        file(b"a", uid=b"\x80" + (2500000).to_bytes(7, "big"), mtime=b"\xff" * 12),
        header(b"b", size=b"\x80" + (3).to_bytes(11, "big")) + padded(b"abc"),
    )
    assert (layer / "a").stat().st_uid == 2500000
    assert (layer / "a").stat().st_mtime_ns == 0
    assert (layer / "b").read_bytes() == b"abc"


# -- kinds and attributes -------------------------------------------------------------------------


def test_modes_owners_and_times_of_every_kind(layer: Path) -> None:
    """moby createTarFile: lchown, then mode (setuid too), then times; numbers, no names."""
    fields: dict[str, Any] = {"uid": 11, "gid": 22, "mtime": WHEN}
    apply(
        layer,
        folder(b"d", mode=0o3775, **fields),
        file(b"d/f", b"x", mode=0o6755, **fields),
        symlink(b"d/s", b"../../away", **fields),
        header(b"d/c", CHARDEV, mode=0o620, major=5, minor=1, **fields),
        header(b"d/b", BLOCKDEV, mode=0o660, major=8, minor=70000, **fields),
        header(b"d/p", FIFO, mode=0o622, **fields),
    )
    got = {path.name: path.lstat() for path in [layer / "d", *(layer / "d").iterdir()]}
    assert {name: oct(status.st_mode) for name, status in got.items()} == {
        "d": "0o43775",
        "f": "0o106755",
        "s": "0o120777",
        "c": "0o20620",
        "b": "0o60660",
        "p": "0o10622",
    }
    assert {(status.st_uid, status.st_gid, status.st_mtime_ns) for status in got.values()} == {(11, 22, WHEN * NS)}
    assert os.readlink(layer / "d/s") == "../../away"
    assert (got["c"].st_rdev, got["b"].st_rdev) == (os.makedev(5, 1), os.makedev(8, 70000))


def test_old_docker_wrote_type_bits_into_the_mode(layer: Path) -> None:
    """moby fillGo18FileTypeBits: 0100644 is mode 0644."""
    apply(layer, file(b"a", mode=0o100644))
    assert stat.S_IMODE((layer / "a").stat().st_mode) == 0o644


def test_a_setgid_parent_does_not_leak_into_the_entry(layer: Path) -> None:
    """moby createTarFile always sets owner and mode; the kernel would give a new file the group of the directory."""
    setgid = folder(b"d", mode=0o2775, gid=55)
    apply(layer, setgid, file(b"d/a", mode=0o640), file(b"d/b", mode=0o640), folder(b"d/d", mode=0o750))
    assert [(layer / "d" / name).stat().st_gid for name in "abd"] == [0, 0, 0]
    assert stat.S_IMODE((layer / "d/d").stat().st_mode) == 0o750


def test_a_parent_that_becomes_setgid_in_between(layer: Path) -> None:
    """What untar.py remembers of a directory must end with the directory's next entry."""
    apply(layer, file(b"d/a"), file(b"d/b"), folder(b"d", mode=0o2775, gid=55), file(b"d/c"), file(b"d/e"))
    assert [(layer / "d" / name).stat().st_gid for name in "abce"] == [0, 0, 0, 0]


def test_a_default_acl_does_not_change_the_mode(layer: Path) -> None:
    """moby createTarFile: chmod comes after creation."""
    top = layer / "top"
    top.mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:99:rwx,g::r,o::-", top], check=True)
    apply(layer, file(b"top/a", mode=0o664), file(b"top/b", mode=0o664), folder(b"top/d", mode=0o777))
    assert [stat.S_IMODE((top / name).stat().st_mode) for name in "abd"] == [0o664, 0o664, 0o777]


def test_directory_times_survive_their_content(layer: Path) -> None:
    """moby UnpackLayer: "Directory mtimes must be handled at the end"; sub-seconds from pax."""
    apply(layer, pax({b"mtime": b"1000.25"}), folder(b"d"), folder(b"d/e", mtime=5), file(b"d/a"), file(b"d/e/b"))
    assert (layer / "d").stat().st_mtime_ns == 1000 * NS + NS // 4
    assert (layer / "d/e").stat().st_mtime_ns == 5 * NS


def test_access_time_is_never_before_the_modification(layer: Path) -> None:
    """moby createTarFile: "Last access time should never be before last modified time"."""
    apply(layer, pax({b"atime": b"5"}), file(b"a", mtime=10), pax({b"atime": b"50"}), file(b"b", mtime=10))
    assert [(layer / name).stat().st_atime for name in "ab"] == [10, 50]


def test_xattrs(layer: Path) -> None:
    """moby createTarFile: SCHILY.xattr records; after chown, which would take a capability away."""
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    records = {b"SCHILY.xattr.security.capability": capability, b"SCHILY.xattr.user.note": b"a\0\n=b"}
    apply(layer, pax(records), file(b"f", b"x", uid=7), pax({b"SCHILY.xattr.user.d": b"1"}), folder(b"d"))
    assert os.getxattr(layer / "f", "security.capability") == capability
    assert os.getxattr(layer / "f", "user.note") == b"a\0\n=b"
    assert os.getxattr(layer / "d", "user.d") == b"1"


def test_an_xattr_without_a_value_is_one(layer: Path) -> None:
    """moby createTarFile (from v24): hdr.PAXRecords, where empty ones are too; before, they were lost."""
    apply(layer, pax({b"SCHILY.xattr.user.empty": b""}), file(b"f"), pax({b"SCHILY.xattr.user.d": b""}), folder(b"d"))
    assert os.getxattr(layer / "f", "user.empty") == b""
    assert os.getxattr(layer / "d", "user.d") == b""


def test_acl_xattrs(layer: Path) -> None:
    """Issue 3: POSIX ACLs travel as attributes."""
    subprocess.run(["setfacl", "-m", "u:99:rwx", layer], check=True)
    acl = os.getxattr(layer, "system.posix_acl_access")
    apply(layer, pax({b"SCHILY.xattr.system.posix_acl_access": acl}), file(b"f", mode=0o775))
    assert os.getxattr(layer / "f", "system.posix_acl_access") == acl


def test_a_forbidden_xattr_is_left_out(layer: Path, caplog: pytest.LogCaptureFixture) -> None:
    """moby createTarFile: EPERM is ignored: the kernel has no user.* on symlinks."""
    apply(layer, pax({b"SCHILY.xattr.user.x": b"1"}), symlink(b"s", b"t"))
    assert os.listxattr(layer / "s", follow_symlinks=False) == []
    assert "'user.x' of 1, first 's'" in caplog.text


FOREIGN = [b"com.apple.quarantine", b"foo.bar", b"system.nfs4_acl", b"osx.x", b"nonsense"]


def test_foreign_xattrs_are_left_out_and_told_once(layer: Path, caplog: pytest.LogCaptureFixture) -> None:
    """dockerd before 25 drops what the kernel answers ENOTSUP to, 25 and newer refuse the image."""
    records = {b"SCHILY.xattr." + name: b"1" for name in FOREIGN}
    members = [pax({**records, b"SCHILY.xattr.user.mine": b"2"}) + file(b"f%d" % number) for number in range(50)]
    apply(layer, pax(records), folder(b"d"), pax(records), symlink(b"s", b"t"), *members)
    assert os.listxattr(layer / "f7") == ["user.mine"]
    assert os.listxattr(layer / "d") == []
    assert len(caplog.messages) == 1
    assert f"{layer}: " in caplog.text
    for name in FOREIGN:
        assert f"'{name.decode()}' of 52, first 'd'" in caplog.text


def test_many_foreign_xattrs_make_no_long_line(layer: Path, caplog: pytest.LogCaptureFixture) -> None:
    apply(layer, *(pax({b"SCHILY.xattr.a\nb.%d" % number: b"1"}) + file(b"f%d" % number) for number in range(500)))
    assert len(caplog.messages) == 1
    assert len(caplog.messages[0]) < 1000
    assert "'...' of 492, first 'f8'" in caplog.text
    assert caplog.messages[0].isprintable()


def test_implied_directories(layer: Path) -> None:
    """moby createImpliedDirectories: mode 0755, owned by the root of the maps."""
    ids = transfer.IdMaps((transfer.IdRange(0, 1000, 10),), (transfer.IdRange(0, 2000, 10),))
    apply(layer, file(b"a/b/c", uid=1, gid=2), ids=ids)
    for path in (layer / "a", layer / "a/b"):
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o755, 1000, 2000)
    assert ((layer / "a/b/c").stat().st_uid, (layer / "a/b/c").stat().st_gid) == (1001, 2002)


def test_ids_outside_the_maps_are_an_error(layer: Path) -> None:
    """PROTOCOL 8; moby remapIDs."""
    ids = transfer.IdMaps((transfer.IdRange(0, 1000, 10),), (transfer.IdRange(0, 2000, 10),))
    with pytest.raises(transfer.ArchiveError, match="'f': user id 10 is not mapped"):
        apply(layer, file(b"f", uid=10), ids=ids)
    with pytest.raises(transfer.ArchiveError, match="'f': group id 10 is not mapped"):
        apply(layer, file(b"f", gid=10), ids=ids)


# -- links ------------------------------------------------------------------------------------------


def test_hard_links_share_an_inode(layer: Path) -> None:
    """moby createTarFile: os.Link, within the layer and to a lower layer's file."""
    (layer / "lower").write_bytes(b"low")
    apply(layer, file(b"d/a", b"x"), hardlink(b"d/b", b"d/a"), hardlink(b"c", b"/d/a"), hardlink(b"e", b"lower"))
    assert len({(layer / name).stat().st_ino for name in ("d/a", "d/b", "c")}) == 1
    assert (layer / "e").samefile(layer / "lower")


def test_a_hard_link_brings_its_own_attributes(layer: Path) -> None:
    """moby createTarFile: chown, chmod and chtimes of the link's header go to the shared inode."""
    apply(layer, file(b"a", mode=0o600), hardlink(b"b", b"a", mode=0o4755, uid=5, mtime=99))
    status = (layer / "a").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime) == (0o4755, 5, 99)


def test_a_hard_link_to_a_symlink_links_the_symlink(layer: Path) -> None:
    """moby: linkat without AT_SYMLINK_FOLLOW; handleLChmod leaves the target alone."""
    apply(layer, file(b"t", mode=0o600), symlink(b"s", b"t"), hardlink(b"h", b"s", mode=0o777))
    assert (layer / "h").is_symlink()
    assert stat.S_IMODE((layer / "t").stat().st_mode) == 0o600


def test_a_hard_link_to_a_symlink_changes_no_times(layer: Path) -> None:
    """moby createTarFile: a link whose target is a symlink sets the times of neither."""
    apply(layer, file(b"t", mtime=10), symlink(b"s", b"t", mtime=20), hardlink(b"h", b"s", mtime=30))
    assert (layer / "t").stat().st_mtime == 10
    assert (layer / "s").lstat().st_mtime == 20


def test_hard_links_to_what_aufs_kept(layer: Path) -> None:
    """moby UnpackLayer: files below /.wh..wh.plnk serve as link targets and are not laid down."""
    apply(
        layer,
        folder(b".wh..wh.plnk"),
        file(b".wh..wh.plnk/123.456", b"shared", mode=0o640, uid=9),
        hardlink(b"a", b".wh..wh.plnk/123.456"),
        header(b".wh..wh.aufs"),
        file(b".wh..wh..opq"),
        hardlink(b"d/b", b"./.wh..wh.plnk/123.456"),
    )
    assert names(layer) == {"a", "d", "d/b"}
    assert {(layer / name).read_bytes() for name in ("a", "d/b")} == {b"shared"}
    assert ((layer / "a").stat().st_uid, stat.S_IMODE((layer / "a").stat().st_mode)) == (9, 0o640)


def test_a_hard_link_to_nothing_of_aufs_is_an_error(layer: Path) -> None:
    """moby UnpackLayer: "Invalid aufs hardlink"."""
    with pytest.raises(transfer.ArchiveError, match="an aufs file that is not in the archive"):
        apply(layer, hardlink(b"a", b".wh..wh.plnk/1.2"))


# -- order and replacement ------------------------------------------------------------------------------


def test_whiteouts(layer: Path) -> None:
    """moby UnpackLayer: RemoveAll of the name without ".wh."; nothing there is fine."""
    (layer / "d/e").mkdir(parents=True)
    (layer / "d/e/f").touch()
    (layer / "g").symlink_to("d")
    apply(layer, file(b"d/.wh.e"), file(b".wh.g"), file(b".wh.never"))
    assert names(layer) == {"d"}


def test_a_whiteout_below_a_symlink_that_leads_nowhere(layer: Path) -> None:
    """moby UnpackLayer: RemoveAll of what is not there is fine; a file there is an error."""
    apply(layer, symlink(b"s", b"nowhere"), file(b"s/.wh.x"))
    assert names(layer) == {"s"}
    with pytest.raises(transfer.ArchiveError, match="'s/x': No such file or directory"):
        apply(layer, file(b"s/x"))


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"d/.wh.", b"d/.wh...", b"d/e/.wh..."])
def test_a_whiteout_of_nothing_is_an_error(layer: Path, name: bytes) -> None:
    """containerd (archive/tar.go) calls it an invalid whiteout name; moby removes the directory or the one above."""
    (layer / "d/e").mkdir(parents=True)
    with pytest.raises(transfer.ArchiveError, match="a whiteout of nothing"):
        apply(layer, file(name))
    assert names(layer) == {"d", "d/e"}


def test_a_whiteout_works_at_its_place_in_the_archive(layer: Path) -> None:
    """moby UnpackLayer: entries are applied strictly in order."""
    apply(layer, file(b"a", b"1"), file(b".wh.a"), file(b"b", b"1"), file(b".wh.b"), file(b"b", b"2"))
    assert names(layer) == {"b"}
    assert (layer / "b").read_bytes() == b"2"


def test_an_opaque_whiteout_takes_only_what_lower_layers_brought(layer: Path) -> None:
    """moby UnpackLayer: unpackedPaths; OCI image spec, "Opaque Whiteout"."""
    (layer / "d/low/deep").mkdir(parents=True)
    (layer / "d/low/deep/f").touch()
    (layer / "d/both").mkdir()
    (layer / "d/both/low").touch()
    before = [folder(b"d"), folder(b"d/both"), file(b"d/both/new"), file(b"d/x")]
    apply(layer, *before, file(b"d/.wh..wh..opq"), file(b"d/y"))
    assert names(layer) == {"d", "d/both", "d/both/new", "d/x", "d/y"}


def test_an_opaque_whiteout_spares_directories_without_an_entry(layer: Path) -> None:
    """OCI image spec: an opaque whiteout hides only lower layers (moby would forget d/e/new here)."""
    (layer / "d/e").mkdir(parents=True)
    (layer / "d/e/low").touch()
    apply(layer, file(b"d/e/new"), file(b"d/.wh..wh..opq"))
    assert names(layer) == {"d", "d/e", "d/e/new"}


def test_an_opaque_whiteout_of_the_root(layer: Path) -> None:
    (layer / "low").touch()
    apply(layer, file(b"new"), file(b".wh..wh..opq"))
    assert names(layer) == {"new"}


KINDS = ["file", "dir", "symlink", "dirlink", "hardlink", "fifo", "chardev"]


def of_kind(kind: str, name: bytes) -> bytes:
    return {
        "file": file(name, b"old"),
        "dir": folder(name),
        "symlink": symlink(name, b"target"),
        "dirlink": symlink(name, b"other"),
        "hardlink": hardlink(name, b"target"),
        "fifo": header(name, FIFO),
        "chardev": header(name, CHARDEV, major=1, minor=3),
    }[kind]


def test_every_kind_replaces_every_kind(layer: Path) -> None:
    """moby UnpackLayer: RemoveAll and create, but directory on directory is merged."""
    pairs = {f"{first}-{second}": (first, second) for first in KINDS for second in KINDS}
    before = [of_kind(first, name.encode()) for name, (first, _) in pairs.items()]
    inside = [file(name.encode() + b"/in") for name, (first, _) in pairs.items() if first == "dir"]
    apply(layer, file(b"target", b"t"), folder(b"other"), file(b"other/o"), *before, *inside)
    apply(layer, *(of_kind(second, name.encode()) for name, (_, second) in pairs.items()))
    expected = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK, "dirlink": stat.S_IFLNK}
    expected |= {"hardlink": stat.S_IFREG, "fifo": stat.S_IFIFO, "chardev": stat.S_IFCHR}
    found = {name: stat.S_IFMT((layer / name).lstat().st_mode) for name in pairs}
    assert found == {name: expected[second] for name, (_, second) in pairs.items()}
    assert {name for name in pairs if os.path.lexists(layer / name / "in")} == {"dir-dir"}
    assert {name for name in pairs if (layer / name).is_symlink() and (layer / name).readlink().name == "other"} == {
        name for name, (_, second) in pairs.items() if second == "dirlink"
    }
    assert (layer / "target").read_bytes() == b"t"
    assert (layer / "other/o").exists()


def test_repeated_entries_the_last_wins(layer: Path) -> None:
    twice = [file(b"a", b"long content", mode=0o777), file(b"a", b"x", mode=0o600)]
    apply(layer, *twice, folder(b"d"), folder(b"d", mtime=3))
    assert (layer / "a").read_bytes() == b"x"
    assert stat.S_IMODE((layer / "a").stat().st_mode) == 0o600
    assert (layer / "d").stat().st_mtime == 3


def test_a_directory_that_became_something_else(layer: Path) -> None:
    """Our own rule (untar.py): its times go nowhere; moby would follow the symlink."""
    (layer / "t").touch()
    os.utime(layer / "t", (5, 5))
    apply(layer, folder(b"d", mtime=7), symlink(b"d", b"t"), folder(b"e"), file(b".wh.e"), folder(b"f/g"), file(b"f"))
    assert (layer / "t").stat().st_mtime == 5
    assert names(layer) == {"t", "d", "f"}


def test_parents_through_symlinks_resolve_inside(layer: Path) -> None:
    """Issue 3: absolute symlinks resolve inside the root (moby: chroot)."""
    apply(layer, folder(b"usr/lib"), symlink(b"lib", b"/usr/lib"), file(b"lib/x", b"data"))
    assert (layer / "usr/lib/x").read_bytes() == b"data"


@either_extractor
def test_a_deep_directory_can_be_removed(layer: Path) -> None:
    """A container can make trees deeper than PATH_MAX and Python's recursion limit."""
    fd = os.open(layer, os.O_RDONLY)
    try:
        os.mkdir("deep", dir_fd=fd)
        for _ in range(1300):
            below = os.open("deep", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
            os.mkdir("deep", dir_fd=fd)
    finally:
        os.close(fd)
    apply(layer, file(b".wh.deep"))
    assert names(layer) == set()


# -- sparse and big -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["--format=gnu", "--format=pax --sparse-version=0.0", "--format=pax --sparse-version=0.1", "--format=pax"]
)
def test_sparse_files_as_gnu_tar_writes_them(tmp_path: Path, layer: Path, form: str) -> None:
    """The four formats; size is the real one (Go handleSparseFile). The old one is ours alone, moby refuses it."""
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "sparse", "wb") as out:
        for position in range(1, 60):
            out.seek(position << 20)
            out.write(b"%d" % position * 500)
        out.truncate(100 << 20)
    made = subprocess.run(["tar", *form.split(), "-S", "-C", source, "-c", "sparse"], capture_output=True, check=True)
    assert transfer.apply(str(layer), io.BytesIO(made.stdout)) == 100 << 20
    assert subprocess.run(["cmp", source / "sparse", layer / "sparse"], check=False).returncode == 0
    assert (layer / "sparse").stat().st_blocks * 512 < 8 << 20


def test_a_file_of_more_than_8_gib(layer: Path) -> None:
    """Issue 3. In the header by base-256, on the disk as holes: a sparse entry keeps the test small."""
    size = (8 << 30) + 5
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"big"}
    records[b"GNU.sparse.realsize"] = b"%d" % size
    data = padded(b"1\n%d\n5\n" % (size - 5)) + b"abcde"
    assert apply(layer, pax(records), header(b"x", size=len(data)) + padded(data)) == size
    assert (layer / "big").stat().st_size == size
    with open(layer / "big", "rb") as source:
        source.seek(size - 6)
        assert source.read() == b"\0abcde"


def test_an_8_gib_header_size_is_understood(layer: Path) -> None:
    """base-256 size: the archive ends early, but only after the size was believed."""
    stream = io.BytesIO(header(b"big", size=b"\x80" + (9 << 30).to_bytes(11, "big")) + b"abc")
    with pytest.raises(transfer.ArchiveError, match="'big': the archive ends within"):
        transfer.apply(str(layer), stream)


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_gnu_tar_writes(tmp_path: Path, layer: Path, form: str) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d/f").write_bytes(os.urandom(100_000))
    os.link(source / "d/f", source / "d/hard")
    (source / "s").symlink_to("/d/f")
    made = subprocess.run(["tar", f"--format={form}", "-C", source, "-c", "."], capture_output=True, check=True)
    transfer.apply(str(layer), io.BytesIO(made.stdout))
    assert (layer / "d/f").read_bytes() == (source / "d/f").read_bytes()
    assert (layer / "d/hard").samefile(layer / "d/f")
    assert os.readlink(layer / "s") == "/d/f"
