"""Frames over the libp2p streams of one peer.

Each peer has one outbound stream for each channel, written by a task of its own from a bounded
queue, so that a peer that does not read holds up nobody; and one inbound stream for each channel,
whose frames are handed over one by one, so that a peer that sends too fast is made to wait.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from .framing import FrameError, FrameReader, length_of
from .outbox import Budget, Outbox
from .ports import FRAME_BYTES_MAX, Arrived, Channel, PeerId
from .transport_config import DialError, TransportConfig
from .wire import PEERS_FRAME_BYTES_MAX, SYNC_FRAME_BYTES_MAX

log = logging.getLogger(__name__)

PROTOCOLS = {
    Channel.SYNC: "/groove/sync/1",
    Channel.BUNDLE: "/groove/bundle/1",
    Channel.PEERS: "/groove/peers/1",
}
_FRAME_BYTES_MAX = {
    Channel.SYNC: SYNC_FRAME_BYTES_MAX,
    Channel.BUNDLE: FRAME_BYTES_MAX,
    Channel.PEERS: PEERS_FRAME_BYTES_MAX,
}
_OPEN_TRIES = 3  # then what waits for the peer on that channel is dropped
_RETRY_S = 0.3
_CLOSE_S = 5.0
# What fills one message of Noise (65,519 bytes) with Yamux's header of 12. Left to itself, Yamux
# cuts 5 bytes later, and each of its frames takes a second message and system call for the rest.
_PIECE_BYTES = 65_507
_HELD_BYTES_MAX = 16 * 1024  # of a frame's end, to go out with the next frame if that waits


@dataclass(frozen=True, slots=True)
class Shared:
    """What the streams of all peers have in common.

    counts: what was refused or dropped, by a fixed phrase. budget: of all queues together.
    take: gets each frame; while it waits, no more is read from that stream.
    spawn: runs a writer for as long as the host lives. drop: ends a peer's connections.
    blame: counts what a peer sent that is no frame.
    """

    config: TransportConfig
    counts: Counter[str]
    budget: Budget
    take: Callable[[PeerStreams, Arrived], Awaitable[None]]
    spawn: Callable[[Callable[[], Awaitable[None]]], None]
    drop: Callable[[PeerId, str], Awaitable[None]]
    blame: Callable[[PeerId, str], None]


class PeerStreams:
    """One peer's streams while it is connected. A peer that comes back gets another."""

    def __init__(self, host: Any, peer_id: Any, address: str, shared: Shared) -> None:
        self.id = peer_id
        self.peer = PeerId(str(peer_id))
        self.address = address
        self.inbound = False  # the peer has dialled
        self._host = host
        self._shared = shared
        self._moves = 0
        self._outboxes: dict[Channel, Outbox] = {}
        self._readers: dict[Channel, trio.CancelScope] = {}
        self._writers: list[trio.CancelScope] = []

    def put(self, channel: Channel, frame: bytes) -> bool:
        """Queue a frame; False if the queue is full."""
        length_of(frame)  # what is none is the caller's fault, and refused here
        outbox = self._outboxes.get(channel)
        if outbox is None:
            queue_bytes_max = self._shared.config.queue_bytes_max
            outbox = self._outboxes[channel] = Outbox(queue_bytes_max, self._shared.budget)
            self._shared.spawn(partial(self._write, channel, outbox))
        queued = outbox.put(frame)
        if not queued:
            self._shared.counts["outbox full"] += 1
        return queued

    def move(self, address: str, inbound: bool) -> None:
        """Write on over another connection to the peer: the one there was is about to end."""
        self.address, self.inbound = address, inbound
        self._moves += 1

    def end(self) -> None:
        """Drop what is queued, and stop reading and writing: the peer is gone."""
        for outbox in self._outboxes.values():
            outbox.clear()
        for scope in [*self._readers.values(), *self._writers]:
            scope.cancel()

    async def read(self, channel: Channel, stream: Any) -> None:
        """Serve one inbound stream: hand over its frames until it ends or sends what is none."""
        shared = self._shared
        if channel in self._readers:
            self._readers[channel].cancel()  # its writer has opened another
        reader = FrameReader(stream, _FRAME_BYTES_MAX[channel])
        with trio.CancelScope() as scope:
            self._readers[channel] = scope
            try:
                while True:
                    frame = await reader.next(
                        idle_s=shared.config.reader_idle_s, frame_s=shared.config.frame_s
                    )
                    if frame is None:
                        break
                    await shared.take(self, Arrived(self.peer, channel, frame))
            except FrameError as error:
                shared.blame(self.peer, error.reason)
        if self._readers.get(channel) is scope:
            del self._readers[channel]
        with trio.CancelScope(shield=True):
            await reset(stream)

    async def _write(self, channel: Channel, outbox: Outbox) -> None:
        """Write what is queued, over a stream that is opened when needed, until the peer goes."""
        config = self._shared.config
        stream: Any = None
        held = b""
        failures, moves = 0, self._moves
        with trio.CancelScope() as scope:
            self._writers.append(scope)
            while True:
                frame = await outbox.first(config.writer_idle_s)
                if frame is None or moves != self._moves:
                    await _close(stream, held)
                    stream, held, moves = None, b"", self._moves
                if frame is None:
                    continue
                try:
                    if stream is None:
                        stream = await self._open(channel)
                    outbox.drop_first()  # from here on it may have arrived, so never again
                    with trio.fail_after(config.write_s):
                        held = await _write_frame(stream, held, frame, more=outbox.waits)
                    failures = 0
                except Exception as error:  # of any kind: the fence
                    log.info("send failed peer=%s channel=%s error=%r", self.peer, channel, error)
                    failures += 1
                    if isinstance(error, trio.TooSlowError) and stream is not None:
                        # A cancelled write may have put half a Noise message on the wire.
                        await self._shared.drop(self.peer, "does not read")
                        return
                    await reset(stream)
                    stream, held = None, b""
                    if failures >= _OPEN_TRIES:
                        self._shared.counts["unsent"] += outbox.clear()
                    await trio.sleep(_RETRY_S * failures)
        # A cancelled write spoils the connection, but then the peer is gone anyhow.

    async def _open(self, channel: Channel) -> Any:
        if not self._host.is_peer_connected(self.id):
            raise DialError("connection lost")  # libp2p would dial by itself
        with trio.fail_after(self._shared.config.open_s):
            return await self._host.new_stream(self.id, [PROTOCOLS[channel]])


async def _write_frame(stream: Any, held: bytes, frame: bytes, *, more: bool) -> bytes:
    """Write what was held back and a frame; returns what is held back of it if `more` follows."""
    start, view = held + length_of(frame), memoryview(frame)
    at = _PIECE_BYTES - len(start)
    piece: bytes | memoryview = start + view[:at]
    while len(piece) > (_HELD_BYTES_MAX if more else 0):
        await stream.write(piece)
        piece = view[at : at + _PIECE_BYTES]
        at += _PIECE_BYTES
    return bytes(piece)


async def reset(stream: Any) -> None:
    """End a stream at once, in both directions; never raises, and never takes long."""
    if stream is not None:
        with trio.move_on_after(_CLOSE_S), suppress(Exception):
            await stream.reset()


async def _close(stream: Any, held: bytes) -> None:
    if stream is not None:
        with trio.move_on_after(_CLOSE_S), suppress(Exception):
            if held:
                await stream.write(held)
            await stream.close()
