"""The kernel's part in memory, for the tests of what is decided by it: devices, mounts, who holds what.

Put in the place of the functions of mounts.py, holders.py and elsewhere.py. What it does not do is join directories: it
remembers which. What a real kernel does is seen in tests/integration.

What no kernel would forgive ends a test at once: two overlays that write to one directory, or one that writes to what
another reads; a layer mounted twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from unit.fakes import FakePool

import mounts
from host import command, user_namespace
from images import layer_state
from mapped import elsewhere, holders, unmounting


def refused(words: str = "wrong fs type, bad option, bad superblock") -> command.CommandError:
    """What `mount` and `umount` end with."""
    return command.CommandError(("mount",), 32, words)


@dataclass
class FakeOverlay:
    """What a view is made of: its options, its directories as they were named, and where they are."""

    options: Sequence[str]
    lower: Sequence[str]
    upper: tuple[str, str] | None
    lower_paths: Sequence[str]
    upper_path: str
    devices: set[str]


class FakeHost:
    """Devices that the pool's images are mapped as, and what is mounted of them: mount point -> device or view.

    `overlays`: every view that was made, by the number of its device. `elsewhere`: views that containers have, each in
    a mount namespace of its own, by their name; those in `ending` go once somebody has looked. `held`: devices that
    somebody else has mounted in a namespace of his own; `writing`: those that the kernel writes back to, so that they
    are in use although nobody has them mounted. `dirty`: images whose log must be written out first. `grown`: what was
    told to fill its device. `namespaces`: what stands for a user namespace, by its uid_map and gid_map; `users`: the
    one that a mount's owners were mapped by. `options`: those of the file system that was mounted last. `flushed`: what
    was written out. `fails[FUNCTION]`: raised by its next calls, one after
    the other; in a pair with True after it has done its work.
    """

    def __init__(self, pool: FakePool) -> None:
        self.pool = pool
        self.mounted: dict[str, mounts.Mount] = {}
        self.overlays: dict[str, FakeOverlay] = {}
        self.elsewhere: dict[str, mounts.Mount] = {}
        self.ending: list[str] = []
        self.held: set[str] = set()
        self.writing: set[str] = set()
        self.dirty: set[str] = set()
        self.grown: list[str] = []
        self.options: list[str] = []
        self.flushed: list[str] = []
        self.namespaces: dict[tuple[str, str], int] = {}
        self.users: dict[str, int] = {}
        self._hidden: list[mounts.Mount] = []
        self._remove: Callable[[str], None] = os.rmdir
        self.fails: dict[str, list[Any]] = {}
        # Whether the file system of a device is read-only, as long as anybody has it.
        self._read_only: dict[str, bool] = {}

    @classmethod
    def in_place(cls, pool: FakePool, monkeypatch: pytest.MonkeyPatch, content: Path) -> FakeHost:
        """Make one, and put it in the kernel's place. Nobody comes to let go of anything while it is waited for.

        `content` is a directory for the files of the images.
        """
        made = cls(pool)
        pool.content = content
        for name in dir(made):
            for module in (mounts, holders, elsewhere):
                if not name.startswith("_") and callable(getattr(module, name, None)):
                    monkeypatch.setattr(module, name, getattr(made, name))
        monkeypatch.setattr(layer_state, "flush", made.flush)
        monkeypatch.setattr(user_namespace, "opened", made.opened)
        remove = made._remove = os.rmdir

        def rmdir(path: str, **options: int) -> None:
            # A mount point, also one that is hidden, stays.
            if path in [item.point for item in made.table()]:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
            remove(path, **options)

        monkeypatch.setattr(os, "rmdir", rmdir)
        monkeypatch.setattr(unmounting, "until_free", lambda seconds=0.0: iter([None, None]))
        return made

    # -- what tests ask and do ----------------------------------------------------------------

    def views(self) -> dict[str, FakeOverlay]:
        """The views that are mounted here, by their mount points."""
        return {point: self.overlays[item.device_number] for point, item in self.mounted.items() if _is_view(item)}

    def systems(self) -> dict[str, mounts.Mount]:
        """The layers' own file systems that are mounted here, by their mount points."""
        return {point: item for point, item in self.mounted.items() if not _is_view(item)}

    def run_container(self, point: str) -> str:
        """Let a container have the view that is mounted at `point`; return the name of the view."""
        item = self.mounted[point]
        self.elsewhere[item.source] = item._replace(point="/")
        return item.source

    def end_namespace(self) -> None:
        """Let our mount namespace end, and with it all that is mounted in it."""
        for point in [*self.mounted]:
            self._unmount(point)

    def hide(self) -> None:
        """Let something be mounted above all that is mounted: the mount points can be seen again, empty."""
        for point in self.systems():
            os.unlink(point)
            os.mkdir(point)
        above = os.path.commonpath([*self.mounted])
        self._hidden += [*self.mounted.values(), mounts.Mount("254:1", above, False, "", "ext4")]
        self.mounted.clear()

    def die(self, layer: str) -> str:
        """Let the device of a layer go away under it (rbd-nbd was killed); return it."""
        image = f"docker_image_{layer}"
        device = self.pool.devices.pop(image)
        for point, item in self.mounted.items():
            if item.device_number == device and not _is_view(item):
                os.unlink(point)
                os.symlink("/nonexistent/device-is-gone", point)
        return device

    @contextlib.contextmanager
    def _maybe_failing(self, name: str) -> Iterator[None]:
        failure = self.fails[name].pop(0) if self.fails.get(name) else None
        if failure is not None and not isinstance(failure, tuple):
            raise failure
        yield
        if failure is not None:
            raise failure[0]

    def _image(self, device: str) -> str:
        return next((image for image, mapped in list(self.pool.devices.items()) if mapped == device), "")

    def _living(self) -> list[FakeOverlay]:
        """The views that anybody has mounted."""
        numbers = {item.device_number for item in [*self.table(), *self.elsewhere.values()] if _is_view(item)}
        return [self.overlays[number] for number in numbers]

    # -- mounts.py ---------------------------------------------------------------------------

    def make(self, fs: str, device: str, arguments: Sequence[str], *, timeout: float) -> None:
        with self._maybe_failing("make"):
            path = self.pool.files(self._image(device))
            shutil.rmtree(path)
            path.mkdir()

    def mount(
        self, fs: str, device: str, point: str, options: Sequence[str], *, read_only: bool, timeout: float
    ) -> None:
        with self._maybe_failing("mount"):
            image = self._image(device)
            taken = {item.device_number for item in self.mounted.values()}
            assert device not in taken, f"{image} is mounted already"
            cannot_write = device in self.pool.read_only
            if not image or (cannot_write and (not read_only or image in self.dirty)):
                raise refused("cannot mount; probably corrupted filesystem or write-protected device")
            if self.in_use(device) and self._read_only.get(device, read_only) != read_only:
                raise refused("already mounted or mount point busy")
            self.dirty.discard(image)
            assert point not in self.mounted
            self._remove(point)
            os.symlink(self.pool.files(image), point)
            self._read_only[device] = read_only
            self.options = [*options]
            self.mounted[point] = mounts.Mount(device, point, read_only, "", fs, device)

    def overlay(
        self,
        name: str,
        point: str,
        lower: Sequence[str],
        upper: tuple[str, str] | None,
        *,
        options: Sequence[str],
        label: str,
        directory: str,
        timeout: float,
    ) -> None:
        with self._maybe_failing("overlay"):
            assert os.path.isdir(point)
            assert point not in self.mounted, f"something is mounted at {point} already"
            if len(lower) < (1 if upper else 2):
                raise refused("at least 2 lowerdir are needed while upperdir nonexistent")
            made = self._overlay(lower, upper, options, directory)
            self._check(made)
            number = f"0:{len(self.overlays)}"
            self.overlays[number] = made
            self.mounted[point] = mounts.Mount(number, point, upper is None, label, "overlay", name)

    def _overlay(
        self, lower: Sequence[str], upper: tuple[str, str] | None, options: Sequence[str], directory: str
    ) -> FakeOverlay:
        paths = [os.path.realpath(os.path.join(directory, name)) for name in (*(upper or ()), *lower)]
        missing = [path for path in paths if not os.path.isdir(path)]
        if missing:
            raise refused(f"special device does not exist: {missing}")
        devices = set()
        for path in paths:
            (image_id, _) = Path(path).relative_to(os.path.realpath(str(self.pool.content))).parts
            image = next(name for name, item in list(self.pool.images.items()) if item.image_id == image_id)
            devices.add(self.pool.devices[image])
        if upper:
            owner = Path(paths[0]).parent
            assert Path(paths[1]).parent == owner
            [read_only] = [
                item.read_only for point, item in list(self.mounted.items()) if Path(point).resolve() == owner
            ]
            if read_only:
                raise refused("upper fs is r/o, try multi-lower layers mount")
        return FakeOverlay(options, lower, upper, paths[2 if upper else 0 :], paths[0] if upper else "", devices)

    def _check(self, made: FakeOverlay) -> None:
        for other in self._living():
            assert not made.upper_path or made.upper_path != other.upper_path, "two overlays on one upper directory"
            assert made.upper_path not in other.lower_paths, "an overlay writes to what another one reads"
            assert other.upper_path not in made.lower_paths, "an overlay reads what another one writes to"

    def clone(self, source: str, point: str, users: int | None) -> None:
        with self._maybe_failing("clone"):
            item = self.mounted[source]
            assert point not in self.mounted, f"something is mounted at {point} already"
            self._remove(point)
            os.symlink(os.path.realpath(source), point)
            self.mounted[point] = item._replace(point=point, read_only=True)
            if users is not None:
                self.users[point] = users

    def unmount(self, *points: str, timeout: float) -> None:
        with self._maybe_failing("unmount"):
            for point in points:
                if point not in self.mounted:
                    raise refused(f"{point}: not mounted")
                self._unmount(point)

    @contextlib.contextmanager
    def opened(self, uids: str, gids: str, *, timeout: float) -> Iterator[int]:
        """Part of user_namespace.py: a descriptor for each pair of maps."""
        with self._maybe_failing("opened"):
            yield self.namespaces.setdefault((uids, gids), len(self.namespaces))

    def _unmount(self, point: str) -> None:
        if not _is_view(self.mounted.pop(point)):
            os.unlink(point)
            os.mkdir(point)

    def remount(self, point: str, *, read_only: bool, timeout: float) -> None:
        with self._maybe_failing("remount"):
            device = self.mounted[point].device_number
            if device in self.pool.read_only and not read_only:
                raise refused("cannot remount read-write, is write-protected")
            written = [view for view in self._living() if view.upper_path.startswith(os.path.realpath(point) + "/")]
            assert not (read_only and written), f"{point} becomes read-only, and a view writes to it"
            self._read_only[device] = read_only
            self.mounted[point] = self.mounted[point]._replace(read_only=read_only)

    def overlay_sources(self) -> set[str]:
        return {item.source for item in [*self.table(), *self.elsewhere.values()] if _is_view(item)}

    def table(self, pid: str = "self") -> list[mounts.Mount]:
        return [*self._hidden, *self.mounted.values()]

    def device_number(self, device: str) -> str:
        return device

    def device_path(self, number: str) -> str:
        with self._maybe_failing("device_path"):
            return number

    def is_read_only(self, device: str) -> bool:
        return device in self.pool.read_only

    def probe(self, device: str) -> None:
        if device not in self.pool.devices.values():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def in_use(self, device: str) -> bool:
        with self._maybe_failing("in_use"):
            viewed = any(device in view.devices for view in self._living())
            mounted = any(item.device_number == device for item in self.table())
            return mounted or viewed or device in self.held | self.writing

    def grow_mounted(self, fs: str, device: str, point: str, *, timeout: float) -> None:
        with self._maybe_failing("grow_mounted"):
            assert not self.mounted[point].read_only
            self.grown.append(device)

    def grow_ext4(self, device: str, *, timeout: float) -> None:
        with self._maybe_failing("grow_ext4"):
            assert not self.in_use(device)
            self.grown.append(device)

    def merge_writes(self, device: str) -> None:
        """Nothing to merge."""

    def limit_retries(self, fs: str, device: str, seconds: float) -> None:
        """Nothing is tried again."""

    def give_back_log(self, device: str, granule: int, *, timeout: float) -> None:
        """There is no log; but it is asked for by an exclusive open."""
        if self.in_use(device):
            raise OSError(errno.EBUSY, "Device or resource busy")

    def flush(self, directory: str) -> None:
        """Part of layer_state.py: what was written to the file system that is mounted there is in the cluster."""
        with self._maybe_failing("flush"):
            assert not self.mounted[directory].read_only
            self.flushed.append(directory)

    # -- holders.py --------------------------------------------------------------------------

    def mounted_by(self, number: str) -> list[str]:
        held = number in self.held or any(item.device_number == number for item in self.table())
        return ["process 1 (sh) has it mounted"] if held else []

    def viewed_by(self, source: str) -> list[str]:
        names = [item.source for item in [*self.table(), *self.elsewhere.values()] if _is_view(item)]
        if source in self.ending:
            self.elsewhere.pop(source, None)
        return ["process 1 (sh) has it mounted"] if source in names else []

    def of_mount(self, point: str) -> str:
        return "process 1 (sh) has its working directory in it"

    # -- elsewhere.py ------------------------------------------------------------------------

    def find(self, source: str) -> list[elsewhere.Held]:
        return [
            elsewhere.Held("1", item.point, item.device_number)
            for item in list(self.elsewhere.values())
            if item.source == source
        ]

    def take(self, source: str, point: str, *, timeout: float) -> bool:
        if source not in self.elsewhere:
            return False
        with self._maybe_failing("take"):
            assert os.path.isdir(point)
            self.mounted[point] = self.elsewhere[source]._replace(point=point)
        return True


def _is_view(item: mounts.Mount) -> bool:
    return item.type == "overlay"
