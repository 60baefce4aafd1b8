"""Removes a tree of any depth, which an archive may choose: neither the length of a path nor recursion sets a limit."""

from __future__ import annotations

import os


def remove_directory(path: bytes) -> None:
    """Remove a directory of any depth and all in it. The working directory is "/" afterwards. Raises OSError."""
    try:
        os.chdir(path)
        pending = [_empty_working_directory()]
        while pending:
            if pending[-1]:
                os.chdir(pending[-1][-1])
                pending.append(_empty_working_directory())
                continue
            pending.pop()
            os.chdir(b"..")
            if pending:
                os.rmdir(pending[-1].pop())
    finally:
        os.chdir(b"/")
    os.rmdir(path)


def _empty_working_directory() -> list[bytes]:
    """Remove all but the directories from the working directory, and return the names of these directories."""
    with os.scandir(b".") as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name)
    return [name for name, is_directory in found if is_directory]
