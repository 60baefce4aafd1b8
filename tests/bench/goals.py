"""The rows of the table, in its order, and what each must reach; nothing else of the benchmark knows a goal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

FLOOR, PEER = "floor", "overlay2"


class Ratio(NamedTuple):
    """At most `factor` times what the floor, or overlay2, takes in the same run."""

    against: str
    factor: float


class Row(NamedTuple):
    """A row: our median may be at most `limit`, or else keep all of `ratios`; a row with neither has no goal.

    `on_peer`: what dockerd does with overlay2 belongs to the floor, beside the bare commands.
    """

    key: str
    title: str
    unit: str
    limit: float | None = None
    ratios: tuple[Ratio, ...] = ()
    on_peer: bool = True

    def goal(self, peer: str = PEER) -> str:
        """The goal in words; nothing for a row without one. `peer` is what the peer is called."""
        names = {PEER: peer}
        ratios = " and ".join(f"{each.factor:g} x {names.get(each.against, each.against)}" for each in self.ratios)
        limit = "" if self.limit is None else f"{self.limit:g}"
        return " or ".join(part for part in (limit, ratios) if part)


ROWS = (
    Row("create", "docker create", "s", None, (Ratio(FLOOR, 1.15),)),
    Row("run", "create + start + wait (true)", "s", None, (Ratio(FLOOR, 1.15),)),
    Row("rm", "docker rm", "s", 0.10, (Ratio(FLOOR, 1.3),)),
    Row("at_once", "10 containers at once, all done", "s", None, (Ratio(FLOOR, 1.1),)),
    Row("load_big", "load, 716 MB in 10 layers", "s", None, (Ratio(PEER, 2.0), Ratio(FLOOR, 1.2))),
    Row("load_41", "load, 41 tiny layers", "s", None, (Ratio(FLOOR, 1.2),)),
    Row("load_121", "load, 121 tiny layers", "s", None, (Ratio(FLOOR, 1.2),)),
    Row("rmi_big", "rmi of the 716 MB image", "s", 1.0),
    Row("rmi_41", "rmi of the 41 layers", "s", 2.0),
    Row("rmi_121", "rmi of the 121 layers", "s", 6.0),
    Row("diff", "docker diff, one file changed in 20,000", "s", None, (Ratio(PEER, 0.2),), on_peer=False),
    Row("diff_many", "docker diff, one file changed in 200,000", "s", None, (Ratio(PEER, 0.2),), on_peer=False),
    Row("commit", "docker commit, one file changed in 20,000", "s", 0.3, (Ratio(FLOOR, 1.3),), on_peer=False),
    Row("save", "docker save, 716 MB", "s", None, (Ratio(PEER, 1.3),)),
    Row("write", "200 MB written and fsynced in a container", "s", 0.5, on_peer=False),
    Row("copy_up", "one byte changed in a file of 1 GB of the image", "s"),
    Row("second_read", "100 MB of the image read in a second container", "s", None, (Ratio(PEER, 1.2),)),
    Row("shared_memory", "memory of 100 MB read in 20 containers / in one", "x", 1.2),
    Row("depth_run", "create + start + wait: deepest image / 2 layers", "x", 1.1),
    Row("depth_read", "100 MB of the bottom layer: deepest image / 2 layers", "x", 1.2),
    Row("stored_big", "stored: 716 MB image", "MB", 816),
    Row("stored_41", "stored: 41 tiny layers", "MB", 34.5),
    Row("stored_121", "stored: 121 tiny layers", "MB"),
    Row("stored_ratio", "stored / bytes of the files, 716 MB image", "x", 1.25),
    Row("idle", "stored: an idle container", "MB", 3.6),
    # Not quite zero: the OSD accounts for a few bytes of its own.
    Row("written_diff", "written by docker diff", "MB", 0.1),
    Row("written_save", "written by docker save", "MB", 0.1),
    Row("memory", "the driver: peak memory", "MB", 60),
    Row("memory_tree", "the driver and its children: peak (sampled)", "MB"),
    Row("cpu", "the driver and its children: processor time", "s"),
    Row("scale_layers", "layers in the full pool", ""),
    Row("scale_containers", "mounted containers in the full pool", ""),
    Row("scale_missing", "layers and containers not made in time", "", 0),
    Row("scale_create", "create: full pool / empty pool", "x", 1.2),
    Row("scale_get", "get: full pool / empty pool", "x", 1.2),
    Row("scale_put", "put: full pool / empty pool", "x"),
    Row("scale_remove", "remove: full pool / empty pool", "x", 1.2),
    Row("scale_at_once", "50 containers at once, all done", "s"),
    Row("scale_failed", "failed of those 50", "", 0),
    # Of the snapshotter. The peer is containerd's overlayfs.
    Row("pull_first", "first pull of 716 MB in 10 layers: the pool is empty", "s", None, (Ratio(PEER, 2.0),), False),
    Row("pull_second", "pull + run on a new host: the pool holds it", "s", None, (Ratio(PEER, 0.2),), False),
    Row("pull_fetched", "bytes of layers that these hosts fetched", "MB", 0),
    # Who uses a layer is noted in the pool, in some bytes.
    Row("pull_stored", "stored in the pool for these hosts", "MB", 0.1),
    Row("snapshot_run", "ctr run --rm of an image that is there", "s", None, (Ratio(FLOOR, 1.3),)),
    Row("image_read", "100 MB of the image read in a second container", "s", None, (Ratio(PEER, 1.2),), False),
    Row("service_memory", "the snapshotter: peak memory", "MB", 60),
)
BY_KEY = {row.key: row for row in ROWS}

# What is measured at several depths of an image, or with so many hosts: the key NAME@NUMBER.
BY_DEPTH = {
    "cold": Row("cold", "first start with nothing mapped, {} layers", "s", None, (Ratio(FLOOR, 1.3),)),
    "run": Row("run", "create + start + wait, {} layers", "s"),
    "read": Row("read", "100 MB read from the bottom, {} layers", "s"),
    "pull_hosts": Row(
        "pull_hosts", "pull + run on {} new hosts: the pool holds it", "s", None, (Ratio(PEER, 0.2),), False
    ),
}


def row_of(key: str) -> Row:
    """The row of a key, be it one of ROWS or NAME@NUMBER of a series (by layers, or by images in the pool)."""
    if key in BY_KEY:
        return BY_KEY[key]
    name, _, number = key.partition("@")
    if not number:
        return Row(key, key, "")  # of a run that another edition of the benchmark saved
    if name in BY_DEPTH:
        row = BY_DEPTH[name]
        return row._replace(key=key, title=row.title.format(number))
    return Row(key, f"{name}, {number} images in the pool", "MB" if name == "memory" else "s")


def in_order(keys: Iterable[str]) -> list[str]:
    """These keys as the table has them: the rows of ROWS, then each series by its numbers."""
    place = {row.key: index for index, row in enumerate(ROWS)}

    def rank(key: str) -> tuple[int, str, int]:
        name, _, number = key.partition("@")
        return place.get(key, len(place)), name, int(number) if number.isdigit() else 0

    return sorted(keys, key=rank)
