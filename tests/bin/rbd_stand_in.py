"""Stands in for `rbd device map|unmap|list` on a kernel without rbd; tests/bin/rbd sends those verbs here.

A mapping is a qemu-storage-daemon (librbd) that offers the image as a file through FUSE, and a loop device on it.
Unmapping detaches the loop device under an O_EXCL open (nobody can mount it in between), tells the daemon to close the
image, and kills it when it has: then the image has no watcher and no lock, and the data is in the cluster. The FUSE
mount stays in the mount table until then: QEMU 7.2, when its mount is gone, repeats the last request until it crashes.

Lifetimes: RUN/FSID/ is a cluster, with a `lock` that is held for looking and deciding only; RUN/FSID/ID/ is a mapping,
with a `lock` of its own that is held while it is being made or ended, however long the cluster takes. A mapping whose
lock is free and whose daemon or loop device is gone belongs to nobody (kill -9, reboot): the next call that sees it
cleans it. An exclusive mapping's daemon also listens on an abstract socket named after the image: two cannot, whatever
their RUN directories, and the name goes when the daemon does.

Like krbd: the exit codes (2 missing, 16 busy, 22 not mapped or unknown option, 30 held exclusively), a second plain map
warns and gives a second device, read-only maps take no lock, and the verbs that the kernel refuses on an exclusively
mapped image are refused. Like rbd-nbd, for --device-type nbd: failures exit 1, and unmap never minds a mounted device.
A device sees its image grow, if that is not mapped exclusively.
Unlike them: a list shows its own cluster's mappings only, another program (a real krbd, `rbd bench`) can still take the
lock from an exclusive mapping because QEMU yields it, librbd knows no limit of 16 ancestors, and an image that is
mapped read-only has a watcher, so that it can't be removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import struct
import sys
import time
import zlib

# Every map of every test starts this file: no dataclasses, shutil, signal or typing, which cost 35 ms to import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, NoReturn

RUN = os.environ.get("RBD_STAND_IN_DIR", "/run/rbd-stand-in")
REAL_RBD = os.environ.get("RBD_STAND_IN_REAL", "/usr/bin/rbd")

LOOP_CLR_FD = 0x4C01
LOOP_SET_STATUS64 = 0x4C04
LOOP_GET_STATUS64 = 0x4C05
LOOP_SET_CAPACITY = 0x4C07
LOOP_INFO64 = struct.Struct("=QQQQQIIII64s64s32sQQ")  # struct loop_info64 of linux/loop.h
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_FIELD = 8
SIGKILL = 9
# For a daemon to close an image that is written out; without a cluster, or in a full pool, it never does.
CLOSE_SECONDS = float(os.environ.get("RBD_STAND_IN_CLOSE_SECONDS", "3"))
# The same for one whose unmap was killed: it has had its time, and who looks at all mappings has little.
LEFT_SECONDS = CLOSE_SECONDS / 10

# Map options by rbd(8) and drivers/block/rbd.c; others are refused there, and so here.
FLAGS = frozenset({
    "noudev", "lock_on_read", "exclusive", "ro", "rw", "abort_on_full", "notrim", "share", "noshare", "crc",
    "nocrc", "cephx_require_signatures", "nocephx_require_signatures", "cephx_sign_messages",
    "nocephx_sign_messages", "tcp_nodelay", "notcp_nodelay", "rxbounce",
})  # fmt: skip
KEYS = frozenset({
    "lock_timeout", "queue_depth", "alloc_size", "osdkeepalive", "osd_request_timeout", "osd_idle_ttl",
    "mount_timeout", "ms_mode", "fsid", "name", "secret", "ip", "compression_hint", "read_from_replica",
    "crush_location", "pool_ns", "try-netlink", "reattach-timeout",
})  # fmt: skip
BARE_KEYS = frozenset({"try-netlink"})  # of rbd-nbd, with or without a value

# What librbd asks the lock's owner for, or wants the lock itself for, and the kernel's exclusive owner refuses.
REFUSED_WHILE_EXCLUSIVE = {
    ("snap", "create"): errno.EROFS,
    ("snap", "add"): errno.EROFS,
    ("snap", "rm"): errno.EROFS,
    ("snap", "remove"): errno.EROFS,
    ("snap", "purge"): errno.EROFS,
    ("snap", "rollback"): errno.EROFS,
    ("snap", "revert"): errno.EROFS,
    ("snap", "rename"): errno.EROFS,
    ("snap", "protect"): errno.EROFS,
    ("snap", "unprotect"): errno.EROFS,
    ("image-meta", "set"): errno.EROFS,
    ("image-meta", "remove"): errno.EROFS,
    ("image-meta", "rm"): errno.EROFS,
    ("trash", "mv"): errno.EBUSY,
    ("trash", "move"): errno.EBUSY,
    ("resize", ""): errno.EROFS,
    ("flatten", ""): errno.EROFS,
    ("rename", ""): errno.EROFS,
    ("mv", ""): errno.EROFS,
    ("import-diff", ""): errno.EROFS,
}


class Failure(Exception):
    """A verb that failed: the errno that rbd would exit with, and its message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


