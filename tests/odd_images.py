#!/usr/bin/env python3
"""Writes images whose layers hold whatever a layer can hold, as archives that `docker load` takes.

    odd_images.py --base ROOT.tar DIR

DIR gets one archive for each image; its name is that of the image. Each is the root file system ROOT.tar with layers
on it. `odd` has every rule of a layer's archive, a directory at the top for each; `naive` has what overlay2 cannot
load; `chosen` and `chosen-...` have what our driver does otherwise than moby on purpose; the rest are images that must
be refused (`refused-...`) or come from somebody who wants to get out (`hostile-...`).
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

from make_image import write_image

WHEN = 1_500_000_000
Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: bytes, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **fields: Any) -> Entry:
    """One entry of an archive. `pax` are records of its extended header."""
    member = tarfile.TarInfo(os.fsdecode(name))
    member.type, member.size, member.mtime = kind, len(content), WHEN
    for key, value in fields.items():
        if key == "pax":
            member.pax_headers = {k: os.fsdecode(v) for k, v in value.items()}
        elif key == "link":
            member.linkname = os.fsdecode(value)
        else:
            setattr(member, key, value)
    return member, content


def file(name: bytes, content: bytes = b"", **fields: Any) -> Entry:
    """A regular file."""
    return entry(name, content=content, **{"mode": 0o644, **fields})


def folder(name: bytes, **fields: Any) -> Entry:
    """A directory."""
    return entry(name, tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def symlink(name: bytes, target: bytes, **fields: Any) -> Entry:
    """A symbolic link."""
    return entry(name, tarfile.SYMTYPE, link=target, **{"mode": 0o777, **fields})


def hardlink(name: bytes, target: bytes, **fields: Any) -> Entry:
    """A hard link. What Docker writes in such an entry is what the target has."""
    return entry(name, tarfile.LNKTYPE, link=target, **fields)


def node(name: bytes, kind: bytes, major: int = 0, minor: int = 0, **fields: Any) -> Entry:
    """A device or a fifo."""
    return entry(name, kind, devmajor=major, devminor=minor, **fields)


def sparse(name: bytes, size: int, segments: Mapping[int, bytes]) -> Entry:
    """A sparse file as GNU tar writes it in the pax format (version 1.0)."""
    lines = [b"%d" % len(segments)] + [b"%d\n%d" % (at, len(data)) for at, data in segments.items()]
    table = b"\n".join(lines) + b"\n"
    table += bytes(-len(table) % tarfile.BLOCKSIZE)
    records = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.name": name}
    records["GNU.sparse.realsize"] = b"%d" % size
    return file(b"GNUSparseFile.1/" + os.path.basename(name), table + b"".join(segments.values()), pax=records)


def archive(entries: Iterable[Entry], format: int = tarfile.PAX_FORMAT) -> bytes:
    """The archive of these entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as target:
        for member, content in entries:
            target.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def xattr(**values: bytes) -> dict[str, bytes]:
    """Records for extended attributes, whose names have underscores in place of dots."""
    return {"SCHILY.xattr." + key.replace("__", "."): value for key, value in values.items()}


NET_RAW = b"\x01\0\0\x02\0\x20\0\0" + bytes(12)  # revision 2, effective: what setcap writes, `cap_net_raw=ep`
NET_ADMIN = b"\x01\0\0\x02\0\x10\0\0" + bytes(12)
# user::rw-, user:1000:r--, group::r--, mask::r--, other::---
ACL = bytes.fromhex("02000000 01000600ffffffff 02000400e8030000 04000400ffffffff 10000400ffffffff 20000000ffffffff")


def times() -> list[Entry]:
    """Modification times of every kind of entry, within a second, before 1970 and far away."""
    return [
        folder(b"times"),
        folder(b"times/directory", pax={"mtime": b"1500000001.000000001"}),
        file(b"times/directory/later", pax={"mtime": b"1500000002.5"}),
        file(b"times/nanoseconds", pax={"mtime": b"1500000003.123456789"}),
        file(b"times/more-digits", pax={"mtime": b"1500000003.12345678999"}),
        file(b"times/accessed", pax={"mtime": b"1500000004.1", "atime": b"1600000000.25"}),
        symlink(b"times/symlink", b"nowhere", pax={"mtime": b"1500000005.75"}),
        node(b"times/fifo", tarfile.FIFOTYPE, pax={"mtime": b"1500000006.000000999"}),
        file(b"times/epoch", mtime=0),
        file(b"times/before-1970", pax={"mtime": b"-1.5"}),
        file(b"times/2100", mtime=4_102_444_800),
    ]


