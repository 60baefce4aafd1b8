"""Hosts that use the shared layers of one pool at the same time, one command after the other, in every order.

Each actor is a thread of its own that waits before each of its commands. A schedule says whose command comes next. An
order that differs from another one only by neighbours that do not touch the same thing is left out.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence

from unit.fakes import FakeObjects, FakePool

from cluster.chain_entry import Entry
from cluster.owner import Owner
from cluster.shared_layers import SharedLayers

PREFIX = "docker_image"
READS = ("listomapkeys", "listomapvals", "getomapval", "listwatchers")
WAIT_SECONDS = 30


def chain(digit: str) -> str:
    """A chain id."""
    return "sha256:" + 64 * digit


class Killed(BaseException):
    """The actor ends here, as by a power cut."""


class World:
    """The pool: its objects, its images, and what the hosts were told. `told`: the layers that a host may map."""

    def __init__(self) -> None:
        self.objects = FakeObjects()
        self.images: set[str] = set()
        self.told: dict[str, set[str]] = {}
        self.broken: list[str] = []
        self.hosts: list[Host] = []

    def tell(self, host: str, entry: Entry | None) -> None:
        """A host was told of a layer."""
        if entry:
            self.told.setdefault(host, set()).add(entry.layer)
            if entry.layer not in self.images:
                self.broken.append(f"{host} was told of {entry.layer}, which is gone")

    def delete(self, layer: str) -> None:
        """The image of a layer goes."""
        self.broken += [f"{layer} was deleted, and {host} uses it" for host, told in self.told.items() if layer in told]
        self.images.discard(layer)


class Host:
    """A host whose commands are steps once it is started as an actor."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.owner = Owner(name, "", "/home")
        self.actor: Actor | None = None
        pool = FakePool()
        pool.objects = world.objects
        object.__setattr__(pool, "rados", self.rados)
        self.shared = SharedLayers(pool.as_pool(), PREFIX, self.owner)
        self.is_killed = False
        # What it saw in the list at its start.
        self.seen: Sequence[Entry] = ()
        world.hosts.append(self)

    def rados(self, *words: str) -> str:
        """Run one command, when it is its turn."""
        if self.actor:
            self.actor.wait(words)
        return self.world.objects.rados(*words)

    def lives(self) -> None:
        """It is seen to live."""
        name = self.owner.object(PREFIX)
        self.world.objects.attributes[name] = {}
        self.world.objects.watchers[name] = ["10.0.0.1:0/1"]

    def dies(self) -> None:
        """It is seen to be dead."""
        self.world.objects.watchers[self.owner.object(PREFIX)] = []

    def find(self, digit: str) -> Entry | None:
        """Ask for a chain."""
        entry = self.shared.find(chain(digit))
        self.world.tell(self.name, entry)
        return entry

    def offer(self, digit: str, layer: str, parent: Entry | None = None) -> Entry | None:
        """Offer a layer, whose image is there."""
        self.world.images.add(layer)
        entry = self.shared.offer(chain(digit), layer, parent, size=5, inodes=2)
        self.world.tell(self.name, entry)
        if entry is None or entry.layer != layer:
            self.shared.release([layer])
        return entry

    def release(self, *layers: str) -> None:
        """Use layers no more."""
        self.world.told.get(self.name, set()).difference_update(layers)
        self.shared.release(layers)

    def collect(self) -> list[str]:
        """Delete what nobody uses; the layers that were deleted."""
        return [entry.layer for entry in self.shared.unused(0) if self.delete(entry)]

    def delete(self, entry: Entry) -> bool:
        """Delete one layer, unless somebody uses it."""
        if not self.shared.begin_delete(entry):
            return False
        if self.actor:
            self.actor.wait(("image", "image"))
        self.world.delete(entry.layer)
        self.shared.end_delete(entry)
        return True

    def own(self) -> set[str]:
        """What it was told of."""
        return self.world.told.get(self.name, set())


