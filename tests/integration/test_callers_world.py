"""The driver is the same whatever world it is started in: each way to start it lives a whole life at the socket."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pytest
from docker_tree import DockerTree
from lab import Cluster, mounts_below
from lab_fixtures import end, new_plugin
from plugin_client import PYTHON, REPO, PluginProcess, Refused, make_tar, tar_names
from turns import chosen

from host import programs

# Of --userns-remap: the container's root on this host.
REMAPPED = 1650000000
RANGE = [{"container_id": 0, "host_id": REMAPPED, "size": 65536}]
# As many connections as dockerd may keep open.
IDLE = 50
# Words of the table: the directory of this life, and the one where things lie that must not be taken for others.
WORK, PLANTED = "@WORK@", "@PLANTED@"
# What the driver's modules import, by the first word of its name.
LIBRARY = """
argparse array base64 calendar contextlib contextvars copy ctypes dataclasses datetime email enum errno fcntl functools
hashlib http inspect json locale logging mmap pathlib queue random re resource select selectors shlex shutil signal
socket socketserver string struct subprocess tempfile threading time traceback typing urllib uuid warnings weakref zlib
"""
PROGRAMS = ("python3", *(program.name for program in programs.PROGRAMS if not os.path.isabs(program.name)))
STAND_IN = os.path.join(REPO, "tests", "bin")


class Way(NamedTuple):
    """One way to start the driver.

    `environment`: None takes a variable away. `before`: a command that runs the rest of its line. `bare`: not even the
    tests' stand-in for rbd is on PATH; it lies in /usr/local/bin then. `silent`: what the driver prints cannot be seen.
    """

    name: str
    environment: Mapping[str, str | None] = {}
    before: Sequence[str] = ()
    flags: Sequence[str] = ()
    options: Mapping[str, str] = {}
    bare: bool = False
    silent: bool = False
    home: str = "home"


def shell(script: str, start: str = "exec") -> Sequence[str]:
    """A command that does this first."""
    return ("/bin/bash", "-c", f'{script}\n{start} "$@"', "-")


def env(*words: str) -> Sequence[str]:
    """A command that does with signals or with all variables what env(1) can do."""
    return ("/usr/bin/env", *words)


def python(*flags: str) -> Way:
    """Options of Python."""
    return Way(f"python3 {' '.join(flags)}", flags=flags)


def variable(name: str, value: str | None, **more: str | None) -> Way:
    """Variables that are not what they were."""
    return Way(f"{name}={value}" if value is not None else f"{name} unset", environment={name: value, **more})


WAYS = (
    Way("as it is told"),
    *map(python, ("-I", "-E", "-s", "-S", "-O", "-OO", *(["-P"] if sys.version_info >= (3, 11) else []))),
    python("-X", "utf8=0"),
    python("-W", "error"),
    variable("PYTHONSAFEPATH", "1"),
    variable("PYTHONOPTIMIZE", "2"),
    variable("PYTHONPATH", PLANTED),
    variable("PYTHONINSPECT", "1"),
    Way("working directory with modules and programs", before=shell(f"cd {PLANTED}"), environment={"PYTHONPATH": "."}),
    Way("working directory /", before=shell("cd /")),
    Way("working directory that was removed", before=shell(f"mkdir {WORK}/x && cd {WORK}/x && rmdir {WORK}/x")),
    *(Way(f"umask {mask}", before=shell(f"umask {mask}")) for mask in ("000", "027", "077")),
    *(Way(f"LC_ALL={name}", {"LC_ALL": name}, home="hömé") for name in ("C", "C.UTF-8", "xx_XX")),
    Way("LANG of nobody", environment={"LC_ALL": None, "LANG": "xx_XX.ISO-8859-1", "LANGUAGE": "xx"}, home="hömé"),
    Way(
        "a locale that is not UTF-8",
        environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
        home="hömé",
    ),
    variable("TZ", "<+14>-14:30"),
    variable("HOME", None),
    Way("PATH empty", environment={"PATH": ""}, bare=True, before=shell(f"cd {PLANTED}")),
    Way("PATH without sbin", environment={"PATH": "/usr/local/bin:/bin"}, bare=True),
    Way("PATH /usr/sbin", environment={"PATH": "/usr/sbin"}, bare=True),
    Way("PATH with names that are not absolute", {"PATH": ":.:./:"}, bare=True, before=shell(f"cd {PLANTED}")),
    Way("PATH unset, and Python does not know its name", before=shell("unset PATH", "exec -a python3"), bare=True),
    Way("no environment", before=env("-i"), bare=True),
    variable("CEPH_ARGS", "--id nobody --cluster other"),
    variable("CEPH_CONF", "/nonexistent", CEPH_LIB="/nonexistent", CEPH_DEV="1"),
    variable("CEPH_KEYRING", "/nonexistent"),
    variable("POSIXLY_CORRECT", "1"),
    Way(
        "variables of mount",
        environment={
            "LIBMOUNT_MTAB": "/nonexistent",
            "LIBMOUNT_FSTAB": f"{PLANTED}/fstab",
            "BLKID_FILE": "/nonexistent",
            "BLKID_CONF": f"{PLANTED}/blkid.conf",
        },
    ),
    Way(
        "variables of mke2fs",
        environment={"MKE2FS_CONFIG": f"{PLANTED}/mke2fs.conf", "MKE2FS_DEVICE_SECTSIZE": "77"},
        options={"fs": "ext4", "imageprefix": "ext4"},
    ),
    *(Way(f"descriptors closed: {which}", before=shell(close), silent=silent) for which, close, silent in (
        ("0", "exec 0<&-", False),
        ("1", "exec 1>&-", True),
        ("2", "exec 2>&-", False),
        ("all", "exec 0<&- 1>&- 2>&-", True),
    )),
    Way("SIGPIPE ignored", before=env("--ignore-signal=PIPE")),
    Way("SIGCHLD ignored", before=env("--ignore-signal=CHLD")),
    Way("SIGTERM and SIGINT ignored", before=env("--ignore-signal=TERM", "--ignore-signal=INT")),
    Way("all signals blocked", before=env("--block-signal")),
    Way("few open files", before=("/usr/bin/prlimit", "--nofile=32:4096", "--")),
)  # fmt: skip


@pytest.fixture(scope="session")
def planted(session_directory: str) -> str:
    """A directory with modules, programs and settings of well-known names, each of which would leave a mark."""
    place = os.path.join(session_directory, "planted")
    os.makedirs(f"{place}/taken")
    said = subprocess.run([PYTHON, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True)
    modules = [name[:-3] for name in os.listdir(REPO) if name.endswith(".py") and name != "docker_graph_driver.py"]
    # What Python itself needs before it comes to us is Python's own affair.
    for module in {*modules, *LIBRARY.split()} - set(said.stdout.split()):
        plant(place, f"{module}.py", f"open({place + '/taken/' + module!r}, 'w')\nraise ImportError\n")
    for program in PROGRAMS:
        plant(place, program, f"#!/bin/sh\n>{place}/taken/{program}\nexit 1\n")
    plant(place, "mke2fs.conf", "[defaults]\n base_features = nonsense\n")
    plant(place, "blkid.conf", "EVALUATE=nonsense\n")
    plant(place, "fstab", "/dev/nonsense / nonsense nonsense\n")
    return place


def plant(place: str, name: str, text: str) -> None:
    """Make a file that can be run."""
    path = os.path.join(place, name)
    with open(path, "w", encoding="ascii") as target:
        target.write(text)
    os.chmod(path, 0o755)


@pytest.fixture
def life(cluster: Cluster, session_directory: str, planted: str, way: Way) -> Iterator[PluginProcess]:
    """A driver that will be started this way; at the end nothing is left of it."""
    work = os.path.join(session_directory, f"way-{WAYS.index(way)}")
    for name in os.listdir(f"{planted}/taken"):
        os.unlink(f"{planted}/taken/{name}")
    with seen_by_all(work) if way.bare else contextlib.nullcontext():
        plugin = new_plugin(cluster, work, **way.options)
        plugin.home = os.path.join(work, way.home)
        plugin.flags = way.flags
        plugin.environment = {**plugin.environment, **({"RBD_STAND_IN_DIR": f"{work}/mapped"} if way.bare else {})}
        words = [*(stand_in_place() if way.bare else ()), "/usr/bin/env"]
        for name, value in way.environment.items():
            words += ["-u", name] if value is None else [f"{name}={value}"]
        plugin.before = [word.replace(WORK, work).replace(PLANTED, planted) for word in (*words, *way.before)]
        yield plugin
        if os.path.exists(plugin.log):
            print(f"--- log of {plugin.home}\n{plugin.log_tail()}")
        if plugin.running:
            plugin.kill()
        if plugin.client.created:
            plugin.before = plugin.flags = ()
            end(plugin)
        assert mounts_below(work) == []


@contextlib.contextmanager
def seen_by_all(directory: str) -> Iterator[None]:
    """Make a directory whose mounts are seen in all copies of this mount namespace."""
    os.makedirs(directory)
    for words in (["--bind", directory, directory], ["--make-shared", directory]):
        subprocess.run(["mount", *words], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def stand_in_place() -> Sequence[str]:
    """A command that runs another one where the stand-in for rbd is installed as an administrator would do it."""
    script = 'mount --make-private "$(findmnt --noheadings --output TARGET --target /usr/local/bin)" && '
    script += 'mount --bind "$1" /usr/local/bin && shift && exec "$@"'
    return ("/usr/bin/unshare", "--mount", "--propagation", "unchanged", "/bin/bash", "-c", script, "-", STAND_IN)


@pytest.mark.parametrize("way", chosen(WAYS, 3), ids=lambda way: way.name)
def test_a_whole_life(life: PluginProcess, way: Way, planted: str) -> None:
    it_says_what_it_is(life, way)
    life.start()
    standard_descriptors(life)
    with connections(life.socket):
        use(life, way)
    assert life.terminate(30) == 0
    assert not os.path.exists(life.socket)
    for word in ("Traceback", "defect of the driver"):
        assert word not in life.log_text()
    assert os.listdir(f"{planted}/taken") == []


def it_says_what_it_is(life: PluginProcess, way: Way) -> None:
    for word, says in (("--version", "docker-graph-driver 2"), ("--help", "keeps Docker's image layers")):
        done = run(life, word)
        assert done.returncode == 0, done
        assert way.silent or says in done.stdout, done


def standard_descriptors(life: PluginProcess) -> None:
    """What is printed must not get into a file that happens to be open."""
    assert life.process
    for descriptor in (0, 1, 2):
        place = os.readlink(f"/proc/{life.process.pid}/fd/{descriptor}")
        assert place in ("/dev/null", life.log), f"{descriptor} is {place}"


@contextlib.contextmanager
def connections(path: str) -> Iterator[None]:
    """Connections that say nothing, as dockerd keeps them."""
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        yield


def use(life: PluginProcess, way: Way) -> None:
    """From Init to Remove."""
    client = life.client
    client.init(life.home, life.options, UIDMaps=RANGE, GIDMaps=RANGE)
    nothing_is_found(life, way)
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    client.create(first)
    root = client.get(first)
    write(f"{root}/written", "by a container")
    who_gets_through(root)
    assert tar_names(client.diff(first)) == ["written"]
    client.put(first)
    client.create(second, first)
    # More of them than untar.py lays down alone.
    many = {f"files/{number}": str(number) for number in range(600)}
    assert client.apply_diff(second, make_tar({"files": None, **many}), first) == sum(map(len, many.values()))
    with pytest.raises(Refused, match="does not exist"):
        client.get("nobody")
    root = client.get(second)
    who_gets_through(root)
    with open(f"{root}/files/599", encoding="ascii") as source:
        assert source.read() == "599"
    assert modes(life, root) == MODES
    client.put(second)
    for layer in (second, first):
        client.remove(layer)


def run(life: PluginProcess, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the driver's program in the same world."""
    return subprocess.run(
        life.command(*words),
        env=life.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def nothing_is_found(life: PluginProcess, way: Way) -> None:
    """`check` looks at a pool in order."""
    DockerTree(os.path.dirname(life.home), way.home)
    done = run(life, "check", "--socket", life.socket)
    assert (done.returncode, done.stdout) == (0, ""), done


def write(path: str, text: str) -> None:
    """What a process of a container does."""
    with open(path, "w", encoding="ascii") as target:
        target.write(text)
    os.chown(path, REMAPPED, REMAPPED)
    os.chmod(path, 0o600)


def who_gets_through(root: str) -> None:
    """The root of a container of --userns-remap is nobody here, and must be able to get to its files."""
    ids = ("--reuid", str(REMAPPED), "--regid", str(REMAPPED), "--clear-groups")
    done = subprocess.run(
        ["setpriv", *ids, "cat", f"{root}/written"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "by a container", done


MODES = {
    "socket": 0o600,
    "socket.lock": 0o644,
    "socket.state": 0o644,
    "home": 0o711,
    "home/mnt": 0o711,
    "home/l": 0o711,
    "home/mnt/LAYER": 0o711,
    "the layer's file system": 0o755,
    "the layer's root": 0o755,
    "the layer's note": 0o644,
}


def modes(life: PluginProcess, root: str) -> Mapping[str, int]:
    """The modes of all that the driver has made: nobody else can write to it."""
    files = os.path.join(os.path.dirname(root), "layer")
    paths = {
        "socket": life.socket,
        "socket.lock": f"{life.socket}.lock",
        "socket.state": f"{life.socket}.state",
        "home": life.home,
        "home/mnt": f"{life.home}/mnt",
        "home/l": f"{life.home}/l",
        "home/mnt/LAYER": os.path.dirname(files),
        "the layer's file system": files,
        "the layer's root": root,
        "the layer's note": f"{files}/layer.json",
    }
    return {name: stat.S_IMODE(os.stat(path).st_mode) for name, path in paths.items()}


def test_directories_from_before_are_mended(cluster: Cluster, session_directory: str) -> None:
    """They were made under a umask that did not let the root of a container through; Init is all that Docker does."""
    plugin = new_plugin(cluster, os.path.join(session_directory, "mended"))
    plugin.start()
    plugin.init(UIDMaps=RANGE, GIDMaps=RANGE)
    root = plugin.client.get(plugin.client.create("old"))
    write(f"{root}/written", "by a container")
    for directory in (plugin.home, f"{plugin.home}/mnt", f"{plugin.home}/mnt/old"):
        os.chmod(directory, 0o700)
    plugin.init(UIDMaps=RANGE, GIDMaps=RANGE)
    who_gets_through(plugin.client.get("old"))
    end(plugin)
    assert mounts_below(plugin.home) == []
