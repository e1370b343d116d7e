"""One connection: HTTP/1.1 by h11, carried to an ASGI application and back, all under deadlines.

h11 decides what is well-formed. Here it is decided how long one waits: for the head of a request,
for the next one, for a client to take what it is sent. Bodies are read when the application asks
for them, so that a refusal is sent before the body it refuses, and the rest is thrown away.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.client import responses
from typing import Any
from urllib.parse import unquote

import h11
import trio

from .counts import Counts

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Asgi = Callable[
    [Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

READ_BYTES = 64 << 10
WRITE_BYTES = 64 << 10
LINGER_BYTES_MAX = 16 << 20
_BODILESS = frozenset((204, 304))
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long one waits for a client, and how much it may ask for."""

    head_s: float = 10.0  # from the first byte of a request to the end of its head
    idle_s: float = 75.0  # before the first byte, of the first request or of the next one
    write_s: float = 30.0  # for a client to take WRITE_BYTES
    linger_s: float = 2.0  # for a refused client to stop sending, so that it reads the refusal
    head_bytes_max: int = 48 << 10
    requests_max: int = 10_000  # of one connection


class _WriteLateError(Exception):
    """The client does not read."""


class Connection:
    """One client, for one request after the other."""

    def __init__(
        self,
        stream: trio.SocketStream,
        asgi: Asgi,
        limits: Limits,
        counts: Counts,
        server: tuple[str, int | None],
    ) -> None:
        self._stream = stream
        self._asgi = asgi
        self._limits = limits
        self._counts = counts
        self._server = server
        self._h11 = h11.Connection(h11.SERVER, limits.head_bytes_max)
        self._scope = trio.CancelScope()
        self._exchange: _Exchange | None = None
        self._stopping = False
        self.waits_since_s = trio.current_time()

    @property
    def waits(self) -> bool:
        """Whether nothing is being done for the client: it has yet to ask, or to send its body."""
        return self._exchange is None or not self._exchange.is_asked

    def drop(self) -> None:
        """End it now."""
        self._scope.cancel()

    def stop(self) -> None:
        """End what waits and what streams; an answer that was not begun may still be given."""
        self._stopping = True
        if self._exchange is None:
            self.drop()
        elif self._exchange.streams:
            self._exchange.gone.set()

    async def serve(self) -> None:
        """Until the client goes, or asks for what it may not have."""
        with self._scope:
            try:
                for _ in range(self._limits.requests_max):
                    if not await self._one() or self._stopping:
                        return
            except _GONE:
                return
            except _WriteLateError:
                self._counts.refused["unread"] += 1

    async def _one(self) -> bool:
        """One request and its answer. Whether another may follow."""
        try:
            request = await self._head()
        except h11.RemoteProtocolError as problem:
            await self._refuse(problem.error_status_hint)
            return False
        if request is None:
            return False
        self._exchange = _Exchange(self, request)
        try:
            whole = await self._exchange.run(self._asgi)
        finally:
            self._exchange = None
            self.waits_since_s = trio.current_time()
        if not whole:
            return False
        try:
            self._h11.start_next_cycle()
        except h11.LocalProtocolError:  # the body was not read, or the client asked to close
            await self._linger()
            return False
        return True

    async def _head(self) -> h11.Request | None:
        """The next request; None if there is none any more. Raises RemoteProtocolError."""
        begun = bool(self._h11.trailing_data[0])
        within_s = self._limits.head_s if begun else self._limits.idle_s
        event: Any = None
        with trio.move_on_after(within_s) as deadline:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                data = await self._stream.receive_some(READ_BYTES)
                if data and not begun:
                    begun = True
                    deadline.deadline = trio.current_time() + self._limits.head_s
                self._h11.receive_data(data)
        if begun and deadline.cancelled_caught:
            self._counts.refused["late"] += 1
            await self._answer_bare(408)
        return event if isinstance(event, h11.Request) else None

    async def _refuse(self, status: int) -> None:
        """Of what is no HTTP, or more of it than is read."""
        self._counts.refused["headers" if status == 431 else "malformed"] += 1
        await self._answer_bare(status)
        await self._linger()

    async def _answer_bare(self, status: int) -> None:
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        headers = [("content-length", "0"), ("connection", "close")]
        data = (
            self._h11.send(
                h11.Response(status_code=status, headers=headers, reason=_reason(status))
            )
            or b""
        )
        await self.write(data + (self._h11.send(h11.EndOfMessage()) or b""))

    async def _linger(self) -> None:
        """Let the client read what was sent: to close while it still sends would take that away."""
        with trio.move_on_after(self._limits.linger_s):
            await self._stream.send_eof()
            left = LINGER_BYTES_MAX
            while left > 0 and (data := await self._stream.receive_some(READ_BYTES)):
                left -= len(data)

    # ---- for the exchange ------------------------------------------------------------------------

    @property
    def parser(self) -> h11.Connection:
        return self._h11

    @property
    def server(self) -> tuple[str, int | None]:
        return self._server

    async def read(self) -> bytes:
        return bytes(await self._stream.receive_some(READ_BYTES))

    async def write(self, data: bytes) -> None:
        """Raises what trio does of a stream that is gone, and _WriteLateError."""
        view = memoryview(data)
        for start in range(0, len(view), WRITE_BYTES):
            with trio.move_on_after(self._limits.write_s) as deadline:
                await self._stream.send_all(view[start : start + WRITE_BYTES])
            if deadline.cancelled_caught:
                raise _WriteLateError


