"""The HTTP server of the endpoint: on this machine alone, and never full of clients that wait.

A client that is slow on purpose costs one connection, until a deadline. When all connections are
taken, the one that has asked for nothing for longest makes room for the next client; only if all
are being answered is a client turned away.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from .config import ApiConfig
from .connection import Asgi, Connection, Limits
from .counts import Counts
from .listening import (
    ListenBusyError,
    ListenRefusedError,
    Tcp,
    Unix,
    bind,
    parse,
    unlink_own,
    url_of,
)

__all__ = ["Limits", "ListenBusyError", "ListenRefusedError", "parse", "serve"]

log = logging.getLogger(__name__)

STOP_S = 1.0  # for answers that were not begun when the server was told to stop
FULL_S = 1.0  # for a client to be told that there is no room for it
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\n"
    b"connection: close\r\n\r\n"
)


async def serve(
    asgi: Asgi,
    config: ApiConfig,
    home: Path,
    *,
    on_ready: Callable[[str], None],
    counts: Counts | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve until cancelled; then end within STOP_S.

    on_ready hears http://127.0.0.1:PORT, or unix:PATH, once clients are heard. Raises
    ListenBusyError and ListenRefusedError.
    """
    place = parse(config.listen, home)
    listening, inode = await trio.to_thread.run_sync(_bound, place)
    url = url_of(listening)
    clients = _Clients(asgi, counts or Counts(), limits or Limits(), config.connections_max)
    try:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        async with trio.open_nursery() as nursery:
            answering = await nursery.start(clients.answer)
            try:
                log.info("endpoint listens url=%s", url)
                on_ready(url)
                await trio.serve_listeners(
                    partial(clients.serve, place), [listener], handler_nursery=answering
                )
            finally:
                clients.stop()
                answering.cancel_scope.deadline = trio.current_time() + STOP_S
    finally:
        match place:
            case Tcp():
                listening.close()
            case Unix(path):
                unlink_own(listening, path, inode)


def _bound(place: Tcp | Unix) -> tuple[socket.socket, int]:
    """What listens, and the number of its file, by which it is known at the end."""
    listening = bind(place)
    match place:
        case Tcp():
            return listening, 0
        case Unix(path):
            return listening, path.lstat().st_ino


class _Clients:
    """All connections of a server."""

    def __init__(self, asgi: Asgi, counts: Counts, limits: Limits, most: int) -> None:
        self._asgi = asgi
        self._counts = counts
        self._limits = limits
        self._most = most
        self._open: dict[Connection, None] = {}
        self._stopped = trio.Event()
        self._turned_away = 0  # being told so now

    async def serve(self, place: Tcp | Unix, stream: trio.SocketStream) -> None:
        """One client. Never raises but what cancels it."""
        if len(self._open) >= self._most and not self._make_room():
            await self._turn_away(stream)
            return
        server: tuple[str, int | None]
        match place:
            case Tcp():
                server = stream.socket.getsockname()[:2]
            case Unix(path):
                server = (str(path), None)
        connection = Connection(stream, self._asgi, self._limits, self._counts, server)
        self._open[connection] = None
        try:
            await connection.serve()
        except Exception as problem:  # one client must not end the server
            self._counts.failures["connection"] += 1
            log.error("connection failed problem=%s", type(problem).__name__)
        finally:
            self._open.pop(connection, None)

    async def answer(self, *, task_status: Any) -> None:
        """Hold the tasks of all clients, until `stop`: they have a moment more than the rest."""
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True
            task_status.started(nursery)
            await self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()
        for connection in self._open:
            connection.stop()

    def _make_room(self) -> bool:
        """End the connection that waits for longest, if one does."""
        waiting = [each for each in self._open if each.waits]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda each: each.waits_since_s)
        self._open.pop(oldest)
        oldest.drop()
        self._counts.refused["made_room"] += 1
        return True

    async def _turn_away(self, stream: trio.SocketStream) -> None:
        self._counts.refused["connections"] += 1
        if self._turned_away >= self._most:
            return
        self._turned_away += 1
        try:
            with trio.move_on_after(FULL_S), suppress(trio.BrokenResourceError):
                await stream.send_all(_FULL)
        finally:
            self._turned_away -= 1
