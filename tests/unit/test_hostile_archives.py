"""Archives made to break out: whatever they hold, nothing outside the layer is read, written, created or removed.

The layer lies in a guarded tree, on the same file system, so that even hard links could reach it. The layer itself is
hostile too: a lower layer has left symlinks that lead out. Most archives are refused, some are laid down harmlessly as
Docker would; what is asserted for each is that the guarded tree is as it was, that nothing of it came in, that no
process is left, and that the next archive is served.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from unit.archives import (
    BLOCKDEV,
    CHARDEV,
    EXTRACTORS,
    FIFO,
    apply,
    children,
    extractor,
    file,
    folder,
    hardlink,
    header,
    long_name,
    needs_root,
    padded,
    pax,
    picture,
    symlink,
    tar,
)

from archive import transfer

pytestmark = needs_root
__all__ = ["extractor"]

SECRET = b"the content of a file outside"
Log = pytest.LogCaptureFixture
Members = Callable[[bytes], list[bytes]]  # given the path of the guarded tree

THROUGH = [b"absolute", b"relative", b"chain", b"proc"]  # the symlinks that a lower layer left
XATTR = b"SCHILY.xattr."


def sparse(name: bytes, size: int, sparse_map: bytes, data: bytes = b"") -> list[bytes]:
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": name}
    records[b"GNU.sparse.realsize"] = b"%d" % size
    body = padded(sparse_map) + data
    return [pax(records), header(b"x", size=len(body)) + padded(body)]


def evil_python() -> list[bytes]:
    """What a program that loads modules or libraries from the layer would run (CVE-2019-14271)."""
    code = b"open('/PWNED', 'w').close()\n"
    found = [file(b"etc/ld.so.preload", b"/lib/evil.so\n"), file(b"lib/evil.so", b"\x7fELF")]
    for top in sys.path:
        # Longer ones have no room in a header; packages of tests' tools bring such.
        if top.startswith("/") and len(top) < 70:
            for module in ("traceback", "linecache", "encodings/__init__", "encodings/idna", "locale", "pwd", "stat"):
                found.append(file(os.fsencode(f"{top}/{module}.py"), code))
    here = os.path.dirname(transfer.__file__)
    return [*found, *(file(os.fsencode(f"{here}/{name}.py"), code) for name in ("untar", "tarreader", "confined"))]


def each_link(what: str, make: Callable[[bytes], bytes]) -> dict[str, Members]:
    """An archive for each symlink that a lower layer left."""

    def members(name: bytes) -> Members:
        return lambda out: [make(name)]

    return {f"{what} {name.decode()}": members(name) for name in THROUGH}


HOSTILE: dict[str, Members] = {
    # names
    "dotdot": lambda out: [file(b"../secret", b"evil")],
    "many dotdots": lambda out: [pax({b"path": b"../" * 40 + out[1:] + b"/secret"}), file(b"a", b"evil")],
    "dotdot inside": lambda out: [folder(b"a"), file(b"a/../../../secret", b"evil")],
    "dotdot through a file": lambda out: [file(b"a"), file(b"a/../../secret", b"evil")],
    "absolute": lambda out: [file(out + b"/secret", b"evil")],
    "two slashes": lambda out: [file(b"/" + out + b"/secret", b"evil")],
    "directory dotdot": lambda out: [folder(b"..", mode=0o777, uid=5, mtime=1)],
    "directory dotdot slash": lambda out: [folder(b"../", mode=0o777, uid=5, mtime=1)],
    "backslashes": lambda out: [file(b"..\\secret", b"evil")],
    "pax path": lambda out: [pax({b"path": b"../../secret"}), file(b"a", b"evil")],
    "global pax path": lambda out: [pax({b"path": b"../../secret"}, b"g"), file(b"a", b"evil")],
    "gnu long name": lambda out: [long_name(b"../" * 60 + out[1:] + b"/secret"), file(b"a", b"evil")],
    "ustar prefix": lambda out: [file(b"secret", b"evil", prefix=b"../..")],
    "prefix of old go": lambda out: [file(b"secret", b"evil", prefix=b"../..", magic=b"ustar  \0")],
    "sparse name": lambda out: sparse(b"../../secret", 4, b"1\n0\n4\n", b"evil"),
    "NUL in a pax path": lambda out: [pax({b"path": b"a\0../secret"}), file(b"a", b"evil")],
    "only slashes": lambda out: [file(b"//", b"evil"), file(b"/", b"evil")],
    "empty name": lambda out: [file(b"", b"evil")],
    "options": lambda out: [file(b"--to-command=touch PWNED"), file(b"-rf"), file(b"--checkpoint-action=exec=sh")],
    "shell": lambda out: [file(b"$(touch " + out + b"/PWNED)"), file(b"; rm -rf " + out), file(b"`id`"), file(b"|sh")],
    "newlines": lambda out: [
        file(b"a\n../secret\n" + out + b"/secret", b"evil"),
        symlink(b"\n", b"\n"),
        file(b".wh.\n"),
    ],
    "terminal escapes": lambda out: [file(b"\x1b]0;evil\x07\r\x00"), hardlink(b"\x1b[2J", b"\x1b[2J")],
    # symlinks of the archive
    "absolute symlink": lambda out: [symlink(b"a", out), file(b"a/secret", b"evil")],
    "relative symlink": lambda out: [symlink(b"a", b"../" * 3), file(b"a/secret", b"evil")],
    "symlink to the file": lambda out: [symlink(b"a", out + b"/secret"), file(b"a", b"evil")],
    "chain": lambda out: [symlink(b"a", b"b"), symlink(b"b", b"c"), symlink(b"c", out), file(b"a/secret", b"evil")],
    "loop": lambda out: [symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/secret", b"evil")],
    "directory becomes symlink": lambda out: [
        folder(b"d"),
        file(b"d/x"),
        symlink(b"d", out),
        file(b"d/secret", b"evil"),
    ],
    "times through a symlink": lambda out: [folder(b"d", mtime=1), symlink(b"d", out)],
    "mode through a symlink": lambda out: [symlink(b"d", out), folder(b"d", mode=0o777, uid=5)],
    "symlink below": lambda out: [symlink(b"d/e/f", b"../../../.."), file(b"d/e/f/secret", b"evil")],
    "symlink to dot": lambda out: [symlink(b"d", b"."), file(b"d/d/d/../../secret", b"evil")],
    "root becomes a symlink": lambda out: [symlink(b"./", out), file(b"secret", b"evil")],
    "root becomes a symlink by dotdot": lambda out: [symlink(b"..", out), file(b"secret", b"evil")],
    "long symlink of pax": lambda out: [
        pax({b"linkpath": b"/." * 900 + out}),
        symlink(b"a", b""),
        file(b"a/secret", b"x"),
    ],
    "proc": lambda out: [symlink(b"p", b"/proc/self/root" + out), file(b"p/secret", b"evil")],
    "proc fd": lambda out: [symlink(b"p", b"/proc/self/fd/3"), file(b"p/x", b"evil"), symlink(b"q", b"/dev/fd/0")],
    "times of a symlink": lambda out: [symlink(b"a", out + b"/secret", mtime=1)],
    "owner of a symlink": lambda out: [symlink(b"a", out + b"/secret", uid=5)],
    "xattr of a symlink": lambda out: [pax({XATTR + b"trusted.x": b"1"}), symlink(b"a", out + b"/secret")],
    # symlinks of a lower layer
    **each_link("through", lambda name: file(name + b"/secret", b"evil")),
    **each_link("directory", lambda name: folder(name, mode=0o777, mtime=1)),
    **each_link("whiteout below", lambda name: file(name + b"/.wh.secret")),
    **each_link("opaque", lambda name: file(name + b"/.wh..wh..opq")),
    **each_link("whiteout of", lambda name: file(b".wh." + name)),
    **each_link("hard link below", lambda name: hardlink(b"h", name + b"/secret")),
    # hard links
    "hard link up": lambda out: [hardlink(b"h", b"../secret"), file(b"h", b"evil")],
    "hard link up far": lambda out: [pax({b"linkpath": b"../" * 40 + out[1:] + b"/secret"}), hardlink(b"h", b"")],
    "hard link absolute": lambda out: [hardlink(b"h", out + b"/secret", mode=0o777, uid=5)],
    "hard link of pax": lambda out: [pax({b"linkpath": out + b"/secret"}), hardlink(b"h", b"")],
    "hard link of gnu": lambda out: [long_name(b"../" * 9 + b"secret", b"K"), hardlink(b"h", b"")],
    "hard link through a new symlink": lambda out: [symlink(b"a", out), hardlink(b"h", b"a/secret", mode=0o777)],
    "hard link to a symlink": lambda out: [hardlink(b"h", b"absolute", mode=0o777, uid=5, mtime=1)],
    "hard link to itself": lambda out: [file(b"h", b"x"), hardlink(b"h", b"h")],
    "hard link to a directory": lambda out: [folder(b"d"), hardlink(b"h", b"d")],
    "hard link to the root": lambda out: [hardlink(b"h", b"/"), hardlink(b"h", b".."), hardlink(b"h", b"")],
    "hard link as the root": lambda out: [hardlink(b"/", out + b"/secret")],
    "a lower file shared with the outside": lambda out: [file(b"shared", b"evil", mode=0o777, uid=5, mtime=1)],
    "opening for more": lambda out: [file(b"shared", b"evil" * 1000), file(b"shared")],
    # whiteouts
    "whiteout dotdot": lambda out: [file(b"../.wh.secret")],
    "whiteout absolute": lambda out: [file(out + b"/.wh.secret")],
    "whiteout of dotdot": lambda out: [file(b".wh...")],
    "whiteout of dotdot below": lambda out: [file(b"d/.wh...")],
    "whiteout of dot": lambda out: [file(b".wh..")],
    "whiteout of nothing": lambda out: [file(b".wh.")],
    "whiteout of nothing below": lambda out: [file(b"d/.wh.")],
    "whiteout with a path": lambda out: [file(b"d/.wh.../secret"), file(b".wh.../../secret")],
    "whiteout through a new symlink": lambda out: [symlink(b"a", out), file(b"a/.wh.secret")],
    "opaque through a new symlink": lambda out: [symlink(b"a", out), file(b"a/.wh..wh..opq")],
    "opaque dotdot": lambda out: [file(b"../.wh..wh..opq")],
    "opaque absolute": lambda out: [file(out + b"/.wh..wh..opq")],
    "opaque directory swapped": lambda out: [folder(b"d"), symlink(b"d", out), file(b"d/.wh..wh..opq"), file(b"d/x")],
    "aufs target dotdot": lambda out: [file(b".wh..wh.plnk/../../secret", b"evil"), file(b".wh..wh.plnk/..", b"evil")],
    "aufs link dotdot": lambda out: [hardlink(b"h", b".wh..wh.plnk/../../../secret")],
    "aufs directory is a symlink": lambda out: [symlink(b".wh..wh.plnk", out), file(b".wh..wh.plnk/secret", b"evil")],
    # special files
    "block device": lambda out: [
        disk_of(out),
        file(b"disk", b"evil"),
        disk_of(out),
        hardlink(b"h", b"disk"),
        file(b"h"),
    ],
    "below a device": lambda out: [disk_of(out), file(b"disk/x", b"evil")],
    "char device": lambda out: [header(b"c", CHARDEV, major=1, minor=1), file(b"c", b"evil")],
    "fifo": lambda out: [header(b"p", FIFO), hardlink(b"q", b"p", mode=0o777), file(b"p", b"evil"), folder(b"q/")],
    "device number out of range": lambda out: [header(b"c", CHARDEV, major=b"\x80" + b"\xff" * 7, minor=b"\xff" * 8)],
    "multi volume": lambda out: [header(b"m", b"M", size=9, link=out) + bytes(512)],
    "dump directory": lambda out: [header(b"d", b"D", size=512) + b"Y../secret\0".ljust(512, b"\0")],
    "volume name": lambda out: [header(out, b"V")],
    "unknown type": lambda out: [header(out + b"/secret", b"Z")],
    # numbers and attributes
    "id minus one": lambda out: [file(b"a", uid=b"\xff" * 8)],
    "id too big": lambda out: [file(b"a", uid=b"\x80" + b"\x7f" * 7), folder(b"d", gid=b"\x80\0\0\0\xff\xff\xff\xff")],
    "mode of all bits": lambda out: [file(b"a", mode=b"\x80" + b"\x7f" * 7), folder(b"d", mode=b"7777777")],
    "time too big": lambda out: [
        file(b"a", mtime=b"\x80" + b"\x7f" * 11),
        pax({b"mtime": b"9" * 18}),
        symlink(b"s", b"t"),
    ],
    "broken capability": lambda out: [pax({XATTR + b"security.capability": b"evil"}), file(b"a")],
    "big xattr": lambda out: [pax({XATTR + b"user.x": b"x" * 70000}), file(b"a")],
    "xattr without a name": lambda out: [pax({XATTR: b"x"}), file(b"a")],
    "overlay xattrs": lambda out: [pax({XATTR + b"trusted.overlay.redirect": b"../.."}), folder(b"d")],
    "overlay whiteout": lambda out: [header(b"d", CHARDEV), header(b"../secret", CHARDEV), file(b"d/f", b"evil")],
    "broken acl": lambda out: [pax({XATTR + b"system.posix_acl_access": b"\2\0\0\0evil"}), file(b"a")],
    # sizes
    "size without data": lambda out: [header(b"a", size=b"\x80\0\0\0\x3f" + b"\xff" * 7)],
    "negative size": lambda out: [header(b"a", size=b"\xff" * 12), pax({b"size": b"-1"}), file(b"a")],
    "size of an extension": lambda out: [header(b"x", b"x", size=b"\x80\0\0\0\x3f" + b"\xff" * 7)],
    "sparse bomb": lambda out: sparse(b"bomb", (1 << 62), b"1\n%d\n4\n" % ((1 << 62) - 4), b"evil"),
    "sparse bomb of holes": lambda out: sparse(b"bomb", (1 << 63) - 1, b"0\n"),
    "sparse overlap": lambda out: sparse(b"s", 9, b"2\n4\n2\n3\n2\n", b"evil"),
    "sparse negative": lambda out: sparse(b"s", 9, b"1\n-4\n4\n", b"evil"),
    "sparse beyond the end": lambda out: sparse(b"s", 1, b"1\n0\n4\n", b"evil"),
    "sparse without an end": lambda out: sparse(b"s", 1, b"9" * 4096),
    "sparse map of a million": lambda out: sparse(b"s", 1, b"1000000000\n" + b"0\n" * 1000),
    "sparse with little data": lambda out: sparse(b"s", 9000, b"2\n0\n4\n8000\n900\n", b"evil"),
    "old sparse": lambda out: [old_sparse(out)],
    # amounts
    "many entries": lambda out: [file(b"a"), *(hardlink(b"h%d" % (number % 50), b"a") for number in range(4000))],
    "many entries of one name": lambda out: [header(b"a")] * 8000,
    "deep": lambda out: [pax({b"path": b"d/" * 1900 + b"f"}), file(b"x"), file(b".wh.d")],
    "too deep": lambda out: [pax({b"path": b"d/" * 9000}), folder(b"x")],
    "name too long": lambda out: [pax({b"path": b"n" * 300}), file(b"x")],
    "many pax records": lambda out: [pax({b"k%d" % number: b"v" * 50 for number in range(9000)}), file(b"a")],
    # what follows
    "after the end": lambda out: [bytes(1024), file(b"../secret", b"evil"), file(out + b"/secret", b"evil")],
    "after half an end": lambda out: [bytes(512), file(b"../secret", b"evil")],
    "python and libraries": lambda out: [*evil_python(), file(b"\xff\xfe", uid=12345), header(b"bad", b"Z")],
}


def disk_of(out: bytes) -> bytes:
    device = os.stat(out).st_dev
    return header(b"disk", BLOCKDEV, mode=0o666, major=os.major(device), minor=os.minor(device))


def old_sparse(out: bytes) -> bytes:
    block = bytearray(header(b"../secret", b"S", size=4, magic=b"ustar  \0"))
    block[386:410] = b"77777777777\x0000000000004\0"
    block[483:495] = b"77777777777\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + padded(b"evil")


@pytest.fixture
def guarded(tmp_path: Path) -> Path:
    return make_guarded(tmp_path)


def make_guarded(top: Path) -> Path:
    """A tree with something to lose, and a layer that leads out of itself in it."""
    out = top / "guarded"
    root = out / "layers/id/root"
    root.mkdir(parents=True)
    (out / "secret").write_bytes(SECRET)
    (out / "secret").chmod(0o600)
    (out / "dir").mkdir()
    (out / "dir/secret").write_bytes(SECRET)
    (out / "layers/secret").write_bytes(SECRET)
    (root / "absolute").symlink_to(out)
    (root / "relative").symlink_to("../../..")
    (root / "chain").symlink_to("relative/dir")
    (root / "proc").symlink_to(f"/proc/{os.getpid()}/root{out}")
    (root / "d").mkdir()
    os.link(out / "dir/secret", root / "shared")
    return out


def outside(guarded: Path) -> dict[bytes, object]:
    return {name: look for name, look in picture(guarded).items() if not name.startswith(b"layers/id/root")}


class Aftermath(NamedTuple):
    root: Path
    before: dict[bytes, object]
    after: dict[bytes, object]
    error: BaseException | None
    served: int  # the size of the next archive


def suffer(top: Path, name: str) -> Aftermath:
    """Apply a hostile archive, then a good one to another layer."""
    guarded = make_guarded(top)
    before = outside(guarded)
    root = guarded / "layers/id/root"
    stream = io.BytesIO(tar(*HOSTILE[name](os.fsencode(guarded))))
    error = None
    try:
        transfer.apply(str(root), stream)
    except Exception as caught:
        error = caught
    after = outside(guarded)
    following = top / "following"
    following.mkdir()
    return Aftermath(root, before, after, error, apply(following, file(b"a", b"x")))


@pytest.fixture(scope="module", params=EXTRACTORS)
def aftermaths(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Aftermath]:
    """All archives that tests ask about, applied side by side as by a server; then each test looks at its own."""
    chosen = {item.name for item in request.session.items}
    wanted = [name for name in HOSTILE if f"test_nothing_outside_is_touched[{request.param}-{name}]" in chosen]
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(8) as pool:
        patch.setattr(transfer, "PATIENCE", EXTRACTORS[request.param])
        tops = {name: tmp_path_factory.mktemp("hostile") for name in wanted}
        found = dict(zip(tops, pool.map(suffer, tops.values(), tops)))
    assert children() == []
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_outside_is_touched(aftermaths: dict[str, Aftermath], name: str) -> None:
    root, before, after, error, served = aftermaths[name]
    if error is not None:
        assert isinstance(error, transfer.ArchiveError)
        assert str(error).isprintable()  # one line, and nothing that a terminal obeys
        assert ".py:" not in str(error)  # refused, not crashed
    assert after == before
    assert_nothing_came_in(root)
    assert not (root / "PWNED").exists()
    assert served == 1


OF_OVERLAYFS = [b"opaque", b"redirect", b"metacopy", b"origin", b"whiteout", b"overlay.opaque", b"unheard-of"]


@pytest.mark.parametrize("name", OF_OVERLAYFS)
def test_attributes_of_overlayfs_are_left_out(tmp_path: Path, extractor: str, name: bytes, caplog: Log) -> None:
    """Of whatever has attributes, in the one spelling that an archive has for them; others are nobody's here."""
    said = pax({XATTR + b"trusted.overlay." + name: b"y", b"LIBARCHIVE.xattr.trusted.overlay." + name: b"eQ=="})
    (tmp_path / "lower").mkdir()
    apply(
        tmp_path,
        *(said, folder(b"lower"), said, folder(b"d"), said, file(b"d/f", b"x"), said, symlink(b"s", b"d")),
        *(said, hardlink(b"h", b"d/f"), said, header(b"p", FIFO)),
        *(said, file(b".wh..wh.plnk/1", b"x"), said, hardlink(b"of-aufs", b".wh..wh.plnk/1")),
    )
    for path in (tmp_path, *tmp_path.rglob("*")):
        assert not [key for key in os.listxattr(path, follow_symlinks=False) if "overlay" in key]
    assert [message.partition(" left out: ")[2] for message in caplog.messages] == [
        f"'trusted.overlay.{name.decode()}' of 7, first 'lower'"
    ]


