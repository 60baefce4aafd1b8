"""Tries what the key may do, and whether this host can map and mount: on an image of its own, which goes away again.

The image belongs to no image prefix, so no driver takes it for a layer. It has one name for each host and home: what a
doctor that was killed has left in the pool, mapped or mounted, goes with the next one. So only one at a time may work.

The right to put a client on the blocklist, which `takeover` needs, is tried with an address that no client can have.
The entry ends by itself: `profile rbd` may add an entry, and may not remove one (Ceph, mon/MonCap.cc).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import mounts
import rbdcli
from cluster import diagnosis
from cluster.owner import Owner
from doctor.finding import Improve, Missed, Unknown
from graph import preconditions
from graph.preconditions import Check
from host import command, deadline
from host.failure import EXPECTED
from images import layer_state
from images.layers import OBJECT_SIZE
from images.options import SMALLEST_BASE, Options

log = logging.getLogger("trial")

# No prefix of layers' images begins so: that would end with an underscore.
PREFIX = "docker-graph-driver-doctor-"
SNAPSHOT = "empty"
# An address for documentation (RFC 5737).
NOBODY = "192.0.2.1"
BLOCKLIST_SECONDS = 1
# Clocks that differ by less are no reason for a word: the cluster tells its time in whole seconds.
SKEW_SECONDS = 5.0
# What is left at the end, or after an interruption, goes within this time, or stays.
CLOSE_SECONDS = 30.0
_REFUSALS = (errno.EPERM, errno.EACCES)


class Trial:
    """One trial. Call `close` at its end, however that came; before, `checks` are made in their order."""

    def __init__(self, pool: rbdcli.Pool, options: Options, owner: Owner, directory: str = "/run") -> None:
        """`directory` is where the image is mounted for a moment."""
        self._pool = pool
        self._options = options
        self._image = PREFIX + owner.digest[:16]
        self._clone = f"{self._image}-clone"
        self._point = os.path.join(directory, self._image)
        self._features = rbdcli.features(options.devicetype)
        # Held while there may be something of ours in the pool, against another doctor of this host and home.
        self._only: socket.socket | None = None
        # Held by the step at work; what closes waits for it.
        self._at_work = threading.Lock()
        self._closed = False
        self._device = ""
        # When the image began to be made, and when it was, by our clock.
        self._began, self._ended = 0.0, 0.0

    def checks(self) -> list[Check]:
        """Return the steps. They are made in this order."""
        steps: list[tuple[str, str, Callable[[], str], tuple[str, ...]]] = [
            ("create", "create images", self._create, ("pool init", "namespace", "object pool", "space")),
            ("clock", "ask for an image", self._clock, ("create",)),
            ("clone", "take snapshots of images and clone them", self._make_clone, ("create",)),
            ("map", "map images", self._map, ("clone", "device type")),
            ("mount", "map images", self._mount, ("map", "file systems")),
            ("remove", "remove images", self._remove, ("create",)),
        ]
        found = [Check(name, self._step(what, step), needs) for name, what, step, needs in steps]
        return [*found, Check("blocklist", self._blocklist, ("cluster",))]

    def close(self) -> str:
        """Let nothing of the trial be left, if possible. Return what may be left, in one line; "" for nothing.

        The step that is at work, if any, is ended by force. It takes CLOSE_SECONDS and a few commands at the most.
        """
        self._closed = True
        until = time.monotonic() + CLOSE_SECONDS
        while not self._at_work.acquire(timeout=0.1):
            # Each command of that step, until it sees that it is over.
            command.end_running()
            if time.monotonic() > until:
                return self._left("it hangs")
        left = ""
        try:
            if self._only is not None:
                with deadline.within(max(1.0, until - time.monotonic())):
                    self._clear()
        except (*EXPECTED, *diagnosis.NOT_UNDERSTOOD) as error:
            left = self._left(str(error))
        finally:
            self._at_work.release()
        # An interruption does not come here: then the next call goes on.
        self._let_others()
        return left

    def _left(self, why: str) -> str:
        return (
            f"the image {self._image}, or {self._clone}, may be left in pool {self._pool.name}, or mounted below "
            f"{self._point}: {why}; the next doctor removes them"
        )

    # -- steps -------------------------------------------------------------------------------

    def _step(self, what: str, step: Callable[[], str]) -> Callable[[], str]:
        """Let a step work alone, and its error name what our key may not do."""

        def work() -> str:
            if not self._at_work.acquire(timeout=deadline.GRACE_SECONDS):
                raise Unknown("a step before hangs")
            try:
                self._go_on()
                if self._only is None and step != self._create:
                    # There may be an image of that name, and it may be another doctor's.
                    raise Unknown("there is no image to try it on")
                return step()
            except command.CommandError as error:
                if not _is_refusal(error):
                    raise
                raise preconditions.NotReady(self._refusal(what, error)) from None
            finally:
                self._at_work.release()

        return work

    def _refusal(self, what: str, error: command.CommandError) -> str:
        return (
            f"client.{self._options.client} may not {what} in pool {self._pool.name}: {error}; let it: "
            f"{preconditions.rights(self._options)}"
        )

    def _go_on(self) -> None:
        if self._closed:
            raise Missed("interrupted")

    def _create(self) -> str:
        self._keep_others_off()
        self._clear()
        self._go_on()
        # As those of layers are, but small.
        objects_in = self._options.objectpool
        self._began = time.time()
        self._pool.create(self._image, SMALLEST_BASE, self._features, OBJECT_SIZE, objects_in)
        self._ended = time.time()
        self._pool.set_metadata(self._image, "docker_graph_driver.doctor", "a trial")
        return f"client.{self._options.client} may create images"

    def _clock(self) -> str:
        theirs = self._pool.created(self._image)
        ahead, behind = self._began - theirs, theirs - self._ended
        if max(ahead, behind) > SKEW_SECONDS:
            words = f"{ahead:.0f} s ahead of" if ahead > behind else f"{behind:.0f} s behind"
            raise Improve(
                f"this host's clock is {words} the cluster's: let both be set (chrony, ntpd); gc goes by the age of "
                f"images, and Ceph's keys by the time"
            )
        return f"this host's and the cluster's differ by less than {SKEW_SECONDS:g} s"

    def _make_clone(self) -> str:
        self._pool.snapshot(self._image, SNAPSHOT)
        self._go_on()
        parent = rbdcli.Parent(self._image, SNAPSHOT)
        self._pool.clone(parent, self._clone, self._features, OBJECT_SIZE, self._options.objectpool)
        return f"client.{self._options.client} may take snapshots and clone them"

    def _map(self) -> str:
        if os.geteuid() != 0:
            raise Unknown("only root can map")
        self._device = self._pool.map(self._clone, read_only=False)
        return f"a clone was mapped as {self._device}"

    def _mount(self) -> str:
        """Make a file system, mount it, and join directories of it, as those of layers are."""
        if not self._device:
            raise Unknown("nothing is mapped")
        options, timeout = self._options, self._pool.timeout
        layer, view = self._points()
        for point in (layer, view):
            mounts.make_directory(point)
        mounts.make(options.fs, self._device, options.mkfsarg, timeout=timeout)
        self._go_on()
        mounts.mount(options.fs, self._device, layer, options.fs_options, read_only=False, timeout=timeout)
        directories = (layer_state.ROOT, layer_state.WORK, layer_state.NONE)
        _make_directories(layer, directories, timeout)
        self._go_on()
        root, work, below = (os.path.join("layer", name) for name in directories)
        mounts.overlay(
            self._image,
            view,
            [below],
            (root, work),
            options=options.view_options,
            label="",
            directory=self._point,
            timeout=timeout,
        )
        _make_directories(view, ("trial",), timeout)
        return f"an {options.fs} was made, mounted, and written to through an overlay"

    def _remove(self) -> str:
        self._clear()
        return f"client.{self._options.client} may remove images; the trial left nothing"

    def _blocklist(self) -> str:
        address = f"{NOBODY}:0/{random.randint(1, (1 << 31) - 1)}"  # noqa: S311 - an address that is nobody's
        try:
            self._pool.blocklist(address, BLOCKLIST_SECONDS)
        except command.CommandError as error:
            if not _is_refusal(error):
                raise
            what = f"client.{self._options.client} may not put a client that is dead on the blocklist"
            raise Improve(
                f"{what}, so takeover fails, and so may a map after this host crashed: {error}; let it: "
                f"{preconditions.rights(self._options)}"
            ) from None
        return f"client.{self._options.client} may put a client that is dead on the blocklist, as takeover does"

    # -- what is there of the trial ------------------------------------------------------------

    def _points(self) -> tuple[str, str]:
        return os.path.join(self._point, "layer"), os.path.join(self._point, "view")

    def _clear(self) -> None:
        """Unmount, unmap and delete whatever there is of this trial, or of a former one."""
        layer, view = self._points()
        for point in (view, layer):
            if mounts.at(point):
                mounts.unmount(point, timeout=self._pool.timeout)
        for path in (view, layer, self._point):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(path)
        names = (self._clone, self._image)
        for mapping in self._pool.mappings():
            if mapping.image in names:
                self._pool.unmap(mapping.device, mapping.image)
        self._device = ""
        there = set(self._pool.list())
        for image in names:
            if image in there:
                self._pool.remove_snapshots(image)
                self._pool.remove(image)
        # A removal that was cut short had moved it there.
        for item in self._pool.trashed():
            if item.name in names:
                self._pool.remove_trashed(item.image_id, lambda: False)

    def _keep_others_off(self) -> None:
        """Be the only doctor of this host and home. A name without a file ends with this process. Raises Missed."""
        mine = socket.socket(socket.AF_UNIX)
        try:
            mine.bind(f"\0{self._image}")
        except OSError as error:
            mine.close()
            if error.errno != errno.EADDRINUSE:
                raise
            raise Missed("another doctor of this host and home is at work; call it again later") from None
        self._only = mine

    def _let_others(self) -> None:
        if self._only:
            self._only.close()
            self._only = None


@contextlib.contextmanager
def closing(trial: Trial, say: Callable[[str], None]) -> Iterator[None]:
    """Close a trial when the `with` block ends, however that is, and `say` what may be left.

    One interruption ends the block or comes while it closes; the caller lets no other one come.
    """
    left = ""
    try:
        yield
    finally:
        try:
            left = trial.close()
        except KeyboardInterrupt:
            left = trial.close()
            raise
        finally:
            if left:
                say(left)


def _make_directories(point: str, names: tuple[str, ...], timeout: float) -> None:
    """Make directories by another process: one that hangs there would keep ours from ending, with all its threads."""
    command.run(("mkdir", *(os.path.join(point, name) for name in names)), timeout=timeout)


def _is_refusal(error: command.CommandError) -> bool:
    """Tell whether a command of Ceph's failed because our key may not do that."""
    program, *words = error.argv
    is_nbd = "nbd" in words and words[:1] == ["device"]
    return os.path.basename(program) in ("rbd", "ceph") and not is_nbd and error.status in _REFUSALS
