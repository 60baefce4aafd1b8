"""Ids of users and groups under --userns-remap: what a container calls 0 is another number on the host.

A range is (first id in the container, first id on the host, how many). Without ranges every id stays what it is. Plain
tuples and no imports: each process that confined.py starts pays for what it loads.
"""

from __future__ import annotations

Ranges = tuple[tuple[int, int, int], ...]


class IdError(ValueError):
    """An id has no counterpart."""


def parse(text: str) -> Ranges:
    """The ranges of an argument "CONTAINER:HOST:SIZE,..."."""
    ranges = []
    for item in filter(None, text.split(",")):
        container, host, size = map(int, item.split(":"))
        ranges.append((container, host, size))
    return tuple(ranges)


def to_host(ranges: Ranges, number: int, what: str) -> int:
    """The host's id for one in an archive. IdError if there is none (moby: IdentityMapping.ToHost)."""
    if not 0 <= number < 0xFFFFFFFF:  # chown(2) takes the highest 32-bit number for "leave it"
        raise IdError(f"{what} id {number}, Linux takes 0 to {0xFFFFFFFE}: change the owner")
    for container, host, size in ranges:
        if 0 <= number - container < size:
            return number - container + host
    if ranges:
        raise IdError(f"{what} id {number} is not mapped to the host: see /etc/subuid and /etc/subgid for more")
    return number


def to_container(ranges: Ranges, number: int, what: str) -> int:
    """The id in an archive for one of the host. IdError if there is none (moby: IdentityMapping.ToContainer)."""
    for container, host, size in ranges:
        if 0 <= number - host < size:
            return number - host + container
    if ranges:
        raise IdError(f"{what} id {number} of the host is not mapped to the container")
    return number
