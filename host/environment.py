"""What the driver and all that it starts run in: the same, whatever the world of its caller is.

`enter` comes first in a program of ours, before any other import: a module of the caller's may have the name of one
that we, or the library, would load. So this one imports nothing that Python has not loaded by then.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# Files that the driver makes are for everybody to read and for root to write; where they are not, chmod says so.
UMASK = 0o022
# Python's own options: no variables, no directories of the caller or of a user (-I); no packages but the library, which
# take time to find (-S); names of files are UTF-8 in every locale.
_OPTIONS = ("-I", "-S", "-X", "utf8")
# After the caller's own directories. mkfs and losetup are in sbin.
PLACES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
# Variables, by how their names begin, that change what our commands do.
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
    "POSIXLY_CORRECT",  # options after the first operand are none
)
# Messages are stable, times are in UTC, and mount(8) uses mount(2): fsconfig(2), which it prefers where there is one,
# takes 256 bytes of an option, and the directories of a deep layer are more (util-linux, libmount/docs/release-notes).
_OURS = {"LC_ALL": "C", "TZ": "UTC", "LIBMOUNT_FORCE_MOUNT2": "always"}
# What is locked into a layer must find nothing by the environment: nothing of the caller's comes in.
CONFINED: Mapping[str, str] = {"LC_ALL": "C"}


def enter(program: str) -> None:
    """Make this process what the driver expects it to be; Python starts anew for that, unless it was started so.

    `program` is the file that Python runs. Needs os.execv; raises OSError.
    """
    os.umask(UMASK)
    opened = _open_standard_descriptors()
    if opened or (sys.flags.isolated, sys.flags.no_site, sys.flags.utf8_mode, sys.flags.optimize) != (1, 1, 1, 0):
        argv = python(program, *sys.argv[1:])
        os.execv(argv[0], argv)  # noqa: S606 - an argv list, as all commands


def _open_standard_descriptors() -> bool:
    """Open those that are closed on /dev/null: the next file would be taken for one of them. Tell whether one was."""
    opened = False
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            opened = True
    return opened


def python(program: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line for a program of ours in Python."""
    # A Python that was found by a PATH which is gone does not know its own name.
    interpreter = sys.executable or os.readlink("/proc/self/exe")
    return (interpreter, *_OPTIONS, os.path.realpath(program), *arguments)


def fail(message: str) -> int:
    """Print one line on standard error, without a file that would have to be opened; return the exit status 1."""
    os.write(2, message.encode("utf-8", "backslashreplace").replace(b"\n", b" ") + b"\n")
    return 1


def load_nothing_more() -> None:
    """Take the importer down: this process goes where a name may lead to somebody else's file (CVE-2019-14271)."""
    sys.path.clear()
    sys.path_hooks.clear()
    sys.meta_path.clear()


def of_commands() -> Mapping[str, str]:
    """Return the environment of a host's program: ours without what would change what it does.

    PATH has the caller's directories first, but only
    those that are the same from everywhere.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_CHANGING)}
    places = [place for place in os.environ.get("PATH", "").split(os.pathsep) if place.startswith("/")]
    return {**kept, **_OURS, "PATH": os.pathsep.join(dict.fromkeys((*places, *PLACES)))}
