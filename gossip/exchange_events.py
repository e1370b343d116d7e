"""What can happen to a bundle exchange and what it can order: the door of `exchange.Exchange`.

Every event carries the time in seconds, by any clock that never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from .ports import PeerId
from .wire import CHUNK_BYTES

Bytes = Annotated[int, Meta(ge=CHUNK_BYTES, le=1 << 50)]  # less would let no chunk pass
Share = Annotated[int, Meta(ge=1, le=1000)]


class ExchangeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How bundles are fetched and served."""

    bundle_bytes_max: int = 200_000_000  # a card that says more is not fetched
    peers_max: int = 4  # asked for chunks of one bundle at a time
    in_flight_max: int = 4  # chunks asked of one peer at a time; more, once half have come
    endgame_chunks: int = 8  # of these last ones, one that is late is asked of a second peer
    endgame_after_s: float = 2.0  # "late"; sooner would fetch much twice
    stall_s: float = 15.0  # without a chunk from a peer that owes some
    strikes_max: int = 2  # stalls, then the peer is left out of this fetch
    blob_s: float = 5.0  # for a chunk list or a label, then its turn is over
    blob_next_s: float = 0.5  # without an answer, then another peer is asked besides
    holders_max: int = 256  # met in one fetch: twice what may be connected; then only who gave some
    questions_max: int = 1024  # in one fetch, and four more for each chunk
    patience_s: float = 30.0  # without any holder connected, then the fetch fails
    # What peers cannot stretch; time that is not theirs is not counted (`patience`).
    idle_s_max: float = 120.0  # without a list or a new chunk
    bytes_s_least: float = 20_000.0  # a fetch of so many must have so many seconds...
    spare_s: float = 300.0  # ...and these besides
    bytes_s_max: Bytes = 1_000_000  # in each direction, of what goes on for long
    burst_bytes: Bytes = 64_000_000  # that may come at once: a leaf and its control, and to spare
    bytes_night_max: Bytes = 200_000_000  # in each direction and 24 hours
    # One peer is sent no more than one part in so many of what is left of a night, or a stranger
    # would have it all; of a whole night's that is still a leaf and its control.
    night_share: Share = 3
    upload_slots: int = 4  # chunks read from disk at a time, for all peers
    upload_queue_max: int = 8  # chunks one peer may have asked for and not got
    tick_s: float = 0.5


# Events -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HolderUp:
    """A peer is connected; whether it holds anything is found out by asking."""

    peer: PeerId
    now: float


@dataclass(frozen=True, slots=True)
class HolderDown:
    peer: PeerId
    now: float


@dataclass(frozen=True, slots=True)
class FrameIn:
    """A frame of the bundle channel."""

    peer: PeerId
    frame: bytes
    now: float


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the bundle of this root and size, both from a signed card. holders None: ask anyone.

    by_hand: the owner waits for it, so it is held to no budget.
    """

    root: bytes
    size_bytes: int
    holders: frozenset[PeerId] | None
    now: float
    by_hand: bool = False


@dataclass(frozen=True, slots=True)
class FetchBlob:
    """Get the bytes whose SHA-256 this is: a label."""

    root: bytes
    holders: frozenset[PeerId] | None
    now: float


@dataclass(frozen=True, slots=True)
class PartChecked:
    """Answers `CheckPart`: these chunks are on disk and have the right hash."""

    root: bytes
    good: frozenset[int]
    now: float


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop fetching; what is on disk stays for the next time."""

    root: bytes
    reason: str
    now: float


@dataclass(frozen=True, slots=True)
class HoldFetching:
    """Ask for nothing more, or go on, in all fetches but those that the owner waits for. What was
    asked for may still come, and while on no fetch fails for want of holders."""

    on: bool
    now: float


@dataclass(frozen=True, slots=True)
class HoldServing:
    """Say of every bundle that it is not here, or go on serving."""

    on: bool
    now: float


@dataclass(frozen=True, slots=True)
class Serve:
    """From now on answer for this root. data: the chunk list or label whose SHA-256 it is.

    chunks: how many the bundle has, 0 for a label.
    """

    root: bytes
    data: bytes
    chunks: int


@dataclass(frozen=True, slots=True)
class StopServing:
    root: bytes


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """Answers `ReadChunk`; data is None if it could not be read."""

    peer: PeerId
    root: bytes
    index: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Tick:
    """Answers `WakeAfter`."""

    now: float


ExchangeEvent = (
    HolderUp
    | HolderDown
    | FrameIn
    | Fetch
    | FetchBlob
    | PartChecked
    | Abandon
    | HoldFetching
    | HoldServing
    | Serve
    | StopServing
    | ChunkRead
    | Tick
)


# Effects ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Send a frame on the bundle channel."""

    peer: PeerId
    frame: bytes


@dataclass(frozen=True, slots=True)
class CheckPart:
    """Hash what is on disk of this bundle against its chunks' hashes, 32 bytes each; make room
    for the whole of it; answer with `PartChecked`."""

    root: bytes
    size_bytes: int
    hashes: bytes


@dataclass(frozen=True, slots=True)
class StoreChunk:
    """Write a chunk, whose hash is right, at index * CHUNK_BYTES."""

    root: bytes
    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """Every chunk has been given to `StoreChunk` or was on disk before."""

    root: bytes
    chunk_list: bytes
    sources: dict[PeerId, int]  # bytes of the bundle that came from each peer
    resumed_bytes: int  # that were on disk before


@dataclass(frozen=True, slots=True)
class BlobArrived:
    root: bytes
    data: bytes
    source: PeerId


@dataclass(frozen=True, slots=True)
class Failed:
    """The fetch is over; what was stored stays."""

    root: bytes
    reason: str  # a fixed phrase


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """A peer sent what cannot be accepted; count it and blame the peer."""

    peer: PeerId
    reason: str  # a fixed phrase


@dataclass(frozen=True, slots=True)
class ReadChunk:
    """Read a chunk for a peer; answer with `ChunkRead`."""

    peer: PeerId
    root: bytes
    index: int


@dataclass(frozen=True, slots=True)
class WakeAfter:
    delay_s: float


ExchangeEffect = (
    SendFrame
    | CheckPart
    | StoreChunk
    | Finished
    | BlobArrived
    | Failed
    | PeerRefused
    | ReadChunk
    | WakeAfter
)
