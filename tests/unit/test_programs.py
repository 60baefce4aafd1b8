"""programs.py: what needs which program, and that all that cannot read the list says the same."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from plugin_client import REPO
from readme import commands

import mounts
from host.programs import ALWAYS, IF_THERE, PROGRAMS, WITHIN, needed
from images import options

# What the README's reader is told of.
TOLD = [program for program in PROGRAMS if program.when != WITHIN]
# What some option needs, and the settings of the managed plugin may say any.
INSTALLED = [program for program in TOLD if program.when != IF_THERE]
# A base of the plugin may lack rbd-nbd: all works without it but ceph.devicetype=nbd.
REQUIRED = [program for program in INSTALLED if program.name != "rbd-nbd"]


def text(name: str) -> str:
    return Path(REPO, name).read_text(encoding="utf-8")


def test_the_programs_of_each_file_system() -> None:
    always = ["rbd", "rados", "mount", "umount"]
    assert [program.name for program in needed("ceph.fs=xfs")] == [*always, "mkfs.xfs", "xfs_growfs"]
    assert [program.name for program in needed("ceph.fs=ext4")] == [*always, "mkfs.ext4", "e2fsck", "resize2fs"]


def test_what_makes_a_file_system_is_needed_for_it() -> None:
    for fs, argv in mounts.MKFS.items():
        assert argv[0] in [program.name for program in needed(f"ceph.fs={fs}")]


def test_each_stands_there_once_and_an_option_is_one_that_there_is() -> None:
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)
    for program in PROGRAMS:
        if program.when not in (ALWAYS, IF_THERE, WITHIN):
            options.parse([program.when, "ceph.datapool=pool"])


@pytest.fixture(scope="module")
def closure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("closure", Path(REPO, "plugin", "closure.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plugin_has_them(closure: ModuleType) -> None:
    """But for bsdtar, without which layers are laid down too."""
    within = [program for program in PROGRAMS if program.when == WITHIN]
    assert sorted(closure.PROGRAMS) == sorted(program.name for program in (*REQUIRED, *within))
    taken = sorted((*closure.PROGRAMS, *closure.OPTIONAL_PROGRAMS))
    assert taken == sorted(program.name for program in PROGRAMS if program.name != "bsdtar")


def test_the_plugin_s_base_gets_them() -> None:
    said = " ".join(text("Dockerfile").replace("\\\n", " ").split())
    [looked_for] = re.findall(r"for program in (.*?); do", said)
    assert sorted(looked_for.split()) == sorted(["python3", *(program.name for program in REQUIRED)])
    [apt] = re.findall(r"apt-get install --yes --no-install-recommends (.*?);", said)
    assert sorted(apt.split()) == sorted({"python3-minimal", *(program.package for program in INSTALLED)})
    [dnf] = re.findall(r"dnf install --assumeyes --setopt=install_weak_deps=False (.*?);", said)
    # Fedora's names.
    theirs = {"python3-minimal": "python3", "mount": "util-linux"}
    assert sorted(dnf.split()) == sorted(theirs.get(package, package) for package in apt.split())
    [base] = [line for line in commands("plugin/README.md") if line.startswith("debootstrap")]
    assert sorted(re.findall(r"--include=(\S+)", base)[0].split(",")) == sorted(apt.split())


def test_the_readme_names_them_with_their_packages() -> None:
    table = (
        text("README.md").split("| program | package (Debian's name) | needed |\n|---|---|---|\n")[1].split("\n\n")[0]
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    told = {name: (package, when) for names, package, when in rows for name in re.findall(r"`([^`]+)`", names)}
    assert {name: package for name, (package, _) in told.items()} == {program.name: program.package for program in TOLD}
    words = {ALWAYS: "always", IF_THERE: "no: ", "ceph.fs=xfs": "for XFS, the default"}
    for program in TOLD:
        assert told[program.name][1].startswith(words.get(program.when, f"with `{program.when}`"))


def test_a_machine_that_tests_the_driver_gets_them() -> None:
    lines = [line.split() for line in text("tests/packages").splitlines() if not line.startswith("#")]
    of_driver = {package for package, use, *_ in lines if use == "driver"}
    packages = {program.package for program in TOLD}
    # Only a kernel with nbd has a use for rbd-nbd; util-linux is for the tests themselves.
    assert of_driver == packages - {"rbd-nbd"} | {"python3", "util-linux"}
    assert packages <= {package for package, *_ in lines}
