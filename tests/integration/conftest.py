"""A real cluster for the whole session; a plugin of its own for each test, which must leave nothing behind."""

from lab_fixtures import (
    client,
    cluster,
    new_id,
    plugin,
    pytest_collection_modifyitems,
    session_directory,
    start_plugin,
)

__all__ = [
    "client",
    "cluster",
    "new_id",
    "plugin",
    "pytest_collection_modifyitems",
    "session_directory",
    "start_plugin",
]
