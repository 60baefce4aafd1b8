"""The calls of containerd that change something, each with what must be there before, and what must hold afterwards.

A call is prepared, done (and killed), looked for, done again if it is not done, looked at, and removed. What the
service does behind an answer belongs to the call.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

from changes import Change, all_of, directory, file
from client import ALREADY_EXISTS, UNAVAILABLE, Info, Mount, Refused
from lab import mounts_below
from plugin_client import wait_until
from serving import Host

REF = "containerd.io/snapshot.ref"
# More than one object.
LARGE = os.urandom(5 << 20)
Found = Mapping[str, Info]


def large(name: str) -> Change:
    """A file of more than one object."""

    def change(top: str) -> None:
        with open(os.path.join(top, name), "wb") as target:
            target.write(LARGE)

    return change


def several(name: str) -> Change:
    """What a layer brings, with its name."""
    return all_of(
        large("large"), directory(name), *[file(f"{name}/{number}", f"{name} {number}\n") for number in range(40)]
    )


def chain(number: int) -> str:
    """A chain id."""
    return f"sha256:{number:064x}"


class Unanswered(ConnectionError):
    """The service was killed over a call."""


class Operation:
    """One of them, on the host that is killed; `other` is a host that is not.

    `unmapped`: the host has nothing mapped before the call. `runs_nothing`: the call runs no command, so it is killed
    after some time. `answered`: the client was told that it was done.
    """

    unmapped = False
    runs_nothing = False
    two_hosts = False

    def __init__(self, host: Host, other: Host | None) -> None:
        self.host, self.calls, self.work = host, host.calls, host.work
        self._other = other
        self.answered = False
        self.numbers = itertools.count(1)
        self.key = self.name = ""
        # What was committed, with its files; and what an active one was told to be mounted as.
        self.committed: dict[str, list[dict[str, Any]]] = {}
        self.told: dict[str, list[Mount]] = {}

    @property
    def other(self) -> Host:
        """The other host."""
        assert self._other
        return self._other

    def before_all(self) -> None:
        """Make the snapshots that stay the same through all steps."""

    def prepare(self) -> None:
        """Make what one step needs."""
        self.answered = False
        number = next(self.numbers)
        self.key, self.name = f"key {number}", f"name {number}"

    def call(self) -> None:
        """The call."""
        raise NotImplementedError

    def behind(self) -> None:
        """Wait until what the service does behind the answer is done. Raises ConnectionError if it is killed."""

    def act(self) -> None:
        """The call, and what is done behind it. Raises Unanswered, ConnectionError."""
        try:
            self.call()
        except Refused as error:
            if error.code != UNAVAILABLE:
                raise
            wait_until(lambda: not self.host.process.running, f"it was killed: {error.text}")
            raise Unanswered(error.text) from None
        self.answered = True
        self.behind()

    def is_mine(self, info: Info) -> bool:
        """Tell whether a snapshot may be another one after the call."""
        return info.name in (self.key, self.name)

    def done(self, found: Found) -> bool:
        """Tell whether the call was done, by what the service says. Anything between fails."""
        raise NotImplementedError

    def check(self) -> None:
        """Look whether the call was done wholly."""

    def check_committed(self) -> None:
        """Look whether what was committed before is as it was, file by file."""
        for name, files in self.committed.items():
            assert files_of(self.host, name) == files

    def clear(self) -> None:
        """Remove what `prepare` and the call made."""
        self.calls.remove(self.key)

    def clear_all(self) -> None:
        """Remove what `before_all` made."""
        self.host.remove_all()
        self.committed.clear()

    # -- what most of them need ----------------------------------------------------------------

    def make_chain(self, length: int) -> str:
        """Committed snapshots, each on the one before; the topmost."""
        top = ""
        for number in range(length):
            top = self.work.layer(f"layer {number}", top, several(f"of layer {number}"))
            self.committed[top] = files_of(self.host, top)
        return top

    def make_active(self, parent: str) -> None:
        """An active snapshot with files."""
        self.told[self.key] = self.calls.prepare(self.key, parent)
        self.work.change(self.told[self.key], several("of its own"))

    def unpack(self, number: int, parent: str) -> str:
        """Unpack a layer of an image, as containerd does, and wait until other hosts can find it."""
        self.work.change(self.calls.prepare(*unpacking(number, parent)), several(f"chain {number}"))
        name = f"default/2/{chain(number)}"
        self.calls.commit(name, unpacking(number, parent)[0], {REF: chain(number)})
        self.host.wait(lambda: self.host.is_offered(name), "it is offered")
        return name


def files_of(host: Host, name: str) -> list[dict[str, Any]]:
    """What a user sees in a committed snapshot."""
    try:
        return host.work.files(host.calls.view("view", name))
    finally:
        host.calls.remove("view")


def unpacking(number: int, parent: str) -> tuple[str, str, dict[str, str]]:
    """The arguments of a Prepare for a layer of an image."""
    return f"default/1/extract-5-a {chain(number)}", parent, {REF: chain(number)}


def find(host: Host, number: int, parent: str) -> str:
    """Ask for a layer that the pool has, until it is found; the name that containerd finds.

    For two seconds a host need not see what another one has just offered.
    """
    key, _, labels = unpacking(number, parent)

    def is_found() -> bool:
        try:
            host.calls.prepare(key, parent, labels)
        except Refused as error:
            if error.code == ALREADY_EXISTS:
                return True
            raise
        host.calls.remove(key)
        return False

    wait_until(is_found, f"{chain(number)} is found in the pool")
    found = host.calls.list(f'labels."{REF}"=={chain(number)},parent=="{parent}"')
    (name,) = [info.name for info in found if info.kind == "committed"]
    return name


class PrepareRoot(Operation):
    """Prepare on nothing."""

    def call(self) -> None:
        self.told[self.key] = self.calls.prepare(self.key)

    def done(self, found: Found) -> bool:
        return self.key in found

    def check(self) -> None:
        told = self.calls.mounts(self.key)
        if self.answered:
            assert told == self.told[self.key]
        assert self.work.names(told) == []
        self.work.change(told, file("written", "x"))
        assert self.work.names(told) == ["written"]


class PrepareOnChain(Operation):
    """Prepare on a chain of three, none of which is mapped."""

    unmapped = True
    kind = "active"

    def before_all(self) -> None:
        self.parent = self.make_chain(3)

    def call(self) -> None:
        self.told[self.key] = self.calls.prepare(self.key, self.parent)

    def done(self, found: Found) -> bool:
        return self.key in found

    def check(self) -> None:
        assert (self.calls.stat(self.key).kind, self.calls.stat(self.key).parent) == (self.kind, self.parent)
        told = self.calls.mounts(self.key)
        if self.answered:
            assert told == self.told[self.key]
        assert self.work.files(told) == self.committed[self.parent]


class View(PrepareOnChain):
    """View of such a chain."""

    kind = "view"

    def call(self) -> None:
        self.told[self.key] = self.calls.view(self.key, self.parent)


class PrepareWithIds(PrepareOnChain):
    """Prepare for a container in a user namespace: each layer below is mounted once more."""

    ids = 100000

    def call(self) -> None:
        labels = {f"containerd.io/snapshot/{name}mapping": f"0:{self.ids}:65536" for name in ("uid", "gid")}
        self.told[self.key] = self.calls.prepare(self.key, self.parent, labels)

    def check(self) -> None:
        told = self.calls.mounts(self.key)
        if self.answered:
            assert told == self.told[self.key]
        expected = [
            {**line, "owner": [number + self.ids for number in line["owner"]]} for line in self.committed[self.parent]
        ]
        assert self.work.files(told) == expected
        root = os.path.join(self.host.process.home, "idmapped")
        points = [point for point in mounts_below(root) if not point.endswith("/joined")]
        assert len(points) == len(os.listdir(root)) * len(self.committed)
        self.check_committed()


class RemoveWithIds(PrepareWithIds):
    """Remove of such a snapshot."""

    unmapped = False

    def prepare(self) -> None:
        super().prepare()
        super().call()

    def call(self) -> None:
        self.calls.remove(self.key)

    def behind(self) -> None:
        self.host.wait(lambda: not self.host.removals(), "its layer is gone")

    def done(self, found: Found) -> bool:
        return self.key not in found

    def check(self) -> None:
        assert mounts_below(os.path.join(self.host.process.home, "idmapped")) == []
        self.host.wait_ready()
        self.behind()

    def clear(self) -> None:
        pass


class Mounts(Operation):
    """Mounts of a snapshot that was written to before the host was started anew."""

    def before_all(self) -> None:
        self.parent = self.make_chain(2)

    def prepare(self) -> None:
        super().prepare()
        self.make_active(self.parent)
        self.files = self.work.files(self.told[self.key])
        self.host.switch_off()
        self.host.start()

    def call(self) -> None:
        assert self.calls.mounts(self.key) == self.told[self.key]

    def is_mine(self, info: Info) -> bool:
        return False

    def done(self, found: Found) -> bool:
        return self.answered

    def check(self) -> None:
        assert self.work.files(self.calls.mounts(self.key)) == self.files


class Commit(Operation):
    """Commit of what no other host may have."""

    runs_nothing = True

    def before_all(self) -> None:
        self.parent = self.make_chain(1)

    def prepare(self) -> None:
        super().prepare()
        self.make_active(self.parent)
        self.files = self.work.files(self.told[self.key])

    def call(self) -> None:
        self.calls.commit(self.name, self.key)

    def done(self, found: Found) -> bool:
        assert (self.name in found) != (self.key in found)
        return self.name in found

    def check(self) -> None:
        found = self.calls.stat(self.name)
        assert (found.kind, found.parent) == ("committed", self.parent)
        assert self.calls.usage(self.name).size > len(LARGE)
        assert files_of(self.host, self.name) == self.files

    def clear(self) -> None:
        self.calls.remove(self.name)


class CommitOffered(Commit):
    """Commit of a layer of an image, and the offer of it behind the answer."""

    runs_nothing = False
    two_hosts = True

    def before_all(self) -> None:
        self.parent = self.unpack(0, "")
        self.below = find(self.other, 0, "")

    def prepare(self) -> None:
        self.answered = False
        self.number = next(self.numbers)
        self.key, _, labels = unpacking(self.number, self.parent)
        self.name = f"default/2/{chain(self.number)}"
        self.work.change(self.calls.prepare(self.key, self.parent, labels), several("of its own"))
        self.files = self.work.files(self.calls.mounts(self.key))

    def call(self) -> None:
        self.calls.commit(self.name, self.key, {REF: chain(self.number)})

    def behind(self) -> None:
        self.host.wait(lambda: self.host.is_offered(self.name), "it is offered")

    def check(self) -> None:
        super().check()
        self.host.wait_ready()
        self.behind()
        found = find(self.other, self.number, self.below)
        assert files_of(self.other, found) == self.files
        assert len(self.host.users(self.host.image(self.name))) == 2

    def clear(self) -> None:
        # If it went now, that would be done beside the next step.
        pass

    def clear_all(self) -> None:
        self.other.remove_all()
        super().clear_all()


class PrepareFound(Operation):
    """Prepare of the layers of an image that another host has unpacked, and of a container on them."""

    unmapped = True
    two_hosts = True
    _turns = itertools.count()

    def before_all(self) -> None:
        mine = self.host
        self.host, self.calls, self.work = self.other, self.other.calls, self.other.work
        try:
            self.tops = [self.unpack(0, "")]
            self.tops.append(self.unpack(1, self.tops[0]))
            self.files = files_of(self.other, self.tops[1])
        finally:
            self.host, self.calls, self.work = mine, mine.calls, mine.work

    def call(self) -> None:
        self.found: list[str] = []
        for number in range(2):
            self.found.append(find(self.host, number, self.found[-1] if self.found else ""))
        self.told[self.key] = self.calls.prepare(self.key, self.found[-1])

    def is_mine(self, info: Info) -> bool:
        return info.name == self.key or info.name.startswith("shared/")

    def done(self, found: Found) -> bool:
        for info in found.values():
            if info.name.startswith("shared/"):
                assert self.host.process.home in self.host.users(self.host.image(info.name)), "told of, and not used"
        return self.key in found

    def check(self) -> None:
        told = self.calls.mounts(self.key)
        if self.answered:
            assert told == self.told[self.key]
        assert self.work.files(told) == self.files
        assert len([info for info in self.calls.list() if info.name.startswith("shared/")]) == 2

    def clear(self) -> None:
        # What is shared is found again, and stays the same: but not at each second step.
        self.calls.remove(self.key)
        if next(self._turns) % 2:
            self.host.remove_all()

    def clear_all(self) -> None:
        self.host.remove_all()
        self.other.remove_all()


class RemoveActive(Commit):
    """Remove of an active snapshot."""

    runs_nothing = False

    def call(self) -> None:
        self.calls.remove(self.key)

    def behind(self) -> None:
        self.host.wait(lambda: not self.host.removals(), "its layer is gone")

    def done(self, found: Found) -> bool:
        return self.key not in found

    def check(self) -> None:
        self.host.wait_ready()
        self.behind()
        assert len(self.host.images()) == len(self.committed)

    def clear(self) -> None:
        pass


class RemoveCommitted(RemoveActive):
    """Remove of a committed snapshot."""

    def prepare(self) -> None:
        super().prepare()
        self.calls.commit(self.name, self.key)

    def call(self) -> None:
        self.calls.remove(self.name)

    def done(self, found: Found) -> bool:
        return self.name not in found


class RemoveLastShared(Operation):
    """Remove of a layer that only this host uses: it goes from the pool."""

    def before_all(self) -> None:
        self.parent = self.unpack(0, "")
        self.committed[self.parent] = files_of(self.host, self.parent)

    def prepare(self) -> None:
        super().prepare()
        self.name = self.unpack(next(self.numbers), self.parent)
        self.layer = self.host.image(self.name)

    def call(self) -> None:
        self.calls.remove(self.name)

    def behind(self) -> None:
        self.host.wait(lambda: not self.host.removals(), "it is given back")
        self.host.wait(lambda: len(self.host.images()) == len(self.committed), "its layer is gone")
        self.host.wait(lambda: len(self.host.shared().all()) == len(self.committed), "it is not listed any more")

    def done(self, found: Found) -> bool:
        return self.name not in found

    def check(self) -> None:
        self.host.wait_ready()
        self.behind()

    def clear(self) -> None:
        pass


class RemoveUsed(RemoveLastShared):
    """Remove of a layer that another host uses: for that one nothing changes."""

    two_hosts = True

    def before_all(self) -> None:
        super().before_all()
        self.below = find(self.other, 0, "")

    def prepare(self) -> None:
        super().prepare()
        self.theirs = find(self.other, int(self.name.rpartition(":")[2], 16), self.below)
        self.files = files_of(self.host, self.name)
        self.running = self.other.calls.prepare(self.key, self.theirs)

    def behind(self) -> None:
        self.host.wait(lambda: not self.host.removals(), "it is given back")

    def check(self) -> None:
        super().check()
        assert self.host.users(self.layer) == [self.other.process.home]
        assert f"{self.host.prefix}_{self.layer}" in self.host.images()
        assert self.other.calls.mounts(self.key) == self.running
        assert self.other.work.files(self.running) == self.files
        assert files_of(self.other, self.theirs) == self.files

    def clear_all(self) -> None:
        self.other.remove_all()
        super().clear_all()


OPERATIONS: list[type[Operation]] = [
    PrepareFound,
    RemoveLastShared,
    RemoveUsed,
    CommitOffered,
    PrepareOnChain,
    PrepareWithIds,
    RemoveWithIds,
    View,
    Mounts,
    PrepareRoot,
    Commit,
    RemoveActive,
    RemoveCommitted,
]