def lower_layer() -> list[Entry]:
    """What the layers above it change."""
    return [
        folder(b"whiteouts"),
        *(file(b"whiteouts/" + name, b"lower") for name in (b"kept", b"gone", b"-rf", b"wh.x", b"\xff\xfe")),
        folder(b"whiteouts/directory"),
        file(b"whiteouts/directory/file", b"lower"),
        symlink(b"whiteouts/to-kept", b"kept"),
        folder(b"opaque"),
        file(b"opaque/old", b"lower"),
        folder(b"opaque/directory", mode=0o700),
        file(b"opaque/directory/old", b"lower"),
        folder(b"opaque/merged", mode=0o750),
        file(b"opaque/merged/old", b"lower"),
        folder(b"opaque/merged/deep"),
        file(b"opaque/merged/deep/old", b"lower"),
        folder(b"links"),
        file(b"links/target", b"shared", mode=0o640, uid=5),
        hardlink(b"links/second", b"links/target", mode=0o640, uid=5),
        hardlink(b"links/absolute", b"/links/target", mode=0o640, uid=5),
        hardlink(b"links/dotted", b"./links/../links/target", mode=0o640, uid=5),
        hardlink(b"links/dressed", b"links/second", mode=0o600, uid=7, mtime=WHEN + 9),
        symlink(b"links/symlink", b"target"),
        hardlink(b"links/symlink-twice", b"links/symlink", mode=0o777),
        node(b"links/fifo", tarfile.FIFOTYPE, mode=0o600),
        hardlink(b"links/fifo-twice", b"links/fifo", mode=0o600),
        folder(b"replaced"),
        file(b"replaced/file-by-directory", b"lower"),
        folder(b"replaced/directory-by-file"),
        file(b"replaced/directory-by-file/old", b"lower"),
        symlink(b"replaced/symlink-by-directory", b"target"),
        symlink(b"replaced/symlink-by-file", b"target"),
        file(b"replaced/file-by-symlink", b"lower"),
        folder(b"replaced/directory-by-symlink"),
        file(b"replaced/directory-by-symlink/old", b"lower"),
        node(b"replaced/fifo-by-file", tarfile.FIFOTYPE),
        file(b"replaced/file-by-device", b"lower"),
        folder(b"replaced/directory", mode=0o700, uid=3, gid=4),
        file(b"replaced/directory/kept", b"lower"),
        file(b"replaced/file", b"lower", mode=0o4755, uid=3, pax=xattr(security__capability=NET_RAW, user__old=b"1")),
        folder(b"replaced/target"),
        folder(b"through"),
        folder(b"through/real"),
        symlink(b"through/absolute", b"/through/real"),
        symlink(b"through/relative", b"real"),
        symlink(b"through/upwards", b"../../../through/real"),
        symlink(b"through/chain", b"absolute"),
        *times(),
    ]


def upper_layer() -> list[Entry]:
    """Every rule on what is there already, and every attribute."""
    return [
        file(b"whiteouts/.wh.gone"),
        file(b"whiteouts/.wh.never-was"),
        file(b"whiteouts/.wh.-rf"),
        file(b"whiteouts/.wh.wh.x"),
        file(b"whiteouts/.wh.\xff\xfe"),
        file(b"whiteouts/.wh.directory"),
        file(b"whiteouts/.wh.to-kept"),
        folder(b"opaque/directory", mode=0o700),
        file(b"opaque/directory/.wh..wh..opq"),
        file(b"opaque/directory/new", b"upper"),
        folder(b"opaque/merged", mode=0o750, mtime=WHEN + 3),
        folder(b"opaque/merged/deep", mtime=WHEN + 4),
        file(b"opaque/merged/deep/new", b"upper"),
        file(b"opaque/merged/.wh..wh..opq"),
        file(b"opaque/merged/after", b"upper"),
        file(b"opaque/implied/.wh..wh..opq"),
        folder(b"replaced/file-by-directory", mode=0o711),
        file(b"replaced/file-by-directory/new", b"upper"),
        file(b"replaced/directory-by-file", b"upper"),
        folder(b"replaced/symlink-by-directory"),
        file(b"replaced/symlink-by-directory/new", b"upper"),
        file(b"replaced/symlink-by-file", b"upper"),
        symlink(b"replaced/file-by-symlink", b"/etc"),
        symlink(b"replaced/directory-by-symlink", b"target"),
        file(b"replaced/fifo-by-file", b"upper"),
        node(b"replaced/file-by-device", tarfile.CHRTYPE, 1, 3, mode=0o666),
        folder(b"replaced/directory", mode=0o2775, uid=6, gid=7, mtime=WHEN + 5, pax=xattr(user__new=b"2")),
        file(b"replaced/directory/new", b"upper"),
        file(b"replaced/file", b"upper"),
        folder(b"links"),
        *attributes(),
        *spelled(),
        folder(b"./", mode=0o711, uid=0, gid=50),
    ]


