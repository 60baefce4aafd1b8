"""The process that works on the files of a layer, locked into it. Started by transfer.py as a program of its own.

    confined.py untar ROOT UIDS GIDS [SOCKET N]  archive on standard input; prints the size, and then a line that
                                                 tells what it left out
    confined.py changes ROOT PARENT OWN          prints "KIND/PATH" and a NUL for each change
    confined.py size ROOT PARENT OWN             prints the size of what changed
    confined.py diff ROOT PARENT OWN UIDS GIDS   prints the archive of what changed
    confined.py walk ROOT                        prints all that is there, for `pack`
    confined.py pack ROOT UIDS GIDS              output of `walk` on standard input; prints the archive

ROOT is a layer's directory, PARENT another one's or "". OWN is "own" if ROOT is a layer's upper directory and PARENT a
view of what is below it, else "". UIDS and GIDS are "CONTAINER:HOST:SIZE,...".
SOCKET is the file descriptor that bsdtar.py listens at, N the number of plain files that are worth a bsdtar.
A failure is one line on standard error and exit status 1.

It is a program of its own and not a thread of the server, since it changes its root directory, its working directory
and its umask, which the threads of a process share. A process that is in a layer by chroot(2) must load nothing from
there, neither a library nor a Python module (CVE-2019-14271). So all modules are loaded before, and the importer is
removed. The modules are few: without typing, dataclasses and contextlib the program starts in half the time.
"""

from __future__ import annotations

import os
import resource
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from archive import changes, id_maps, pack
from archive.bsdtar_feed import Handover
from archive.tar_format import ArchiveError, quote
from archive.tar_reader import Input, TarReader
from archive.untar import Untar
from host import environment

READER_GONE = 3  # exit status: the reader of what we print has ended, and knows why


def _open_directory(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _confine(root: str) -> None:
    """Let this process reach nothing but `root` by name, and keep Python from loading code out of it."""
    os.chroot(root)
    os.chdir("/")
    os.umask(0)
    sys.setrecursionlimit(20_000)  # each level of directories takes a few frames and a file descriptor
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    environment.load_nothing_more()


def _untar(root: str, uids: str, gids: str, *bsdtar: str) -> None:
    owners = id_maps.parse(uids), id_maps.parse(gids)
    handover = Handover(*map(int, bsdtar)) if bsdtar else None
    _confine(root)
    source = Input(0)
    untar = Untar(TarReader(source), *owners, handover)
    size = untar.run()
    source.drain()
    dropped = [f"{quote(name)} of {count}, first {quote(path)}" for name, (count, path) in untar.dropped.items()]
    with open(1, "wb") as out:
        out.write(f"{size}\n{'; '.join(dropped)}\n".encode())


def _compare(command: str, root: str, parent: str, own: str, *ids: str) -> None:
    below = _open_directory(parent) if parent else None
    owners = list(map(id_maps.parse, ids))
    _confine(root)
    top = _open_directory("/")
    found = changes.walk(top, below, own=own == "own")
    if command == "diff":
        pack.pack(list(found), 1, top, *owners)
    elif command == "size":
        os.write(1, b"%d\n" % changes.total_size(top, found))
    else:
        with open(1, "wb") as out:
            out.writelines(b"%d%s\0" % (kind, path) for path, kind, _ in found)


def _walk(root: str) -> None:
    _confine(root)
    pack.send(changes.walk(_open_directory("/"), None, look=True), 1)


def _pack(root: str, uids: str, gids: str) -> None:
    owners = id_maps.parse(uids), id_maps.parse(gids)
    _confine(root)
    pack.pack(pack.receive(0), 1, _open_directory("/"), *owners)


def main(argv: list[str]) -> int:
    """Run the command of the arguments and return the exit status."""
    command, *arguments = argv
    try:
        if command == "untar":
            _untar(*arguments)
        elif command == "walk":
            _walk(*arguments)
        elif command == "pack":
            _pack(*arguments)
        else:
            _compare(command, *arguments)
    except ArchiveError as error:
        return environment.fail(str(error))
    except BrokenPipeError:
        return READER_GONE
    except OSError as error:
        return environment.fail(f"{os.strerror(error.errno or 0)}: {error.filename!r}")
    except Exception as error:  # a defect: Python's own report would open files by name, within the layer
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = f"{os.path.basename(where.tb_frame.f_code.co_filename)}:{where.tb_lineno}" if where else "?"
        return environment.fail(f"{type(error).__name__} at {line}: {error}")
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # without Python's clean-up, which might look for a file
