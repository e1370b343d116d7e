"""Circuit relay v2 on the wire: its two messages, and a relayed stream as a connection.

A relay and its clients are strangers to each other as much as any two peers: a message has a size
limit and a deadline, and what is none is a `CircuitError` with the reason to count.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any, Final, TypeVar

import trio

from .relaying import Status

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libp2p's own imports; see `libp2p_fence`
    from google.protobuf.message import DecodeError, Message
    from libp2p.connection_types import ConnectionType
    from libp2p.io.abc import ReadWriteCloser
    from libp2p.io.exceptions import ConnectionClosedError, IOException
    from libp2p.network.connection.raw_connection import RawConnection
    from libp2p.peer.id import ID
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage as HopMessage
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import Limit, PeerId
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import Status as WireStatus
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import StopMessage as StopMessage
    from multiaddr import Multiaddr

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"  # asked of a relay
STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"  # asked by a relay
CLOSE_S: Final = 5.0
_MESSAGE_BYTES_MAX: Final = 4096  # the specification's
_ID_BYTES_MAX: Final = 64
_READ_BYTES: Final = 64 * 1024  # the muxer answers each read with a frame

M = TypeVar("M", bound=Message)


class CircuitError(Exception):
    """The other end said no, or nothing, or what makes no sense. reason: a fixed phrase."""

    def __init__(self, reason: str, status: Status | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


async def hear(stream: Any, kind: type[M], within_s: float) -> M:
    """Read one message and no byte beyond it: what follows belongs to the circuit."""
    try:
        with trio.fail_after(within_s):
            size = await _varint(stream)
            if size > _MESSAGE_BYTES_MAX:
                raise CircuitError("relay message too long")
            data = await _exactly(stream, size)
    except trio.TooSlowError:
        raise CircuitError("relay message late") from None
    except IOException:
        raise CircuitError("relay stream ended") from None
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise CircuitError("relay message malformed") from None
    return message


async def say(stream: Any, message: Message, within_s: float) -> None:
    data = message.SerializeToString()
    size = len(data)
    prefix = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    try:
        with trio.fail_after(within_s):
            await stream.write(prefix + data)
    except (trio.TooSlowError, IOException):
        raise CircuitError("relay stream ended") from None


async def _varint(stream: Any) -> int:
    """A length of at most two bytes: the longest message needs no more."""
    low = (await _exactly(stream, 1))[0]
    if low < 128:
        return low
    high = (await _exactly(stream, 1))[0]
    return low & 127 | high << 7


async def _exactly(stream: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.read(size - len(data))
        if not more:
            raise CircuitError("relay stream ended")
        data += more
    return data


def asking(target: bytes | None = None) -> HopMessage:
    """A request to a relay: to be reached through it, or to reach `target`."""
    if target is None:
        return HopMessage(type=HopMessage.RESERVE)
    return HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=target))


def granted(status: Status, expire: int = 0, addresses: tuple[bytes, ...] = ()) -> HopMessage:
    message = HopMessage(type=HopMessage.STATUS, status=WireStatus.ValueType(status))
    if expire:
        message.reservation.expire = expire
        message.reservation.addrs.extend(addresses)
    return message


def limit(seconds: float, size_bytes: int) -> Limit:
    return Limit(duration=min(int(seconds), 0xFFFFFFFF), data=size_bytes)


def calling(source: bytes, within: Limit) -> StopMessage:
    """What a relay tells the target of a circuit."""
    return StopMessage(type=StopMessage.CONNECT, peer=PeerId(id=source), limit=within)


def stopped(status: Status) -> StopMessage:
    return StopMessage(type=StopMessage.STATUS, status=WireStatus.ValueType(status))


def expect_ok(message: Any) -> None:
    """Raise CircuitError unless this is the other end's yes."""
    if message.type != type(message).STATUS:
        raise CircuitError("relay answered with no status")
    if message.status != Status.OK:
        known = message.status in set(Status)
        raise CircuitError("relay said no", Status(message.status) if known else None)


def named(message: Any) -> Any:
    """The peer that a message names. Raises CircuitError."""
    raw = bytes(message.peer.id)
    if not 0 < len(raw) <= _ID_BYTES_MAX:
        raise CircuitError("relay message malformed")
    return ID(raw)


class RelayedStream(ReadWriteCloser):  # type: ignore[misc]
    """A stream through a relay, with a socket's manners: an end is b"", a fault an IOException."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._buffer = b""
        self._closed = False

    async def read(self, n: int | None = None) -> bytes:
        if self._closed:
            raise ConnectionClosedError("relayed connection closed", transport="relay")
        if not self._buffer:
            try:
                self._buffer = await self._stream.read(_READ_BYTES)
            except IOException:
                return b""
        taken, self._buffer = self._buffer[:n], self._buffer[n:] if n is not None else b""
        return taken

    async def write(self, data: bytes) -> None:
        if self._closed:
            raise ConnectionClosedError("relayed connection closed", transport="relay")
        try:
            await self._stream.write(data)
        except IOException as error:
            raise ConnectionClosedError("relayed connection lost", transport="relay") from error

    async def close(self) -> None:
        """Reset: half a stream that the relay never ends would hold its reader for ever."""
        self._closed = True
        await reset(self._stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


def relayed_connection(stream: Any, address: str, *, initiator: bool) -> Any:
    """A raw connection, to be upgraded as one over TCP is."""
    return RawConnection(
        RelayedStream(stream),
        initiator,
        connection_type=ConnectionType.RELAYED,
        addresses=[Multiaddr(address)],
    )


def is_relayed(connection: Any) -> bool:
    """True of a swarm's connection, or a stream's muxed one, that goes through a relay."""
    try:
        return bool(connection.get_connection_type() == ConnectionType.RELAYED)
    except Exception:  # of any kind: a connection that is going down
        return False


async def reset(stream: Any) -> None:
    """Reset a stream, and wake who reads it: the muxer would leave him waiting for ever."""
    muxed = stream.muxed_stream
    events = muxed.conn.stream_events
    waiting = events.get(muxed.stream_id)
    with trio.move_on_after(CLOSE_S), suppress(Exception):
        await stream.reset()
    if waiting is not None:
        waiting.set()
        for _ in range(2):  # the tick in which he wakes, whoever comes first in it
            await trio.sleep(0)
        events.pop(muxed.stream_id, None)  # the reader has put another there


async def close(stream: Any) -> None:
    """End our half in order, so that the other end reads what was said last."""
    with trio.move_on_after(CLOSE_S), suppress(Exception):
        await stream.close()
