"""The last Init request, kept in a file: dockerd sends Init when it starts itself, not when only the driver does."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from archive import transfer
from host import whole_file
from host.failure import Failure
from images import options
from images.base_image import FORMAT
from protocol.request import BadRequest, Request


class NoUse(Failure):
    """The kept request is damaged, or from another version. The text is one line: which file, why, what to do."""


class Settings(NamedTuple):
    """What an Init request says: the home, the storage options, and the ids of user namespaces."""

    home: str
    options: options.Options
    ids: transfer.IdMaps


def settings(request: Request, defaults: options.Options) -> Settings:
    """Read an Init request. `defaults` stand for options that it does not name. Raises BadRequest, OptionError."""
    home = request.text("Home", needed=True)
    if not os.path.isabs(home):
        raise BadRequest(f"Init: Home {home[:80]!r} is not an absolute path")
    ids = transfer.IdMaps(request.id_ranges("UIDMaps"), request.id_ranges("GIDMaps"))
    return Settings(os.path.normpath(home), options.parse(request.texts("Opts"), defaults), ids)


def save(path: str, request: Request) -> None:
    """Keep an Init request for a start without Init. The file is written whole, or stays as it was. Raises OSError."""
    whole_file.write(path, json.dumps({"Format": FORMAT, **request.kept(("Home", "Opts", "UIDMaps", "GIDMaps"))}))


def read(path: str, defaults: options.Options) -> Settings:
    """Return what the last Init request said. Raises OSError; BadRequest or OptionError if the file is damaged."""
    with open(path, "rb") as source:
        request = Request("Init", source.read())
    if request.text("Format") != FORMAT:
        # We cannot tell what a driver of version 1 had mounted.
        raise BadRequest("it was written by version 1 of this driver, whose layers this version cannot read")
    return settings(request, defaults)


def read_kept(path: str, defaults: options.Options) -> Settings:
    """Do what `read` does for Docker's own file, which its next Init writes anew. Raises OSError, NoUse."""
    try:
        return read(path, defaults)
    except (BadRequest, options.OptionError) as error:
        raise NoUse(f"{path} is of no use, restart dockerd: {error}") from None
