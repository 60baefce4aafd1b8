"""A process in a user namespace of its own, in which nobody has an id yet (user_namespaces(7)).

Only a process of one thread can go to a new one (unshare(2)). It is begun for each container of a user namespace, so it
imports little. See user_namespace.py:

    python3 user_namespace_process.py

goes there, prints the number of the process, and ends with its standard input.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from host import environment
from host.mount_calls import MountCalls


def main() -> int:
    """Go to a new user namespace, and stay there as long as the caller wants it. Return the exit status."""
    try:
        MountCalls().leave_users()
    except OSError as error:
        return environment.fail(f"{error.filename}: {os.strerror(error.errno or 0)}")
    os.write(1, b"%d\n" % os.getpid())
    os.read(0, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