# --- the command line ---------------------------------------------------------------------------------------------

VALUED = {
    "-t": "device-type", "-p": "pool", "-n": "name", "-c": "conf", "-k": "keyring", "-o": "options", "-m": "mon-host",
}  # fmt: skip
KNOWN = frozenset({
    "device-type", "pool", "namespace", "image", "snap", "name", "id", "user", "conf", "cluster", "keyring",
    "options", "format", "cookie",
})  # fmt: skip
SWITCHES = frozenset({
    "exclusive", "read-only", "quiesce", "force", "pretty-format", "show-cookie", "no-progress",
})  # fmt: skip
CEPH_OPTIONS = (
    "rados-", "rbd-", "client-", "mon-", "ms-", "auth-", "osd-", "objecter-", "log-", "debug-", "key", "err-",
)  # fmt: skip


class Call:
    """One command line: the words (verb and specs), and the options by their long names."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.options: dict[str, str] = {}
        self.switches: set[str] = set()
        self.ceph: dict[str, str] = {}

    @property
    def device_type(self) -> str:
        return self.options.get("device-type", "krbd")


def parse(argv: Sequence[str], *, strict: bool = True) -> Call:
    """Needs the arguments after the program. Raises Failure 22 for what rbd would not understand, if strict; otherwise
    the values of options of other verbs end among the words."""
    call = Call()
    rest = list(argv)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("-") or arg == "-":
            call.words.append(arg)
            continue
        name, equals, value = arg.partition("=")
        if arg[:2] in VALUED and not arg.startswith("--"):
            name, equals, value = VALUED[arg[:2]], arg[2:], arg[2:].removeprefix("=") if len(arg) > 2 else ""
        name = name.removeprefix("--").replace("_", "-")
        if name in SWITCHES or not (strict or name in KNOWN or name.startswith(CEPH_OPTIONS)):
            call.switches.add(name)
            continue
        if not equals:
            if not rest:
                raise Failure(errno.EINVAL, f"option '{arg}' needs a value")
            value = rest.pop(0)
        if name in KNOWN:
            call.options[name] = value
        elif name.startswith(CEPH_OPTIONS):
            call.ceph[name.replace("-", "_")] = value
        else:
            raise Failure(errno.EINVAL, f"unrecognised option '{arg}'")
    return call


class Spec:
    """What is mapped. The text of two is the same when they are."""

    def __init__(self, pool: str, namespace: str, image: str, snap: str) -> None:
        self.pool, self.namespace, self.image, self.snap = pool, namespace, image, snap

    def __str__(self) -> str:
        space = f"{self.namespace}/" if self.namespace else ""
        return f"{self.pool}/{space}{self.image}" + (f"@{self.snap}" if self.snap else "")


def spec_of(call: Call, word: str) -> Spec:
    """[POOL/[NAMESPACE/]]IMAGE[@SNAP], with --pool, --namespace, --image and --snap for what it leaves out."""
    place, _, name = word.rpartition("/")
    pool, _, namespace = place.partition("/")
    image, _, snap = name.partition("@")
    get = call.options.get
    spec = Spec(
        pool or get("pool", "rbd"),
        namespace or get("namespace", ""),
        image or get("image", ""),
        snap or get("snap", ""),
    )
    if not spec.image:
        raise Failure(errno.EINVAL, "image name was not specified")
    return spec


def map_options(call: Call) -> set[str]:
    """The names of the --options given; raises Failure 22 for one that the kernel would not know."""
    names = set()
    for option in filter(None, call.options.get("options", "").split(",")):
        name, equals, _ = option.partition("=")
        if not (name in KEYS if equals else name in FLAGS | BARE_KEYS):
            raise Failure(errno.EINVAL, f"unknown map option '{option}'")
        names.add(name)
    return names


# --- clusters and mappings ----------------------------------------------------------------------------------------


def conf_path(call: Call) -> str:
    default = f"/etc/ceph/{call.options.get('cluster', 'ceph')}.conf"
    return os.path.abspath(call.options.get("conf") or os.environ.get("CEPH_CONF") or default)


def cluster_id(conf: str) -> str:
    """The fsid; where a ceph.conf has none (a client's may name monitors only) something else that tells it apart."""
    try:
        with open(conf, encoding="utf-8") as lines:
            text = lines.read()
    except OSError as error:
        raise Failure(error.errno or errno.EIO, f"{conf}: {error.strerror}") from error
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "fsid" and value.strip():
            return value.strip()
    return f"conf-{zlib.crc32(conf.encode()):08x}"


class Mapping:
    """One RUN/FSID/ID directory, and what its `meta` says (empty while it is being made)."""

    def __init__(self, path: str, meta: dict[str, Any]) -> None:
        self.path, self.meta = path, meta

    @property
    def device(self) -> str:
        return str(self.meta.get("device", ""))

    @property
    def spec(self) -> Spec:
        return Spec(self.meta["pool"], self.meta["namespace"], self.meta["image"], self.meta["snap"])

    def save(self) -> None:
        with open(f"{self.path}/meta.new", "w", encoding="utf-8") as out:
            json.dump(self.meta, out)
        os.rename(f"{self.path}/meta.new", f"{self.path}/meta")


def load(path: str) -> Mapping:
    try:
        with open(f"{path}/meta", encoding="utf-8") as source:
            return Mapping(path, json.load(source))
    except (FileNotFoundError, json.JSONDecodeError):
        return Mapping(path, {})


def open_lock(directory: str, *, wait: bool) -> int | None:
    """The descriptor of the directory's lock, to be closed; None when that is gone or, without waiting, held."""
    try:
        lock = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


@contextlib.contextmanager
def cluster_lock(cluster: str) -> Iterator[None]:
    lock = None
    while lock is None:
        # Who ends a cluster removes its directory.
        with contextlib.suppress(FileNotFoundError):
            os.makedirs(f"{cluster}/exclusive", mode=0o700, exist_ok=True)
        lock = open_lock(cluster, wait=True)
    try:
        yield
    finally:
        os.close(lock)


def live_mappings(cluster: str) -> list[Mapping]:
    """What is mapped; cleans what nobody holds any more. Needs the cluster's lock."""
    live = []
    try:
        names = sorted(os.listdir(cluster))
    except FileNotFoundError:  # with the cluster
        return []
    for path in (f"{cluster}/{name}" for name in names):
        if os.path.basename(path).startswith("gone-"):
            remove_directory(path)
        if not os.path.basename(path).startswith("m-"):
            continue
        lock = open_lock(path, wait=False)
        mapping = load(path)
        if lock is None or (mapping.device and daemon_pid(path) and backed_by(mapping)):
            if mapping.device:
                live.append(mapping)
        else:
            discard(mapping, LEFT_SECONDS)
        if lock is not None:
            os.close(lock)
    return live


def discard(mapping: Mapping, seconds: float = CLOSE_SECONDS) -> None:
    """Ends whatever is left of a mapping, data not yet written is lost with it. Needs the mapping's lock.

    Its daemon gets so many seconds to close the image."""
    if mapping.device and backed_by(mapping):
        detach(mapping, force=True)
    elif device := attached_to(f"{mapping.path}/export"):
        mapping.meta["device"] = device
        detach(mapping, force=True)
    end_daemon(mapping, seconds)
    if is_mounted(f"{mapping.path}/export"):
        run_quietly("umount", "--lazy", f"{mapping.path}/export")
    if mapping.meta.get("exclusive"):
        mark = f"{os.path.dirname(mapping.path)}/exclusive/{mapping.meta['image']}"
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(mark) == mapping.path:
                os.unlink(mark)
    # First out of sight of those who would lock it, or make a new lock in it while it goes.
    gone = f"{os.path.dirname(mapping.path)}/gone-{os.path.basename(mapping.path)}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(mapping.path, gone)
    remove_directory(gone)


def remove_directory(path: str) -> None:
    """One without directories in it, which somebody else may be removing too."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}/{name}")
        os.rmdir(path)


def is_mounted(path: str) -> bool:
    """Asked of the mount table: the file of a killed daemon can't even be looked at any more."""
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as table:
        return any(line.split(" ", 2)[1] == path for line in table)


# --- the loop device ----------------------------------------------------------------------------------------------


def loop_status(fd: int) -> list[Any] | None:
    """struct loop_info64 as a list; None when the device is attached to nothing."""
    buffer = bytearray(LOOP_INFO64.size)
    try:
        fcntl.ioctl(fd, LOOP_GET_STATUS64, buffer)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    return list(LOOP_INFO64.unpack(buffer))


def backed_by(mapping: Mapping) -> bool:
    """True while the loop device is still this mapping's. Looked up in sysfs: an open would make it busy for others."""
    entry = f"/sys/block/{os.path.basename(mapping.device)}/loop/backing_file"
    with contextlib.suppress(OSError), open(entry, encoding="utf-8") as source:
        return source.read().rstrip("\n") == f"{mapping.path}/export"
    return False


def attached_to(path: str) -> str:
    """The loop device on a file: the one of a map that was killed before it noted it."""
    for entry in os.scandir("/sys/block"):
        with contextlib.suppress(OSError), open(f"{entry.path}/loop/backing_file", encoding="utf-8") as source:
            if source.read().rstrip("\n") == path:
                return f"/dev/{entry.name}"
    return ""


def detach(mapping: Mapping, *, force: bool) -> None:
    """Takes the loop device off its file. Not forced, it raises Failure 16 when anybody has the device open or mounted
    in whatever mount namespace; forced, the device goes with its last user, who gets I/O errors until then."""
    tries = 1 if force else 5
    while not try_detach(mapping, force=force):
        tries -= 1
        if not tries:
            raise Failure(errno.EBUSY, "unmap failed: (16) Device or resource busy")
        time.sleep(0.05)  # rbd tries again after 250 ms: something that looks at new devices may have it open
    del mapping.meta["device"]
    mapping.save()


def try_detach(mapping: Mapping, *, force: bool) -> bool:
    """False when somebody uses the device."""
    try:
        fd = os.open(mapping.device, os.O_RDONLY | os.O_CLOEXEC | (0 if force else os.O_EXCL))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    try:
        if not force:
            os.fsync(fd)
        fcntl.ioctl(fd, LOOP_CLR_FD)
        status = None if force else loop_status(fd)
        if status is not None:
            # Somebody has it open without having claimed it: the kernel only noted to clear it later. Take that back.
            status[LO_FLAGS_FIELD] &= ~LO_FLAGS_AUTOCLEAR
            fcntl.ioctl(fd, LOOP_SET_STATUS64, LOOP_INFO64.pack(*status))
        return status is None
    finally:
        os.close(fd)


# --- the storage daemon -------------------------------------------------------------------------------------------


def daemon_pid(path: str) -> int:
    """The mapping's daemon, 0 when it is gone. The command line names the directory: no recycled pid passes."""
    try:
        with open(f"{path}/pid", encoding="ascii") as source:
            pid = int(source.read())
    except (FileNotFoundError, ValueError):
        return 0
    return pid if is_daemon_of(pid, path) else 0


def is_daemon_of(pid: int, path: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as source:
            return f"{path}/pid".encode() in source.read().split(b"\0")
    except OSError:
        return False


def daemon_pids(path: str) -> list[int]:
    """Also of a daemon that has written no pid file yet, and of the parent that waits for it."""
    if pid := daemon_pid(path):
        return [pid]
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and is_daemon_of(int(name), path)]


def end_daemon(mapping: Mapping, seconds: float) -> None:
    """Has the daemon close the image, then kills it: its own way out takes 1.4 s, with nothing of the image left to do.
    A daemon that does not answer within its time is killed all the same: the cluster then keeps its watch for 30 s."""
    if not (pids := daemon_pids(mapping.path)):
        return
    # One that is still starting can't be told to close yet, but may have opened the image.
    deadline = time.monotonic() + 3
    while not (ready := daemon_pid(mapping.path)) and daemon_pids(mapping.path) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ready:
        with contextlib.suppress(OSError, EOFError):
            close_image(mapping, seconds)
    for pid in {*pids, *daemon_pids(mapping.path)}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, SIGKILL)
        deadline = time.monotonic() + 5
        while is_daemon_of(pid, mapping.path) and time.monotonic() < deadline:
            time.sleep(0.002)