def attributes() -> list[Entry]:
    """Modes, owners, extended attributes, devices."""
    capable = xattr(security__capability=NET_RAW)
    return [
        folder(b"modes", mode=0o1777),
        *(file(b"modes/%04o" % mode, mode=mode) for mode in (0, 0o111, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777)),
        *(folder(b"modes/d%04o" % mode, mode=mode) for mode in (0, 0o2775, 0o4755, 0o7777)),
        file(b"modes/d2775/file", mode=0o644),
        folder(b"modes/d2775/folder"),
        file(b"modes/d2775/implied/file"),
        file(b"modes/type-bits", mode=0o100644),
        folder(b"owners", uid=1000, gid=1000),
        file(b"owners/setuid", mode=0o4755, uid=1000, gid=100),
        file(b"owners/biggest-octal", uid=0o7777777, gid=0o7777777),
        file(b"owners/big", uid=3_000_000_000, gid=4_000_000_000),
        file(b"owners/named", uname="daemon", gname="daemon"),
        symlink(b"owners/symlink", b"nowhere", uid=5, gid=6),
        node(b"owners/fifo", tarfile.FIFOTYPE, uid=5, gid=6),
        folder(b"xattrs", pax=xattr(user__on=b"directory")),
        file(b"xattrs/user", b"x", pax=xattr(user__one=b"1", user__empty=b"", user__binary=b"\0\xff\n=")),
        file(b"xattrs/capability", b"x", mode=0o755, pax=capable),
        file(b"capabilities/lost", b"x", mode=0o755, pax=capable),
        file(b"capabilities/other", b"x", mode=0o755, pax=capable),
        file(b"xattrs/owned-capability", b"x", mode=0o4755, uid=7, gid=8, pax=capable),
        file(b"xattrs/trusted", b"x", pax=xattr(trusted__one=b"1")),
        file(b"xattrs/acl", b"x", mode=0o640, pax=xattr(system__posix_acl_access=ACL)),
        symlink(b"xattrs/symlink", b"user", pax=xattr(user__forbidden=b"1")),
        folder(b"devices"),
        node(b"devices/null", tarfile.CHRTYPE, 1, 3, mode=0o666),
        node(b"devices/loop", tarfile.BLKTYPE, 7, 0, mode=0o660, gid=6),
        node(b"devices/big-minor", tarfile.CHRTYPE, 9, 70_000),
        node(b"devices/fifo", tarfile.FIFOTYPE, mode=0o622),
        symlink(b"devices/symlink", b"null"),
    ]


def spelled() -> list[Entry]:
    """What an archive leaves out, or spells in its own way."""
    return [
        file(b"implied/by/a/file", b"x"),
        file(b"implied/later/file", b"x"),
        folder(b"implied/later", mode=0o700, uid=4, mtime=WHEN + 8),
        hardlink(b"implied-by-link/here", b"implied/by/a/file"),
        file(b"./spelled/dot", b"x"),
        file(b"/spelled/absolute", b"x"),
        file(b"spelled//doubled///slashes", b"x"),
        file(b"spelled/./inner/../dots", b"x"),
        folder(b"spelled/no-slash"),
        folder(b"spelled/two-slashes//"),
        entry(b"spelled/old-file", tarfile.AREGTYPE, b"x", mode=0o644),
        entry(b"pax_global_header", b"g", b"21 comment=a comment\n", mode=0o644),
        file(b"after-global", b"x"),
    ]


