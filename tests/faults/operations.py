"""The operations that change something, each with what must be there before and what must hold afterwards.

An operation is prepared, done (and killed), done again or removed and done anew, looked at, and removed.
"""

from __future__ import annotations

import os
import uuid

import tree
from lab import Cluster
from plugin_client import Client, PluginProcess, make_tar, tar_names

# More than one object.
LARGE = os.urandom(7 << 20)
FILES: dict[str, bytes | str | None] = {
    ".": None,
    "etc": None,
    **{f"etc/{number}": f"file {number}\n" for number in range(450)},
    "large": os.urandom(1 << 20),
}


def new_id() -> str:
    """An id as Docker makes them."""
    return uuid.uuid4().hex + uuid.uuid4().hex


def description(client: Client, layer: str) -> list[tree.Line]:
    """Everything that can be seen in a layer, with checksums."""
    root = client.get(layer)
    try:
        return list(tree.describe_tree(os.fsencode(root), None, float("inf")))
    finally:
        client.put(layer)


class Operation:
    """One of them. `layer` is what it is about; `tolerant` tells that the call may be refused when it comes again.

    `settled`: what is to be done behind after `prepare` is done before the call.
    """

    tolerant = False
    settled = True

    def __init__(self, plugin: PluginProcess, prefix: str, cluster: Cluster) -> None:
        self.plugin = plugin
        self.client = plugin.client
        self.cluster = cluster
        self.prefix = prefix
        self.home = plugin.home
        self.layer = ""
        self.finished: dict[str, list[tree.Line]] = {}

    def before_all(self) -> None:
        """Make the layers that stay the same through all steps."""

    def prepare(self) -> None:
        """Make what one step needs."""
        self.layer = new_id()

    def act(self) -> None:
        """The call."""
        raise NotImplementedError

    def anew(self) -> None:
        """After a Remove: the call on a layer made afresh."""
        self.act()

    def check(self) -> None:
        """Look whether the layer is what was asked for."""
        assert self.client.call("Exists", ID=self.layer)["Exists"] is True
        assert description(self.client, self.layer) == self.expected()

    def expected(self) -> list[tree.Line]:
        """What must be in the layer."""
        return next(iter(self.finished.values()))

    def check_finished(self) -> None:
        """Look whether the layers that were finished before are as they were."""
        for layer, lines in self.finished.items():
            assert description(self.client, layer) == lines

    def clear(self) -> None:
        """Remove what `prepare` and `act` made."""
        self.client.remove(self.layer)

    def finish(self, layer: str) -> str:
        """Note a layer that may not change from now on."""
        self.finished[layer] = description(self.client, layer)
        return layer

    def image(self, parent: str = "", files: dict[str, bytes | str | None] | None = None) -> str:
        """An image's layer, with an archive."""
        layer = self.client.create(new_id(), parent)
        self.client.apply_diff(layer, make_tar(FILES if files is None else files))
        return layer


class OnOneParent(Operation):
    """Operations on one finished layer."""

    def before_all(self) -> None:
        self.parent = self.finish(self.image(files={"large": LARGE}))


class CreateRoot(Operation):
    """Create of a layer without a parent: a clone of the base image."""

    tolerant = True

    def act(self) -> None:
        self.client.create(self.layer)

    def check(self) -> None:
        lines = description(self.client, self.layer)
        assert [(line["name"], line["mode"], line["owner"]) for line in lines] == [("/", "0755", [0, 0])]


class CreateFirst(OnOneParent):
    """Create of the first child of a layer that a builder wrote to by Get and Put, which is finished by it."""

    tolerant = True

    def prepare(self) -> None:
        super().prepare()
        self.built = self.client.create(new_id(), self.parent)
        self.client.write(self.built, "built", LARGE[: 1 << 20])

    def act(self) -> None:
        self.client.create(self.layer, self.built)

    def check(self) -> None:
        assert self.client.listing(self.layer) == ["built", "large"]
        assert self.client.read(self.layer, "built") == LARGE[: 1 << 20]
        assert self.client.changes(self.built, self.parent) == {"/built": 1}

    def clear(self) -> None:
        super().clear()
        self.client.remove(self.built)


