"""A hostile peer made by hand: valid frames of every protocol that a node speaks, mutated.

It shakes hands by py-libp2p's Noise and then writes what it likes, with a fresh name for each
connection, and connects again as often as it is let.
"""

from __future__ import annotations

import itertools
import os
import struct
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import support_wire
import trio

from gossip import libp2p_fence as fence
from gossip.wire import BundleMessage, Peers, PeersGet, SyncMessage, encode

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from libp2p.io.trio import TrioTCPStream
    from libp2p.network.connection.raw_connection import RawConnection
    from libp2p.pubsub.pb import rpc_pb2
    from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX
    from libp2p.transport.upgrader import TransportUpgrader

GREETING = b"\x13/multistream/1.0.0\n"
DATA, CREDIT, PING, GO_AWAY = 0, 1, 2, 3
SYN, ACK, FIN, RST = 1, 2, 4, 8
_PATIENCE_S = 2.0  # for one connection to be made
_STALL_S = 0.1  # a mangled handshake may leave both ends waiting
_FRAMES_A_STREAM = 8  # a mutated frame mostly ends its stream


@dataclass(slots=True)
class Offered:
    """What came of an attack."""

    frames: int = 0
    connections: int = 0
    refused: int = 0  # connections that were not let in
    ends: Counter[str] = field(default_factory=Counter)  # of connections, by the error


@dataclass(frozen=True, slots=True)
class Target:
    host: str
    port: int
    peer_id: Any


def target_of(address: str) -> Target:
    parts = address.split("/")
    return Target(parts[2], int(parts[4]), fence.peer_of(address))


# ---- frames --------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def yamux(kind: int, flags: int, stream: int, length: int, data: bytes = b"") -> bytes:
    return struct.pack("!BBHII", 0, kind, flags, stream, length) + data


def framed(frame: bytes) -> bytes:
    return struct.pack(">I", len(frame)) + frame


def said(word: bytes) -> bytes:
    """One word of multistream-select."""
    return varint(len(word) + 1) + word + b"\n"


def flipped(chance: Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    """Return the frame with a few faults: bits, boundary numbers, parts cut or repeated."""
    data = bytearray(frame)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + 1] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF))])
            case 2:
                data[at : at + 4] = chance.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)))
            case 3:
                del data[at : at + chance.randrange(1, 40)]
            case 4:
                data[at:at] = chance.randbytes(chance.randrange(1, 40))
            case 5:
                data[at:at] = data[at : at + chance.randrange(1, 200)] * chance.randrange(1, 5)
            case _:
                other = chance.choice(others)
                data[at:] = other[chance.randrange(len(other) + 1) :]
    return bytes(data)


def _signed(pair: Any, data: bytes) -> Any:
    topic, sender = fence.URGENT_TOPIC, fence.ID.from_pubkey(pair.public_key).to_bytes()
    message = rpc_pb2.Message(data=data, topicIDs=[topic], from_id=sender, seqno=os.urandom(8))
    text = PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString()
    message.signature = pair.private_key.sign(text)
    message.key = pair.public_key.serialize()
    return message


def rpcs(pair: Any) -> list[bytes]:
    """Sound frames of gossipsub, one of each kind."""
    topic, names = fence.URGENT_TOPIC, [os.urandom(20) for _ in range(5)]
    hello = rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic)
    control = rpc_pb2.ControlMessage
    parts = [
        rpc_pb2.RPC(subscriptions=[hello]),
        rpc_pb2.RPC(publish=[_signed(pair, os.urandom(40)) for _ in range(3)]),
        rpc_pb2.RPC(control=control(ihave=[{"topicID": topic, "messageIDs": names}])),
        rpc_pb2.RPC(control=control(iwant=[{"messageIDs": names}])),
        rpc_pb2.RPC(control=control(graft=[{"topicID": topic}])),
        rpc_pb2.RPC(control=control(prune=[{"topicID": topic, "backoff": 60}])),
    ]
    blobs = [part.SerializeToString() for part in parts]
    return [varint(len(blob)) + blob for blob in blobs]


