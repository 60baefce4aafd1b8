"""Ids of a container and of the host: there and back, and what has no counterpart."""

from __future__ import annotations

import pytest

from archive.id_maps import IdError, parse, to_container, to_host

RANGES = parse("0:100000:10,10:500000:5")


def test_without_ranges_an_id_stays_what_it_is() -> None:
    assert parse("") == ()
    assert to_host((), 4294967294, "user") == to_container((), 4294967294, "user") == 4294967294


@pytest.mark.parametrize(("inside", "outside"), [(0, 100000), (9, 100009), (10, 500000), (14, 500004)])
def test_there_and_back(inside: int, outside: int) -> None:
    assert to_host(RANGES, inside, "user") == outside
    assert to_container(RANGES, outside, "user") == inside


@pytest.mark.parametrize("number", [15, 100000])
def test_one_of_the_container_that_has_no_counterpart(number: int) -> None:
    with pytest.raises(IdError, match=f"user id {number} is not mapped to the host"):
        to_host(RANGES, number, "user")


@pytest.mark.parametrize("number", [0, 99999, 100010, 500005])
def test_one_of_the_host_that_has_no_counterpart(number: int) -> None:
    with pytest.raises(IdError, match=f"group id {number} of the host is not mapped to the container"):
        to_container(RANGES, number, "group")


@pytest.mark.parametrize("ranges", [(), parse("0:0:4294967295")])
@pytest.mark.parametrize("number", [-1, 0xFFFFFFFF, 1 << 40])
def test_what_linux_takes_for_no_id(ranges: tuple[tuple[int, int, int], ...], number: int) -> None:
    with pytest.raises(IdError, match="Linux takes 0 to 4294967294"):
        to_host(ranges, number, "user")