class CreateClone(OnOneParent):
    """Create of a child of a finished layer."""

    tolerant = True

    def act(self) -> None:
        self.client.create(self.layer, self.parent)


class CreateCopy(OnOneParent):
    """CreateReadWrite of a container on its init layer, to which Docker has just written: a deep copy."""

    tolerant = True
    settled = False

    def prepare(self) -> None:
        super().prepare()
        self.init = self.client.create(f"{self.layer}-init", self.parent, writable=True)
        self.client.write(self.init, "hosts", "x")

    def act(self) -> None:
        self.client.create(self.layer, self.init, writable=True)

    def check(self) -> None:
        assert self.client.listing(self.layer) == ["hosts", "large"]
        assert self.client.changes(self.layer, self.init) == {}

    def clear(self) -> None:
        super().clear()
        self.client.remove(self.init)


class CreateLarger(OnOneParent):
    """CreateReadWrite with a size: the image and its file system grow."""

    tolerant = True

    def act(self) -> None:
        self.client.create(self.layer, self.parent, "11G", writable=True)

    def check(self) -> None:
        super().check()
        root = self.client.get(self.layer)
        assert os.statvfs(root).f_blocks * os.statvfs(root).f_frsize > 10.8 * (1 << 30)
        self.client.put(self.layer)


class ApplyDiff(OnOneParent):
    """ApplyDiff of a layer that has just been made."""

    tolerant = True

    def before_all(self) -> None:
        super().before_all()
        whole = self.image(self.parent)
        self.whole = description(self.client, whole)
        self.client.remove(whole)

    def prepare(self) -> None:
        super().prepare()
        self.client.create(self.layer, self.parent)

    def act(self) -> None:
        self.client.apply_diff(self.layer, make_tar(FILES))
        self.client.call("Cleanup")

    def anew(self) -> None:
        self.client.create(self.layer, self.parent)
        self.act()

    def expected(self) -> list[tree.Line]:
        return self.whole


class MakeReady(OnOneParent):
    """What is done in the background with a finished layer, and with what its Create let be mapped: unmapped."""

    settled = False

    def prepare(self) -> None:
        super().prepare()
        self.client.create(self.layer, self.parent)
        self.client.apply_diff(self.layer, make_tar({"of its own": LARGE}))

    def act(self) -> None:
        self.client.call("Cleanup")

    def check(self) -> None:
        child = self.client.create(new_id(), self.layer)
        assert self.client.read(child, "of its own") == LARGE
        assert self.client.listing(child) == ["large", "of its own"]
        self.client.remove(child)


class Mounting(OnOneParent):
    """Operations on a container's layer."""

    def prepare(self) -> None:
        super().prepare()
        self.client.create(self.layer, self.parent, writable=True)


class Get(Mounting):
    """The first Get of a layer, which is prepared for it."""

    def act(self) -> None:
        root = self.client.get(self.layer)
        assert os.path.isfile(os.path.join(root, "large"))

    def check(self) -> None:
        # Answered twice if it was answered before the kill: then it has two users.
        self.client.put(self.layer)
        self.client.put(self.layer)
        super().check()


class StartContainer(Get):
    """The first Get of a container, on three layers none of which is mapped: what init brought gets its own place."""

    def before_all(self) -> None:
        super().before_all()
        self.layers = [self.parent]
        for number in range(2):
            self.layers.append(self.image(self.layers[-1], {f"f{number}": str(number)}))

    def prepare(self) -> None:
        self.layer = new_id()
        self.init = self.client.create(f"{self.layer}-init", self.layers[-1], writable=True)
        self.client.write(self.init, "hosts", "x")
        self.client.create(self.layer, self.init, writable=True)

    def check(self) -> None:
        for _ in range(2):
            self.client.put(self.layer)
        assert self.client.listing(self.layer) == ["f0", "f1", "hosts", "large"]
        assert self.client.changes(self.layer, self.init) == {}
        files = os.path.join(os.path.dirname(self.client.get(self.layer)), "layer")
        assert (os.listdir(f"{files}/init"), os.listdir(f"{files}/rootfs")) == (["hosts"], [])
        self.client.put(self.layer)

    def clear(self) -> None:
        super().clear()
        self.client.remove(self.init)