LONG = b"n" * 120
NAMES = [
    b"space bar",
    b"new\nline",
    b"tab\tand\\backslash",
    b"-dash",
    b"*?[glob]",
    b"$(touch x)",
    b"\xff\xfe",
    b"\xe4",
    LONG,
]
NAMES += ["ümläut".encode(), b"n" * 255, b"/".join([b"p" * 60] * 5), b"...", b"..x", b"wh.", b"\x7f\x1b[0m", b"a" * 100]


def names(top: bytes) -> list[Entry]:
    """Names that are long, or of other bytes than letters, as files and as targets of links."""
    found = [folder(top)]
    for number, name in enumerate(NAMES):
        found.append(file(top + b"/" + name, b"x"))
        found.append(symlink(top + b"/symlink%d" % number, name))
        found.append(hardlink(top + b"/link%d" % number, top + b"/" + name))
    return found


def naive() -> list[list[Entry]]:
    """Hard links to lower layers, whiteouts beside what they name: overlay2 unpacks a layer by itself, and fails."""
    return [
        [
            folder(b"lower"),
            file(b"lower/file", b"shared", mode=0o640, uid=5),
            symlink(b"lower/symlink", b"file"),
            file(b"lower/removed", b"only its other name stays"),
            file(b"lower/replaced", b"old"),
            file(b"lower/again", b"old"),
            folder(b"through"),
            folder(b"through/real"),
            file(b"through/real/gone", b"lower"),
            symlink(b"through/absolute", b"/through/real"),
            symlink(b"through/upwards", b"../../../through/real"),
            symlink(b"through/chain", b"absolute"),
        ],
        [
            hardlink(b"upper/link", b"lower/file", mode=0o640, uid=5),
            hardlink(b"upper/dressed", b"lower/file", mode=0o755, uid=9, mtime=WHEN + 1),
            hardlink(b"upper/symlink", b"lower/symlink", mode=0o777),
            hardlink(b"upper/removed", b"lower/removed", mode=0o644),
            file(b"lower/.wh.removed"),
            hardlink(b"upper/replaced", b"lower/replaced", mode=0o644),
            file(b"lower/replaced", b"new"),
            file(b"lower/.wh.again"),
            file(b"lower/again", b"new"),
            file(b"lower/taken-back", b"new"),
            file(b"lower/.wh.taken-back"),
            file(b"no-directory/of/.wh.whiteout"),
            # No daemon can save these: it looks for the files from outside, by their names in the archive, and takes
            # them for the entry's content.
            file(b".wh..wh.aufs", b"of aufs, left out"),
            folder(b".wh..wh.orph"),
            sparse(b"sparse/hole-first", 1 << 20, {(1 << 20) - 4: b"data"}),
            sparse(b"sparse/hole-last", 300_000, {0: b"data"}),
            sparse(b"sparse/islands", 2_000_000, {0: b"a" * 512, 100_000: b"b" * 1000, 1_000_000: b"c"}),
            sparse(b"sparse/empty", 100_000, {}),
            file(b"through/absolute/one", b"upper"),
            file(b"through/upwards/two", b"upper"),
            file(b"through/chain/three", b"upper"),
            folder(b"through/chain/four", mode=0o700),
            file(b"through/chain/.wh.gone"),
            file(b"../../confined/up", b"x"),
            folder(b"confined/directory"),
            file(b"confined/directory/../../../confined/within", b"x"),
        ],
    ]


def chosen() -> list[list[Entry]]:
    """What our driver does otherwise than moby's naive one, on purpose (see untar.py)."""
    return [
        [folder(b"opaque"), folder(b"opaque/holding", mode=0o750), file(b"opaque/holding/old", b"lower")],
        [
            # An opaque whiteout spares a directory that holds something of its layer, also if it has no entry itself.
            folder(b"opaque"),
            file(b"opaque/holding/new", b"upper"),
            file(b"opaque/.wh..wh..opq"),
            # moby makes the parents of a global header, which is no entry, although not of an overlay2 layer.
            entry(b"global/pax_global_header", b"g", b"21 comment=a comment\n"),
            # What aufs kept for itself is left out altogether; moby makes the parents of it.
            file(b".wh..wh.plnk/9.9", b"of aufs, twice"),
            hardlink(b"aufs/one", b".wh..wh.plnk/9.9"),
            hardlink(b"aufs/two", b".wh..wh.plnk/9.9"),
            # To overlayfs it says that there is nothing.
            node(b"zero", tarfile.CHRTYPE, 0, 0),
        ],
    ]


