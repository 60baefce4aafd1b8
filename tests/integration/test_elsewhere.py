"""elsewhere.py: a view that only another mount namespace still holds, as a container's, is shown again in ours.

Real namespaces and overlays, on a tmpfs; no Ceph. What another process does there is what a container or a hostile
program in it can do.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mounts
from host import command
from mapped import elsewhere

TIMEOUT = 60.0
PROJECT = Path(__file__).parents[2]
# Each is what a process does in its mount namespace before it says that it is ready; "$1" is the view.
AS_IT_WAS = ":"
READ_ONLY = 'mount -o remount,bind,ro "$1"'
WITH_MOUNTS_INSIDE = 'mkdir "$1/inner" && mount -t tmpfs tmpfs "$1/inner"'
WITHOUT_IT = 'umount "$1"'
A_PART_OF_IT = 'mkdir "$1/part" && mount --bind "$1/part" "$1/../other" && umount "$1"'
# A container's root: nothing else is left of the namespace that it was made in.
PIVOT = """import ctypes, os, sys
c = ctypes.CDLL(None, use_errno=True)
os.chdir(sys.argv[1])
assert c.pivot_root(b".", b".") == 0 and c.umount2(b".", 2) == 0, os.strerror(ctypes.get_errno())
print("ready", flush=True)
sys.stdin.read()"""
# The first process of a namespace sees less of it than the second.
LOCKED_IN = """import os, sys
if os.fork():
    os.chroot(sys.argv[1] + "/../other")
    print("ready", flush=True)
sys.stdin.read()"""
# System calls that this kernel does not have: of classic BPF, "load the number; is it that one; ENOSYS; allow".
OLD_KERNEL = """import ctypes, struct
code = b"".join(struct.pack("HBBI", *words) for words in
    ((0x20, 0, 0, 0), (0x15, 0, 1, 428), (0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7FFF0000)))
filters = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(filters)))
assert ctypes.CDLL(None).prctl(22, 2, program, 0, 0) == 0
"""
TAKE = """import sys
sys.path.insert(0, sys.argv[1])
from host import command
from mapped import elsewhere
try:
    print(elsewhere.take(sys.argv[2], sys.argv[3], timeout=60))
except command.CommandError as error:
    print(error)"""


class View:
    """An overlay at `point`, by the name that the driver would give it, and who else has it."""

    def __init__(self, site: Path) -> None:
        self.site, self.point, self.source = site, str(site / "view"), f"docker_image_{uuid.uuid4().hex}"
        self._others: list[subprocess.Popen[bytes]] = []
        for name in ("view", "other", "layer/none", "layer/rootfs", "layer/work"):
            (site / name).mkdir(parents=True)
        self.mount(self.point, self.source)

    def mount(self, point: str, source: str, name: str = "layer", *, where: tuple[str, ...] = ()) -> None:
        """Mount an overlay of its own directories."""
        for directory in ("none", "rootfs", "work"):
            (self.site / name / directory).mkdir(parents=True, exist_ok=True)
        layer = self.site / name
        options = f"lowerdir={layer}/none,upperdir={layer}/rootfs,workdir={layer}/work"
        subprocess.run([*where, "mount", "-t", "overlay", source, point, "-o", options], check=True)

    def other(self, does: str = AS_IT_WAS, *, made: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start a process with a mount namespace of its own, to which `made` leads, and wait until it is ready."""
        return self._start(made, "sh", "-ec", f"{does}; echo ready; read end", "-", self.point)

    def container(self, program: str = PIVOT) -> subprocess.Popen[bytes]:
        """Start a process that has left its namespace's root."""
        return self._start((), sys.executable, "-c", program, self.point)

    def _start(self, made: tuple[str, ...], *argv: str) -> subprocess.Popen[bytes]:
        unshare = made or ("unshare", "--mount", "--propagation", "private")
        process = subprocess.Popen(
            (*unshare, *argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._others.append(process)
        assert process.stdout and process.stdout.readline() == b"ready\n"
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End one that was started here, with what it has started."""
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=TIMEOUT)
        self._others.remove(process)

    def lose(self) -> None:
        """Our own mount goes, as with the mount namespace of a managed plugin."""
        mounts.unmount(self.point, timeout=TIMEOUT)
        assert mounts.at(self.point) is None

    def take(self) -> bool:
        return elsewhere.take(self.source, self.point, timeout=TIMEOUT)

    def end_all(self) -> None:
        for process in list(self._others):
            self.end(process)


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    site = tmp_path / "site"
    site.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", site], check=True)
    view = None
    try:
        subprocess.run(["mount", "--make-private", site], check=True)
        # Another user's process goes this way, too.
        for directory in (tmp_path, *list(tmp_path.parents)[:2]):
            directory.chmod(0o755)
        view = View(site)
        yield view
    finally:
        if view:
            view.end_all()
        for point in [*mounts.below(str(site)), str(site)]:
            mounts.unmount(point, timeout=TIMEOUT)


def in_(process: subprocess.Popen[bytes]) -> tuple[str, ...]:
    """What a command begins with that is run in another process's mount namespace."""
    return ("nsenter", f"--mount=/proc/{process.pid}/ns/mnt")


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[list[elsewhere.Held]], None]) -> None:
    """Let something happen once, between the moment when somebody was found and that when it is taken from him."""
    find = elsewhere.find

    def find_first(source: str) -> list[elsewhere.Held]:
        monkeypatch.setattr(elsewhere, "find", find)
        held = find(source)
        happens(held)
        return held

    monkeypatch.setattr(elsewhere, "find", find_first)


