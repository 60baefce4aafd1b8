"""What the tests of a real kernel share. They run in the guest of vm.sh; run.sh calls them, with the environment

    LAB_DIR          a running cluster of tests/cluster.sh
    LAB_DEVICE_TYPE  krbd or nbd
    LAB_SITE         directory of a dockerd that was stopped after it had loaded `deep:latest`, an image of 8 layers
    LAB_GRAPH        name of its graph driver, whose images have the prefix "deep"

The tests of the other type may run at the same time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from lab import Cluster, mounts_below


@pytest.fixture(scope="session")
def directory() -> Iterator[str]:
    """A short path: those of sockets end at 107 bytes."""
    made = tempfile.mkdtemp(prefix="dgd-", dir="/tmp")
    yield made
    assert mounts_below(made) == []


@pytest.fixture(scope="session")
def cluster(directory: str) -> Cluster:
    """The cluster."""
    lab = Cluster(directory, os.environ["LAB_DIR"])
    lab.up()
    return lab
