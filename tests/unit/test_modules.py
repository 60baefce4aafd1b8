"""The table of modules in HACKING.md: it has all of them, and their imports go down only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from plugin_client import REPO

MODULES = {path.stem: path for path in Path(REPO).glob("*.py")}


def rows() -> list[list[str]]:
    """The modules of each row, from the top."""
    text = Path(REPO, "HACKING.md").read_text(encoding="utf-8")
    first = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    found = [re.findall(r"`(\w+)\.py`", cell) for cell in first]
    return [[name for name in row if name in MODULES] for row in found if row and row[0] in MODULES]


def imported(module: str) -> set[str]:
    """The modules of ours that one imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    return found & MODULES.keys()


def test_every_module_has_its_row() -> None:
    named = [name for row in rows() for name in row]
    assert sorted(named) == sorted(MODULES)


def test_imports_go_down_only() -> None:
    row_of = {name: at for at, row in enumerate(rows()) for name in row}
    up = [f"{name} imports {other}" for name in MODULES for other in imported(name) if row_of[other] < row_of[name]]
    assert up == []
