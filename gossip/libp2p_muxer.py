"""Yamux with the limits that py-libp2p announces and does not enforce.

py-libp2p 0.8.1 logs a peer that sends beyond its window and keeps the bytes; opens as many
streams as a peer asks for; and notices a frozen peer only by opening a stream to it. Here every
header is looked at before its frame is read: what breaks a limit ends the connection and is
blamed on the peer, and small frames beyond a rate are read no faster than that rate.
"""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import trio

from .transport_config import TransportConfig

with warnings.catch_warnings():
    # libp2p's own use of deprecated parts of its dependencies, at import; not ours to mend.
    warnings.simplefilter("ignore")
    from libp2p.stream_muxer.yamux import yamux
    from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

log = logging.getLogger(__name__)

Blame = Callable[[Any, str], None]  # (libp2p's id of the peer, a fixed phrase)

YAMUX_PROTOCOL: Final = yamux.PROTOCOL_ID
_HEADER = struct.Struct(yamux.YAMUX_HEADER_FORMAT)
# The window of a stream that is read fast doubles up to this; libp2p would give it 16 MiB.
_WINDOW_BYTES_MAX: Final = 1024 * 1024
_WINDOW_SLACK: Final = yamux.DEFAULT_WINDOW_SIZE  # libp2p's own counting is out by a frame or two
_UNREAD_BYTES_MAX: Final = 4 * 1024 * 1024  # of one connection: three full windows, and a bit
_SMALL_FRAMES_PER_S: Final = 400.0
_SMALL_FRAMES_BURST: Final = 2000.0
_LARGE_FRAME_BYTES: Final = 16 * 1024  # data from here on, and credit for as much, is free
_STRAY_COST_BYTES: Final = 1024  # of data for a stream that is gone, as much as a small frame
_ABORT_S: Final = 2.0
_SYN_COST: Final = 8.0  # a stream opened costs as much as that many small frames

yamux.MAX_WINDOW_SIZE = _WINDOW_BYTES_MAX


def _grant_half_windows() -> None:
    """Grant a peer more to send when it has sent half a window, and not with every read: that is
    a packet for each small frame, half of what an idle node sends."""
    grant = YamuxStream._auto_tune_and_send_window_update

    async def grant_half(self: Any, *, bytes_read: int = 0) -> None:
        if bytes_read and self._pending_recv_release + bytes_read < self._grow_threshold():
            self._pending_recv_release += bytes_read
            return
        await grant(self, bytes_read=bytes_read)

    YamuxStream._auto_tune_and_send_window_update = grant_half


_grant_half_windows()


class MuxerError(Exception):
    """The peer broke a limit. `reason` is a fixed phrase, to be counted by."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unread:
    """Bytes of all connections that have arrived and have not been read by anyone here."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._muxers: dict[GuardedYamux, int] = {}
        self._bytes = 0

    def note(self, muxer: GuardedYamux, unread: int) -> None:
        self._bytes += unread - self._muxers.get(muxer, 0)
        self._muxers[muxer] = unread

    def drop(self, muxer: GuardedYamux) -> None:
        self._bytes -= self._muxers.pop(muxer, 0)

    def worst(self) -> GuardedYamux | None:
        """Return the connection that holds most, if all together hold too much."""
        if self._bytes <= self._bytes_max:
            return None
        for muxer in list(self._muxers):
            self.note(muxer, muxer.unread())  # some have been read since
        if self._bytes <= self._bytes_max:
            return None
        return max(self._muxers, key=lambda muxer: self._muxers[muxer])


