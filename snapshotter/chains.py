"""Which snapshots may be shared, by what containerd says of them: a chain id, in a label and in the key.

A chain id names what a stack of layers holds: the digest of all their archives (OCI image-spec, config.md, "Layer
ChainID"). containerd unpacks an image into snapshots with a key such as

    default/7/extract-753446252-d9g0 sha256:f25a...

and, if its caller wants layers to be found again, with the label containerd.io/snapshot.ref, whose value is the chain
id (pkg/unpack/unpacker.go, snapshots/snapshotter.go). Only then containerd itself has laid the archive down, and has
compared its digest. A name that is a chain id proves nothing: `docker commit` commits a container under such a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from snapshotter import id_labels

REF_LABEL = "containerd.io/snapshot.ref"
_CHAIN = r"sha256:[0-9a-f]{64}"
_KEY = re.compile(rf"(?:.*/)?extract-[^/ ]+ ({_CHAIN})", re.DOTALL)
_NAME = re.compile(rf"(?:.*/)?({_CHAIN})", re.DOTALL)


def is_unpacked(key: str) -> bool:
    """Tell whether a key is that of a snapshot into which an archive is laid down."""
    return _KEY.fullmatch(key) is not None


def chain_wanted(key: str, labels: Mapping[str, str]) -> str:
    """Return the chain id that a Prepare asks for, "" if it asks for none.

    What is for a user namespace is for its owner alone: what is laid down in it has other owners than the archive.
    """
    found = None if id_labels.has_ids(labels) else _KEY.fullmatch(key)
    return found[1] if found and labels.get(REF_LABEL) == found[1] else ""


def chain_made(key: str, name: str, before: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """Return the chain id for which a Commit has made a layer, "" if it is not to be shared.

    `before` are the labels of Prepare, `labels` those of Commit.
    """
    chain = chain_wanted(key, before)
    found = _NAME.fullmatch(name)
    is_same = found is not None and found[1] == chain == labels.get(REF_LABEL)
    return chain if is_same and not id_labels.has_ids(labels) else ""
