"""Each service for the whole session; a test starts with an empty one, and what it made is removed after it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
from client import Snapshots
from lab import Cluster, mounts_below
from lab_fixtures import cluster, lab_options, pytest_collection_modifyitems, session_directory
from mounting import unmount_all
from plugin_client import wait_until
from services import Ceph, Reference, Service
from work import Work, depths

__all__ = ["cluster", "pytest_collection_modifyitems", "session_directory"]


@pytest.fixture(scope="session", params=["reference", "ceph"])
def service(request: pytest.FixtureRequest, session_directory: str) -> Iterator[Service]:
    """The service under test, and the reference: the same tests must pass with both. `-k reference` needs no Ceph."""
    directory = os.path.join(session_directory, uuid.uuid4().hex[:6])
    made: Service
    if request.param == "reference":
        made = Reference(directory)
    else:
        lab: Cluster = request.getfixturevalue("cluster")
        made = Ceph(lab, directory, lab_options())
    made.start()
    yield made
    # Nobody takes it away any more once the service has ended. With 129 snapshots that takes its time.
    wait_until(lambda: not made.left(), "what was removed has gone", 600)
    made.end()
    assert mounts_below(directory) == []


@pytest.fixture
def snapshots(service: Service) -> Iterator[Snapshots]:
    """A client; all snapshots that are left after the test are removed, children first, and so it can be done."""
    # What another test could not remove, and has failed for.
    remove_all(service)
    client = service.client()
    yield client
    client.close()
    # Shown by pytest when something failed.
    print(f"--- log of {service.name}\n{service.log_tail()}")
    remove_all(service)


def remove_all(service: Service) -> None:
    client = service.client()
    for name, _ in sorted(depths(client.list()).items(), key=lambda pair: -pair[1]):
        client.remove(name)
    assert list(client.list()) == []
    client.close()


@pytest.fixture
def work(snapshots: Snapshots, session_directory: str) -> Iterator[Work]:
    """A directory to mount in. What a failed test left mounted there is unmounted, before snapshots are removed."""
    directory = os.path.join(session_directory, f"w-{uuid.uuid4().hex[:6]}")
    os.mkdir(directory)
    yield Work(snapshots, directory)
    for point in reversed(mounts_below(directory)):
        unmount_all(point)
