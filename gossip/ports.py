"""What the protocol needs from the world: a transport for frames and a store for records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NewType, Protocol

PeerId = NewType("PeerId", str)  # of the transport; never appears in a signed record
REFUSED_TOO_MUCH: Final = "too much refused"  # why a peer is disconnected, and may not come back
FRAME_BYTES_MAX = 320 * 1024  # one 256 KiB chunk and its envelope; larger frames are refused unread


class Channel(StrEnum):
    """Which stream protocol a frame travels on; each has its own budget per peer."""

    SYNC = "sync"  # heads, tables, cards, retractions: the bulk plane
    BUNDLE = "bundle"  # chunk requests and chunks
    PEERS = "peers"  # where other peers can be dialled


@dataclass(frozen=True, slots=True)
class Connected:
    """A peer can be sent frames."""

    peer: PeerId
    address: str
    inbound: bool = False  # the peer has dialled


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A peer can no longer be sent frames; what was in flight may or may not have arrived."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Arrived:
    """A frame came from a peer. channel is None on the urgent plane (broadcast)."""

    peer: PeerId
    channel: Channel | None
    frame: bytes


TransportEvent = Connected | Disconnected | Arrived


class Transport(Protocol):
    """Carries frames. What a peer does wrong is counted and blamed on it, never raised.

    Frames on one channel to one peer arrive in order or not at all; `send` may drop.
    """

    def peer_id(self) -> PeerId: ...

    def addresses(self) -> list[str]:
        """Where this node can be dialled, as multiaddrs ending in /p2p/PEER."""
        ...

    async def send(self, peer: PeerId, channel: Channel, frame: bytes) -> bool:
        """Queue a frame; False if the peer is gone or its queue stays full."""
        ...

    async def broadcast(self, frame: bytes) -> None:
        """Put a frame on the urgent plane: a hint to all, a guarantee to none."""
        ...

    async def next_event(self) -> TransportEvent:
        """Wait for the next event."""
        ...

    async def disconnect(self, peer: PeerId, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Record:
    """One durable row of the replica. The key is unique within its table."""

    table: str  # "key", "head", "index", "card", "usage", "retract", "fork", "own"
    key: bytes
    value: bytes


class Store(Protocol):
    """Keeps records. After `write` returns with durable=True they survive any crash."""

    def load(self) -> Sequence[Record]:
        """All records, ordered by (table, key)."""
        ...

    def write(
        self, puts: Sequence[Record], deletes: Sequence[tuple[str, bytes]], *, durable: bool
    ) -> None:
        """Apply all of it or nothing."""
        ...
