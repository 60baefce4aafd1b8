"""What the snapshotter of a root was started with, for operators (snapshotter/settings.py)."""

from __future__ import annotations

import os

from host.failure import Failure
from images.options import Options
from protocol import init_state
from protocol.request import BadRequest
from snapshotter import settings


class NoHome(Failure):
    """It is not known which driver is meant: one line that says what to give."""


class NeverStarted(NoHome):
    """No snapshotter was ever started with that root."""


def read(root: str, defaults: Options) -> tuple[str, Options]:
    """Return the home and the options of the snapshotter with a root, an absolute path.

    Raises NeverStarted, NoHome if its settings are damaged or of another root, OptionError, OSError.
    """
    path = os.path.join(root, settings.FILE)
    try:
        home, wanted, _ = init_state.read(path, defaults)
    except FileNotFoundError:
        raise NeverStarted(
            f"{path} does not exist: no snapshotter was ever started with --root {root}, or not yet"
        ) from None
    except BadRequest as error:
        raise NoHome(f"{path} is damaged ({error}); the next start of the snapshotter writes it anew") from None
    if home != root:
        # Its layers belong to the root by its path.
        raise NoHome(f"{path} is of a snapshotter with --root {home}: mount it there, and give that")
    return home, wanted