def test_the_root_of_a_container_is_shown_again(view: View) -> None:
    (Path(view.point) / "before").write_text("1")
    container = view.container()
    view.lose()
    assert [(item.pid, item.point) for item in elsewhere.find(view.source)] == [(str(container.pid), "/")]
    assert view.take()
    ours, theirs = Path(view.point), Path(f"/proc/{container.pid}/root")
    assert os.path.samestat(ours.stat(), theirs.stat())
    (ours / "ours").write_text("2")
    (theirs / "theirs").write_text("3")
    (theirs / "before").unlink()
    assert (theirs / "ours").read_text() == "2"
    assert (ours / "theirs").read_text() == "3"
    assert sorted(os.listdir(ours)) == ["ours", "theirs"]
    view.end(container)
    (ours / "after").write_text("4")
    assert sorted(os.listdir(view.site / "layer/rootfs")) == ["after", "ours", "theirs"]


def test_what_is_mounted_inside_of_it_and_how_it_is_read_only_there_is_not_taken(view: View) -> None:
    """`docker run --read-only --tmpfs`: the container's matter."""
    view.other(f"{WITH_MOUNTS_INSIDE}; {READ_ONLY}")
    view.lose()
    assert view.take()
    assert mounts.below(view.point) == []
    shown = mounts.at(view.point)
    assert shown and not shown.read_only
    (Path(view.point) / "new").write_text("1")


def test_nobody_has_it(view: View) -> None:
    view.other(WITHOUT_IT)
    assert elsewhere.find(view.source) == [], "we have it, and nobody else"
    view.lose()
    assert not view.take()
    assert mounts.at(view.point) is None


def test_who_has_a_part_of_it_has_it_not(view: View) -> None:
    view.other(A_PART_OF_IT)
    view.lose()
    assert elsewhere.find(view.source) == []
    assert not view.take()


