"""What a service manager is told of a running node: ready, alive, what it does, going.

systemd's protocol is one datagram per message to the socket that NOTIFY_SOCKET names, which a few
lines speak. Where that is not set nothing happens; and a message that cannot be had is no reason
for a node to fall: a manager that hears nothing acts by itself.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

import trio

log = logging.getLogger(__name__)

SOCKET, WATCHDOG, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
WATCHDOG_S_MIN = 0.01  # a manager that wants to hear more often is not to cost a core
STATUS_CHARS_MAX = 200


class Notifier:
    """Tells the manager that started this process, if one did."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        """address: a path, or @NAME in Linux's abstract namespace; empty: nobody listens.

        watchdog_s: the silence after which the manager ends this process; None: it does not.
        """
        # Only these two forms are of systemd's protocol; vsock addresses are for whole machines.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._heard = address.startswith(("/", "@"))
        self._interval_s = None if watchdog_s is None else max(watchdog_s / 2, WATCHDOG_S_MIN)
        self._status = ""

    @classmethod
    def taken(cls, environment: MutableMapping[str, str] | None = None) -> Notifier:
        """What the environment says, taken out of it: a child must not speak for the node."""
        found = os.environ if environment is None else environment
        address, usec, pid = (found.pop(name, "") for name in (SOCKET, WATCHDOG, WATCHDOG_PID))
        ours = not pid or pid == str(os.getpid())
        watched = ours and usec.isdecimal() and int(usec) > 0
        return cls(address, int(usec) / 1e6 if watched else None)

    def ready(self) -> None:
        """The node listens, and answers."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The node was told to end."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """What the node does, in one line, as the manager shows it; said once while it holds."""
        line = " ".join(text.split())[:STATUS_CHARS_MAX]
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def watchdog(self) -> None:
        """The node is alive."""
        self._send("WATCHDOG=1")

    async def run(self) -> None:
        """Say that the loop answers, twice in each span of silence that is allowed.

        A task of the node's own loop, so that a loop which hangs falls silent.
        """
        if not self._heard or self._interval_s is None:
            return
        while True:
            self.watchdog()
            await trio.sleep(self._interval_s)

    def _send(self, message: str) -> None:
        if not self._heard:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)  # a manager that hangs must not hang the node's loop
                out.sendto(message.encode(), self._address)
        except OSError as problem:
            log.warning("manager not told message=%s reason=%s", message, problem.strerror)