def close_image(mapping: Mapping, seconds: float) -> None:
    """Deletes export and image over QMP: flushes, gives the lock back, ends the watch. Raises OSError, EOFError."""
    import socket  # only here: the import costs 4 ms

    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.settimeout(seconds)
        qmp.connect(mapping.meta["qmp"].replace("@", "\0", 1))
        with qmp.makefile("rwb") as stream:

            def ask(command: str, **arguments: str) -> dict[str, Any]:
                stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
                stream.flush()
                while True:
                    reply: dict[str, Any] = json.loads(stream.readline() or fail_eof())
                    if "return" in reply or "error" in reply:
                        return reply

            ask("qmp_capabilities")
            ask("block-export-del", id="export", mode="hard")
            deadline = time.monotonic() + seconds
            # The export ends in the background; until then the image is in use.
            while "error" in ask("blockdev-del", **{"node-name": "image"}) and time.monotonic() < deadline:
                time.sleep(0.005)


def fail_eof() -> NoReturn:
    raise EOFError


def daemon_argv(mapping: Mapping, conf: str, user: str) -> list[str]:
    meta, path = mapping.meta, mapping.path
    block = {
        "driver": "rbd", "node-name": "image", "pool": meta["pool"], "image": meta["image"], "conf": conf, "user": user,
        "read-only": meta["read_only"], "discard": "unmap",
        "cache": {"direct": True},  # as with krbd, what the device has acknowledged is in the cluster
    }  # fmt: skip
    block.update({qemu: meta[ours] for qemu, ours in (("namespace", "namespace"), ("snapshot", "snap")) if meta[ours]})
    export = {
        "type": "fuse",
        "id": "export",
        "node-name": "image",
        "mountpoint": f"{path}/export",
        "writable": not meta["read_only"],
    }
    name = meta["qmp"]
    socket = f"path={name[1:]},abstract=on" if name.startswith("@") else f"path={name}"
    return [
        "qemu-storage-daemon", "--daemonize", "--pidfile", f"{path}/pid",
        "--chardev", f"socket,id=qmp,server=on,wait=off,{socket}", "--monitor", "chardev=qmp",
        "--blockdev", json.dumps(block), "--export", json.dumps(export),
    ]  # fmt: skip


