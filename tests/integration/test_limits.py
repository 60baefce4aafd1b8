"""What a file system does not take of an archive, or of its size: told in words that name the limit and the way out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Cluster, StartPlugin
from plugin_client import Refused
from unit.archives import file, header, pax, symlink, tar

NewId = Callable[[], str]


def attribute(size: int) -> bytes:
    return pax({b"SCHILY.xattr.user.x": b"v" * size}) + file(b"f")


def target(size: int) -> bytes:
    return pax({b"linkpath": b"t" * size}) + symlink(b"s", b"x")


def sparse(size: int) -> bytes:
    """A file that is one hole."""
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"big"}
    records[b"GNU.sparse.realsize"] = b"%d" % size
    return pax(records) + header(b"x", size=512) + b"1\n%d\n0\n".ljust(512, b"\0") % size


FITS = {
    "xfs": [target(1023), attribute(65536), sparse(17 << 40)],
    "ext4": [target(1024), attribute(3900), sparse(15 << 40)],
}
UNFIT = {
    "xfs": [(target(1024), "symlink to 1024 bytes, XFS takes 1023 and ext4 4095: shorten it, or use ceph.fs=ext4")],
    "ext4": [
        (target(4096), "symlink to 4096 bytes, XFS takes 1023 and ext4 4095: shorten it"),
        (
            attribute(5000),
            "'user.x' of 5000 bytes: No space left on device; ext4 takes 4096 for all attributes .* use ceph.fs=xfs",
        ),
        (sparse(17 << 40), rf"a file of {17 << 40} bytes, its file system takes less \(ext4 16 TiB"),
    ],
}


@pytest.mark.parametrize("fs", FITS)
def test_what_is_beyond_a_file_system_is_told_in_words(start_plugin: StartPlugin, new_id: NewId, fs: str) -> None:
    client = start_plugin(fs=fs, imageprefix=f"limits_{fs}").client
    for members in FITS[fs]:
        client.apply_diff(client.create(new_id()), tar(members))
    for members, words in UNFIT[fs]:
        layer = client.create(new_id())
        with pytest.raises(Refused, match=words):
            client.apply_diff(layer, tar(file(b"before"), members))
        client.remove(layer)


def test_foreign_attributes_are_left_out_and_logged(start_plugin: StartPlugin, new_id: NewId) -> None:
    """One line for an archive; what the kernel stores is there."""
    plugin = start_plugin(imageprefix="foreign-attributes")
    layer = plugin.client.create(new_id())
    records = {b"SCHILY.xattr." + name: b"1" for name in (b"com.apple.x", b"foo.bar", b"system.nfs4_acl", b"user.mine")}
    plugin.client.apply_diff(layer, tar(*(pax(records) + file(b"f%d" % number) for number in range(9))))
    root = plugin.client.get(layer)
    assert os.getxattr(os.path.join(root, "f3"), "user.mine") == b"1"
    plugin.client.put(layer)
    [line] = [line for line in plugin.log_text().splitlines() if "left out" in line]
    assert layer in line
    for name in ("com.apple.x", "foo.bar", "system.nfs4_acl"):
        assert f"'{name}' of 9, first 'f0'" in line
    assert "user.mine" not in line


# -- the size of a layer -----------------------------------------------------------------------------

BASE = 512 << 20


def big_archive(megabytes: int) -> Iterator[bytes]:
    """An archive with one file, whose content nothing can make smaller, in pieces as Docker sends them."""
    piece = os.urandom(1 << 20)
    yield header(b"big", size=megabytes << 20)
    for number in range(megabytes):
        yield number.to_bytes(8, "big") + piece[8:]
    yield bytes(1024)


def size_of(cluster: Cluster, image: str) -> int:
    return int(cluster.info(image)["size"])


def test_an_archive_that_is_larger_than_the_base_image_fits(
    start_plugin: StartPlugin, cluster: Cluster, new_id: NewId
) -> None:
    """What size= allows can be committed, and `docker import` takes what is larger than ceph.basesize."""
    client = start_plugin(basesize="512M", imageprefix="grown").client
    small, image = client.create(new_id()), client.create(new_id())
    client.apply_diff(small, tar(file(b"f")))
    assert client.apply_diff(image, big_archive(600)) == 600 << 20
    grown = size_of(cluster, f"grown_{image}")
    assert 600 << 20 < grown < 1100 << 20
    assert size_of(cluster, f"grown_{small}") == BASE
    # A layer's size is its own, whatever is below it; a container may ask for more, and for no less.
    container = client.create(new_id(), image, writable=True)
    assert client.metadata(container)["Size"] == str(BASE)
    with pytest.raises(Refused, match="size 400M is smaller than 512M, which its file system has at least"):
        client.create(new_id(), image, "400M", writable=True)
    assert len(client.read(container, "big")) == 600 << 20
    larger = client.create(new_id(), image, "2G", writable=True)
    root = client.get(larger)
    assert os.statvfs(root).f_blocks * os.statvfs(root).f_frsize > 1900 << 20
    client.put(larger)
    # Nor is it forgotten by a commit on top.
    client.write(container, "more", os.urandom(300 << 20))
    committed = client.create(new_id(), image)
    client.apply_diff(committed, client.diff(container, image), image)
    assert len(client.read(committed, "more")) == 300 << 20
    assert len(client.read(committed, "big")) == 600 << 20


def test_a_layer_grows_for_its_inodes_too(start_plugin: StartPlugin, cluster: Cluster, new_id: NewId) -> None:
    """Also where the driver knows nothing of the layer any more."""
    plugin = start_plugin(basesize="512M", imageprefix="inodes", mkfsarg="-i maxpct=1")
    client = plugin.client
    image = client.create(new_id())
    plugin.kill()
    plugin.start()
    client.apply_diff(image, tar(*(file(b"%d" % number) for number in range(20_000))))
    assert len(client.listing(image)) == 20_000
    assert size_of(cluster, f"inodes_{image}") > BASE


def test_an_archive_that_fits_grows_nothing(start_plugin: StartPlugin, cluster: Cluster, new_id: NewId) -> None:
    client = start_plugin(basesize="512M", imageprefix="fits").client
    image = client.create(new_id())
    client.apply_diff(image, big_archive(300))
    assert size_of(cluster, f"fits_{image}") == BASE


def test_a_layer_that_cannot_grow_says_what_to_do_and_leaves_nothing(
    start_plugin: StartPlugin, cluster: Cluster, new_id: NewId, tmp_path: Path
) -> None:
    plugin = start_plugin(basesize="512M", imageprefix="full")
    program = tmp_path / "rbd"
    program.write_text(
        '#!/bin/bash\n[[ " $* " != *" resize "* ]] || { echo "rbd: no" >&2; exit 22; }\n'
        f'PATH=${{PATH#{tmp_path}:}} exec rbd "$@"\n'
    )
    program.chmod(0o755)
    plugin.terminate()
    plugin.start(PATH=f"{tmp_path}:{plugin.environment['PATH']}")
    client = plugin.client
    image = client.create(new_id())
    with pytest.raises(Refused) as caught:
        client.apply_diff(image, big_archive(600))
    assert "No space left on device" in caught.value.text
    assert re.search(
        r"512M, is full and did not grow: rbd resize: rbd: no .*; set a larger ceph.basesize", str(caught.value)
    )
    client.remove(image)
    cluster.wait_images([], "full_")


def test_an_ext4_that_may_not_grow_says_what_to_do(start_plugin: StartPlugin, new_id: NewId) -> None:
    """It takes CAP_SYS_RESOURCE to let a mounted one grow, which a container may lack; else it does (tests/kernel)."""
    plugin = start_plugin(basesize="512M", imageprefix="full_ext4", fs="ext4", init=False)
    plugin.terminate()
    plugin.before = ("setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource")
    plugin.start()
    plugin.init()
    image = plugin.client.create(new_id())
    with pytest.raises(Refused, match=r"is full and did not grow: .*CAP_SYS_RESOURCE; set a larger ceph\.basesize"):
        plugin.client.apply_diff(image, big_archive(600))