def _frames_of(union: Any) -> list[bytes]:
    return [blob for kind, blob in support_wire.encodings() if kind in (union, *union.__args__)]


_SYNC, _BUNDLE = _frames_of(SyncMessage), _frames_of(BundleMessage)
_PEERS = [encode(PeersGet(8)), encode(Peers(()))]
_GREETINGS = [GREETING + said(b"/noise"), GREETING + said(b"ls"), GREETING, said(b"/noise")]
_YAMUX = [
    yamux(CREDIT, SYN, 1, 0),
    yamux(DATA, SYN, 3, len(GREETING), GREETING),
    yamux(DATA, 0, 1, len(GREETING), GREETING),
    *(yamux(CREDIT, flag, 1, 0) for flag in (FIN, RST, ACK, 0)),
    *(yamux(PING, flag, 0, 7) for flag in (SYN, ACK)),
    yamux(DATA, FIN, 3, 0),
    yamux(GO_AWAY, 0, 0, 0),
]


def _own(frames: list[bytes]) -> Callable[[Random, Any], bytes]:
    def make(chance: Random, pair: Any) -> bytes:
        frame = chance.choice(frames)
        if chance.random() < 0.2:
            return flipped(chance, framed(frame), frames)  # its length may be wrong
        mutated = support_wire.mutated(chance, frame, frames)
        return framed(mutated) if 0 < len(mutated) <= 300_000 else framed(frame)

    return make


def _rpc(chance: Random, pair: Any) -> bytes:
    frames = rpcs(pair)
    blob = flipped(chance, chance.choice(frames), frames)
    return blob if chance.random() < 0.2 else varint(len(blob)) + blob


def _any_of(frames: list[bytes]) -> Callable[[Random, Any], bytes]:
    return lambda chance, pair: flipped(chance, chance.choice(frames), frames)


# What is spoken over a stream: its protocol, and what makes a mutated frame.
STREAMS: dict[str, tuple[bytes, Callable[[Random, Any], bytes]]] = {
    "select": (b"", _any_of([*_GREETINGS, GREETING + said(b"/groove/sync/1")])),
    "identify": (b"/ipfs/id/1.0.0", _any_of([b"\x0a\x24" + bytes(36), b"\x12\x08" + bytes(8)])),
    "push": (b"/ipfs/id/push/1.0.0", _any_of([b"\x0a\x24" + bytes(36), b"\x12\x08" + bytes(8)])),
    "ping": (b"/ipfs/ping/1.0.0", _any_of([bytes(range(32))])),
    "pubsub": (b"/meshsub/1.1.0", _rpc),
    "sync": (b"/groove/sync/1", _own(_SYNC)),
    "bundle": (b"/groove/bundle/1", _own(_BUNDLE)),
    "peers": (b"/groove/peers/1", _own(_PEERS)),
}
PROTOCOLS = ("multistream", "noise", "yamux", *STREAMS)


# ---- connections ---------------------------------------------------------------------------------


@asynccontextmanager
async def tcp(target: Target, source: str) -> AsyncIterator[trio.SocketStream]:
    """A connection from an address of this machine: an attacker has one of its own."""
    socket = trio.socket.socket()
    with socket:
        await socket.bind((source, 0))
        await socket.connect((target.host, target.port))
        yield trio.SocketStream(socket)


class Mangled(RawConnection):  # type: ignore[misc]
    """A raw connection on which the n-th write of a handshake goes out mutated."""

    def __init__(self, inner: Any, chance: Random, nth: int) -> None:
        super().__init__(inner, True)
        self._chance, self._left = chance, nth

    async def write(self, data: bytes) -> None:
        self._left -= 1
        await super().write(flipped(self._chance, data, [data]) if not self._left else data)