class _Inspected:
    """A secured connection whose incoming bytes are inspected frame by frame.

    The muxer reads a header by one read of twelve bytes, and then a frame's body by another. A read
    that gave less, or that failed and was followed by one more, would put it out of step with what
    is counted here, and from then on no header would be seen. So whatever fails is final, and a
    message of Noise without a word in it, which ends libp2p's reads early, is a fault.
    """

    def __init__(
        self,
        conn: Any,
        heard: Callable[[], None],
        inspect: Callable[[bytes], float],
        blame: Callable[[MuxerError], None],
    ) -> None:
        self._conn = conn
        self._heard = heard
        self._inspect = inspect
        self._blame = blame
        self._body_left = 0
        self._failed = False
        self._read_message = conn.conn.read_msg
        conn.conn.read_msg = self._read_words

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)

    async def read(self, n: int) -> bytes:
        if self._failed:
            raise MuxerError("read after a fault")
        self._failed = True  # until this read has come to its end
        data: bytes = await self._conn.read(n)
        self._heard()
        wait_s = self._count(data, n)
        self._failed = False
        if wait_s > 0.0:
            await trio.sleep(wait_s)  # and the kernel's buffers make the peer wait
        return data

    def _count(self, data: bytes, wanted: int) -> float:
        """Return how long to wait before what was read is dealt with. Raises MuxerError."""
        fits = wanted <= self._body_left if self._body_left else wanted == _HEADER.size
        if len(data) != wanted or not fits:
            raise MuxerError("muxer out of step")
        if self._body_left:
            self._body_left -= wanted
            return 0.0
        wait_s = self._inspect(data)
        _, kind, _, _, length = _HEADER.unpack(data)
        self._body_left = length if kind == yamux.TYPE_DATA else 0
        return wait_s

    async def _read_words(self) -> bytes:
        message: bytes = await self._read_message()
        if not message:
            error = MuxerError("empty message of Noise")
            self._blame(error)
            raise error
        return message