class Diff(StartContainer):
    """Diff of a container that is not mounted: what it brought, and what is below it."""

    def prepare(self) -> None:
        super().prepare()
        self.client.write(self.layer, "mine", "x")

    def act(self) -> None:
        assert tar_names(self.client.diff(self.layer, self.init)) == ["mine"]

    def check(self) -> None:
        assert self.client.listing(self.layer) == ["f0", "f1", "hosts", "large", "mine"]
        assert self.client.changes(self.layer, self.init) == {"/mine": 1}


class Put(Mounting):
    """The last Put of a layer in which a file was written: what was written before it is there."""

    def prepare(self) -> None:
        super().prepare()
        self.root = self.client.get(self.layer)
        with open(os.path.join(self.root, "written"), "wb") as target:
            target.write(LARGE[: 1 << 20])

    def act(self) -> None:
        self.client.put(self.layer)
        self.client.call("Cleanup")

    def check(self) -> None:
        assert not os.path.exists(self.root)
        assert self.client.read(self.layer, "written") == LARGE[: 1 << 20]


class Remove(Mounting):
    """Remove of a mounted layer, and what is done of it behind."""

    def prepare(self) -> None:
        super().prepare()
        self.client.get(self.layer)

    def act(self) -> None:
        self.client.remove(self.layer)
        self.client.call("Cleanup")

    def check(self) -> None:
        assert self.client.call("Exists", ID=self.layer)["Exists"] is False


class RemoveNeeded(OnOneParent):
    """Remove of a mounted layer on which another stands: it stays until that one goes, and then goes with it."""

    def prepare(self) -> None:
        super().prepare()
        self.middle = self.client.create(new_id(), self.parent)
        self.client.write(self.middle, "of the middle", "x")
        self.client.create(self.layer, self.middle)
        self.client.get(self.middle)

    def act(self) -> None:
        self.client.remove(self.middle)
        self.client.call("Cleanup")

    def check(self) -> None:
        assert self.client.call("Exists", ID=self.middle)["Exists"] is False
        assert self.client.listing(self.layer) == ["large", "of the middle"]
        assert f"{self.prefix}_{self.middle}" in self.cluster.images(self.prefix)


class Purge(RemoveNeeded):
    """Remove of that one, too, and the deleting of both in the background."""

    def act(self) -> None:
        self.client.remove(self.middle)
        self.client.remove(self.layer)
        self.client.call("Cleanup")

    def check(self) -> None:
        for layer in (self.middle, self.layer):
            assert self.client.call("Exists", ID=layer)["Exists"] is False


class FirstInit(Operation):
    """Init in a pool without a base image, with a home and a prefix of its own each time."""

    count = 0
    settled = False

    def prepare(self) -> None:
        FirstInit.count += 1
        self.prefix = f"FirstInit{FirstInit.count}"
        self.home = os.path.join(os.path.dirname(self.plugin.home), self.prefix)
        # Nothing is known from an earlier start.
        self.plugin.kill()
        os.unlink(self.plugin.socket + ".state")
        self.plugin.start()

    def act(self) -> None:
        self.client.init(self.home, [*self.plugin.options, f"ceph.imageprefix={self.prefix}"])

    def check(self) -> None:
        layer = self.client.create(new_id())
        assert self.client.listing(layer) == []
        self.client.remove(layer)

    def clear(self) -> None:
        base = f"rbd/{self.prefix}_base_image"
        self.client.call("Cleanup")
        assert os.listdir(os.path.join(self.home, "mnt")) == []
        self.cluster.rbd("snap", "purge", "--no-progress", base)
        self.cluster.rbd("rm", "--no-progress", base)


OPERATIONS: list[type[Operation]] = [
    FirstInit,
    RemoveNeeded,
    Purge,
    CreateRoot,
    CreateFirst,
    CreateClone,
    CreateCopy,
    CreateLarger,
    ApplyDiff,
    MakeReady,
    Get,
    StartContainer,
    Diff,
    Put,
    Remove,
]
