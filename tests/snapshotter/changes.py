"""What is done to the files of a snapshot: in its mount and in a plain directory, which must then be equal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import tree

# Something done to the files below a directory.
Change = Callable[[str], None]


def all_of(*changes: Change) -> Change:
    """One after the other."""

    def change(top: str) -> None:
        for one in changes:
            one(top)

    return change


def file(name: str, content: str = "", mode: int = 0o644) -> Change:
    """Write a file, a new one or in its place."""

    def change(top: str) -> None:
        path = os.path.join(top, name)
        with open(path, "w", encoding="utf-8") as target:
            target.write(content)
        os.chmod(path, mode)

    return change


def directory(name: str, mode: int = 0o755) -> Change:
    """Make a directory."""

    def change(top: str) -> None:
        os.mkdir(os.path.join(top, name))
        os.chmod(os.path.join(top, name), mode)

    return change


def removed(name: str) -> Change:
    """Remove a file, or a directory with all that is in it."""

    def change(top: str) -> None:
        path = os.path.join(top, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)

    return change


def owned(name: str, uid: int, gid: int) -> Change:
    """Give something to somebody."""
    return lambda top: os.lchown(os.path.join(top, name), uid, gid)


def linked(name: str, other: str) -> Change:
    """Give a file another name."""
    return lambda top: os.link(os.path.join(top, name), os.path.join(top, other))


def renamed(name: str, other: str) -> Change:
    """rename(2): what has the other name is replaced."""
    return lambda top: os.rename(os.path.join(top, name), os.path.join(top, other))


def files(top: str) -> list[dict[str, Any]]:
    """All that a user sees below a directory and of it, but the times: names, types, modes, owners, contents, links."""
    lines = list(tree.describe_tree(os.fsencode(top), None, float("inf")))
    for line in lines:
        del line["mtime"]
    return lines
