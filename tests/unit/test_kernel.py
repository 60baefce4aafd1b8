"""kernel.py: what the kernel can do, by files as it shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.doctored import outcome

import rbdcli
from doctor.finding import BROKEN, IMPROVE, NOT_CHECKED, OK
from doctor.kernel import Kernel
from host import command
from images.options import Options

RELEASE = "6.1.0-40-amd64"


class Machine:
    """A machine whose kernel has these file systems, modules on the disk, and parts that are loaded."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc").mkdir()
        self.has("nodev\toverlay", "\txfs")

    def has(self, *lines: str) -> None:
        (self.root / "proc/filesystems").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")

    def loaded(self, path: str, text: str = "") -> None:
        place = self.root / "sys" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="ascii")

    def modules(self, *names: str, builtin: str = "") -> None:
        place = self.root / "lib/modules" / RELEASE
        place.mkdir(parents=True)
        lines = "".join(f"kernel/x/{name}.ko.xz: kernel/lib/y.ko.xz\n" for name in names)
        (place / "modules.dep").write_text(lines, encoding="ascii")
        (place / "modules.builtin").write_text(builtin and f"kernel/fs/{builtin}.ko\n", encoding="ascii")

    def look(self, name: str, release: str = RELEASE, **options: str) -> tuple[str, str]:
        return outcome(Kernel(Options(**options), release, str(self.root)).checks(), name)  # type: ignore[arg-type]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("release", "status"),
    [
        ("6.1.0-40-amd64", OK),
        ("4.19.0", OK),
        ("10.0", OK),
        ("4.18.0-1", BROKEN),
        ("3.10.0", BROKEN),
        ("x", NOT_CHECKED),
    ],
)
def test_versions(machine: Machine, release: str, status: str) -> None:
    said = machine.look("kernel", release)
    assert said[0] == status
    assert release in said[1]


def test_file_systems_that_are_loaded(machine: Machine) -> None:
    assert machine.look("file systems") == (OK, "the kernel has overlay and xfs")


def test_file_systems_that_a_mount_loads_or_that_are_built_in(machine: Machine) -> None:
    machine.has("nodev\tproc")
    machine.modules("overlay", builtin="ext4")
    assert machine.look("file systems", fs="ext4")[0] == OK
    assert machine.look("file systems") == (BROKEN, f"Linux {RELEASE} has no xfs: it takes a kernel with it")


def test_a_container_does_not_see_the_modules(machine: Machine) -> None:
    machine.has("nodev\tproc")
    status, text = machine.look("file systems")
    assert status == NOT_CHECKED
    assert text.startswith("overlay, xfs: not loaded, and the kernel's modules are not to be seen here")


def test_rbd(machine: Machine) -> None:
    assert machine.look("device type")[0] == NOT_CHECKED
    machine.modules("nbd")
    assert machine.look("device type")[0] == BROKEN
    machine.loaded("bus/rbd")
    assert machine.look("device type") == (OK, "the kernel's rbd maps images")


def test_nbd(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find", lambda _: None)
    said = machine.look("device type", devicetype="nbd")
    assert said == (BROKEN, "rbd-nbd is not installed; install the package rbd-nbd (Debian's name)")
    monkeypatch.setattr(command, "find", lambda name: f"/usr/bin/{name}")
    machine.loaded("module/nbd")
    assert machine.look("device type", devicetype="nbd")[0] == OK
    assert machine.look("image features", devicetype="nbd")[0] == OK


@pytest.mark.parametrize(
    ("mask", "status", "word"), [("0x1bf", OK, "deep-flatten"), ("0x5", IMPROVE, "object-map, fast-diff, deep-flatten")]
)
def test_image_features(machine: Machine, monkeypatch: pytest.MonkeyPatch, mask: str, status: str, word: str) -> None:
    machine.loaded("bus/rbd/supported_features", mask)
    monkeypatch.setattr(rbdcli, "_SUPPORTED", str(machine.root / "sys/bus/rbd/supported_features"))
    said = machine.look("image features")
    assert said[0] == status
    assert word in said[1]


def test_a_kernel_that_does_not_tell_its_image_features_yet(machine: Machine) -> None:
    assert machine.look("image features")[0] == NOT_CHECKED
