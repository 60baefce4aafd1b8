"""What the pool knows of a layer that all hosts share: one line in an omap, that is written once and never changed.

The key is "CHAIN LAYER": a chain id of OCI ("sha256:..."), and the layer that stands for it. So who adds or removes a
key never meets the key of another layer. Beside it may stand "deleting CHAIN LAYER WHO": WHO, the digest of an owner,
has begun to delete the layer, and may have died over it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace

from cluster.owner import Owner

_CHAIN = r"sha256:[0-9a-f]{64}"
_LAYER = r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}"
_KEY = re.compile(rf"(?:(deleting) )?({_CHAIN}) ({_LAYER})(?(1) ([0-9a-f]{{16}}))")
DIGITS = 16


@dataclass(frozen=True)
class Entry:
    """A layer that stands for a chain of layers.

    `below`: the layer that it stands on, "" if on none, and `parent` is the chain of that. `offered`: when, by the
    clock of the host that offered it. `size` in bytes and `inodes` are what the layer itself brought. `deleting`: who
    has begun to delete it, by digest; "" if it may be found.
    """

    chain: str
    layer: str
    parent: str
    below: str
    owner: Owner
    offered: int
    size: int
    inodes: int
    deleting: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be written."""
        if not _KEY.fullmatch(self.key) or bool(self.parent) != bool(self.below):
            raise ValueError(f"{self.key!r} on {self.parent!r} {self.below!r} is no layer of a chain")
        if self.parent:
            check_chain(self.parent)

    @property
    def key(self) -> str:
        """The key that it has in the omap."""
        found = f"{self.chain} {self.layer}"
        return f"deleting {found} {self.deleting}" if self.deleting else found

    def deleted_by(self, owner: Owner) -> Entry:
        """Return this entry as one that an owner has begun to delete."""
        return replace(self, deleting=owner.digest[:DIGITS])

    def standing(self) -> Entry:
        """Return this entry as one that may be found."""
        return replace(self, deleting="")

    @staticmethod
    def parse(key: str, value: str) -> Entry:
        """Read what `key` and `str` wrote. Raises ValueError, which says it in one line."""
        try:
            found = _KEY.fullmatch(key)
            if not found:
                raise ValueError
            fields = json.loads(value)
            return Entry(
                found[2],
                found[3],
                str(fields["parent"]),
                str(fields["below"]),
                Owner.parse(str(fields["owner"])),
                int(fields["offered"]),
                int(fields["size"]),
                int(fields["inodes"]),
                found[4] or "",
            )
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            raise ValueError(f"{key[:210]!r} is {value[:80]!r}, which no driver of this version wrote") from None

    def __str__(self) -> str:
        return json.dumps(
            {
                "parent": self.parent,
                "below": self.below,
                "owner": str(self.owner),
                "offered": self.offered,
                "size": self.size,
                "inodes": self.inodes,
            }
        )


def check_chain(chain: str) -> str:
    """Return a chain id as it is. Raises ValueError if it is none."""
    if not re.fullmatch(_CHAIN, chain):
        raise ValueError(f"{chain[:80]!r} is no chain id")
    return chain