def run(argv: Sequence[str], stderr_path: str) -> tuple[int, str]:
    """Exit code and standard output of a program, its standard error in a file (a daemon would hold a pipe open)."""
    read_end, write_end = os.pipe()
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, write_end, 1),
        (os.POSIX_SPAWN_OPEN, 2, stderr_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
    ]
    try:
        # In a group of its own: who kills the caller's group (a deadline) must not kill a client that has opened the
        # image, which would stay its watcher for 30 s. The next call finds it and ends it properly.
        pid = os.posix_spawnp(argv[0], list(argv), os.environ, file_actions=actions, setpgroup=0)
    except FileNotFoundError as error:
        raise Failure(
            127, f"{argv[0]} is missing: apt-get install qemu-utils qemu-block-extra mount util-linux"
        ) from error
    finally:
        os.close(write_end)
    with os.fdopen(read_end, encoding="utf-8", errors="replace") as out:
        text = out.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text.strip()


def run_quietly(*argv: str) -> None:
    run(argv, "/dev/null")


# --- the verbs ----------------------------------------------------------------------------------------------------


def exclusive_name(cluster: str, spec: Spec) -> str:
    """The abstract socket that stands for the lock; long names are cut, so a checksum of the whole goes in front."""
    whole = f"{os.path.basename(cluster)}/{spec.pool}/{spec.namespace}/{spec.image}"
    return f"@rbd-stand-in-{zlib.crc32(whole.encode()):08x}-" + whole.replace("/", "-").replace(",", "-")[:80]


