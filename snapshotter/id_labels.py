"""The labels of a snapshot for a container in a user namespace: which ids its own are on the host.

    containerd.io/snapshot/uidmapping = 0:100000:65536
    containerd.io/snapshot/gidmapping = 0:100000:65536

Each is a list of CONTAINER:HOST:SIZE with commas in between (containerd, internal/userns/idmap.go), one of them up to
containerd 2.0. A client gives both to a snapshotter that says it can `remap-ids` (client/snapshotter_opts_unix.go).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from archive import id_maps
from archive.id_maps import Ranges
from mapped.idmapped import Ids
from snapshots.errors import InvalidArgument

UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"
# The highest 32-bit number is no id (user_namespaces(7)).
_IDS = 0xFFFFFFFF
# The kernel takes so many for one user namespace.
_MOST = 340
# int() takes other digits, signs and blanks, and not any number of digits.
_NUMBERS = re.compile("[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}")


def has_ids(labels: Mapping[str, str]) -> bool:
    """Tell whether a snapshot is for a user namespace, by its labels. They may be wrong."""
    return bool(labels.get(UID_LABEL) or labels.get(GID_LABEL))


def ids_of(key: str, labels: Mapping[str, str]) -> Ids | None:
    """Return the ids that a snapshot's labels tell, None if they tell of none. Raises InvalidArgument."""
    if not has_ids(labels):
        return None
    return Ids(_ranges(key, labels, UID_LABEL), _ranges(key, labels, GID_LABEL))


def _ranges(key: str, labels: Mapping[str, str], label: str) -> Ranges:
    text = labels.get(label, "")
    wrong = _what_is_wrong(text)
    if wrong:
        raise InvalidArgument(
            f"snapshot {key!r}: the label {label} is {text!r}, {wrong}; expected is CONTAINER:HOST:SIZE, such as "
            f"0:100000:65536, in both of {UID_LABEL} and {GID_LABEL}"
        )
    return id_maps.parse(text)


def _what_is_wrong(text: str) -> str:
    """Say what the kernel, or a container, would not take of a label; "" if all is well."""
    if not all(map(_NUMBERS.fullmatch, text.split(","))):
        return "which is not three numbers" if text else "and the other one is not"
    ranges = id_maps.parse(text)
    faults = {
        f"which is more than {_MOST} ranges": len(ranges) > _MOST,
        "which has a range without ids": not all(size for _, _, size in ranges),
        "which has ids that do not exist": any(max(inside, host) + size > _IDS for inside, host, size in ranges),
        "which has an id twice": any(_overlap([(item[side], item[2]) for item in ranges]) for side in (0, 1)),
        "which has no root": not any(inside == 0 for inside, _, _ in ranges),
    }
    return next((fault for fault, is_so in faults.items() if is_so), "")


def _overlap(ranges: list[tuple[int, int]]) -> bool:
    ordered = sorted(ranges)
    return any(first + size > following for (first, size), (following, _) in zip(ordered, ordered[1:]))
