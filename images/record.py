"""The record in the metadata of a layer's image, for all who do not mount it: its owner, and what is below it.

A snapshotter's also says for which snapshot the layer stands (snapshots/note.py), should its own database be lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.owner import Owner

KEY = "docker_graph_driver.layer"


@dataclass(frozen=True)
class Record:
    """The owner of a layer, and its parents, nearest first. A container's layer has the parents of its init layer.

    `shared`: it belongs to all hosts of the pool. It is finished, and any of them may map it, read-only; who uses it,
    and when it goes, is known to cluster/shared_layers.py. The owner only tells then who made it. `snapshot`: the note
    of its snapshot, as it was read; {} if it has none.
    """

    owner: Owner
    parents: tuple[str, ...]
    shared: bool = False
    snapshot: Mapping[str, object] = field(default_factory=dict, hash=False)

    @staticmethod
    def parse(text: str) -> Record | None:
        """Read what `str` wrote. None for "": an image without a record, whose Create was killed. Raises ValueError."""
        if not text:
            return None
        try:
            fields = json.loads(text)
            parents = tuple(map(str, fields["parents"]))
            owner, snapshot = Owner.parse(str(fields["owner"])), dict(fields.get("snapshot", {}))
            return Record(owner, parents, fields.get("shared", False) is True, snapshot)
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(f"{KEY} is {text[:80]!r}, which no driver of this version wrote") from error

    def __str__(self) -> str:
        shared = {"shared": True} if self.shared else {}
        snapshot = {"snapshot": dict(self.snapshot)} if self.snapshot else {}
        return json.dumps({"owner": str(self.owner), "parents": self.parents, **shared, **snapshot})