async def shake(raw: Any, target: Target, pair: Any) -> Any:
    """Return the connection secured by Noise, and on Yamux."""
    noise = fence.NoiseTransport(pair, noise_privkey=fence.x25519_pair().private_key)
    upgrader = TransportUpgrader({fence.NOISE: noise}, {fence.YAMUX_PROTOCOL: object})
    secure = await upgrader.upgrade_security(raw, True, target.peer_id)
    await upgrader.muxer_multistream.select_transport(secure)
    return secure


async def _drained(read: Callable[[], Awaitable[bytes]], scope: trio.CancelScope) -> None:
    """Take what the node sends, so that it is never held up, until it ends the connection."""
    with suppress(Exception):
        while await read():
            pass
    scope.cancel()


Write = Callable[[bytes], Awaitable[None]]


async def _over_stream(
    protocol: str, chance: Random, pair: Any, write: Write, offered: Offered, frames_max: int
) -> None:
    """Open stream after stream, each with a few mutated frames."""
    name, make = STREAMS[protocol]
    opening = GREETING + said(name) if name else b""
    for stream in itertools.count(1, 2):
        data = opening + b"".join(make(chance, pair) for _ in range(_FRAMES_A_STREAM))
        await write(yamux(CREDIT, SYN, stream, 0))
        for at in range(0, len(data), 60_000):
            part = data[at : at + 60_000]
            await write(yamux(DATA, 0, stream, len(part), part))
        await write(yamux(CREDIT, chance.choice((FIN, FIN, RST)), stream, 0))
        offered.frames += _FRAMES_A_STREAM
        if offered.frames >= frames_max:
            return


async def _one_connection(
    protocol: str, target: Target, chance: Random, source: str, offered: Offered, frames_max: int
) -> None:
    pair = fence.ed25519_pair()
    async with tcp(target, source) as stream, trio.open_nursery() as nursery:
        end = nursery.cancel_scope
        if protocol == "multistream":
            nursery.start_soon(_drained, stream.receive_some, end)
            for _ in range(_FRAMES_A_STREAM):
                await stream.send_all(flipped(chance, chance.choice(_GREETINGS), _GREETINGS))
                offered.frames += 1
            await trio.sleep(0.01)
        elif protocol == "noise":
            raw = Mangled(TrioTCPStream(stream), chance, chance.randrange(2, 7))
            offered.frames += 1
            with trio.move_on_after(_STALL_S):
                await shake(raw, target, pair)
        else:
            with trio.fail_after(_PATIENCE_S):
                secure = await shake(RawConnection(TrioTCPStream(stream), True), target, pair)
            offered.connections += 1
            nursery.start_soon(_drained, secure.read, end)
            await _talk(protocol, chance, pair, secure.write, offered, frames_max)
        end.cancel()


async def _talk(
    protocol: str, chance: Random, pair: Any, write: Write, offered: Offered, frames_max: int
) -> None:
    if protocol != "yamux":
        await _over_stream(protocol, chance, pair, write, offered, frames_max)
        return
    while offered.frames < frames_max:
        sound = chance.random() < 0.5  # so that streams are there to go wrong
        frame = chance.choice(_YAMUX)
        await write(frame if sound else flipped(chance, frame, _YAMUX))
        offered.frames += 1


async def bombard(
    protocol: str,
    address: str,
    *,
    seed: int,
    frames: int,
    seconds: float,
    source: str = "127.0.0.1",
) -> Offered:
    """Offer so many mutated frames in that time, connecting again as often as the node lets."""
    offered, target = Offered(), target_of(address)
    chance = Random(f"{protocol}/{seed}")
    with trio.move_on_after(seconds):
        while offered.frames < frames:
            before = offered.frames
            try:
                await _one_connection(protocol, target, chance, source, offered, frames)
            except (Exception, BaseExceptionGroup) as error:
                while isinstance(error, BaseExceptionGroup):
                    error = error.exceptions[0]
                if isinstance(error, trio.Cancelled):
                    raise
                offered.ends[type(error).__name__] += 1
            if offered.frames == before:
                offered.refused += 1
                await trio.sleep(0.02)
            await trio.lowlevel.checkpoint()
    return offered
