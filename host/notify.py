"""Tells whoever started this process how far it is: the protocol of sd_notify(3), a datagram for each message.

systemd (Type=notify in the unit) starts what comes after this service when it hears READY=1. Where nobody asked to be
told, nothing is sent.
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

    The variable is taken out of the environment: what we start is not this service, and does not speak for it.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")

    def tell(self, *messages: str) -> None:
        """Send assignments such as READY=1, each of one line. What cannot be sent is logged: serving matters more."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as target:
                target.settimeout(SEND_SECONDS)
                target.sendto("\n".join(messages).encode(), address)
        except (OSError, ValueError) as error:
            log.warning("%s is not told of %s: %s", self._address, messages[0], error)