def chosen_alone() -> dict[str, list[list[Entry]]]:
    """The same, where one of the two refuses the image."""
    return {
        # A directory that a later entry of its layer took away needs no time; moby fails to set it.
        "gone": [[folder(b"gone"), file(b"gone/file", b"x"), file(b".wh.gone"), file(b"stays", b"x")]],
        # moby removes what holds the whiteout.
        "whiteout-of-nothing": [[folder(b"directory")], [file(b"directory/.wh.")]],
    }


def broken(data: bytes) -> bytes:
    """An archive whose second header lost its checksum."""
    return data[:1024] + b"broken" + data[1030:]


def refused() -> dict[str, bytes]:
    """Layers that nobody may take for whole."""
    good = archive([file(b"first", b"x"), file(b"second", b"y" * 2000)])
    return {
        "twice": archive([file(b"name", b"x"), file(b"name", b"y")]),
        "truncated": good[: 512 * 4],
        "bad-checksum": broken(good),
        "link-to-nothing": archive([hardlink(b"link", b"not/there")]),
        "below-a-file": archive([file(b"file", b"x"), file(b"file/below", b"x")]),
        "link-outside": archive([hardlink(b"link", b"../../../../../../etc/passwd-of-nobody")]),
    }


def hostile(out: bytes) -> dict[str, list[Entry]]:
    """Layers that want to read, change or remove what is in the directory `out` of the host.

    Not among them: a sparse file of 4 EiB, whose zeros dockerd itself would count for ever.
    """
    up = b"../" * 40 + out[1:]
    secret = out + b"/secret"
    return {
        "dotdot": [file(up + b"/secret", b"evil")],
        "absolute": [file(secret, b"evil"), folder(out, mode=0o777, mtime=1)],
        "symlink": [symlink(b"a", out), file(b"a/secret", b"evil"), file(b"a/new", b"evil")],
        "symlink-up": [symlink(b"a", up), folder(b"a/new"), file(b"a/secret", b"evil")],
        "proc": [symlink(b"p", b"/proc/1/root" + out), file(b"p/secret", b"evil"), file(b"p/.wh.secret")],
        "hard-link": [hardlink(b"h", secret, mode=0o777, uid=5), file(b"h", b"evil")],
        "hard-link-through": [symlink(b"a", out), hardlink(b"h", b"a/secret", mode=0o777)],
        "whiteout": [file(up + b"/.wh.secret"), file(out + b"/.wh.directory")],
        "whiteout-through": [symlink(b"a", out), file(b"a/.wh.secret"), file(b"a/.wh..wh..opq")],
        "whiteout-dotdot": [file(b"d/.wh...")],
        "opaque-dotdot": [file(up + b"/.wh..wh..opq")],
        "root-symlink": [symlink(b"./", out), file(b"secret", b"evil")],
        "shell": [file(b"$(touch " + out + b"/PWNED)"), file(b"; rm -rf " + out + b" #"), file(b"--checkpoint=1")],
        "deep": [file(b"d/" * 1900 + b"f"), file(b".wh.d"), file(b"d/" * 9000)],
    }


def main() -> None:
    """Read the command line and write the images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", required=True, metavar="ROOT.tar", help="the first layer")
    parser.add_argument("--guarded", required=True, metavar="DIR", help="what the hostile images are after")
    parser.add_argument("directory", metavar="DIR", help="where the images go")
    arguments = parser.parse_args()
    with open(arguments.base, "rb") as source:
        base = source.read()

    def write(name: str, *layers: bytes) -> None:
        write_image(f"{name}:latest", [base, *layers], os.path.join(arguments.directory, f"{name}.tar"))

    upper = archive(upper_layer())
    gnu = archive(names(b"names/gnu"), tarfile.GNU_FORMAT)
    write("odd", archive(lower_layer()), upper, gnu, archive(names(b"names/pax")))
    write("naive", *(archive(layer) for layer in naive()))
    write("chosen", *(archive(layer) for layer in chosen()))
    for name, layers in chosen_alone().items():
        write(f"chosen-{name}", *(archive(layer) for layer in layers))
    for name, layer in refused().items():
        write(f"refused-{name}", layer)
    for name, entries in hostile(os.fsencode(arguments.guarded)).items():
        write(f"hostile-{name}", archive(entries))


if __name__ == "__main__":
    main()