def held_exclusively(name: str) -> bool:
    """By anybody on this machine. Trying to take the name disturbs its holder less than a connection would."""
    import socket  # only here: the import costs 4 ms

    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(name.replace("@", "\0", 1))
        except OSError:
            return True
    return False


def map_image(call: Call, spec: Spec, cluster: str, conf: str) -> None:
    options = map_options(call)
    read_only = bool(spec.snap) or "read-only" in call.switches or "ro" in options
    exclusive = not read_only and ("exclusive" in call.switches or "exclusive" in options)
    name = exclusive_name(cluster, spec)
    meta = {
        "type": call.device_type, "pool": spec.pool, "namespace": spec.namespace, "image": spec.image,
        "snap": spec.snap, "cookie": call.options.get("cookie", ""), "read_only": read_only, "exclusive": exclusive,
        "qmp": name,
    }  # fmt: skip
    with cluster_lock(cluster):
        for other in live_mappings(cluster):
            if str(other.spec) == str(spec) and other.meta["type"] == call.device_type == "krbd":
                print(f"rbd: warning: image already mapped as {other.device}", file=sys.stderr)
        # Only now, when what a killed call left is gone. rbd-nbd without --exclusive minds no lock before it writes.
        if not read_only and (exclusive or call.device_type == "krbd") and held_exclusively(name):
            raise Failure(errno.EROFS, "map failed: (30) Read-only file system")
        mapping = Mapping(f"{cluster}/m-{os.urandom(4).hex()}", meta)
        os.mkdir(mapping.path, mode=0o700)
        lock = open_lock(mapping.path, wait=True)
        if not exclusive:
            meta["qmp"] = f"{mapping.path}/qmp"
        mapping.save()  # who cleans after a killed map needs to know how to reach the daemon
    assert lock is not None
    try:
        attach(call, mapping, conf, lock)
        if exclusive:
            mark(mapping)
    except BaseException:
        discard(mapping)
        raise
    print(mapping.device, flush=True)


