"""What check, gc and tree ask of who uses the layers of a home: Docker, or containerd by the snapshotter.

Each has a database of its own (docker_database.py, snapshots_database.py), and is called by its own names in a finding.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from host.failure import Failure
from overview.contents import Names


class DatabaseMissing(Failure):
    """A part of the database is missing or damaged. The text is one line that says which, and what to do."""


class Words(NamedTuple):
    """How a finding calls them: who knows the layers, who has them removed, who does that, and who starts anew."""

    knower: str
    remover: str
    driver: str
    daemon: str


@dataclass
class Known:
    """What the user of the layers knows.

    `named`: layers, each with what it is to that user. `gone`: the paths of records of containers that are gone, each
    with the layers that it names. `shared`: those that are named and belong to all hosts. `unmade`: those that are
    named and may have no image, since they are being made or removed.
    """

    named: dict[str, str] = field(default_factory=dict)
    gone: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)
    unmade: set[str] = field(default_factory=set)


class Database:
    """The database of one user of layers; each method reads it anew.

    `ids`: what an id looks like that this user, or we for it, gave to a layer. `keeps_taken`: what was taken over from
    another host is kept though it is not named, since the database of that host may still be brought here.
    """

    words: Words
    ids: re.Pattern[str]
    keeps_taken: bool

    def known(self) -> Known:
        """Return what is known, if all of the database is there. Raises DatabaseMissing, OSError, ValueError."""
        raise NotImplementedError

    def mentioned(self, layers: Collection[str]) -> set[str]:
        """Return those of `layers` that may be known, though `known` does not name them. Raises what `known` raises."""
        return set()

    def names(self) -> Names:
        """Return what images and containers are called, as far as that can be read. Raises nothing."""
        raise NotImplementedError

    def forget(self, record: str) -> None:
        """Remove a record of a container that is gone. Raises FileNotFoundError if it has gone, OSError."""
        raise FileNotFoundError(record)
