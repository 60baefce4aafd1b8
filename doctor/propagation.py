"""Whether what the driver mounts is seen by who uses it: dockerd, or containerd and what it starts.

That is so in one mount namespace. Otherwise the mount on which the home lies must hand on what is mounted below it: it
must be "shared" (Documentation/filesystems/sharedsubtree.rst). Docker does that for the propagatedMount of a plugin.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from doctor.finding import Broken, Unknown
from graph.preconditions import Check

# Docker's and Podman's marks of a container.
MARKS = ("/.dockerenv", "/run/.containerenv")


class Propagation:
    """The mounts below a home. `server` tells the process of the driver, `client` that of its user, None if unknown."""

    def __init__(
        self,
        home: str,
        server: Callable[[], int | None],
        client: Callable[[], int | None],
        *,
        proc: str = "/proc",
        marks: Sequence[str] = MARKS,
    ) -> None:
        self._home = home
        self._server = server
        self._client = client
        self._proc = proc
        self._marks = marks

    def checks(self) -> list[Check]:
        """Return the check."""
        return [Check("mount propagation", self._look)]

    def _look(self) -> str:
        server, client = self._server(), self._client()
        whose = f"process {server}, which serves," if server else "this process"
        seen_by = f"process {client}" if client else "process 1"
        # A container that sees no dockerd has a process 1 of its own, which tells nothing.
        contained = not client and any(map(os.path.exists, self._marks))
        try:
            if not contained and self._same(server, client or 1):
                return f"{whose} has the mount namespace of {seen_by}"
            shared, point = self._propagation(server)
        except PermissionError:
            raise Unknown(f"only root can compare the mount namespaces of {whose} and {seen_by}") from None
        if shared:
            return f"{whose} hands on what it mounts below {self._home}: its mount at {point} is shared"
        wrong = (
            f"what {whose} mounts below {self._home} is seen in no other mount namespace, since its mount at {point} "
            f"is not shared: "
        )
        mend = (
            "start the driver in the mount namespace of its user (no Private*, Protect* or MountFlags in its unit), or "
            "give a container that directory with bind-propagation=rshared"
        )
        if not client:
            raise Unknown(
                f"{wrong}if its user (dockerd, containerd), which does not run here, is in another one: {mend}"
            )
        raise Broken(f"{wrong}{mend}")

    def _same(self, server: int | None, client: int) -> bool:
        ours, theirs = (os.stat(f"{self._proc}/{pid}/ns/mnt") for pid in (server or "self", client))
        return os.path.samestat(ours, theirs)

    def _propagation(self, server: int | None) -> tuple[bool, str]:
        """Tell whether the mount on which the home lies is shared, and where it is. Raises OSError."""
        shared, at = False, ""
        with open(f"{self._proc}/{server or 'self'}/mountinfo", encoding="utf-8", errors="surrogateescape") as source:
            for line in source:
                words = line.split(" ")
                point = words[4].replace("\\040", " ")
                # A later mount at one point hides the former.
                if len(point) >= len(at) and _is_below(self._home, point):
                    optional = words[6 : words.index("-")]
                    shared, at = any(word.startswith("shared:") for word in optional), point
        return shared, at


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
