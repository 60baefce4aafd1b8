"""Lays a layer's archive down in the root directory of the process, entry by entry and in order.

This runs confined (see confined.py): "/" is the layer. So a name, a link or a symlink can lead to nothing outside,
and an absolute symlink leads where it would in a container. The rules are those of moby's `UnpackLayer`
(pkg/archive/diff.go) and `createTarFile` (pkg/archive/archive.go) of v27. What differs, on purpose:
- an opaque whiteout spares a directory of a lower layer that holds something of this layer (moby removes it if the
  archive has no entry for the directory itself; the OCI image spec and overlay2 do not);
- a whiteout of "", "." or ".." is an error (moby would remove the directory it is in, or the one above);
- only a directory can be the entry for the root;
- if a directory's path becomes another thing later in the archive, that does not get the directory's times;
- what overlayfs would take for its own is left out, and counted: a character device 0:0 (its whiteout), with the hard
  links to it, and attributes trusted.overlay.* (an opaque directory, a directory that is found elsewhere). The kernel
  refuses the device in a view of overlayfs, and the attributes too, or stores them under another name (6.7 and newer).

If the host has bsdtar and there are many plain files, they are handed over to a bsdtar that runs beside us
(bsdtar_feed.py). The result is the same, whatever the order of the two: an entry that could meet a file that was handed
over and may not be there yet waits for all such files.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat

from archive import limits
from archive.bsdtar_feed import LARGEST, Handover
from archive.id_maps import IdError, Ranges, to_host
from archive.tar_format import BLOCKDEV, CHARDEV, DIRECTORY, FIFO, FILE, LINK, SYMLINK, ArchiveError, Entry, quote
from archive.tar_reader import TarReader, write_all
from archive.tree_removal import remove_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b"/.wh..wh."  # aufs had its own files in the root of a layer; they are not laid down
_AUFS_LINKS = b"/.wh..wh.plnk"
_IMPLIED_MODE = 0o755  # of a directory for which the archive has no entry (moby: ImpliedDirectoryMode)
_LAST_TIME = (1 << 63) - 1  # nanoseconds: the year 2262 (moby: unixMaxTime)
_DEFAULT_ACL = b"system.posix_acl_default"
_MOST_DROPPED = 8  # names of attributes in the message of what was left out
_OVERLAYFS_WHITEOUT = b"character device 0:0"
_OF_OVERLAYFS = b"trusted.overlay."
_KNOWN = (b"user.", b"trusted.", b"security.", b"system.posix_acl_")  # attributes that the kernel stores
_SPECIAL = 0o7000  # setuid, setgid, sticky
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODE_TYPES = {CHARDEV: stat.S_IFCHR, BLOCKDEV: stat.S_IFBLK, FIFO: stat.S_IFIFO}


class Untar:
    """One archive that is being laid down. Needs the root user, the layer as "/", and umask 0.

    A pending file is one that was handed over and may not be there yet. None is pending while the current directory is
    reached through a symlink. So a pending file has one path only.
    """

    def __init__(self, reader: TarReader, uids: Ranges, gids: Ranges, handover: Handover | None = None) -> None:
        self._reader = reader
        self._uids, self._gids = uids, gids
        self._handover = handover
        self._pending = handover.pending if handover is not None else set()
        self._straight = {b"/"}  # directories that are known to be reached through no symlink
        self._present = b""  # the current directory, which is known to exist, or ""
        self._plain = False  # whether the current directory is straight and passes nothing on to new files in it
        self._unpacked: set[bytes] = set()  # the paths of this layer
        self._holding: set[bytes] = {b"/"}  # the directories that hold paths of this layer
        self._left_out: set[bytes] = set()  # the paths of whiteouts of overlayfs
        # What was left out, an attribute or such whiteouts: the number of entries, and the name of the first.
        self.dropped: dict[bytes, tuple[int, bytes]] = {}
        # The times of directories are set at the end, when nothing changes the directories any more.
        self._times: dict[bytes, tuple[int, int]] = {}
        self._aufs = b""  # the directory for the targets of aufs' hard links
        self._aufs_entries: dict[bytes, Entry] = {}

    def run(self) -> int:
        """Lay down all entries and return the sum of the sizes in their headers, in bytes.

        Raises ArchiveError with the name of the entry. The entries that were laid down until then stay.
        """
        size = 0
        while True:
            entry = self._reader.next_entry()
            if entry is None:
                break
            size += entry.size
            try:
                if not self._lay_down_plain(entry):
                    self._lay_down(entry)
            except OSError as error:
                raise ArchiveError(f"{quote(entry.name)}: {limits.why(error, entry)}") from error
            except (IdError, OverflowError) as error:
                raise ArchiveError(f"{quote(entry.name)}: {error}") from error
        self._finish()
        return size

    def _finish(self) -> None:
        self._wait()
        if self._aufs:
            self._remove(self._aufs)
        for path, times in self._times.items():
            try:
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    os.utime(path, ns=times)
            except (FileNotFoundError, NotADirectoryError):
                continue  # removed by a later entry
            except OSError as error:
                raise ArchiveError(f"{quote(path)}: {os.strerror(error.errno or 0)}") from error

    def _lay_down(self, entry: Entry) -> None:
        path = _clean(entry.name)
        parent, _, base = path.rpartition(b"/")
        if path.startswith(_AUFS) and path != b"/" + _OPAQUE:
            if path.startswith(_AUFS_LINKS) and entry.type == FILE:
                self._keep_aufs_target(base, entry)
            return
        if self._is_whiteout_of_overlayfs(entry) and not base.startswith(_WHITEOUT):
            self._left_out.add(path)
            self._count_dropped(_OVERLAYFS_WHITEOUT, entry.name)
            return
        self._need_directory(parent or b"/")
        if base == _OPAQUE:
            self._make_opaque(parent or b"/")
        elif base.startswith(_WHITEOUT):
            name = base[len(_WHITEOUT) :]
            if name in (b"", b".", b".."):
                raise ArchiveError(f"{quote(entry.name)}: a whiteout of nothing")
            self._remove(parent + b"/" + name)
        else:
            if entry.type != FILE or not self._hand_over(path, entry):
                self._create(path, entry)
            self._remember(path, parent or b"/")

    def _is_whiteout_of_overlayfs(self, entry: Entry) -> bool:
        """Whether an entry is a whiteout of overlayfs, or a hard link to one that was left out."""
        if entry.type == LINK:
            target = _clean(entry.link)
            return target in self._left_out and target not in self._unpacked
        return entry.type == CHARDEV and entry.devmajor == entry.devminor == 0

    def _lay_down_plain(self, entry: Entry) -> bool:
        """Lay down a plain file in the current directory with few steps; False if the entry is another thing.

        Most entries of most archives are such files. The result is the same as that of `_lay_down`.
        """
        if entry.type != FILE:
            return False
        path = _clean(entry.name)
        parent, _, base = path.rpartition(b"/")
        if parent != self._present or not self._plain or base.startswith(_WHITEOUT) or path in self._pending:
            return False
        if not self._hand_over(path, entry) and not self._create_plain_file(path, entry):
            return False
        self._remember(path, parent)
        return True

    def _hand_over(self, path: bytes, entry: Entry) -> bool:
        """Let bsdtar create a file in the current directory; False if the file is not for bsdtar."""
        if self._handover is None or not self._plain or entry.xattrs or entry.sparse is not None:
            return False
        owner = self._owner(entry.uid, entry.gid)
        if not self._handover.takes(entry, owner) or path in self._pending or _exists(path):
            return False
        data = self._reader.whole(LARGEST)
        assert data is not None
        self._handover.add(path, entry, owner, data)
        return True

    def _wait(self) -> None:
        """Wait until no file is pending."""
        if self._handover is not None:
            self._handover.flush()

    def _remember(self, path: bytes, parent: bytes) -> None:
        self._unpacked.add(path)
        while parent not in self._holding:
            self._holding.add(parent)
            parent = _above(parent)

    def _owner(self, uid: int, gid: int) -> tuple[int, int]:
        return to_host(self._uids, uid, "user"), to_host(self._gids, gid, "group")

    def _need_directory(self, path: bytes) -> None:
        """Create a directory that has no entry, and those above it (moby: createImpliedDirectories), if missing."""
        if path == self._present:
            return
        missing = []
        top = path
        while top not in self._pending and not _exists(top):
            missing.append(top)
            top = _above(top)
        if self._pending and not self._is_straight(top):  # a pending file, or a symlink and what is missing is pending
            self._wait()
            self._need_directory(path)
            return
        for directory in reversed(missing):
            os.mkdir(directory, _IMPLIED_MODE)
            os.chown(directory, *self._owner(0, 0))
            inherited = os.lstat(directory).st_mode  # an inherited setgid stays, the mode of a default ACL does not
            if inherited & 0o777 != _IMPLIED_MODE:
                os.chmod(directory, _IMPLIED_MODE | inherited & stat.S_ISGID)
        self._present = path
        self._plain = self._is_straight(path) and _passes_nothing_on(path)

    def _is_straight(self, path: bytes) -> bool:
        """Whether `path` is a directory that is reached through no symlink."""
        found = []
        while path not in self._straight:
            try:
                if not stat.S_ISDIR(os.lstat(path).st_mode):
                    return False
            except OSError:  # whether that is an error depends on what the entry does there
                return False
            found.append(path)
            path = _above(path)
        self._straight.update(found)
        return True

    def _remove(self, path: bytes) -> None:
        """Remove `path` with all that is in it, if it exists."""
        self._present = b""
        if path in self._pending:
            self._wait()
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except IsADirectoryError:
            self._wait()
            self._straight = {b"/"}
            remove_directory(path)

    def _make_opaque(self, directory: bytes) -> None:
        """Remove from a directory all that is of lower layers, and spare what this archive brought."""
        self._present = b""
        if not stat.S_ISDIR(os.lstat(directory).st_mode):  # moby walks it without following a symlink either
            return
        pending = [directory]
        while pending:
            top = pending.pop()
            for name in os.listdir(top):
                path = posixpath.join(top, name)
                ours = path in self._holding
                if not ours and path not in self._unpacked:
                    self._remove(path)
                elif stat.S_ISDIR(os.lstat(path).st_mode):
                    pending.append(path)

    def _keep_aufs_target(self, base: bytes, entry: Entry) -> None:
        """Lay down a file that only serves as the target of hard links, as archives made on aufs have them."""
        if not self._aufs:
            self._aufs = b"/.dockerplnk-" + os.urandom(8).hex().encode()
            os.mkdir(self._aufs, 0o700)
        self._aufs_entries[base] = entry
        target = self._aufs + b"/" + base
        self._remove(target)
        self._remember(target, self._aufs)  # an opaque whiteout of the root must spare it
        with open(os.open(target, _NEW_FILE, 0o600), "wb", buffering=0) as file:
            self._write(file.fileno(), entry)

    def _create(self, path: bytes, entry: Entry) -> None:
        """Create one entry with all its attributes, in the place of what is there (moby: createTarFile)."""
        if path == b"/" and entry.type != DIRECTORY:
            raise ArchiveError(f"{quote(entry.name)}: only a directory can be the root of a layer")
        if path in self._pending or (entry.type == DIRECTORY and _DEFAULT_ACL in entry.xattrs):
            self._wait()
        owner = self._owner(entry.uid, entry.gid)
        mode = entry.mode & 0o7777
        if entry.type == FILE:
            self._create_file(path, entry, owner)
        elif entry.type == DIRECTORY:
            self._create_directory(path, mode)
            self._dress(path, entry, owner)
            self._times[path] = _times(entry)
        elif entry.type == SYMLINK:
            self._replace(path, lambda: os.symlink(entry.link, path))
            self._dress(path, entry, owner, follow=False)
        elif entry.type == LINK:
            self._create_link(path, entry, owner)
        elif entry.type in _NODE_TYPES:
            device = _device(entry)
            self._replace(path, lambda: os.mknod(path, _NODE_TYPES[entry.type] | mode, device))
            self._dress(path, entry, owner)
        else:
            raise ArchiveError(f"{quote(entry.name)}: entries of type {quote(entry.type)} are not supported")

    def _replace(self, path: bytes, create: Callable[[], None]) -> None:
        try:
            create()
        except FileExistsError:
            self._remove(path)
            create()

    def _create_directory(self, path: bytes, mode: int) -> None:
        """Create a directory. One that is there stays, with its content."""
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                self._remove(path)
                os.mkdir(path, mode)

    def _create_link(self, path: bytes, entry: Entry, owner: tuple[int, int]) -> None:
        target = _clean(entry.link)
        if target.startswith(_AUFS_LINKS):
            self._copy_aufs_target(path, target.rpartition(b"/")[2], entry)
            return
        if self._pending and (target in self._pending or not self._is_straight(_above(target))):
            self._wait()
        self._replace(path, lambda: os.link(target, path, follow_symlinks=False))
        self._dress(path, entry, owner, follow=not stat.S_ISLNK(os.lstat(path).st_mode))

    def _copy_aufs_target(self, path: bytes, base: bytes, link: Entry) -> None:
        if base not in self._aufs_entries:
            raise ArchiveError(f"{quote(link.name)}: a hard link to an aufs file that is not in the archive")
        entry = self._aufs_entries[base]
        self._remove(path)
        with (
            open(self._aufs + b"/" + base, "rb", buffering=0) as source,
            open(os.open(path, _NEW_FILE, 0o600), "wb", buffering=0) as file,
        ):
            while os.sendfile(file.fileno(), source.fileno(), None, 1 << 20):
                pass
        self._dress(path, entry, self._owner(entry.uid, entry.gid))

    def _create_plain_file(self, path: bytes, entry: Entry) -> bool:
        """Create a file in the current directory, without chown and chmod; False if it needs one of them.

        A new file of root needs neither in a directory that passes nothing on.
        """
        mode = entry.mode & 0o7777
        if mode & _SPECIAL or entry.uid or entry.gid or self._uids or self._gids or entry.xattrs:
            return False
        try:
            fd = os.open(path, _NEW_FILE, mode)
        except FileExistsError:
            return False
        try:
            self._write(fd, entry)
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)
        return True

    def _create_file(self, path: bytes, entry: Entry, owner: tuple[int, int]) -> None:
        mode = entry.mode & 0o7777
        try:
            fd = os.open(path, _NEW_FILE, mode & 0o777)
        except FileExistsError:
            self._remove(path)
            fd = os.open(path, _NEW_FILE, mode & 0o777)
        try:
            self._write(fd, entry)
            os.fchown(fd, *owner)
            self._set_xattrs(fd, entry)
            os.fchmod(fd, mode)  # after chown, which takes setuid and setgid away
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)

    def _write(self, fd: int, entry: Entry) -> None:
        if entry.sparse is not None:
            self._write_sparse(fd, entry)
            return
        data = self._reader.whole()
        if data is None:
            self._reader.copy_to(fd)
        elif data:
            write_all(fd, data)

    def _write_sparse(self, fd: int, entry: Entry) -> None:
        """Write the data of a sparse file to the offsets in its map, and leave holes between them."""
        segments = iter(entry.sparse or ())
        left = 0
        for piece in self._reader.data():
            view = piece
            while view:
                while not left:
                    offset, left = next(segments)
                    os.lseek(fd, offset, os.SEEK_SET)
                write_all(fd, view[:left])
                written = min(left, len(view))
                left -= written
                view = view[written:]
        os.ftruncate(fd, entry.size)

    def _dress(self, path: bytes, entry: Entry, owner: tuple[int, int], *, follow: bool = True) -> None:
        """Set the owner, attributes, mode and times of `path`, in moby's order. A symlink has no mode."""
        os.chown(path, *owner, follow_symlinks=False)
        self._set_xattrs(path, entry)
        if follow:
            os.chmod(path, entry.mode & 0o7777)
        if follow or entry.type == SYMLINK:  # a hard link to a symlink does not change its times
            os.utime(path, ns=_times(entry, bound=follow), follow_symlinks=follow)

    def _set_xattrs(self, target: int | bytes, entry: Entry) -> None:
        """Set the attributes of an entry. Those that nobody could read here are left out, and counted.

        These are attributes that the kernel forbids, such as user.* on a symlink (moby does the same), and those that
        it does not know, such as com.apple.*. dockerd before 25 leaves the latter out, 25 and newer refuse the image.
        Attributes of overlayfs are not even tried.
        """
        for name, value in entry.xattrs.items():
            if name.startswith(_OF_OVERLAYFS):
                self._count_dropped(name, entry.name)
                continue
            try:
                if isinstance(target, int):
                    os.setxattr(target, name, value)
                else:
                    os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                unknown = error.errno == errno.EOPNOTSUPP
                if unknown and name == b"security.selinux":  # with a mount label (context=) the kernel has its own
                    continue
                if error.errno != errno.EPERM and not (unknown and not name.startswith(_KNOWN)):
                    raise ArchiveError(
                        f"{quote(entry.name)}: {limits.why_not_attribute(error, name, value)}"
                    ) from error
                self._count_dropped(name, entry.name)

    def _count_dropped(self, what: bytes, path: bytes) -> None:
        if what not in self.dropped and len(self.dropped) >= _MOST_DROPPED:
            what = b"..."
        count, first = self.dropped.get(what, (0, path))
        self.dropped[what] = count + 1, first