class GuardedYamux(Yamux):  # type: ignore[misc]
    """One connection's muxer, within limits."""

    def __init__(
        self, conn: Any, peer_id: Any, config: TransportConfig, unread: Unread, blame: Blame
    ) -> None:
        inspected = _Inspected(conn, self._note, self._inspect, self._at_fault)
        super().__init__(inspected, peer_id, is_initiator=conn.is_initiator)
        self._config = config
        self._unread = unread
        self._blame = blame
        self._tokens: float = _SMALL_FRAMES_BURST
        self._tokens_at = trio.current_time()
        self._heard = trio.Event()
        self.heard_at: float = trio.current_time()

    def unread(self) -> int:
        return sum(map(len, self.stream_buffers.values()))

    async def abort(self) -> None:
        """End the connection without a word: one that does not read could not be told."""
        with suppress(Exception):
            await self.secured_conn.close()
        with trio.move_on_after(_ABORT_S):
            await self._cleanup_on_error()

    def give_up(self) -> None:
        """Abort in a task of its own: whoever finds the fault may hold locks that it needs."""
        if self._nursery is not None and not self.event_shutting_down.is_set():
            self._nursery.start_soon(self._abort_to_the_end)

    async def _abort_to_the_end(self) -> None:
        # The reader, who is done at once, would cancel it before the host is told.
        with trio.CancelScope(shield=True):
            await self.abort()

    async def answers(self, wait_s: float) -> bool:
        """Ping the peer; whether anything at all comes from it in time."""
        heard = self._heard = trio.Event()
        with trio.move_on_after(wait_s):
            ping = _HEADER.pack(0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, 0)
            await self._write_frame(ping)
            await heard.wait()
        return heard.is_set()

    async def _write_frame(self, data: bytes) -> None:
        """Give up a connection that cannot be written to. libp2p leaves that to the reader, and he
        may be busy for a while with what came before the end, no faster than it is read."""
        try:
            await super()._write_frame(data)
        except Exception:
            self.give_up()
            raise

    async def _measure_rtt_loop(self) -> None:
        """Give up a peer that is frozen: silent, and without an answer to two pings.

        It runs in the place of libp2p's loop, which pings whatever has been heard, and in vain.
        """
        while True:
            silent_s = trio.current_time() - self.heard_at
            if silent_s < self._config.health_check_s:
                await trio.sleep(self._config.health_check_s - silent_s)
                continue
            # Twice: after a standstill of this process a deadline ends before anything is read.
            if await self.answers(self._config.health_answer_s):
                continue
            if await self.answers(self._config.health_answer_s):
                continue
            self._blame(self.peer_id, "silent and does not answer")
            self.give_up()
            return

    async def start(self) -> None:
        try:
            await super().start()
        except Exception as error:
            # It runs as a task of the host, which would end with it.
            log.info("connection failed peer=%s error=%r", self.peer_id, error)
            await self.abort()
        finally:
            self._unread.drop(self)

    # ---- what each header must pass ------------------------------------------------------------

    def _note(self) -> None:
        self.heard_at = trio.current_time()
        self._heard.set()

    def _at_fault(self, error: MuxerError) -> None:
        self._blame(self.peer_id, error.reason)

    def _inspect(self, header: bytes) -> float:
        """Return how long to wait before the frame is dealt with. Raises MuxerError."""
        try:
            cost = self._cost(header)
        except MuxerError as error:
            self._at_fault(error)
            raise
        self._tokens += (self.heard_at - self._tokens_at) * _SMALL_FRAMES_PER_S
        self._tokens = min(self._tokens, _SMALL_FRAMES_BURST) - cost
        self._tokens_at = self.heard_at
        return max(0.0, -self._tokens / _SMALL_FRAMES_PER_S)

    def _cost(self, header: bytes) -> float:
        """Return what a frame costs of its sender's budget of small frames."""
        version, kind, flags, stream_id, length = _HEADER.unpack(header)
        if version != 0 or kind > yamux.TYPE_GO_AWAY:
            raise MuxerError("muxer frame of no known kind")
        if flags & yamux.FLAG_SYN and kind in (yamux.TYPE_DATA, yamux.TYPE_WINDOW_UPDATE):
            self._may_open(stream_id)
            if kind == yamux.TYPE_DATA:
                self._may_send(stream_id, length)
            return _SYN_COST
        if kind == yamux.TYPE_DATA:
            self._may_send(stream_id, length)
            if stream_id not in self.streams:
                return 1.0 + float(length) / _STRAY_COST_BYTES
            return 0.0 if length >= _LARGE_FRAME_BYTES else 1.0
        if kind == yamux.TYPE_WINDOW_UPDATE:
            stream = self.streams.get(stream_id)
            wanted = stream is not None and bool(stream.send_window < _WINDOW_BYTES_MAX * 16)
            return 0.0 if wanted and length >= _LARGE_FRAME_BYTES else 1.0
        return 1.0

    def _may_open(self, stream_id: int) -> None:
        # Odd ids belong to who made the connection.
        if stream_id == 0 or (stream_id % 2 == 1) is self.is_initiator_value:
            raise MuxerError("muxer stream of our own numbers")
        if len(self.streams) >= self._config.streams_max:
            raise MuxerError("too many streams")

    def _may_send(self, stream_id: int, length: int) -> None:
        """Refuse what would be kept beyond the stream's, the connection's or our own bound."""
        stream = self.streams.get(stream_id)
        window = yamux.DEFAULT_WINDOW_SIZE if stream is None else stream.target_recv_window
        held = len(self.stream_buffers.get(stream_id, b""))
        if held + length > window + _WINDOW_SLACK:
            raise MuxerError("data beyond the window")
        unread = self.unread() + length
        if unread > _UNREAD_BYTES_MAX:
            raise MuxerError("unread data beyond the connection's bound")
        self._unread.note(self, unread)
        worst = self._unread.worst()
        if worst is self:
            raise MuxerError("unread data beyond all connections' bound")
        if worst is not None:
            self._blame(worst.peer_id, "unread data beyond all connections' bound")
            self._unread.drop(worst)
            worst.give_up()
