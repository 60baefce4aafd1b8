"""The picture of the house in HACKING.md: it has every room and module, and imports go down only.

What only one module may do is looked for here too.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from plugin_client import REPO

ROOT = Path(REPO)
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for pattern in ("*.py", "*/*.py")
    for path in ROOT.glob(pattern)
    if path.stem != "__init__" and (path.parent == ROOT or path.parent.name in PACKAGES)
}


def floors() -> dict[str, int]:
    """Each package and each module of the top level, with the number of the floor that it is on, from the top."""
    text = (ROOT / "HACKING.md").read_text(encoding="utf-8")
    picture = text.split("```text\n")[1].split("```")[0]
    named = [re.findall(r"(\w+)(?:/|\.py)", line.split("  ")[0]) for line in picture.splitlines() if line[:1].strip()]
    return {name: at for at, names in enumerate(named) for name in names}


def room(module: str) -> str:
    return module.partition(".")[0]


def imported(module: str) -> set[str]:
    """The modules of ours that one imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found & MODULES.keys()


def test_every_room_is_in_the_picture() -> None:
    assert sorted(floors()) == sorted(PACKAGES | {module for module in MODULES if "." not in module})


def test_every_module_is_in_the_paragraph_of_its_room() -> None:
    text = (ROOT / "HACKING.md").read_text(encoding="utf-8")
    assert [module for module in MODULES if "." in module and f"`{module.split('.')[1]}`" not in text] == []


def test_no_import_goes_up() -> None:
    floor = floors()
    pairs = [(module, other) for module in MODULES for other in imported(module)]
    up = [f"{one} imports {other}" for one, other in pairs if floor[room(other)] < floor[room(one)]]
    assert up == []
    beside = [f"{one} imports {other}" for one, other in pairs if floor[room(other)] == floor[room(one)]]
    assert [line for line in beside if room(line.split()[0]) != room(line.split()[2])] == []


def test_no_import_comes_back() -> None:
    """Within a room too: what is imported never imports, over others or itself, what imports it."""
    below = {module: imported(module) for module in MODULES}
    while removable := [module for module, others in below.items() if not others]:
        for module in removable:
            del below[module]
        for others in below.values():
            others.difference_update(removable)
    assert below == {}


def test_nothing_below_the_protocol_knows_it() -> None:
    """A second front end is to stand on the same rooms."""
    floor = floors()
    words = re.compile(r"VolumeDriver|GraphDriver\.|application/vnd|http\.server|BaseHTTPRequestHandler")
    below = [module for module in MODULES if floor[room(module)] > floor["protocol"]]
    assert [module for module in below if words.search(MODULES[module].read_text(encoding="utf-8"))] == []
    assert floor["protocol"] < floor["graph"]


def test_no_room_has_a_name_of_the_standard_library() -> None:
    known: frozenset[str] = getattr(sys, "stdlib_module_names", frozenset())  # Python 3.10 and newer
    assert [name for name in {room(module) for module in MODULES} if name in known] == []


# The names of what starts a process or replaces it, by the module of the library that has them.
STARTERS = {
    "subprocess": re.compile("Popen|run|call|check_call|check_output|getoutput|getstatusoutput"),
    "os": re.compile("system|popen|startfile|fork|forkpty|(posix_)?spawn.*|exec.+"),
    "pty": re.compile("fork|spawn"),
    "multiprocessing": re.compile(".*"),
    "asyncio": re.compile("create_subprocess_.*"),
    "concurrent.futures": re.compile("ProcessPoolExecutor"),
}


def starters(module: str) -> set[str]:
    """What a module names of those; `subprocess.Popen[bytes]` is a type."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    types = {node.value for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
    named: list[tuple[str, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node not in types:
            named.append((ast.unparse(node.value), node.attr))
        elif isinstance(node, ast.ImportFrom):
            named += [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            # Another name, by which it would not be found below, is none that we need.
            named += [(alias.name, "*") for alias in node.names if alias.asname and alias.name in STARTERS]
    return {
        f"{library}.{name}"
        for library, name in named
        if library in STARTERS and (name == "*" or STARTERS[library].fullmatch(name))
    }


def test_one_module_starts_processes() -> None:
    """And one starts ours anew, before there is any other."""
    found = {module: starters(module) for module in MODULES}
    assert {module: names for module, names in found.items() if names} == {
        "host.processes": {"subprocess.Popen"},
        "host.environment": {"os.execv"},
    }
