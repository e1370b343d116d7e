"""What can be known of a port without libp2p: whether it is free, and whether anybody answers."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import MutableSet

import trio

from .transport_config import ListenError, PortInUseError

_TCP_ADDRESS = re.compile(r"/ip(?P<version>[46])/(?P<host>[^/]+)/tcp/(?P<port>\d{1,5})$")
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where to knock


def refuse_port_in_use(listen: str) -> None:
    """Raise ListenError unless `listen` is a TCP multiaddr whose port is free.

    libp2p binds with SO_REUSEPORT, so a second node of the same user would share the first one's
    port and get half of its connections.
    """
    family, host, port = _parts(listen)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            if in_use:
                raise PortInUseError(
                    f"cannot listen on {listen}: another process listens there"
                ) from error
            raise ListenError(f"cannot listen on {listen}: {error}") from error


async def knock(listen: str, knocking: MutableSet[int], within_s: float) -> bool:
    """Connect to our own port; whether whoever accepts there does anything at all in time.

    knocking: holds the port that this comes from for as long, so that it is no guest.
    """
    family, host, port = _parts(listen)
    heard = False
    with trio.move_on_after(within_s), trio.socket.socket(family, socket.SOCK_STREAM) as probe:
        host = _ANY.get(host, host)
        await probe.bind((host, 0))
        own = probe.getsockname()[1]
        knocking.add(own)
        try:
            await probe.connect((host, port))
            await probe.recv(1)
            heard = True
        except OSError as error:
            heard = isinstance(error, ConnectionResetError)  # an answer, too
        finally:
            knocking.discard(own)
    return heard


def _parts(listen: str) -> tuple[socket.AddressFamily, str, int]:
    parts = _TCP_ADDRESS.match(listen)
    if parts is None:
        raise ListenError(
            f"cannot listen on {listen!r}: it is no TCP multiaddr; expected /ip4/ADDRESS/tcp/PORT"
        )
    family = socket.AF_INET if parts["version"] == "4" else socket.AF_INET6
    return family, parts["host"], int(parts["port"])


def listen_error(error: BaseException) -> ListenError | None:
    """Return the ListenError in what a nest of nurseries has raised."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(listen_error, error.exceptions)), None)
    return error if isinstance(error, ListenError) else None
