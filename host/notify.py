"""Tells the parent of this process how far it is, by the protocol of sd_notify(3): a datagram for each message.

systemd (Type=notify in the unit) starts what comes after this service when it receives READY=1. Without NOTIFY_SOCKET
nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger("notify")

# The socket of a systemd that is being reloaded may be full for a moment.
SEND_SECONDS = 5.0


class Notifier:
    """Sends to the socket that NOTIFY_SOCKET names: a path, or with an @ a name in the abstract namespace (unix(7)).

    The variable is removed from the environment: a process that we start is not this service, and must not notify.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")

    def tell(self, *messages: str) -> None:
        """Send assignments such as READY=1, each of one line. A failure is logged only: serving matters more."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as target:
                target.settimeout(SEND_SECONDS)
                target.sendto("\n".join(messages).encode(), address)
        except (OSError, ValueError) as error:
            log.warning("%s is not told of %s: %s", self._address, messages[0], error)
