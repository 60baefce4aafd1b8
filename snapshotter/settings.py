"""What a snapshotter was started with, kept in its root for the commands of an operator: check, gc, takeover, tree.

It is the format of Docker's last Init request (protocol/init_state.py), which is read by the same code. The snapshotter
itself never reads it: its own command line counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from host import whole_file
from images.base_image import FORMAT

FILE = "settings.json"


def save(root: str, words: Sequence[str]) -> None:
    """Keep the storage options that were given for a root. Call it once they are known to be right. Raises OSError."""
    fields = {"Format": FORMAT, "Home": os.path.normpath(root), "Opts": list(words)}
    # An option may name a key or a path that is nobody else's business.
    whole_file.write(os.path.join(root, FILE), json.dumps(fields), mode=0o600)
