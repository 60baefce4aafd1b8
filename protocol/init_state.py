"""What Init said last, kept in a file: dockerd sends it once for each start of its own, not when only we restart."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from archive import transfer
from images import options
from images.base_image import FORMAT
from protocol.request import BadRequest, Request


class Settings(NamedTuple):
    """What Init says: the home, the storage options, and the ids of user namespaces."""

    home: str
    options: options.Options
    ids: transfer.IdMaps


def settings(request: Request, defaults: options.Options) -> Settings:
    """Read Init's request. Raises BadRequest, OptionError."""
    home = request.text("Home", needed=True)
    if not os.path.isabs(home):
        raise BadRequest(f"Init: Home {home[:80]!r} is not an absolute path")
    ids = transfer.IdMaps(request.id_ranges("UIDMaps"), request.id_ranges("GIDMaps"))
    return Settings(os.path.normpath(home), options.parse(request.texts("Opts"), defaults), ids)


def save(path: str, request: Request) -> None:
    """Keep what Init said for a start without Init; written whole or not at all. Raises OSError."""
    with open(path + ".new", "w", encoding="utf-8") as target:
        json.dump({"Format": FORMAT, **request.kept(("Home", "Opts", "UIDMaps", "GIDMaps"))}, target)
        target.flush()
        # Renamed before it is written, it would be empty after a power cut.
        os.fsync(target.fileno())
    os.replace(path + ".new", path)


def read(path: str, defaults: options.Options) -> Settings:
    """Return what Init said last. Raises FileNotFoundError, BadRequest, OptionError."""
    with open(path, "rb") as source:
        said = Request("Init", source.read())
    if said.text("Format") != FORMAT:
        # What such a driver had mounted is none of what we could tell.
        raise BadRequest("it was written by version 1 of this driver, whose layers this version cannot read")
    return settings(said, defaults)
