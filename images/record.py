"""The record in the metadata of a layer's image, for all who do not mount it: its owner, and what is below it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cluster.owner import Owner

KEY = "docker_graph_driver.layer"


@dataclass(frozen=True)
class Record:
    """The owner of a layer, and its parents, nearest first. A container's layer has the parents of its init layer."""

    owner: Owner
    parents: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> Record | None:
        """Read what `str` wrote. None for "": an image without a record, whose Create was killed. Raises ValueError."""
        if not text:
            return None
        try:
            fields = json.loads(text)
            return Record(Owner.parse(str(fields["owner"])), tuple(map(str, fields["parents"])))
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(f"{KEY} is {text[:80]!r}, which no driver of this version wrote") from error

    def __str__(self) -> str:
        return json.dumps({"owner": str(self.owner), "parents": self.parents})
