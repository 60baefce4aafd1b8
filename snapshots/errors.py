"""The errors of snapshots. Each class is one that a snapshotter's caller tells apart, named as containerd's errdefs.

The text of each is one line, and names the snapshot by its key.
"""

from __future__ import annotations

from host.failure import Failure


class NotFound(Failure):
    """There is no snapshot with that key, or no parent with that name (errdefs.ErrNotFound)."""

    is_refusal = True


class AlreadyExists(Failure):
    """The key or the name is in use (errdefs.ErrAlreadyExists)."""

    is_refusal = True


class InvalidArgument(Failure):
    """What was asked for can never be done: the request itself is wrong (errdefs.ErrInvalidArgument)."""

    is_refusal = True


class FailedPrecondition(Failure):
    """It cannot be done as things are: a snapshot is of another kind, has children, or is being worked on.

    containerd's collector goes on after this error only (errdefs.ErrFailedPrecondition; metadata/snapshot.go).
    """

    is_refusal = True


class StoreFailed(Failure):
    """The database cannot be read or written: no space is left, the disk has an error, or others have it locked."""


class StoreNotWhole(StoreFailed):
    """The database was just made, and it is not known yet what the pool tells of one before it."""


class StoreUnusable(StoreFailed):
    """The database is damaged, or another version wrote it. It was not changed. An operator must decide."""