def test_the_first_that_had_it_ends_meanwhile(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = view.other(), view.other()
    view.lose()

    def end_first(held: list[elsewhere.Held]) -> None:
        assert {item.pid for item in held} == {str(first.pid), str(second.pid)}
        view.end(first if held[0].pid == str(first.pid) else second)

    meanwhile(monkeypatch, end_first)
    assert view.take()


def test_the_process_that_was_found_ends_and_another_of_its_namespace_does_not(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = view.other()
    second = view.other(made=in_(first))
    view.lose()
    meanwhile(monkeypatch, lambda held: view.end(first if held[0].pid == str(first.pid) else second))
    assert view.take()


def test_all_that_had_it_end_meanwhile(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    only = view.other()
    view.lose()
    meanwhile(monkeypatch, lambda _: view.end(only))
    assert not view.take()
    assert mounts.at(view.point) is None


def test_the_first_process_of_a_namespace_is_locked_in(view: View) -> None:
    """So it does not see the mount that others of its namespace have (chroot(2))."""
    view.container(LOCKED_IN)
    view.lose()
    assert view.take()


@pytest.mark.parametrize(
    ("replacing", "words"),
    [
        (("mount", "-t", "tmpfs", "tmpfs", "{point}"), "another mount lies over it"),
        (("mount", "--bind", "{site}/other", "{point}"), "another mount lies over it"),
        (("mount", "--bind", "{point}/part", "{point}"), "something else was found there"),
    ],
)
def test_another_mount_lies_over_it_by_then(
    view: View, monkeypatch: pytest.MonkeyPatch, replacing: tuple[str, ...], words: str
) -> None:
    (Path(view.point) / "part").mkdir()
    other = view.other()
    view.lose()

    def replace(_: list[elsewhere.Held]) -> None:
        argv = [word.format(point=view.point, site=view.site) for word in replacing]
        subprocess.run([*in_(other), *argv], check=True)

    meanwhile(monkeypatch, replace)
    with pytest.raises(command.CommandError, match=words) as raised:
        view.take()
    assert f"process {other.pid} (sh) has it mounted at {view.point}" in str(raised.value)
    assert mounts.at(view.point) is None


def test_it_is_another_overlay_of_that_name_by_then(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name it cannot be told from the one that was found."""
    other = view.other()
    view.lose()

    def replace(_: list[elsewhere.Held]) -> None:
        view.mount(view.point, view.source, "another", where=in_(other))

    meanwhile(monkeypatch, replace)
    with pytest.raises(command.CommandError, match="another mount lies over it"):
        view.take()
    assert mounts.at(view.point) is None


def test_two_overlays_of_one_name(view: View) -> None:
    first = view.other()
    view.lose()
    second = view.other()
    view.mount(view.point, view.source, "another", where=in_(second))
    with pytest.raises(command.CommandError, match="more than one overlay has that name") as raised:
        view.take()
    for process in (first, second):
        assert f"process {process.pid} (sh) has it mounted at {view.point}" in str(raised.value)
    assert mounts.at(view.point) is None


def test_another_user_s_overlay_of_that_name_is_none(view: View) -> None:
    """Every user may have a user namespace, and mount there: what he shows is not a layer."""
    view.lose()
    (view.site / "layer").rename(view.site / "his")
    for directory in ("his", "his/none", "his/rootfs", "his/work", "view"):
        os.chown(view.site / directory, 65534, 65534)
    his = view.site / "his"
    options = f"userxattr,lowerdir={his}/none,upperdir={his}/rootfs,workdir={his}/work"
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    does = f'mount -t overlay {view.source} "$1" -o {options}'
    view.other(does, made=(*user, "unshare", "--user", "--map-root-user", "--mount"))
    assert elsewhere.find(view.source) == []
    assert not view.take()


def test_a_container_with_user_ids_of_its_own_has_it(view: View) -> None:
    """The daemon makes the user namespace of userns-remap."""
    view.other(made=("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"))
    view.lose()
    assert view.take()
    (Path(view.point) / "new").write_text("1")


@pytest.mark.parametrize(
    ("without", "preparing", "reason"),
    [
        ("-sys_chroot", "", "setns: Operation not permitted"),
        ("-sys_ptrace", "", r"/proc/\d+/ns/mnt: Permission denied"),
        ("+all", OLD_KERNEL, "open_tree: Function not implemented; it takes Linux 5.2"),
    ],
)
def test_it_may_not_be_taken(view: View, without: str, preparing: str, reason: str) -> None:
    other = view.other()
    view.lose()
    argv = ["setpriv", "--bounding-set", without, sys.executable, "-c", preparing + TAKE]
    said = subprocess.run(
        [*argv, PROJECT, view.source, view.point], check=True, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT
    ).stdout
    assert re.fullmatch(
        f"take {view.source}: process {other.pid} \\(sh\\) has it mounted at {view.point}, "
        f"but it cannot be shown at {view.point}: {reason} \\(exit 1\\)\n",
        said,
    ), said
    assert mounts.at(view.point) is None
