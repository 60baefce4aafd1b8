"""The environment of the driver and of all programs that it starts. It is the same, whatever the driver's caller has.

A program of ours calls `enter` before it imports anything else, since the caller may have a module with the same name
as one that we or the standard library would load. So this module imports only what Python has loaded already.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# Everybody may read the files that the driver makes, and only root may write to them. Exceptions are made by chmod.
UMASK = 0o022
# Python's own options. -I: no variables, and no directories of the caller or of a user. -S: no packages except the
# standard library, since it takes time to find them. -X utf8: names of files are UTF-8 in every locale.
_OPTIONS = ("-I", "-S", "-X", "utf8")
# Directories of programs that come after the caller's own ones. mkfs is in sbin.
PLACES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
# Variables that change what our commands do, by the beginnings of their names.
_CHANGING = (
    "CEPH_",  # CEPH_ARGS wins over our options in `ceph` only, CEPH_KEYRING over the file that ceph.configfile names
    "PYTHON",  # `ceph` is a Python program: where it finds modules, how it runs
    "LIBMOUNT_",  # mount, umount: another table of mounts than the kernel's
    "BLKID_",  # mount, mkfs: another cache of what is on a device
    "MKE2FS_",  # mkfs.ext4: other defaults, another size of sectors
    "E2FS",  # E2FSPROGS_ and E2FSCK_: another time, a file of undo records
    "RESIZE2FS_",  # resize2fs: as if on another kernel
    "TEST_IO_",  # libext2fs: writes that fail on purpose
    "UNIX_IO_",  # libext2fs: another way to write
    "UNDO_IO_",  # libext2fs: an undo record that is not finished
    "POSIXLY_CORRECT",  # what follows the first operand is not taken for options
)
# Messages are in English and times in UTC. mount(8) must use mount(2). It prefers fsconfig(2) where the kernel has it,
# but that takes only 256 bytes of an option, and the directories of a deep layer need more (util-linux,
# libmount/docs/release-notes).
_OURS = {"LC_ALL": "C", "TZ": "UTC", "LIBMOUNT_FORCE_MOUNT2": "always"}
# The environment of a program that is locked into a layer. It must not find anything by a variable of the caller.
CONFINED: Mapping[str, str] = {"LC_ALL": "C"}


def enter(program: str) -> None:
    """Give this process the umask, the standard descriptors and the options of Python that the driver expects.

    `program` is the file that Python runs. If Python was started with other options, this function does not return:
    Python is started anew, in the same process. Raises OSError if it cannot be.
    """
    os.umask(UMASK)
    opened = _open_standard_descriptors()
    if opened or (sys.flags.isolated, sys.flags.no_site, sys.flags.utf8_mode, sys.flags.optimize) != (1, 1, 1, 0):
        argv = python(program, *sys.argv[1:])
        os.execv(argv[0], argv)  # noqa: S606 - an argv list, as all commands


def _open_standard_descriptors() -> bool:
    """Open standard descriptors that are closed, on /dev/null. Return whether there was one.

    Otherwise the next file that is opened would get the number of one, and would be written to as such.
    """
    opened = False
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The kernel gives the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            opened = True
    return opened


def python(program: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line that runs a file of ours in Python. Raises OSError if Python's own path is unknown."""
    # Python does not know its own path if it cannot be found by PATH any more.
    interpreter = sys.executable or os.readlink("/proc/self/exe")
    return (interpreter, *_OPTIONS, os.path.realpath(program), *arguments)


def fail(message: str) -> int:
    """Print one line on standard error without opening any file, and return the exit status 1."""
    os.write(2, message.encode("utf-8", "backslashreplace").replace(b"\n", b" ") + b"\n")
    return 1


def load_nothing_more() -> None:
    """Let no import work any more: in a layer it could load somebody else's file (CVE-2019-14271)."""
    sys.path.clear()
    sys.path_hooks.clear()
    sys.meta_path.clear()


def of_commands() -> Mapping[str, str]:
    """Return the environment for programs of the host: ours, without the variables that change what programs do.

    PATH begins with the caller's directories, but only with absolute ones: what a relative one names depends on the
    working directory.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_CHANGING)}
    places = [place for place in os.environ.get("PATH", "").split(os.pathsep) if place.startswith("/")]
    return {**kept, **_OURS, "PATH": os.pathsep.join(dict.fromkeys((*places, *PLACES)))}
