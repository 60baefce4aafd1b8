"""A small file that is written whole, or stays as it was, whatever ends us in the middle.

We are root, and the directory may be one where anybody makes files, such as /tmp. So no symbolic link is followed, be
it at the path or at PATH.new: it is replaced. (fs.protected_symlinks does not help one who resolves a path himself.)
"""

from __future__ import annotations

import contextlib
import os
import stat

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Write a file with these permissions in place of what was there; PATH.new, used for it, goes. Raises OSError.

    What is there and is no plain file stays: /dev/null and /dev/stdout are none to be replaced.
    """
    if not _is_replaceable(path):
        raise OSError(f"{path} is no plain file")
    with contextlib.suppress(FileNotFoundError):
        # One who was killed has left it.
        os.unlink(f"{path}.new")
    new = os.open(f"{path}.new", _NEW, mode)
    try:
        with open(new, "w", encoding="utf-8") as target:
            # Whatever our umask is.
            os.fchmod(new, mode)
            target.write(text)
            target.flush()
            # Renamed before it is written, it would be empty after a power cut.
            os.fsync(new)
        os.replace(f"{path}.new", path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(f"{path}.new")
        raise


def _is_replaceable(path: str) -> bool:
    """Tell whether there is nothing, a plain file, or a link that is neither to something else nor into /proc."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return True
    if stat.S_ISLNK(kind):
        # /dev/stdout is a link to /proc/self/fd/1, which may be a plain file.
        return not os.readlink(path).startswith("/proc/") and (os.path.isfile(path) or not os.path.exists(path))
    return stat.S_ISREG(kind)
