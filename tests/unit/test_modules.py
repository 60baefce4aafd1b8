"""The house as HACKING.md has it: it has every room and module, imports go down only, and each module has tests."""

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

# The modules that have no tests/unit/test_MODULE.py, each with who looks at it in its place.
WITHOUT_UNIT_TESTS = {
    "archive.confined": "a program that runs as a process only: test_untar.py, test_changes.py, test_pack.py",
    "host.failure": "the base of errors; it decides nothing",
    "maintenance.docker_files": "where files are and what stands there: test_docker_database.py, test_docker_names.py",
    "maintenance.knowledge": "what two databases have in common: test_docker_database.py, test_snapshots_database.py",
    "mapped.stacks": "what views and handed_out have in common: test_views.py, test_handed_out.py",
    "snapshotter.messages": "a table of fields: test_service.py, and containerd in tests/snapshotter",
    "snapshotter.front": "a process that serves: tests/snapshotter",
    "mapped.view": "what is known of a view; views.py decides",
    "mapped.home": "what others share; its deadline is asked for in test_bounds.py",
    "snapshots.errors": "the errors of the room; it decides nothing",
    "archive.tar_format": "words that reading and writing share; it decides nothing",
    "mapped.unmounting": "waits for who holds a mount: test_file_systems.py, tests/integration/test_odd_calls.py",
    "host.mount_calls": "system calls: tests/integration/test_elsewhere.py, tests/snapshotter/test_user_namespaces.py",
    "host.user_namespace_process": "a program that runs as a process only: test_user_namespace.py",
    "mapped.elsewhere": "works in other mount namespaces: tests/integration/test_elsewhere.py",
    "wire.calm": "the budget of a connection: test_http2.py",
    "wire.frames": "read and written with a connection: test_http2.py",
    "wire.grpc_call": "driven through the socket: test_grpc_server.py",
    "wire.grpc_status": "driven through the socket: test_grpc_server.py",
    "wire.huffman": "a part of header fields: test_hpack.py",
    "wire.outgoing": "one direction of a connection: test_http2.py",
    "wire.request_head": "what a connection refuses: test_http2.py",
    "wire.stream": "one request of a connection: test_http2.py",
    "protocol.plugin": "driven through the front door: test_server.py and test_init.py",
}
# The files of tests that are no module's: what they are about goes through several, or is none of the driver's.
THEMES = {
    "archive_properties": "what holds for any two trees: what one half of the room packs, the other lays down",
    "bench": "tests/bench, which is no part of the driver: what of it decides",
    "completion": "manual/docker_graph_driver.bash, which is no module",
    "entrypoint": "plugin/entrypoint.py, which is the managed plugin's and no module of the driver",
    "gone_meanwhile": "whatever was listed may have gone: one rule of all rooms, at moments only a fake hits",
    "hostile_archives": "archives that attack, through all of the room of archives",
    "init": "one daemon after another: the plugin with the driver that it takes the place of",
    "man_page": "manual/man_page.py, which makes the man page, and is no module of the driver",
    "modules": "this file",
    "monitoring": "the dashboard and the alerts, which are no modules: that they speak of what is written",
    "namesakes": "hosts of one name, in every room that asks whose a layer is",
    "needs": "tests/needs.py, where tests are skipped",
    "turns": "tests/turns.py, which part of a table of tests a commit runs",
    "readme": "what the documents tell to type is run by a suite",
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


def test_each_module_has_unit_tests_that_its_name_finds() -> None:
    there = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "unit").glob("test_*.py")}
    with_tests = {module for module in MODULES if module.rpartition(".")[2] in there}
    assert sorted(MODULES.keys() - with_tests - WITHOUT_UNIT_TESTS.keys()) == [], "it has neither tests nor a reason"
    assert sorted(WITHOUT_UNIT_TESTS.keys() & with_tests) == [], "it needs no reason any more"
    assert sorted(WITHOUT_UNIT_TESTS.keys() - MODULES.keys()) == [], "there is no such module"
    names = {module.rpartition(".")[2] for module in MODULES}
    assert sorted(there - names - THEMES.keys()) == [], "it is no module's, and no theme"
    assert sorted(THEMES.keys() - (there - names)) == [], "it is no theme, or there is no such file"


def test_no_two_modules_have_one_name() -> None:
    """The name of a file of tests would not tell which of them it is about."""
    names = [module.rpartition(".")[2] for module in MODULES]
    assert sorted(names) == sorted(set(names))


def test_who_tests_in_the_place_of_a_module_is_there() -> None:
    for reason in (*WITHOUT_UNIT_TESTS.values(), *THEMES.values()):
        for path in re.findall(r"tests/[\w/]+\.py|\btest_\w+\.py", reason):
            assert (ROOT / (path if "/" in path else f"tests/unit/{path}")).is_file(), path


def test_every_room_is_in_the_managed_plugin() -> None:
    """Docker looks into no directory that .dockerignore does not name."""
    named = re.findall(r"^!(\w+)/\*\.py$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert named == sorted(PACKAGES | {"plugin"})