def attach(call: Call, mapping: Mapping, conf: str, lock: int) -> None:
    """Starts daemon and loop device, and notes them in the mapping. What it leaves on failure discard() ends."""
    export, log = f"{mapping.path}/export", f"{mapping.path}/log"
    os.close(os.open(export, os.O_WRONLY | os.O_CREAT, 0o600))
    user = (
        call.options.get("id") or call.options.get("user") or call.options.get("name", "client.admin").partition(".")[2]
    )
    code, _ = run(daemon_argv(mapping, own_conf(call, mapping, conf), user), log)
    if code:
        raise failed_start(call, mapping, log)
    # direct-io: no second copy of everything in the page cache, and the daemon sees a write when the device does.
    read_only = ["--read-only"] if mapping.meta["read_only"] else []
    # losetup outlives a map that is killed. It holds the lock, too: nobody ends this mapping before it has its device.
    os.set_inheritable(lock, True)
    code, device = run(["losetup", "--direct-io=on", *read_only, "--find", "--show", export], log)
    if code:
        raise Failure(errno.EIO, f"map failed: losetup: {tail(log)}")
    mapping.meta["device"] = device
    mapping.save()


def mark(mapping: Mapping) -> None:
    """Lets tests/bin/rbd see by a file's name alone which images are held exclusively."""
    link = f"{os.path.dirname(mapping.path)}/exclusive/{mapping.meta['image']}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(link)
    os.symlink(mapping.path, link)