class _Exchange:
    """One request and its answer, as an ASGI application sees them."""

    def __init__(self, connection: Connection, request: h11.Request) -> None:
        self._connection = connection
        self._h11 = connection.parser
        self._request = request
        self._told_end = False  # the application: that the body is all
        self._read_whole = trio.Event()  # the request: what comes now is the next one
        self._start: Message | None = None  # the head of the answer, until it has a body
        self._begun = False
        self._done = False
        self._bodiless = request.method.upper() == b"HEAD"
        self._late = False
        self.gone = trio.Event()  # the client, or the reason to go on with this answer

    @property
    def streams(self) -> bool:
        """Whether a part of the answer was sent already."""
        return self._begun

    async def run(self, asgi: Asgi) -> bool:
        """Have it answered. Whether the answer was given whole."""
        if self._says_nothing_more():
            self._h11.next_event()  # that the body is all, which a refusal may come before
            self._read_whole.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            await asgi(self._asgi_scope(), self._receive, self._send)
            nursery.cancel_scope.cancel()
        if self._late:
            raise _WriteLateError
        return self._done and not self.gone.is_set()

    def _says_nothing_more(self) -> bool:
        names = {name for name, _ in self._request.headers}
        return not names & {b"content-length", b"transfer-encoding"}

    def _asgi_scope(self) -> Scope:
        raw, _, query = self._request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self._request.http_version.decode(),
            "method": self._request.method.decode("ascii"),
            "scheme": "http",
            "path": unquote(raw.decode("ascii")),
            "raw_path": raw,
            "query_string": query,
            "root_path": "",
            "headers": list(self._request.headers),
            "client": None,
            "server": self._connection.server,
            "state": {},
        }

    # ---- what the client sends -------------------------------------------------------------------

    async def _receive(self) -> Message:
        if self._read_whole.is_set() and not self._told_end:
            return self._end()
        while not (self._read_whole.is_set() or self.gone.is_set()):
            try:
                if self._h11.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    await self._connection.write(self._h11.send(go_on) or b"")
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    self._h11.receive_data(await self._connection.read())
                    continue
            except (*_GONE, _WriteLateError, h11.RemoteProtocolError):
                self.gone.set()
                break
            match event:
                case h11.Data():
                    return {"type": "http.request", "body": bytes(event.data), "more_body": True}
                case h11.EndOfMessage():
                    self._read_whole.set()
                    return self._end()
                case _:
                    self.gone.set()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    def _end(self) -> Message:
        self._told_end = True
        return {"type": "http.request", "body": b"", "more_body": False}

    @property
    def is_asked(self) -> bool:
        """Whether the request is here, with its body."""
        return self._read_whole.is_set()

    async def _watch(self) -> None:
        """Notice that the client goes away while it is answered.

        What it sends meanwhile is its next request, of which only so much is kept unread.
        """
        await self._read_whole.wait()
        kept = 0
        while kept <= READ_BYTES:
            try:
                data = await self._connection.read()
            except _GONE:
                data = b""
            if not data:
                self.gone.set()
                return
            kept += len(data)
            self._h11.receive_data(data)
        self.gone.set()  # it does not wait for its answer, and could not be seen to go any more

    # ---- what it is sent -------------------------------------------------------------------------

    async def _send(self, message: Message) -> None:
        if self.gone.is_set() or self._done:
            # What nobody waits for goes nowhere; one that has much of it must hear that it is over.
            await trio.lowlevel.checkpoint()
            return
        match message["type"]:
            case "http.response.start":
                self._start = message
            case "http.response.body":
                more = message.get("more_body", False)
                try:
                    await self._connection.write(self._encoded(message.get("body", b""), more))
                except _GONE:
                    self.gone.set()
                except _WriteLateError:
                    self._late = True
                    self.gone.set()
                else:
                    self._done = not more

    def _encoded(self, body: bytes, more: bool) -> bytes:
        """The bytes of a part of the answer; with the first of them goes its head."""
        data = b""
        if not self._begun:
            assert self._start is not None, "a body was sent before the head of the answer"
            data = self._h11.send(self._head(body, more)) or b""
            self._begun = True
        if body and not self._bodiless:
            data += self._h11.send(h11.Data(data=body)) or b""
        if not more:
            data += self._h11.send(h11.EndOfMessage()) or b""
        return data

    def _head(self, body: bytes, more: bool) -> h11.Response:
        assert self._start is not None
        status: int = self._start["status"]
        headers = [(bytes(name), bytes(value)) for name, value in self._start.get("headers", ())]
        names = {name.lower() for name, _ in headers}
        if not (more or self._bodiless or status in _BODILESS or b"content-length" in names):
            headers.append((b"content-length", str(len(body)).encode()))
        self._bodiless = self._bodiless or status in _BODILESS
        if not self._read_whole.is_set():
            headers.append((b"connection", b"close"))
        return h11.Response(status_code=status, headers=headers, reason=_reason(status))


def _reason(status: int) -> bytes:
    """What `curl -i` and logs show beside the number."""
    return responses.get(status, "").encode()
