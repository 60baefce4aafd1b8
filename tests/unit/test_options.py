"""options.py: what a user may write after --storage-opt, and what he reads when it was wrong."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from images import options
from images.options import OptionError, Options, format_size, parse, parse_layer_size, parse_size

KI, MI, GI, TI = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def test_defaults_are_those_of_the_go_driver() -> None:
    assert parse(None) == parse([]) == Options()
    assert Options() == Options(
        basesize=10 * GI,
        datapool="rbd",
        objectpool="",
        imageprefix="docker_image",
        client="admin",
        configfile="/etc/ceph/ceph.conf",
        fs="xfs",
        mkfsarg=(),
        mountopt=(),
        namespace="",
        devicetype="krbd",
        mapopt=(),
        timeout=60.0,
    )


@pytest.mark.parametrize(
    ("pair", "name", "value"),
    [
        ("ceph.basesize=20G", "basesize", 20 * GI),
        ("ceph.datapool=docker.pool", "datapool", "docker.pool"),
        ("ceph.objectpool=erasure-coded", "objectpool", "erasure-coded"),
        ("ceph.objectpool=", "objectpool", ""),
        ("ceph.imageprefix=host1", "imageprefix", "host1"),
        ("ceph.client=docker-1", "client", "docker-1"),
        ("ceph.configfile=/etc/ceph/other.conf", "configfile", "/etc/ceph/other.conf"),
        ("ceph.fs=ext4", "fs", "ext4"),
        ("ceph.mkfsarg=-m reflink=0", "mkfsarg", ("-m reflink=0",)),
        ("ceph.mountopt=noatime", "mountopt", ("noatime",)),
        ("ceph.mountopt=logbsize=256k,nodiratime", "mountopt", ("logbsize=256k,nodiratime",)),
        ("ceph.namespace=team", "namespace", "team"),
        ("ceph.namespace=", "namespace", ""),
        ("ceph.devicetype=nbd", "devicetype", "nbd"),
        ("ceph.mapopt=ms_mode=secure", "mapopt", ("ms_mode=secure",)),
        ("ceph.timeout=2.5", "timeout", 2.5),
    ],
)
def test_each_option_sets_its_field_and_no_other(pair: str, name: str, value: object) -> None:
    assert parse([pair]) == dataclasses.replace(Options(), **{name: value})  # type: ignore[arg-type]


def test_what_is_for_views_is_not_for_file_systems() -> None:
    """Both are mount options to a user; an XFS is not mounted with the one, nor an overlay with the other."""
    said = parse(["ceph.mountopt=logbsize=256k", "ceph.mountopt=xino=off", "ceph.mountopt=nodiratime,xino=on,sync"])
    assert said.fs_options == ("logbsize=256k", "nodiratime", "sync")
    assert said.view_options == ("xino=off", "nodiratime", "xino=on", "sync")
    assert parse(None).view_options == ()
    assert parse(["ceph.mountopt=noatime, nodiratime"]).view_options == ("noatime", "nodiratime")


@pytest.mark.parametrize("value", ["on", "off"])
def test_how_inode_numbers_are_made_can_be_chosen(value: str) -> None:
    assert parse([f"ceph.mountopt=xino={value}"]).view_options == (f"xino={value}",)


@pytest.mark.parametrize("option", ["xino", "xino=", "xino=yes", "xino=auto", "noatime,xino=yes"])
def test_a_choice_of_inode_numbers_that_is_none(option: str) -> None:
    with pytest.raises(OptionError, match=r"'xino=?\w*' is not one of xino=on, xino=off "):
        parse([f"ceph.mountopt={option}"])


@pytest.mark.parametrize(
    "option",
    [
        *("index=on", "index=off", "metacopy=on", "redirect_dir=follow", "lowerdir=/x", "upperdir=/x", "workdir=/x"),
        *("userxattr", "volatile", "noatime,metacopy=on", "nfs_export=on", "uuid=off", "verity=on"),
    ],
)
def test_what_an_upper_directory_means_cannot_be_chosen(option: str) -> None:
    """With an index or a redirect it would not tell by itself what has changed."""
    named = option.rpartition(",")[2]
    with pytest.raises(OptionError, match=f"ceph.mountopt: '{named}' cannot be chosen: the driver needs its own"):
        parse([f"ceph.mountopt={option}"])


def test_a_label_is_none_of_the_driver_s() -> None:
    with pytest.raises(OptionError, match="dockerd --selinux-enabled labels what containers see"):
        parse(['ceph.mountopt=context="system_u:object_r:x:s0:c1,c2"'])


def test_repeatable_options_add_up_and_others_are_replaced() -> None:
    said = parse(
        ["ceph.mountopt=a", "ceph.fs=ext4", "ceph.mountopt=b", "ceph.fs=xfs", "ceph.mkfsarg=-n", "ceph.mkfsarg=-o"]
    )
    assert said == Options(mountopt=("a", "b"), mkfsarg=("-n", "-o"))


def test_every_option_is_listed() -> None:
    assert options.names() == [f"ceph.{field.name}" for field in dataclasses.fields(Options)]


@pytest.mark.parametrize(
    "pair", ["ceph.basesise=1G", "basesize=1G", "ceph.", "", "=", "ceph", "dm.basesize=1G", "CEPH.fs=xfs"]
)
def test_an_unknown_option_lists_the_valid_ones(pair: str) -> None:
    with pytest.raises(OptionError, match="unknown storage option") as caught:
        parse([pair])
    assert repr(pair.partition("=")[0]) in str(caught.value)
    assert all(name in str(caught.value) for name in options.names())


@pytest.mark.parametrize(
    "pair",
    [
        "ceph.basesize",
        "ceph.basesize=",
        "ceph.basesize=0",
        "ceph.basesize=100M",
        "ceph.basesize=10X",
        "ceph.datapool=",
        "ceph.datapool=a/b",
        "ceph.objectpool=a/b",
        "ceph.datapool=-x",
        "ceph.imageprefix=a@b",
        "ceph.imageprefix=a b",
        "ceph.imageprefix=a\nb",
        "ceph.client=",
        "ceph.configfile=ceph.conf",
        "ceph.fs=btrfs",
        "ceph.fs=XFS",
        "ceph.mkfsarg=",
        "ceph.mkfsarg= ",
        "ceph.mountopt=a\nb",
        "ceph.namespace=a/b",
        "ceph.devicetype=fuse",
        "ceph.mapopt=a\0b",
        "ceph.timeout=0",
        "ceph.timeout=never",
        "ceph.timeout=nan",
        "ceph.timeout=inf",
        "ceph.timeout=-1",
    ],
)
def test_a_bad_value_is_told_in_one_line_that_names_the_option(pair: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse([pair])
    assert pair.partition("=")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10G", 10 * GI),
        ("512M", 512 * MI),
        ("1.5T", 3 * TI // 2),
        ("1048576", MI),
        ("1048576b", MI),
        ("20 GB", 20 * GI),
        ("20gib", 20 * GI),
        (" 1g ", GI),
        ("0.5k", KI // 2),
        ("1P", 1 << 50),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "10X", "-1G", "+1G", "1e9", "1,5G", "0", "0.0G", "1 2G", "0x10", "G1", "1.G", ".5G"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@given(st.text())
def test_any_text_is_a_size_or_refused_in_one_line(text: str) -> None:
    try:
        assert parse_size(text) > 0
    except ValueError as error:
        assert "\n" not in str(error)


@example("9" * 400, "P")
@given(st.text("0123456789", min_size=1, max_size=400), st.sampled_from(["", "k", "M", "T", "P"]))
def test_any_number_is_a_size_or_refused(digits: str, unit: str) -> None:
    """Also one with more digits than a float has room for."""
    try:
        assert parse_size(digits + unit) > 0
    except ValueError as error:
        assert "size" in str(error)


@given(st.integers(1, 1 << 60))
def test_a_number_of_bytes_is_that_number(size: int) -> None:
    assert parse_size(str(size)) == pytest.approx(size)


@given(st.integers(1, 1 << 60))
def test_what_is_shown_can_be_typed_again(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=1e-3)


@pytest.mark.parametrize(
    ("size", "text"), [(10 * GI, "10G"), (3 * TI // 2, "1.5T"), (512 * MI, "512M"), (1, "1"), (0, "0")]
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text


def test_the_size_of_one_layer() -> None:
    assert parse_layer_size(None) is None
    assert parse_layer_size({}) is None
    assert parse_layer_size({"size": "20G"}) == 20 * GI
    with pytest.raises(OptionError, match="unknown storage option 'sise' for a container; valid is size"):
        parse_layer_size({"sise": "20G"})
    with pytest.raises(OptionError, match="storage option size: 'big' is not a size"):
        parse_layer_size({"size": "big"})


def test_dockerd_wins_over_a_default_and_a_default_over_the_built_in() -> None:
    defaults = parse(["ceph.datapool=docker", "ceph.client=docker", "ceph.mountopt=discard", "ceph.mountopt=nobarrier"])
    chosen = parse(["ceph.datapool=other", "ceph.mountopt=relatime"], defaults)
    assert (chosen.datapool, chosen.client, chosen.basesize) == ("other", "docker", options.DEFAULTS.basesize)
    # What is repeatable is one setting: dockerd's list takes the place of the defaults', it does not grow it.
    assert chosen.mountopt == ("relatime",)
    assert defaults.mountopt == ("discard", "nobarrier")


def test_without_a_word_of_dockerd_the_defaults_hold() -> None:
    defaults = parse(["ceph.devicetype=nbd"])
    assert parse(None, defaults) == parse([], defaults) == defaults