def own_conf(call: Call, mapping: Mapping, conf: str) -> str:
    """QEMU takes no Ceph options on its command line: those of the call go into a copy of the configuration."""
    extra = dict(call.ceph)
    if "keyring" in call.options:
        extra["keyring"] = os.path.abspath(call.options["keyring"])
    if not extra:
        return conf
    copy = f"{mapping.path}/ceph.conf"
    with open(conf, encoding="utf-8") as source, open(copy, "w", encoding="utf-8") as out:
        out.write(source.read() + "\n[client]\n" + "".join(f"{key} = {value}\n" for key, value in extra.items()))
    return copy


def failed_start(call: Call, mapping: Mapping, log: str) -> Failure:
    """What rbd would have exited with. QEMU's exit code says nothing, so ask rbd whether it can see the image."""
    if mapping.meta["exclusive"] and held_exclusively(mapping.meta["qmp"]):
        return Failure(errno.EROFS, "map failed: (30) Read-only file system")
    code, _ = run([REAL_RBD, "info", str(mapping.spec), *client_options(call)], "/dev/null")
    code = code if code > 0 else errno.EIO
    return Failure(code, f"map failed: ({code}) {os.strerror(code)}: {tail(log)}")


def client_options(call: Call) -> list[str]:
    """Of a command line the options that say which cluster is meant, and by whom it is asked."""
    places = ("id", "name", "conf", "cluster", "keyring")
    passed = [f"--{key}={value}" for key, value in call.options.items() if key in places]
    return passed + [f"--{key.replace('_', '-')}={value}" for key, value in call.ceph.items()]


def tail(log: str) -> str:
    with open(log, encoding="utf-8", errors="replace") as source:
        lines = source.read().splitlines()
    # QEMU puts the whole option in front of what went wrong.
    return lines[-1].rpartition("}: ")[2] if lines else "no message"


def find(call: Call, word: str) -> tuple[Mapping, int]:
    """The mapping that a device or a spec names, and its lock. A device is looked for in all clusters."""
    by_device = word.startswith("/dev/")
    clusters = [entry.path for entry in os.scandir(RUN)] if by_device and os.path.isdir(RUN) else []
    if not by_device:
        clusters = [f"{RUN}/{cluster_id(conf_path(call))}"]
    spec = None if by_device else spec_of(call, word)
    busy = False
    for cluster in clusters:
        if not os.path.isdir(cluster):
            continue  # nothing was ever mapped of it, or all of it has gone: nothing is made for that
        with cluster_lock(cluster):
            for mapping in live_mappings(cluster):
                if mapping.meta["type"] == call.device_type and (
                    mapping.device == word or str(mapping.spec) == str(spec)
                ):
                    lock = open_lock(mapping.path, wait=False)
                    if lock is not None:
                        return mapping, lock
                    busy = True
    if busy:
        raise Failure(errno.EBUSY, "unmap failed: (16) Device or resource busy")
    what = f"'{word}' is not a block device of rbd" if by_device else f"{spec}: not a mapped image or snapshot"
    raise Failure(errno.EINVAL, f"{what}\nrbd: unmap failed: (22) Invalid argument")


def unmap(call: Call, word: str) -> None:
    options = set(filter(None, call.options.get("options", "").split(",")))
    if unknown := options - {"force", "noudev"}:
        raise Failure(errno.EINVAL, f"unknown unmap option '{min(unknown)}'")
    mapping, lock = find(call, word)
    # rbd-nbd does not look whether anybody uses the device.
    detach(mapping, force="force" in options or call.device_type == "nbd")
    discard(mapping)
    os.close(lock)