def _above(path: bytes) -> bytes:
    return path.rpartition(b"/")[0] or b"/"


def _exists(path: bytes) -> bool:
    """Whether a path exists. Unlike os.path.lexists, this raises OSError for a path that is too long."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _passes_nothing_on(directory: bytes) -> bool:
    """Whether a new file in a directory gets owner and mode as it was created: no setgid bit, no default ACL.

    False if this is no directory or does not exist: whether that is an error depends on what the entry does there.
    """
    try:
        status = os.stat(directory)
        return not status.st_mode & stat.S_ISGID and _DEFAULT_ACL.decode() not in os.listxattr(directory)
    except OSError:
        return False


def _clean(name: bytes) -> bytes:
    """Return a name of the archive as a path from "/", without ".", ".." and doubled slashes (Go: filepath.Clean)."""
    path = b"/" + name.lstrip(b"/") if name[:2] != b"./" else name[1:]
    if b"//" in path or b"/." in path or path.endswith(b"/"):
        return posixpath.normpath(b"/" + path.lstrip(b"/"))
    return path


def _device(entry: Entry) -> int:
    """Return the number of a device node. Raises OverflowError if the kernel has no such number."""
    major, minor = entry.devmajor, entry.devminor
    if not (0 <= major < limits.MAJORS and 0 <= minor < limits.MINORS):
        most = f"{limits.MAJORS - 1}:{limits.MINORS - 1}"
        raise OverflowError(f"device number {major}:{minor}, Linux takes {most} at the most: leave the node out")
    return os.makedev(entry.devmajor, entry.devminor)


def _times(entry: Entry, *, bound: bool = True) -> tuple[int, int]:
    """Return access and modification time, within the limits of moby, the access never before the modification."""
    mtime = entry.mtime
    if entry.atime is None and 0 <= mtime <= _LAST_TIME:
        return mtime, mtime
    atime = mtime if entry.atime is None else max(entry.atime, mtime)
    if not bound:
        return atime, mtime
    return atime if 0 <= atime <= _LAST_TIME else 0, mtime if 0 <= mtime <= _LAST_TIME else 0
