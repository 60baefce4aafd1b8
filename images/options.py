"""The storage options: what `dockerd --storage-opt ceph.X=Y` and `docker run --storage-opt size=` take."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from host.failure import Failure
from rbdcli import Pool

PREFIX = "ceph."
FILE_SYSTEMS = ("xfs", "ext4")
DEVICE_TYPES = ("krbd", "nbd")
# mkfs.xfs refuses devices below 300 MB (xfsprogs 5.19), and rbd rounds sizes up to objects.
SMALLEST_BASE = 512 << 20
_UNITS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgtp]?)(?:i?b)?", re.IGNORECASE)
# Names of pools, namespaces, clients and images: nothing that rbd's own syntax (/ and @) or an option (-) could claim.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


class OptionError(Failure):
    """A storage option is unknown or has a bad value. The text is one line that names it and what is valid."""

    is_refusal = True


def parse_size(text: str) -> int:
    """Read a size such as 10G, 512M, 1.5T (powers of 1024; a bare number is bytes) as bytes. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; expected a number with a unit, such as 10G, 512M or 1.5T")
    exact = float(match[1]) * (1 << _UNITS[match[2].lower()])
    # An image's size is 64 bits wide, and a number of hundreds of digits is infinite as a float.
    if not 1 <= exact < 1 << 63:
        raise ValueError(f"{text!r} is not a size above zero and below 8 EiB")
    return int(exact)


def format_size(size: int) -> str:
    """Write bytes in the largest unit that keeps the number at 1 or more: 10737418240 -> 10G."""
    value, unit = float(size), ""
    for unit in ("", "K", "M", "G", "T", "P"):
        if value < 1024 or unit == "P":
            break
        value /= 1024
    return f"{value:.4g}{unit}"


def _base_size(text: str) -> int:
    size = parse_size(text)
    if size < SMALLEST_BASE:
        raise ValueError(f"{text!r} is too small for a file system; at least {format_size(SMALLEST_BASE)}")
    return size


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a name; expected letters, digits and _ . + -")
    return text


def _optional_name(text: str) -> str:
    return _name(text) if text else ""


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return parse


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 1 <= seconds <= 3600:
        raise ValueError(f"{text!r} is not a number of seconds from 1 to 3600")
    return seconds