def list_mapped(call: Call, cluster: str) -> None:
    with cluster_lock(cluster):
        live = [mapping for mapping in live_mappings(cluster) if mapping.meta["type"] == call.device_type]
    rows = []
    for mapping in live:
        place = {"pool": mapping.meta["pool"], "namespace": mapping.meta["namespace"]}
        number = mapping.device.removeprefix("/dev/loop")
        if call.device_type == "nbd":
            names = {"image": mapping.meta["image"], "snap": mapping.meta["snap"]}
            end = {"device": mapping.device, "cookie": mapping.meta["cookie"]}
            rows.append({"id": daemon_pid(mapping.path), **place, **names, **end})
        else:
            names = {"name": mapping.meta["image"], "snap": mapping.meta["snap"] or "-"}
            rows.append({"id": number, **place, **names, "device": mapping.device})
    if call.options.get("format") == "json":
        print(json.dumps(rows, separators=(",", ":")))
    elif rows:
        table = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*table)]
        for line in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)))


def resize(argv: Sequence[str]) -> NoReturn:
    """Lets the real rbd resize an image, and the devices of its mappings see it as those of the kernel do."""
    call = parse(argv, strict=False)
    refuse(call)
    status = os.spawnv(os.P_WAIT, REAL_RBD, ["rbd", *argv])
    # Any word can be the image: the size is one of them, too.
    specs = {str(spec_of(call, word)) for word in ["", *call.words[1:]] if word or "image" in call.options}
    cluster = f"{RUN}/{cluster_id(conf_path(call))}"
    if status or not os.path.isdir(cluster):
        sys.exit(status)
    with cluster_lock(cluster):
        live = [mapping for mapping in live_mappings(cluster) if str(mapping.spec) in specs]
    for mapping in live:
        _, said = run([REAL_RBD, "info", str(mapping.spec), *client_options(call), "--format", "json"], "/dev/null")
        # QEMU asks for the size of an image when it opens it, or when it is to change it.
        os.truncate(f"{mapping.path}/export", json.loads(said)["size"])
        fd = os.open(mapping.device, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.ioctl(fd, LOOP_SET_CAPACITY)
        os.close(fd)
    sys.exit(0)


def refuse_or_pass_on(argv: Sequence[str]) -> NoReturn:
    """A verb of the real rbd: refused where an exclusively mapped image would refuse it, handed on otherwise."""
    refuse(parse(argv, strict=False))
    os.execv(REAL_RBD, ["rbd", *argv])


def refuse(call: Call) -> None:
    """Raises Failure if the image that a call names is mapped exclusively, and that stands against its verb."""
    first, second, *rest = [*call.words, "", ""]
    for verb, words in (((first, second), rest), ((first, ""), [second, *rest])):
        code = REFUSED_WHILE_EXCLUSIVE.get(verb)
        if code is None:
            continue
        cluster = f"{RUN}/{cluster_id(conf_path(call))}"
        # Any word can be the image: how many an unknown option takes is not known here.
        specs = [spec_of(call, word) for word in words if word or "image" in call.options]
        if any(held_exclusively(exclusive_name(cluster, spec)) for spec in specs):
            raise Failure(code, f"{' '.join(verb).strip()} failed: ({code}) {os.strerror(code)} (mapped exclusively)")


def dispatch(argv: Sequence[str]) -> None:
    words = parse(argv, strict=False).words
    words = words[1:] if words[:1] == ["device"] else words
    verb, word = [*words, "", ""][:2]
    listing = verb == "showmapped" or (verb in ("list", "ls") and "device" in argv)
    if verb == "resize":
        resize(argv)
    if verb not in ("map", "unmap") and not listing:
        refuse_or_pass_on(argv)
    call = parse(argv)
    conf = conf_path(call)
    if verb == "map":
        map_image(call, spec_of(call, word), f"{RUN}/{cluster_id(conf)}", conf)
    elif verb == "unmap":
        unmap(call, word)
    else:
        list_mapped(call, f"{RUN}/{cluster_id(conf)}")


def main() -> int:
    nbd = False
    try:
        nbd = "nbd" in sys.argv or "--device-type=nbd" in sys.argv
        dispatch(sys.argv[1:])
    except Failure as failure:
        print(f"rbd: {failure}", file=sys.stderr)
        return 1 if nbd else failure.code
    except OSError as error:
        print(f"rbd: stand-in: {error}", file=sys.stderr)
        return error.errno or errno.EIO
    return 0


sys.exit(main())
