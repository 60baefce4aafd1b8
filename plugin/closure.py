"""Prints the files of a system that the driver needs: its programs, their libraries, Python. One path a line.

    chroot ROOT python3 - <plugin/closure.py

Runs with the Python of the system that it looks at, writes nothing, and names directories and links on the way too, so
that `tar --directory ROOT --no-recursion --files-from` makes a small root file system of it. The rest (a shell, the
package manager, documentation, caches) stays behind. Ends with status 1 and one line on stderr if a program is missing.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from modulefinder import ModuleFinder

# The driver's list says what each is for (host/programs.py). It cannot be read here: this file runs alone, in another
# system; tests/unit/test_programs.py compares.
PROGRAMS = (
    "rbd",
    "rados",
    "/bin/date",
    "mkfs.xfs",
    "xfs_growfs",
    "mkfs.ext4",
    "e2fsck",
    "resize2fs",
    "mount",
    "umount",
)
# `ceph` tells of the cluster's health; it is a program of Python's, which some bases lack.
CEPH = "ceph"
OPTIONAL_PROGRAMS = ("rbd-nbd", CEPH)
# Files that programs open by name while they run: Ceph's ciphers and compressors, glibc's host name services, the
# defaults of mkfs and of the dynamic linker.
OPENED = (
    "/usr/lib*/ceph/crypto",
    "/usr/lib*/ceph/compressor",
    "/usr/lib*/ceph/librbd",
    "/usr/lib/*/ceph/crypto",
    "/usr/lib/*/ceph/compressor",
    "/usr/lib/*/ceph/librbd",
    "/usr/lib*/libnss_*.so*",
    "/usr/lib/*/libnss_*.so*",
    "/etc/ld.so.*",
    "/etc/mke2fs.conf",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/usr/lib/os-release",
)
# Parts of Python's library that neither the driver nor `ceph` can use.
UNUSED = ("test", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "pydoc_data", "distutils")
UNUSED_PATTERN = re.compile(rf"/(?:{'|'.join(UNUSED)}|config-[^/]*|site-packages|dist-packages)(?:/|$)")
SEARCH = os.pathsep.join(("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"))


def find(program: str) -> str:
    """Return the path of a program; if there is none, end this process with one line."""
    path = shutil.which(program, path=SEARCH)
    if path is None:
        sys.exit(f"closure: {program} is not in this system; install the packages that the README names")
    return path


def below(path: str) -> Iterator[str]:
    """Yield a file, or the files in a directory and in all directories below it."""
    if not os.path.isdir(path):
        yield path
    for directory, _, names in os.walk(path):
        yield from (os.path.join(directory, name) for name in names)


def libraries(paths: Iterable[str]) -> list[str]:
    """Return the libraries that the dynamic linker would load for these files, without those that it does not find."""
    output = subprocess.run(("ldd", *paths), capture_output=True, text=True, check=False).stdout
    return re.findall(r"(/\S+) \(0x", output)


def python_library() -> Iterator[str]:
    """Yield the standard library."""
    for key in ("stdlib", "platstdlib"):
        directory = sysconfig.get_path(key)
        for path in below(directory):
            if not UNUSED_PATTERN.search(path[len(directory) :]):
                yield path


def packages_of(script: str) -> Iterator[str]:
    """Yield the files of what a Python program imports beyond the standard library, with their metadata."""
    finder = ModuleFinder()
    finder.run_script(script)
    for name in {module.partition(".")[0] for module in finder.modules}:
        path = str(getattr(finder.modules.get(name), "__file__", None) or "")
        found = re.match(r"(.*/(?:site|dist)-packages)/", path)
        if found:
            yield from below(os.path.dirname(path) if os.path.basename(path).startswith("__init__.") else path)
            for metadata in glob.glob(f"{found[1]}/{name}-*-info"):
                yield from below(metadata)


def with_links(path: str) -> Iterator[str]:
    """Yield a path and what leads to it: its directories, and the targets of all links among them."""
    whole = ""
    parts = [part for part in path.split("/") if part]
    while parts:
        whole += "/" + parts.pop(0)
        yield whole
        if os.path.islink(whole):
            target = os.path.join(os.path.dirname(whole), os.readlink(whole))
            yield from with_links(os.path.normpath("/".join((target, *parts))))
            return


def main() -> None:
    """Print the list."""
    programs = [find(name) for name in PROGRAMS]
    programs += filter(None, (shutil.which(name, path=SEARCH) for name in OPTIONAL_PROGRAMS))
    python = find("python3")
    opened = [path for pattern in OPENED for found in glob.glob(pattern) for path in below(found)]
    ceph = shutil.which(CEPH, path=SEARCH)
    library = [*python_library(), *(packages_of(ceph) if ceph else ())]
    binaries = [*programs, python, *(path for path in (*opened, *library) if re.search(r"\.so(\.|$)", path))]
    wanted = {*binaries, *opened, *library, *libraries(binaries)}
    print("\n".join(sorted({step[1:] for path in wanted for step in with_links(path)})))


if __name__ == "__main__":
    main()
