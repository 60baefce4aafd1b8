"""Stacks of layers that a client mounts itself: containerd, its shims, dockerd and BuildKit call mount(2) on their own.

A client is told an overlay, whose source is the name of the stack's view (paths.py). What is in it is mapped and
mounted until nobody has such an overlay in any mount namespace. Clients do not tell that they have unmounted it: so it
is looked for. Overlayfs keeps the file systems that it joins; so a look that comes at a bad moment spoils nothing: the
device stays in use, and stays mapped.

Clients ask for the mounts of a stack before each use (containerd, container.go, NewTask). The one exception is a layer
that is being unpacked: it is mounted when its archive has been fetched, which may take hours.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mounts
from host import deadline
from host.failure import EXPECTED
from images import layer_state
from mapped import holders
from mapped.availability import Availability
from mapped.file_systems import FileSystems
from mapped.home import Home
from mapped.idmapped import IdMapped, Ids
from mapped.overlays import Overlays
from mapped.removals import Removals
from mapped.stacks import Stacks

log = logging.getLogger("handed_out")

# A stack that was mounted stays mapped for so long after it was last seen: a container may be started again.
UNUSED_SECONDS = 30.0
# So long a client may take to mount what it was told. It takes moments. Some mount it for moments only, and read-only,
# to compare it: that leaves no trace.
AWAITED_SECONDS = 60.0
_LOOK_SECONDS = 5.0
# The times of files are those of the kernel's last tick, of which there are 100 in a second or more.
_TICK = 0.01


class Stack(NamedTuple):
    """What is handed out. `name` is unique for ever, as the id of a layer is.

    `layer`: the layer that is written to; "" if the stack is only read. `parents`: the layers below, nearest first.
    `kept`: it stays mapped until it is taken back, whether it is mounted or not. `ids`: those of the user namespace in
    which it is used, None if that is the host's.
    """

    name: str
    layer: str
    parents: tuple[str, ...]
    kept: bool = False
    ids: Ids | None = None

    @property
    def user(self) -> str:
        """The user that the stack is, of each layer in it."""
        return f"{self.name}/client"


class Told(NamedTuple):
    """One mount as the client is to make it: the words of mount(8), without the mount point."""

    type: str
    source: str
    options: list[str]


@dataclass
class _Given:
    """What is known of a stack that is mapped and mounted for a client.

    `told`: what the client was told. `at`: when it was told so last, in seconds since 1970. `seen`: when it was last
    told so, or seen to have it mounted, on the monotonic clock. `mounted`: it was seen so since.
    """

    stack: Stack
    told: list[Told]
    at: float
    seen: float
    mounted: bool = False


class HandedOut:
    """The stacks of one home that clients mount. It decides how long each stays mapped. It takes the layers' locks."""

    def __init__(
        self,
        home: Home,
        removals: Removals,
        *,
        systems: FileSystems,
        stacks: Stacks,
        overlays: Overlays,
        availability: Availability,
    ) -> None:
        self._home, self._locks, self._paths = home, home.locks, home.paths
        self._removals, self._systems, self._stacks, self._overlays = removals, systems, stacks, overlays
        self._availability = availability
        self._idmapped = IdMapped(home)
        self._given: dict[str, _Given] = {}
        self._guard = threading.Lock()

    # -- hand out and take back ----------------------------------------------------------------

    def give(self, stack: Stack, make: Callable[[], None] | None = None) -> list[Told]:
        """Map and mount the layers of a stack, and tell how they are joined. The same stack is told the same again.

        `make` makes the image of its layer, while what is below is mapped. On failure nothing more is mounted than
        before; what `make` has made is the caller's. Raises what `make` raises; LayerError for a layer that is removed
        or is another host's, LayerLost for one whose device or image has gone, CannotMapIds, LayerBusy,
        mounts.MountError, command.CommandError, deadline.Overdue, OSError.
        """
        self._removals.refuse(stack.layer)
        with self._locks.hold(stack.name):
            given = self._given.get(stack.name)
            if given is None:
                return self._give(stack, make)
            self._check_alive(stack)
            self._map_ids(given.stack)
            given.at, given.seen, given.mounted = time.time(), time.monotonic(), False
            return given.told

    def _give(self, stack: Stack, make: Callable[[], None] | None) -> list[Told]:
        try:
            # What is just being made is ours, and what is only read may be another host's.
            is_ours = make is not None or not stack.layer
            with contextlib.nullcontext() if is_ours else self._availability.checked(stack.layer):
                self._acquire(stack, make)
            given = _Given(stack, self._tell(stack), time.time(), time.monotonic())
        except BaseException:
            self._release(stack)
            raise
        with self._guard:
            self._given[stack.name] = given
        return given.told

    def _map_ids(self, stack: Stack) -> None:
        if stack.ids and stack.parents:
            self._idmapped.mount(stack.name, stack.parents, stack.ids)

    def _release(self, stack: Stack, *, flush: bool = True) -> None:
        try:
            self._idmapped.unmount(stack.name)
        finally:
            # What is mounted still is looked for again (`unmount_left`).
            self._stacks.release(stack.layer, stack.user, stack.parents, flush=flush)

    def _acquire(self, stack: Stack, make: Callable[[], None] | None) -> None:
        user = stack.user

        def own() -> None:
            if make:
                make()
            if stack.layer:
                self._systems.acquire(stack.layer, user, write=True, finished=False)

        self._stacks.acquire(stack.name, user, stack.parents, own)
        self._check_alive(stack, ask=True)
        if stack.layer:
            self._overlays.prepared(stack.layer)
            if make and stack.ids:
                self._overlays.give_root(stack.layer, stack.ids.root())
        # What is left of it from before may be mapped to other ids.
        self._idmapped.unmount(stack.name)
        self._map_ids(stack)

    def _check_alive(self, stack: Stack, *, ask: bool = False) -> None:
        if found := _layers(stack):
            self._systems.check_alive(*found, ask=ask, user=stack.user)

    def take_back(self, name: str, *, flush: bool = True) -> None:
        """Release the layers of a stack, whoever may still have it mounted. Do nothing if it was not handed out.

        `flush`: what was written is in the cluster then. The stack is released even on failure. Raises LayerBusy,
        command.CommandTimeout, deadline.Overdue, OSError.
        """
        with self._locks.hold(name):
            self._take_back(name, flush=flush)

    def _take_back(self, name: str, *, flush: bool = True) -> None:
        with self._guard:
            given = self._given.pop(name, None)
        if given is not None:
            self._release(given.stack, flush=flush)

    def keep_no_longer(self, name: str) -> None:
        """Let a stack that was `kept` go once it is unused, as others do."""
        with self._guard:
            if given := self._given.get(name):
                given.stack = given.stack._replace(kept=False)

    def adopt(self, stack: Stack) -> bool:
        """Take a stack for handed out that an earlier life of this process had mapped and mounted whole.

        Tell whether it was. Raises CannotMapIds, LayerBusy, mounts.MountError, command.CommandError, OSError.
        """
        found = _layers(stack)
        if not found or not all(map(self._systems.is_known, found)):
            return False
        with self._locks.hold(stack.name):
            if stack.layer:
                self._systems.adopt(stack.layer, stack.user, write=True)
            for parent in stack.parents:
                with self._locks.hold(parent):
                    self._systems.set_finished(parent)
                    self._systems.adopt(parent, stack.user, write=False)
            with self._guard:
                self._given[stack.name] = _Given(stack, self._tell(stack), time.time(), time.monotonic(), mounted=True)
            self._map_ids(stack)
        return True

    def unmount_left(self) -> None:
        """Unmount what is left of stacks for user namespaces that are not handed out. A failure is logged."""
        for name in self._idmapped.stacks():
            self._try(name, self._unmount_left)

    def _unmount_left(self, name: str) -> None:
        with self._locks.hold(name):
            if name not in self.names():
                self._idmapped.unmount(name)

    # -- what is used --------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Name the stacks that are handed out."""
        with self._guard:
            return list(self._given)

    def take_back_unused(self, before: Callable[[str], None]) -> list[str]:
        """Take back the stacks that nobody has mounted any more, and name them. A failure is logged.

        `before` is called with each while it is still mounted here. What a failure leaves is unmapped in the
        background, once that is possible.
        """
        mounted = holders.overlay_sources()
        taken = []
        for name in self.names():
            if self._is_unused(name, mounted):
                with self._locks.hold(name):
                    # A client may have asked for it meanwhile.
                    if self._is_unused(name, mounted):
                        taken.append(name)
                        self._let_go(name, before)
        return taken

    def _let_go(self, name: str, before: Callable[[str], None]) -> None:
        for step in (before, self._take_back):
            self._try(name, step)

    def _try(self, name: str, step: Callable[[str], None]) -> None:
        try:
            with deadline.within(self._home.timeout):
                step(name)
        except EXPECTED as error:
            log.warning("snapshot %s: %s", name, error)

    def _is_unused(self, name: str, mounted: set[str]) -> bool:
        with self._guard:
            given = self._given.get(name)
        if given is None:
            return False
        now = time.monotonic()
        if self._paths.source(name) in mounted:
            given.seen, given.mounted = now, True
            return False
        unused = now - given.seen
        if given.stack.kept or unused < UNUSED_SECONDS:
            return False
        return given.mounted or unused > AWAITED_SECONDS or self._was_mounted(given)

    def _was_mounted(self, given: _Given) -> bool:
        """Tell whether an overlay was made of a stack since its client was told. Each mount makes `work` anew in it.

        fs/overlayfs/super.c, ovl_workdir_create.
        """
        layer = given.stack.layer
        if not layer:
            return False
        work = os.path.join(self._paths.point(layer), layer_state.WORK, "work")
        try:
            return deadline.call(lambda: os.stat(work), work, _LOOK_SECONDS).st_ctime > given.at - _TICK
        except (OSError, deadline.Overdue):
            return False

    # -- how it is joined ----------------------------------------------------------------------

    def _tell(self, stack: Stack) -> list[Told]:
        if not _layers(stack):
            # Nothing to be read: overlayfs takes no fewer than two directories.
            mounts.make_directory(self._paths.empty)
            return [Told("bind", self._paths.empty, ["ro", "rbind"])]
        parents = stack.parents
        below = self._idmapped.lower(stack.name, parents) if stack.ids else self._overlays.lower_of_client(parents)
        options = self._overlays.options_of_client(stack.layer, parents, below)
        return [Told("overlay", self._paths.source(stack.name), options)]


def _layers(stack: Stack) -> list[str]:
    return [*([stack.layer] if stack.layer else []), *stack.parents]
