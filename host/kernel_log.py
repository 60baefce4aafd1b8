"""The messages that the kernel logged while a command ran.

`rbd device map` says only "sysfs write failed"; the kernel logs why (dmesg).
"""

from __future__ import annotations

import contextlib
import os
from types import TracebackType

_LOG = "/dev/kmsg"
# One record is one read (Documentation/ABI/testing/dev-kmsg); longer ones do not exist.
_RECORD = 8192
_MOST_RECORDS = 200


class Log:
    """The kernel's log from `with` on. It is empty where it cannot be read, as in a container without the device."""

    def __init__(self) -> None:
        self._file: int | None = None

    def __enter__(self) -> Log:
        with contextlib.suppress(OSError):
            self._file = os.open(_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._file, 0, os.SEEK_END)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def about(self, *words: str) -> str:
        """Return the messages that hold one of `words`, joined to one line; each is returned once."""
        found = [message for message in self._messages() if any(word in message for word in words)]
        return "; ".join(dict.fromkeys(found))

    def _messages(self) -> list[str]:
        messages: list[str] = []
        with contextlib.suppress(OSError):  # EAGAIN: no more records; EPIPE: the kernel overwrote the next one
            while self._file is not None and len(messages) < _MOST_RECORDS:
                record = os.read(self._file, _RECORD).decode("utf-8", "replace")
                messages.append(record.partition(";")[2].partition("\n")[0].strip())
        return messages
