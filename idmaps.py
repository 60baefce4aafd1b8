"""The user and group ids of a daemon with --userns-remap: what a container calls 0 is another number on the host."""

from __future__ import annotations

from dataclasses import dataclass


class IdError(ValueError):
    """An id has no counterpart."""


@dataclass(frozen=True)
class IdRange:
    """`size` consecutive ids of a container and of the host (an entry of Init's UIDMaps and GIDMaps)."""

    container_id: int
    host_id: int
    size: int


@dataclass(frozen=True)
class IdMaps:
    """The ranges of users and of groups; without ranges every id is its own counterpart."""

    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()

    def to_host(self, uid: int, gid: int) -> tuple[int, int]:
        """The host's ids for those in an archive. IdError if there are none (moby: IdentityMapping.ToHost)."""
        return _to_host(self.uids, uid, "user"), _to_host(self.gids, gid, "group")

    def to_container(self, uid: int, gid: int) -> tuple[int, int]:
        """The ids in an archive for the host's. IdError if there are none (moby: IdentityMapping.ToContainer)."""
        return _to_container(self.uids, uid, "user"), _to_container(self.gids, gid, "group")


def _to_host(ranges: tuple[IdRange, ...], number: int, what: str) -> int:
    if not 0 <= number < 0xFFFFFFFF:  # chown(2) takes the highest 32-bit number for "leave it"
        raise IdError(f"{number} is no {what} id")
    for ids in ranges:
        if 0 <= number - ids.container_id < ids.size:
            return number - ids.container_id + ids.host_id
    if ranges:
        raise IdError(f"{what} id {number} is not mapped to the host")
    return number


def _to_container(ranges: tuple[IdRange, ...], number: int, what: str) -> int:
    for ids in ranges:
        if 0 <= number - ids.host_id < ids.size:
            return number - ids.host_id + ids.container_id
    if ranges:
        raise IdError(f"{what} id {number} of the host is not mapped to the container")
    return number
