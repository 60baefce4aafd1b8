"""The plugin as dockerd sees it: calls over its unix socket, and the process itself, started, killed, started again."""

from __future__ import annotations

import contextlib
import glob
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# What runs the driver.
PYTHON = os.environ.get("DRIVER_PYTHON", "/usr/bin/python3")
# As Go's client sends them (PROTOCOL: no Content-Type, and older daemons have an empty Host).
HEADERS = {
    "Host": "plugin.moby.localhost",
    "User-Agent": "Go-http-client/1.1",
    "Accept": "application/vnd.docker.plugins.v1.2+json",
    "Accept-Encoding": "gzip",
}


# Where everything is slower (tests/kernel), all patience is so many times as long.
SLOWNESS = float(os.environ.get("LAB_SLOWNESS", "1"))


class Refused(Exception):
    """The plugin answered with an error: its status and its one line."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        super().__init__(f"{status}: {text}")


class BrokenOff(Exception):
    """An answer that began and was never ended."""


# What a call may end with whose driver ends meanwhile: its command was ended, the answer was cut off, or there is none.
UNANSWERED = (Refused, BrokenOff, OSError, http.client.HTTPException)


class Answer(NamedTuple):
    """One HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body's JSON object. Raises Refused if it tells of an error."""
        said = json.loads(self.body)
        assert isinstance(said, dict)
        if self.status != 200 or said.get("Err"):
            raise Refused(self.status, said["Err"])
        return said