def _file(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    return text


def _words(text: str) -> str:
    """Read arguments for a tool: anything but control characters, which no tool expects."""
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{text!r} is empty or not printable")
    return text.strip()


# The options of overlayfs that a user may choose. With any other an upper directory would not tell what has changed.
# xino=auto is not among them: it is the same as "off" where all file systems have one UUID, as clones do.
_OF_VIEWS = {"xino": ("on", "off")}
_OF_ANY_MOUNT = (
    *("atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "lazytime", "nolazytime"),
    *("dev", "nodev", "exec", "noexec", "suid", "nosuid", "sync", "async", "dirsync"),
)
_NOT_OF_VIEWS = (
    *("index", "metacopy", "redirect_dir", "nfs_export", "uuid", "verity", "fsync", "default_permissions"),
    *("lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir", "userxattr", "volatile", "override_creds"),
)
# dockerd's own option labels the views. A label holds commas, which would end a mount option.
_LABELS = ("context", "fscontext", "defcontext", "rootcontext")


def _mount_option(text: str) -> str:
    """Read one mount option, or several with commas between them."""
    words = _words(text)
    for option in map(str.strip, words.split(",")):
        key, _, value = option.partition("=")
        if key in _NOT_OF_VIEWS:
            raise ValueError(f"{option!r} cannot be chosen: the driver needs its own")
        if key in _LABELS:
            raise ValueError(f"{option!r} is not for the driver: dockerd --selinux-enabled labels what containers see")
        if key in _OF_VIEWS and value not in _OF_VIEWS[key]:
            raise ValueError(f"{option!r} is not one of {', '.join(f'{key}={choice}' for choice in _OF_VIEWS[key])}")
    return words


def _is_of_views(option: str) -> bool:
    return option.partition("=")[0] in _OF_VIEWS


def _is_of_any_mount(option: str) -> bool:
    """Tell whether an option is the same for every file system (mount(8), "FILESYSTEM-INDEPENDENT")."""
    return option in _OF_ANY_MOUNT


def _option(parse: Callable[[str], Any], default: Any, text: str, *, repeatable: bool = False) -> Any:
    metadata = {"parse": parse, "text": text, "repeatable": repeatable}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """The storage options of one daemon; the field names are the names after `ceph.`."""

    basesize: int = _option(_base_size, 10 << 30, "size of the base image and so of every new root, such as 10G")
    datapool: str = _option(_name, "rbd", "pool that holds the images")
    objectpool: str = _option(_optional_name, "", "pool for their content, such as an erasure-coded one")
    imageprefix: str = _option(_name, "docker_image", "what every image name starts with")
    client: str = _option(_name, "admin", "Ceph user, without 'client.'")
    configfile: str = _option(_file, "/etc/ceph/ceph.conf", "path of the Ceph configuration")
    fs: str = _option(_one_of(*FILE_SYSTEMS), "xfs", "file system of the layers")
    mkfsarg: tuple[str, ...] = _option(_words, (), "argument for mkfs, repeatable", repeatable=True)
    mountopt: tuple[str, ...] = _option(_mount_option, (), "mount option, repeatable", repeatable=True)
    namespace: str = _option(_optional_name, "", "RBD namespace inside the pool")
    devicetype: str = _option(_one_of(*DEVICE_TYPES), "krbd", "how images are mapped")
    mapopt: tuple[str, ...] = _option(_words, (), "for rbd device map --options, repeatable", repeatable=True)
    timeout: float = _option(_seconds, 60.0, "seconds that one command may take")

    @property
    def fs_options(self) -> tuple[str, ...]:
        """The options in `mountopt` that are for the layers' own file systems."""
        return tuple(option for option in self._mount_options() if not _is_of_views(option))

    @property
    def view_options(self) -> tuple[str, ...]:
        """The options in `mountopt` that are for the overlays, which join the layers and are what containers see."""
        options = self._mount_options()
        return tuple(option for option in options if _is_of_views(option) or _is_of_any_mount(option))

    def _mount_options(self) -> Sequence[str]:
        return [option.strip() for words in self.mountopt for option in words.split(",")]


DEFAULTS = Options()


def names() -> list[str]:
    """Return the name of every option, as a user writes it, in the order of the documentation."""
    return [PREFIX + item.name for item in fields(Options)]


def parse(pairs: Sequence[str] | None, defaults: Options = DEFAULTS) -> Options:
    """Read Init's Opts. An option that they leave out is as in `defaults`.

    Raises OptionError, which names the option, the value and what is valid.
    """
    known = {item.name: item for item in fields(Options)}
    values: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        item = known.get(key[len(PREFIX) :]) if key.startswith(PREFIX) else None
        if item is None:
            raise OptionError(f"unknown storage option {key!r}; valid are {', '.join(names())}")
        if not equals:
            raise OptionError(f"storage option {key} has no value; expected {key}=VALUE ({item.metadata['text']})")
        try:
            value = item.metadata["parse"](text)
        except ValueError as error:
            raise OptionError(f"storage option {key}: {error} ({item.metadata['text']})") from None
        if item.metadata["repeatable"]:
            value = (*values.get(item.name, ()), value)
        values[item.name] = value
    return replace(defaults, **values)


def parse_layer_size(storage_opt: Mapping[str, str] | None) -> int | None:
    """Read a layer's own StorageOpt (`docker run --storage-opt size=20G`): bytes, or None if there is no size.

    Raises OptionError for any other option or a bad size.
    """
    size: int | None = None
    for key, text in (storage_opt or {}).items():
        if key != "size":
            raise OptionError(f"unknown storage option {key!r} for a container; valid is size")
        try:
            size = parse_size(text)
        except ValueError as error:
            raise OptionError(f"storage option size: {error}") from None
    return size


def pool_of(options: Options) -> Pool:
    """Return the pool that the options name."""
    return Pool(
        name=options.datapool,
        namespace=options.namespace,
        client=options.client,
        configfile=options.configfile,
        timeout=options.timeout,
        device_type=options.devicetype,
        map_options=options.mapopt,
    )
