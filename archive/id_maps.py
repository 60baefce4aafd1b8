"""Ids of users and groups under --userns-remap: what a container calls 0 is another number on the host.

A range is (first id in the container, first id on the host, number of ids). Without ranges every id stays the same. The
ranges are plain tuples, and nothing is imported: each start of confined.py would pay for it.
"""

from __future__ import annotations

Ranges = tuple[tuple[int, int, int], ...]


class IdError(ValueError):
    """An id has no counterpart."""


def parse(text: str) -> Ranges:
    """Return the ranges of an argument "CONTAINER:HOST:SIZE,...". Raises ValueError."""
    ranges = []
    for item in filter(None, text.split(",")):
        container, host, size = map(int, item.split(":"))
        ranges.append((container, host, size))
    return tuple(ranges)


def to_host(ranges: Ranges, number: int, what: str) -> int:
    """Return the host's id for an id in an archive. Raises IdError if there is none (moby: IdentityMapping.ToHost)."""
    if not 0 <= number < 0xFFFFFFFF:  # chown(2) takes the highest 32-bit number for "leave it"
        raise IdError(f"{what} id {number}, Linux takes 0 to {0xFFFFFFFE}: change the owner")
    for container, host, size in ranges:
        if 0 <= number - container < size:
            return number - container + host
    if ranges:
        raise IdError(f"{what} id {number} is not mapped to the host: see /etc/subuid and /etc/subgid for more")
    return number


def to_container(ranges: Ranges, number: int, what: str) -> int:
    """Return the id in an archive for an id of the host. Raises IdError if there is none (moby: ToContainer)."""
    for container, host, size in ranges:
        if 0 <= number - host < size:
            return number - host + container
    if ranges:
        raise IdError(f"{what} id {number} of the host is not mapped to the container")
    return number