class Connection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: str, timeout: float = 120) -> None:
        super().__init__("plugin.moby.localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket in place of a host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def post(self, path: str, body: bytes | Iterable[bytes] = b"") -> Answer:
        """Send one call, with its length or, if it is an iterable of pieces, chunked; read the answer to its end."""
        answer = self.open(path, body)
        try:
            data = answer.read()
        except (http.client.IncompleteRead, ConnectionError) as error:
            raise BrokenOff(str(error)) from None
        return Answer(answer.status, dict(answer.getheaders()), data)

    def open(self, path: str, body: bytes | Iterable[bytes] = b"") -> http.client.HTTPResponse:
        """Send one call and read no more than the head of its answer."""
        if isinstance(body, bytes):
            self.request("POST", path, body, {**HEADERS, "Content-Length": str(len(body))})
        else:
            self.request("POST", path, body, {**HEADERS, "Transfer-Encoding": "chunked"}, encode_chunked=True)
        return self.getresponse()


class Client:
    """The calls of the protocol; a connection for each, so that threads can share it. `created` are living layers."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.timeout = 120.0 * SLOWNESS  # seconds for one call
        self.created: list[str] = []

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        """One call without an archive. Raises Refused."""
        return self.post(f"/GraphDriver.{method}", json.dumps(fields).encode() + b"\n").json()

    def post(self, path: str, body: bytes | Iterable[bytes] = b"") -> Answer:
        """One request on a connection of its own."""
        connection = Connection(self.path, self.timeout)
        try:
            return connection.post(path, body)
        finally:
            connection.close()

    def init(self, home: str, options: Sequence[str], **maps: Any) -> None:
        """What dockerd says first."""
        self.post("/Plugin.Activate").json()
        self.call("Init", Home=home, Opts=list(options) or None, **maps)

    def create(self, layer: str, parent: str = "", size: str = "", *, writable: bool = False) -> str:
        """Create or CreateReadWrite, with the empty fields left out as Go does."""
        fields = {"ID": layer, "Parent": parent, "StorageOpt": {"size": size} if size else None}
        method = "CreateReadWrite" if writable else "Create"
        self.call(method, **{key: value for key, value in fields.items() if value})
        self.created.append(layer)
        return layer

    def get(self, layer: str) -> str:
        """The directory of a layer, mounted."""
        return str(self.call("Get", ID=layer)["Dir"])

    def put(self, layer: str) -> None:
        """Undo one get."""
        self.call("Put", ID=layer)

    def remove(self, layer: str) -> None:
        """Remove a layer."""
        self.call("Remove", ID=layer)
        if layer in self.created:
            self.created.remove(layer)

    def diff(self, layer: str, parent: str = "") -> bytes:
        """The archive of a layer. Raises Refused, or BrokenOff if it is not whole."""
        answer = self.post("/GraphDriver.Diff", json.dumps({"ID": layer, "Parent": parent}).encode() + b"\n")
        if answer.status != 200:
            answer.json()
        return answer.body

    def open_diff(self, layer: str, parent: str = "") -> tuple[Connection, http.client.HTTPResponse]:
        """A Diff whose archive the caller reads at his pace."""
        connection = Connection(self.path, self.timeout)
        return connection, connection.open(
            "/GraphDriver.Diff", json.dumps({"ID": layer, "Parent": parent}).encode() + b"\n"
        )

    def apply_diff(self, layer: str, archive: bytes | Iterable[bytes], parent: str = "") -> int:
        """Lay an archive down, chunked as dockerd sends it."""
        pieces = in_pieces(archive) if isinstance(archive, bytes) else archive
        said = self.post(f"/GraphDriver.ApplyDiff?id={layer}&parent={parent}", pieces).json()
        return int(said["Size"])

    def changes(self, layer: str, parent: str = "") -> dict[str, int]:
        """Path -> kind."""
        said = self.call("Changes", ID=layer, Parent=parent)["Changes"] or []
        return {item["Path"]: item["Kind"] for item in said}

    def diff_size(self, layer: str, parent: str = "") -> int:
        """Bytes that a layer adds."""
        return int(self.call("DiffSize", ID=layer, Parent=parent)["Size"])

    def metadata(self, layer: str) -> dict[str, str]:
        """What docker inspect shows."""
        return dict(self.call("GetMetadata", ID=layer)["Metadata"])

    def status(self) -> dict[str, str]:
        """What docker info shows."""
        return dict(self.call("Status")["Status"])

    def write(self, layer: str, name: str, content: bytes | str) -> None:
        """Write a file into a layer, between a get and a put."""
        root = self.get(layer)
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as target:
            target.write(content.encode() if isinstance(content, str) else content)
        self.put(layer)

    def read(self, layer: str, name: str) -> bytes:
        """Read a file of a layer, between a get and a put."""
        root = self.get(layer)
        try:
            with open(os.path.join(root, name), "rb") as source:
                return source.read()
        finally:
            self.put(layer)

    def listing(self, layer: str) -> list[str]:
        """The names in a layer's root."""
        root = self.get(layer)
        try:
            return sorted(os.listdir(root))
        finally:
            self.put(layer)


def in_pieces(archive: bytes, size: int = 32 << 10) -> Iterator[bytes]:
    """Go copies bodies in pieces of 32 KiB, each of which is a chunk."""
    for start in range(0, len(archive), size):
        yield archive[start : start + size]


def head_of(path: str, *fields: str) -> bytes:
    """The head of a request, with these header fields and an empty Host, as it stands on the wire."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: ", *fields, "", ""]).encode()


def make_tar(files: Mapping[str, bytes | str | None], *, padding: int = 0) -> bytes:
    """An archive with these files (None: a directory), and zeros after its end."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.mtime = 1_600_000_000
            if content is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
            else:
                data = content.encode() if isinstance(content, str) else content
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue() + bytes(padding)


def tar_names(archive: bytes) -> list[str]:
    """The names in an archive, sorted."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as source:
        return sorted(source.getnames())


class PluginProcess:
    """One docker_graph_driver.py with a socket and a home of its own, which outlive the process as on a real host."""

    def __init__(self, directory: str, environment: Mapping[str, str], options: Sequence[str] = ()) -> None:
        self.socket = os.path.join(directory, "s.sock")
        self.home = os.path.join(directory, "home")
        self.log = os.path.join(directory, "log")
        self.environment = dict(environment)
        self.options = list(options)
        # The name of the host that it believes to be on, "" for that of this machine.
        self.host = ""
        # How it is started: by a command that runs the rest of its line as the same process, with options for Python.
        self.before: Sequence[str] = ()
        self.flags: Sequence[str] = ()
        self.client = Client(self.socket)
        self.python = PYTHON  # what it takes for its own interpreter, to start more of them
        self.program = os.path.join(REPO, "docker_graph_driver.py")
        self.process: subprocess.Popen[bytes] | None = None
        os.makedirs(directory, exist_ok=True)

    def start(self, **environment: str) -> None:
        """Start it and wait until it takes calls; `environment` is for this start only."""
        self.launch(**environment)
        try:
            wait_until(lambda: self._listens() or self._ended(), "the plugin listens")
        except AssertionError as error:
            assert self.process
            raise AssertionError(f"{error}\n{self.log_tail()}\n{kernel_stacks(self.process.pid)}") from None
        assert not self._ended(), self.log_tail()

    def launch(self, **environment: str) -> None:
        """Start it and wait for nothing."""
        argv = self.command(*self.arguments())
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                argv,
                # `python` is only what the process takes itself for, and starts others as (tests/faults/killer.py).
                executable=None if self.host or self.before else PYTHON,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.environment, **environment},
                start_new_session=True,
            )

    def arguments(self) -> list[str]:
        """What the process is started with."""
        return ["--socket", self.socket, "--log-level", "debug"]

    def site(self) -> list[str]:
        """How an operator's command finds it."""
        return ["--socket", self.socket]

    def command(self, *words: str) -> list[str]:
        """The driver's command line with these words, started as this plugin is."""
        return [*self.on_host(), *self.before, self.python, *self.flags, self.program, *words]

    def operate(self, *words: str, **environment: str) -> tuple[int, str]:
        """Run one of the operator's commands on this plugin's host; its exit status and all it said."""
        done = subprocess.run(
            self.command(*words, *self.site()),
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout

    def on_host(self) -> list[str]:
        """What to put before a command so that it runs on this plugin's host, as the same process."""
        script = 'hostname "$1" && shift && exec "$@"'
        return ["unshare", "--uts", "sh", "-c", script, "-", self.host] if self.host else []

    def init(self, **maps: Any) -> None:
        """dockerd's start."""
        self.client.init(self.home, self.options, **maps)

    def kill(self) -> None:
        """kill -9."""
        assert self.process
        kill_process(self.process)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """The process stands still in the `with` block; what it has started does not."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def watchers(self) -> list[int]:
        """The processes that show the cluster that it lives (liveness.py); none while such a one is started anew."""
        assert self.process
        words = ["pgrep", "--parent", str(self.process.pid), "rados"]
        said = subprocess.run(words, capture_output=True, text=True, check=False)
        return [int(pid) for pid in said.stdout.split()]

    def terminate(self, timeout: float = 90) -> int:
        """SIGTERM, and its exit status."""
        assert self.process
        self.process.terminate()
        return self.process.wait(timeout * SLOWNESS)

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and not self._ended()

    def log_text(self) -> str:
        """All that it ever logged."""
        with open(self.log, encoding="utf-8", errors="replace") as source:
            return source.read()

    def log_tail(self, lines: int = 60) -> str:
        """The end of its log."""
        return "\n".join(self.log_text().splitlines()[-lines:])

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.socket) == 0


def wait_until(condition: Any, what: str, seconds: float = 120) -> None:
    """Wait for a condition; fails with `what` was waited for.

    The limit is some times the longest that the driver may let it wait (behind.RETRY_SECONDS).
    """
    seconds *= SLOWNESS
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if condition():
            return
        asked = time.monotonic()
        assert asked < deadline, f"not within {seconds:g} s: {what}"
        # To ask the cluster takes a processor from what is waited for.
        time.sleep(min(max(0.02, 2 * (asked - began)), 1.0))


def kill_process(process: subprocess.Popen[bytes]) -> None:
    """Kill -9, and wait until it has ended: not before the kernel has done what it does for it, with a slow disk too.

    Fails with what its threads wait for in the kernel.
    """
    process.send_signal(signal.SIGKILL)
    try:
        process.wait(120 * SLOWNESS)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{error}; it waits in the kernel:\n{kernel_stacks(process.pid)}") from None


def kernel_stacks(pid: int) -> str:
    """Where a process's threads are in the kernel (proc(5), /proc/PID/stack); root only."""
    stacks = []
    for path in glob.glob(f"/proc/{pid}/task/*/stack"):
        with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as source:
            stacks.append(f"{path}\n{source.read()}")
    return "\n".join(stacks)


def process_state(pid: int) -> str:
    """The letter of a process's state ("Z": a zombie), "" if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as source:
            return source.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
