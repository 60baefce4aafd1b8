"""The rows of the table, in its order, and what each must reach; nothing else of the benchmark knows a goal."""

from __future__ import annotations

from typing import NamedTuple

FLOOR, PEER = "floor", "overlay2"


class Row(NamedTuple):
    """A row: `limit` is what our median may be at most (None: no goal).

    Where the machine is slower than the one of the limits, the ratio decides: at most `factor` times `against`.
    `on_peer`: what dockerd does with overlay2 belongs to the floor, beside the bare commands.
    """

    key: str
    title: str
    unit: str
    limit: float | None = None
    against: str = ""
    factor: float = 0.0
    on_peer: bool = True


ROWS = (
    Row("create", "docker create", "s", 0.25, FLOOR, 1.3),
    Row("run", "create + start + wait (true)", "s", 0.40, FLOOR, 1.3),
    Row("rm", "docker rm", "s", 0.10, FLOOR, 1.3),
    Row("at_once", "10 containers at once, all done", "s", 1.5),
    Row("load_big", "load, 716 MB in 10 layers", "s", 6.0, PEER, 1.3),
    Row("load_41", "load, 41 tiny layers", "s", 6.0),
    Row("load_121", "load, 121 tiny layers", "s", 18.0),
    Row("rmi_big", "rmi of the 716 MB image", "s", 1.0),
    Row("rmi_41", "rmi of the 41 layers", "s", 2.0),
    Row("rmi_121", "rmi of the 121 layers", "s", 6.0),
    Row("diff", "docker diff, one file changed in 20,000", "s", 0.5, on_peer=False),
    Row("commit", "docker commit of that", "s", 0.6, on_peer=False),
    Row("save", "docker save, 716 MB", "s", 4.5, PEER, 1.5),
    Row("write", "200 MB written and fsynced in a container", "s", 0.5, on_peer=False),
    Row("depth_run", "create + start + wait: deepest image / 2 layers", "x", 1.2),
    Row("depth_read", "100 MB of the bottom layer: deepest image / 2 layers", "x", 1.2),
    Row("ancestors", "most ancestors of an image", "", 16),
    Row("stored_big", "stored: 716 MB image", "MB", 900),
    Row("stored_41", "stored: 41 tiny layers", "MB", 60),
    Row("stored_121", "stored: 121 tiny layers", "MB"),
    Row("stored_ratio", "stored / bytes of the files, 716 MB image", "x", 1.25),
    Row("idle", "stored: an idle container", "MB", 4),
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
)
BY_KEY = {row.key: row for row in ROWS}