def test_whiteouts_of_overlayfs_are_left_out(tmp_path: Path, extractor: str, caplog: Log) -> None:
    """With their other names, unless those are of something else; and they count for nothing else either."""
    (tmp_path / "lower").write_bytes(b"lower")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"lower")
    apply(
        tmp_path,
        *(header(b"lower", CHARDEV), hardlink(b"h1", b"lower"), hardlink(b"h2", b"./h1"), header(b"e/new", CHARDEV)),
        *(header(b"v7", CHARDEV, magic=b"", major=b"junk", minor=b"junk"), header(b"blocks", BLOCKDEV)),
        *(header(b"d/f", CHARDEV), file(b"d/.wh..wh..opq")),
        *(header(b"c", CHARDEV), file(b"c", b"x"), header(b"c", CHARDEV), hardlink(b"h3", b"c")),
        *(header(b"zero", CHARDEV, minor=5), header(b".wh.gone", CHARDEV)),
    )
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert names == {"lower", "d", "c", "h3", "zero", "blocks"}
    assert (tmp_path / "lower").read_bytes() == b"lower"
    assert (tmp_path / "h3").read_bytes() == b"x"
    [message] = caplog.messages
    assert message.partition(" left out: ")[2] == "'character device 0:0' of 8, first 'lower'"


def assert_nothing_came_in(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name != "shared":
            assert SECRET not in path.read_bytes()[:1000]


def test_there_are_enough_of_them() -> None:
    assert len(HOSTILE) >= 50


@pytest.mark.parametrize("name", ["secret", "dir", "layers"])
def test_comparing_and_packing_follow_no_symlink(guarded: Path, name: str) -> None:
    """A layer full of symlinks that lead out is compared and packed without a look at what they lead to."""
    root = guarded / "layers/id/root"
    (root / "shared").unlink()
    (root / "down").symlink_to(guarded / name)
    before = outside(guarded)
    data = b"".join(transfer.diff(str(root), None))
    assert SECRET not in data
    transfer.changes(str(root), str(guarded / "dir"))
    assert transfer.size(str(root), None) == sum(len(os.readlink(path)) for path in root.iterdir() if path.is_symlink())
    assert outside(guarded) == before
