"""The operations that change something, each with what must be there before and what must hold afterwards.

An operation is prepared, done (and killed), done again or removed and done anew, looked at, and removed.
"""

from __future__ import annotations

import os
import uuid

import tree
from lab import Cluster
from plugin_client import Client, PluginProcess, make_tar

# More than what is copied rather than cloned (layers.COPY_LIMIT).
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
    """Operations on one finished layer, which has its snapshot already."""

    def before_all(self) -> None:
        self.parent = self.finish(self.image(files={"large": LARGE}))
        # The first clone takes the snapshot.
        self.client.remove(self.client.create(new_id(), self.parent))


class CreateRoot(Operation):
    """Create of a layer without a parent: a clone of the base image."""

    tolerant = True

    def act(self) -> None:
        self.client.create(self.layer)

    def check(self) -> None:
        lines = description(self.client, self.layer)
        assert [(line["name"], line["mode"], line["owner"]) for line in lines] == [("/", "0755", [0, 0])]


class CreateWithSnapshot(Operation):
    """Create of a parent's first clone, for which the snapshot is taken."""

    tolerant = True

    def prepare(self) -> None:
        super().prepare()
        self.parent = self.finish(self.image(files={"large": LARGE}))

    def act(self) -> None:
        self.client.create(self.layer, self.parent)

    def clear(self) -> None:
        self.check_finished()
        self.finished = {}
        super().clear()
        self.client.remove(self.parent)


class CreateClone(OnOneParent):
    """Create of another clone."""

    tolerant = True

    def act(self) -> None:
        self.client.create(self.layer, self.parent)


class CreateCopy(OnOneParent):
    """CreateReadWrite of a container on its init layer: a deep copy."""

    tolerant = True

    def before_all(self) -> None:
        super().before_all()
        self.init = self.client.create(new_id() + "-init", self.parent, writable=True)

    def act(self) -> None:
        self.client.create(self.layer, self.init, writable=True)


class CreateFlat(OnOneParent):
    """Create where the chain has its greatest depth: a flat copy. That it is deep is told by its snapshot's name."""

    tolerant = True

    def before_all(self) -> None:
        super().before_all()
        self.deep = new_id()
        ours, deep = (f"rbd/{self.prefix}_{layer}" for layer in (self.parent, self.deep))
        self.cluster.rbd("snap", "create", f"{ours}@depth15")
        self.cluster.rbd("clone", "--rbd-default-clone-format", "2", f"{ours}@depth15", deep)
        self.cluster.rbd("snap", "create", f"{deep}@depth16")
        self.client.created.append(self.deep)
        self.finish(self.deep)

    def act(self) -> None:
        self.client.create(self.layer, self.deep)

    def check(self) -> None:
        super().check()
        assert self.client.metadata(self.layer)["Depth"] == "0"


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
    """What is done behind a finished layer: unmapped, and its snapshot taken."""

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
        self.client.remove(child)


class Mounting(OnOneParent):
    """Operations on a container's layer."""

    def prepare(self) -> None:
        super().prepare()
        self.client.create(self.layer, self.parent, writable=True)


class Get(Mounting):
    """Get of a layer that is not mounted."""

    def act(self) -> None:
        root = self.client.get(self.layer)
        assert os.path.isfile(os.path.join(root, "large"))

    def check(self) -> None:
        # Answered twice if it was answered before the kill: then it has two users.
        self.client.put(self.layer)
        self.client.put(self.layer)
        super().check()


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


class Purge(OnOneParent):
    """The deleting behind the caller's back: a parent with a snapshot, then its child."""

    def prepare(self) -> None:
        super().prepare()
        self.middle = self.client.create(new_id(), self.parent)
        # As if it were large: then the next one is a clone.
        self.cluster.rbd("snap", "create", "--no-progress", f"rbd/{self.prefix}_{self.middle}@depth2")
        self.client.create(self.layer, self.middle)

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
    Purge,
    CreateRoot,
    CreateWithSnapshot,
    CreateClone,
    CreateCopy,
    CreateFlat,
    CreateLarger,
    ApplyDiff,
    MakeReady,
    Get,
    Put,
    Remove,
]