class Actor:
    """A thread in which a host does something, step by step."""

    def __init__(self, host: Host, work: Callable[[], object]) -> None:
        self.host, self._work = host, work
        self.next: Sequence[str] | None = ()
        self.error: BaseException | None = None
        self._killed = False
        self._waits, self._turn = threading.Semaphore(0), threading.Semaphore(0)
        host.actor = self
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Go to the first command."""
        self._thread.start()
        assert self._waits.acquire(timeout=WAIT_SECONDS)

    def _run(self) -> None:
        try:
            self._work()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.next = None
        self._waits.release()

    def wait(self, words: Sequence[str]) -> None:
        """Wait for the turn of a command."""
        if not self._killed:
            self.next = words
            self._waits.release()
            assert self._turn.acquire(timeout=WAIT_SECONDS)
        if self._killed:
            raise Killed

    def step(self) -> None:
        """Let the command be run, and go to the next one."""
        self._turn.release()
        assert self._waits.acquire(timeout=WAIT_SECONDS)
        if self.error:
            raise self.error

    def kill(self) -> None:
        """End it before its next command."""
        if self.next is not None:
            self._killed = True
            self._turn.release()
        self._thread.join(WAIT_SECONDS)
        self.host.actor = None


Scene = Callable[[], "tuple[World, Sequence[Actor]]"]


class Run:
    """One run of a scene, in the order of a schedule."""

    def __init__(self, scene: Scene) -> None:
        self.world, self.actors = scene()
        for actor in self.actors:
            actor.start()
        self.taken: list[int] = []
        self._last: tuple[int, Sequence[str]] | None = None

    def ready(self) -> list[int]:
        """The actors that have a command left."""
        return [at for at, actor in enumerate(self.actors) if actor.next is not None]

    def choices(self) -> list[int]:
        """The actors whose command may come next; not one that could as well have come before the last one."""
        return [at for at in self.ready() if not self._is_out_of_order(at)]

    def _is_out_of_order(self, at: int) -> bool:
        if self._last is None or self._last[0] <= at:
            return False
        following = self.actors[at].next
        assert following is not None
        return _independent(self._last[1], following)

    def step(self, at: int) -> None:
        """Let an actor do its next command."""
        following = self.actors[at].next
        assert following is not None
        self._last = (at, following)
        self.taken.append(at)
        self.actors[at].step()
        assert self.world.broken == [], self.taken

    def end(self) -> World:
        """End all actors where they are."""
        for actor in self.actors:
            actor.kill()
        return self.world


def _independent(one: Sequence[str], other: Sequence[str]) -> bool:
    """Tell whether two commands may as well come in the other order."""
    if _thing(one) != _thing(other):
        return True
    if one[0] in READS and other[0] in READS:
        return True
    keyed = ("setomapval", "rmomapkey")
    return one[0] in keyed and other[0] in keyed and one[2] != other[2]


def _thing(words: Sequence[str]) -> str:
    """What a command touches. A lock is not a key of the same object."""
    if words[0] == "lock":
        return f"{words[2]} lock"
    return words[2] if words[0] == "--force-full" else words[1]


def every_order(scene: Scene) -> Iterator[World]:
    """Yield the world after each order of all commands, whole."""
    schedules: list[list[int]] = [[]]
    while schedules:
        run = Run(scene)
        prefix = schedules.pop()
        for at in prefix:
            run.step(at)
        while choices := run.choices():
            if len(run.taken) >= len(prefix):
                schedules += [[*run.taken, other] for other in choices[1:]]
            run.step(choices[0])
        is_whole = not run.ready()
        world = run.end()
        if is_whole:
            yield world


def some_order(scene: Scene, seed: int, *, crashes: float = 0.04) -> World:
    """Return the world after one order, in which each command may be where its actor is killed, by that chance."""
    chance = random.Random(seed)
    run = Run(scene)
    while ready := run.ready():
        at = chance.choice(ready)
        if chance.random() < crashes:
            host = run.actors[at].host
            run.actors[at].kill()
            host.is_killed = True
            run.world.told.pop(host.name, None)
            host.dies()
        else:
            run.step(at)
    return run.end()
