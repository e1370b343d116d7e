"""Every structure that may cross the network, with its size limit: the whole list of what leaves.

A value is a MessagePack array, its fields in the order of the class. There is one encoding of each
value, and no other is accepted: no maps, floats, booleans, extensions or trailing bytes; nil only
where a field is optional; integers in their shortest form. Real numbers are integers with a scale.

Two families live here. *Signed* structures (`Head`, `Retract`, `KeyDoc`) say something for ever and
are opened by `envelope`; `Card`, `Usage` and the rows of `Index` are vouched for by the hashes in a
head. *Messages* are what peers say to each other now; the first item of a message is its type.

Of the machine itself one thing leaves: an `AddressRecord` with the addresses at which this node is
listening or reserved at a relay, signed by the key that it dials with, never by its origin's. It
goes to those it is linked with, who may pass it on for a week; addresses of a local network go no
further than that network. `introduced = false` under [mesh.transport] keeps it back.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from itertools import pairwise
from typing import Annotated, Any, Final, TypeVar

from msgspec import Meta, Struct

from . import canonical
from .canonical import ITEMS_MAX
from .canonical import WireError as WireError
from .canonical import encode as encode

KIB: Final = 1024
SYNC_FRAME_BYTES_MAX: Final = 64 * KIB  # one message of the bulk or urgent plane
BUNDLE_FRAME_BYTES_MAX: Final = 320 * KIB  # one chunk and its header
CHUNK_BYTES: Final = 256 * KIB
CHUNKS_MAX: Final = 1024  # so a bundle is at most 256 MiB
TABLE_ROWS_MAX: Final = 1024  # live and ended together
INDEX_BYTES_MAX: Final = 60 * KIB  # so that an index always travels in one message
USAGE_ROWS_MAX: Final = 256
RETRACTS_MAX: Final = 1024  # of one origin; one more retracts all of it
EPOCH_MAX: Final = 255  # epochs are one a quarter: 63 years
BLOB_BYTES_MAX: Final = 64 * KIB  # a chunk list or a label
PEERS_FRAME_BYTES_MAX: Final = 24 * KIB  # one message of the peers channel
ADDRESS_BYTES_MAX: Final = 256
RECORDS_MAX: Final = 16  # told in one answer

Q: Final = 10_000  # scale of every `_q`: a field of 12,345 means 1.2345
CENTROID_SCALE: Final = 127  # a centroid's component of 127 means 1.0, before it is made unit again
HOUR_S: Final = 3600  # every `_h` counts hours since 1970

Bytes8 = Annotated[bytes, Meta(min_length=8, max_length=8)]
Bytes16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Bytes64 = Annotated[bytes, Meta(min_length=64, max_length=64)]
Centroid = Annotated[bytes, Meta(min_length=384, max_length=384)]  # int8, two's complement
Byte = Annotated[int, Meta(ge=0, le=0xFF)]
UInt32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
Int32 = Annotated[int, Meta(ge=-0x8000_0000, le=0x7FFF_FFFF)]
UInt63 = Annotated[int, Meta(ge=0, le=0x7FFF_FFFF_FFFF_FFFF)]
Epoch = Annotated[int, Meta(ge=1, le=EPOCH_MAX)]
Log2 = Annotated[int, Meta(ge=0, le=63)]  # 0 means none, k means [2**(k-1), 2**k)
Many = Meta(max_length=ITEMS_MAX)

ZERO8: Final = bytes(8)
ZERO32: Final = bytes(32)  # "none" where a hash is expected


class Stage(IntEnum):
    """Of a live leaf; a leaf that is not live is in the index's `ended`."""

    SEED = 1
    SPROUT = 2
    MATURE = 3


class Op(IntEnum):
    """How this version of a leaf came to be."""

    BIRTH = 1
    SPLIT = 2
    MERGE = 3
    REVIVE = 4
    ADOPT = 5  # grown from another origin's leaf


class Reason(IntEnum):
    """Why a leaf ended."""

    DORMANT = 1
    REGRESSED = 2
    MERGED = 3
    SUPERSEDED = 4
    DISSOLVED = 5  # a seed whose cluster went away


class Flag(IntFlag):
    """Of a head."""

    MATURE_CHANGED = 1  # worth the urgent plane


class Scope(IntEnum):
    """Which consent a retraction withdraws."""

    PUBLISH = 1
    TRAIN = 2
    CAPTURE = 3


class Format(IntEnum):
    """Of a bundle's file."""

    LORA_SAFETENSORS = 1


class EvalSet(IntEnum):
    """What a score was measured on; scores are nats per completion token, times Q."""

    HELD_OUT_LOSS = 1  # the owner's held-out sessions; lower is better
    GAIN_OVER_PARENT = 2  # mean paired gain, higher is better; so are the next two
    GAIN_OVER_STYLE = 3
    GAIN_LOW = 4  # lower 95 % bound of the gain over the parent
    GENERAL_RISE = 5  # upper 95 % bound of the loss increase on other text; lower is better


class Wire(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What all structures share: frozen, an array on the wire, nothing beyond the last field."""


# Signed for ever ----------------------------------------------------------------------------------


class Env(Wire, frozen=True):
    """A payload, its type and a signature over `"groove/" ‖ type ‖ 0x00 ‖ payload`."""

    type: Annotated[str, Meta(min_length=1, max_length=16)]
    payload: Annotated[bytes, Meta(max_length=400)]
    sig: Bytes64


class Head(Wire, frozen=True):
    """One origin's word for the whole of its leaf table. In an `Env` of type "head/1"."""

    origin: Bytes32
    epoch: Epoch
    seq: UInt63
    prev_seq: UInt63  # of the head before it in this epoch, 0 for the first
    prev: Bytes32  # that head's hash, zeros for the first
    table_root: Bytes32
    n_live: Annotated[int, Meta(ge=0, le=TABLE_ROWS_MAX)]
    ts_h: UInt32
    exp_h: UInt32
    flags: Byte
    enc: Bytes8  # tag of the encoder that the centroids belong to
    usage: Bytes32  # SHA-256 of the usage rows' encoding, zeros if there are none


class Retract(Wire, frozen=True):
    """Permanent withdrawal of one leaf, or of all. In an `Env` of type "retract/1"."""

    origin: Bytes32
    epoch: Annotated[int, Meta(ge=0, le=EPOCH_MAX)]  # of the key that signed; 0 is the root key
    leaf: Bytes16 | None  # nil: all of the origin's leaves
    ts_h: UInt32
    scope: Scope


class KeyDoc(Wire, frozen=True):
    """The root key's word for the operating key of one epoch. Carried as it is, without `Env`."""

    root: Bytes32  # public key; its SHA-256 is the origin
    epoch: Epoch
    op: Bytes32
    not_before_h: UInt32
    not_after_h: UInt32
    revoked: Annotated[tuple[Epoch, ...], Meta(max_length=EPOCH_MAX)]
    pow: Annotated[int, Meta(ge=0, le=0)]  # a place for proof of work, not built
    sig: Bytes64  # by the root key, over the array of the fields above


class Fork(Wire, frozen=True):
    """Two heads that one honest key cannot both have signed."""

    a: Env
    b: Env


# Vouched for by a head ----------------------------------------------------------------------------


class Score(Wire, frozen=True):
    evalset: EvalSet
    score_q: Int32


class PairedScore(Wire, frozen=True):
    evalset: EvalSet
    score_q: Int32
    parent_score_q: Int32


class Bundle(Wire, frozen=True):
    """Where a leaf's adapter is to be had: by hash, from anyone."""

    root: Bytes32  # SHA-256 of the `ChunkList`'s encoding
    size_bytes: Annotated[int, Meta(ge=1, le=CHUNK_BYTES * CHUNKS_MAX)]
    chassis: Bytes8
    rank: Annotated[int, Meta(ge=1, le=1024)]
    scores: Annotated[tuple[PairedScore, ...], Meta(max_length=8)]
    format: Format
    label: Bytes32  # SHA-256 of label.json


class Card(Wire, frozen=True):
    """One live leaf, as its owner shows it."""

    leaf: Bytes16
    version: UInt32
    stage: Stage
    op: Op
    centroid: Centroid
    sessions_log2: Log2
    chassis: Bytes8
    enc: Bytes8
    parents: Annotated[tuple[bytes, ...], Meta(max_length=8)]  # see PARENT_SIZES
    growth_q: Int32  # sessions a day
    scores: Annotated[tuple[Score, ...], Meta(max_length=8)]
    bundle: Bundle | None = None

    def __post_init__(self) -> None:
        size = PARENT_BYTES[self.op is Op.ADOPT]
        if any(len(parent) != size for parent in self.parents):
            raise ValueError("wrong parent")


# A parent is a leaf of the same origin; an adopted leaf's is origin32 ‖ leaf16 ‖ head hash32, and
# as a hash cannot speak of what comes after it, no cycle of adoptions can be signed.
PARENT_BYTES: Final = {False: 16, True: 80}


class Usage(Wire, frozen=True):
    """How much this origin used a foreign leaf in one week, coarsely."""

    origin: Bytes32
    leaf: Bytes16
    week: UInt32  # hours since 1970 // 168
    routed_log2: Log2
    accepted_log2: Log2


UsageRows = Annotated[tuple[Usage, ...], Meta(max_length=USAGE_ROWS_MAX)]


class Row(Wire, frozen=True):
    """A live leaf in the index."""

    leaf: Bytes16
    version: UInt32
    card: Bytes32  # SHA-256 of the card's encoding


class Ended(Wire, frozen=True):
    """A leaf that is no longer live, and the leaves it went into."""

    leaf: Bytes16
    version: UInt32
    reason: Reason
    into: Annotated[tuple[Bytes16, ...], Meta(max_length=8)]


class Index(Wire, frozen=True):
    """What a head's `table_root` commits to: each part ascending by leaf, no leaf twice."""

    rows: Annotated[tuple[Row, ...], Many]
    ended: Annotated[tuple[Ended, ...], Many]

    def __post_init__(self) -> None:
        if len(self.rows) + len(self.ended) > TABLE_ROWS_MAX:
            raise ValueError("too many rows")
        live, ended = [r.leaf for r in self.rows], [e.leaf for e in self.ended]
        if not (_ascending(live) and _ascending(ended)) or set(live) & set(ended):
            raise ValueError("rows out of order")


def _ascending(leaves: list[bytes]) -> bool:
    return all(a < b for a, b in pairwise(leaves))


class ChunkList(Wire, frozen=True):
    """The hashes of a bundle's chunks, in order, end to end. Its own hash is the bundle's root."""

    size_bytes: Annotated[int, Meta(ge=1, le=CHUNK_BYTES * CHUNKS_MAX)]
    chunk_bytes: Annotated[int, Meta(ge=CHUNK_BYTES, le=CHUNK_BYTES)]
    hashes: Annotated[bytes, Meta(min_length=32, max_length=32 * CHUNKS_MAX)]

    def __post_init__(self) -> None:
        if len(self.hashes) != 32 * -(-self.size_bytes // CHUNK_BYTES):
            raise ValueError("wrong number of hashes")


# Messages of the bulk and urgent planes -----------------------------------------------------------


class Have(Wire, frozen=True, tag="have/1"):
    """Records that the sender holds, each with the key that opens it unless the peer must have it.

    Who tells of a head unasked can serve its whole table.
    """

    keys: Annotated[tuple[KeyDoc, ...], Many]
    heads: Annotated[tuple[Env, ...], Many]
    retracts: Annotated[tuple[Env, ...], Many]
    forks: Annotated[tuple[Fork, ...], Many]


class Range(Wire, frozen=True):
    """The sender's items with `low ≤ slot ≤ high`: counted and hashed, and listed if `items`."""

    low: Bytes16
    high: Bytes16
    count: UInt32
    fingerprint: Bytes16
    items: Annotated[bytes, Meta(max_length=32 * ITEMS_MAX)]  # 32 bytes each, ascending

    def __post_init__(self) -> None:
        if self.low > self.high or len(self.items) not in (0, 32 * self.count):
            raise ValueError("wrong range")


class Digest(Wire, frozen=True, tag="digest/1"):
    """What the sender holds, as ranges that ascend and do not overlap (see `reconcile`)."""

    ranges: Annotated[tuple[Range, ...], Meta(min_length=1, max_length=256)]

    def __post_init__(self) -> None:
        if any(a.high >= b.low for a, b in pairwise(self.ranges)):
            raise ValueError("ranges overlap")


class Standing(IntEnum):
    """Of an origin, as far as its word can be taken. It only ever gets worse within an epoch."""

    SOUND = 0
    FROZEN = 1  # its key of this epoch signed two histories
    DEAD = 2  # its root key signed two keys for one epoch, or it retracted without measure


class Summary(Wire, frozen=True):
    """All that one replica holds of one origin, in so few bytes that two can be compared."""

    slot: Bytes16  # the first half of the origin
    epoch: Annotated[int, Meta(ge=0, le=EPOCH_MAX)]  # the highest with a known key; 0 for none
    standing: Standing
    seq: UInt63  # of the head of that epoch; 0 if there is none
    head: Bytes16  # the first half of the head's hash
    ids: Annotated[bytes, Meta(max_length=16 * (EPOCH_MAX + RETRACTS_MAX))]  # keys, retractions


class Compare(Wire, frozen=True, tag="compare/1"):
    """What the sender holds of these origins: give it what it lacks.

    answer: 1 asks the peer to compare in turn, if it lacks something itself.
    """

    summaries: Annotated[tuple[Summary, ...], Many]
    answer: Annotated[int, Meta(ge=0, le=1)]


class EchoGet(Wire, frozen=True, tag="echo-get/1"):
    """What do you hold of me? Asked before the first publish after a start."""

    origin: Bytes32


class Echo(Wire, frozen=True, tag="echo/1"):
    """The highest key and the head that the sender holds of that origin, if any."""

    origin: Bytes32
    key: KeyDoc | None
    head: Env | None


class TableGet(Wire, frozen=True, tag="table-get/1"):
    """Give me the table under this head; I hold the one under `base` (zeros: none)."""

    origin: Bytes32
    head: Bytes32
    base: Bytes32


class Delta(Wire, frozen=True, tag="delta/1"):
    """A table as the difference from the one of an earlier head."""

    head: Env
    base_seq: UInt63
    base_root: Bytes32
    puts: Annotated[tuple[Card, ...], Many]
    ends: Annotated[tuple[Ended, ...], Many]
    usage: UsageRows


class Manifest(Wire, frozen=True, tag="manifest/1"):
    """A table: its index, and as many of its cards and usage rows as fit into the frame."""

    head: Env
    index: Index
    cards: Annotated[tuple[Card, ...], Many]
    usage: UsageRows


class CardsGet(Wire, frozen=True, tag="cards-get/1"):
    """Give me these cards of that table, by hash, and its usage rows if `usage` is 1."""

    origin: Bytes32
    head: Bytes32
    cards: Annotated[bytes, Meta(max_length=32 * TABLE_ROWS_MAX)]
    usage: Annotated[int, Meta(ge=0, le=1)]


class Cards(Wire, frozen=True, tag="cards/1"):
    """Some of what `CardsGet` asked for; the asker asks again for the rest."""

    origin: Bytes32
    head: Bytes32
    cards: Annotated[tuple[Card, ...], Many]
    usage: UsageRows


class Gone(Wire, frozen=True, tag="gone/1"):
    """I do not hold the table under that head: ask another."""

    origin: Bytes32
    head: Bytes32


SyncMessage = (
    Have | Digest | Compare | EchoGet | Echo | TableGet | Delta | Manifest | CardsGet | Cards | Gone
)


# Messages of the bundle channel -------------------------------------------------------------------


class ListGet(Wire, frozen=True, tag="list-get/1"):
    """Give me the chunk list or label whose SHA-256 this is."""

    root: Bytes32


class ListData(Wire, frozen=True, tag="list/1"):
    root: Bytes32
    data: Annotated[bytes, Meta(max_length=BLOB_BYTES_MAX)]


class ChunkGet(Wire, frozen=True, tag="chunk-get/1"):
    """Give me these chunks of that bundle, each in a `ChunkData` of its own."""

    root: Bytes32
    indices: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=CHUNKS_MAX)], ...], Meta(min_length=1, max_length=8)
    ]


class ChunkData(Wire, frozen=True, tag="chunk/1"):
    root: Bytes32
    index: Annotated[int, Meta(ge=0, lt=CHUNKS_MAX)]
    data: Annotated[bytes, Meta(min_length=1, max_length=CHUNK_BYTES)]


class NotHere(Wire, frozen=True, tag="not-here/1"):
    """I do not hold that bundle, list or label."""

    root: Bytes32


BundleMessage = ListGet | ListData | ChunkGet | ChunkData | NotHere


# Messages of the peers channel -------------------------------------------------------------------

Place = Annotated[bytes, Meta(min_length=1, max_length=ADDRESS_BYTES_MAX)]


class AddressRecord(Wire, frozen=True):
    """Where a peer says that it can be dialled.

    Each place is a multiaddr in ASCII without its end `/p2p/PEER`, for the key tells whose it is.
    """

    key: Bytes32  # Ed25519 public key of the peer's transport
    places: Annotated[tuple[Place, ...], Meta(min_length=1, max_length=4)]
    ts_h: UInt32
    sig: Bytes64  # by that key, over "groove/address/1" ‖ 0x00 ‖ the array of the fields above


class PeersGet(Wire, frozen=True, tag="peers-get/1"):
    """Tell me of yourself and of up to so many other peers."""

    count: Annotated[int, Meta(ge=0, lt=RECORDS_MAX)]


class Peers(Wire, frozen=True, tag="peers/1"):
    """The sender's own records, as far as it tells any, and those of peers it was linked with."""

    records: Annotated[tuple[AddressRecord, ...], Meta(max_length=RECORDS_MAX)]


PeersMessage = PeersGet | Peers


# Encoding and decoding ----------------------------------------------------------------------------

BYTES_MAX: Final[dict[Any, int]] = {
    Env: 512,
    Head: 400,
    Retract: 200,
    KeyDoc: 1024,
    Fork: 1040,
    Card: 1024,
    Usage: 128,
    Index: INDEX_BYTES_MAX,
    ChunkList: 33 * KIB,
    SyncMessage: SYNC_FRAME_BYTES_MAX,
    BundleMessage: BUNDLE_FRAME_BYTES_MAX,
    AddressRecord: 1200,
    PeersMessage: PEERS_FRAME_BYTES_MAX,
}

T = TypeVar("T")


def decode(data: bytes, kind: type[T]) -> T:
    """Parse the one encoding of a `kind`, or raise WireError."""
    if len(data) > BYTES_MAX[kind]:
        raise WireError("too large")
    return canonical.decode(data, kind)


def decode_sync(frame: bytes) -> SyncMessage:
    """Parse a frame of the bulk or urgent plane, or raise WireError."""
    return decode(frame, SyncMessage)  # type: ignore[arg-type]  # a union is not a type[T]


def decode_bundle(frame: bytes) -> BundleMessage:
    """Parse a frame of the bundle channel, or raise WireError."""
    return decode(frame, BundleMessage)  # type: ignore[arg-type]


def decode_peers(frame: bytes) -> PeersMessage:
    """Parse a frame of the peers channel, or raise WireError."""
    return decode(frame, PeersMessage)  # type: ignore[arg-type]


def to_q(value: float) -> int:
    """Return a real number as the fixed-point integer of the wire, clamped to 32 bits."""
    return max(-0x8000_0000, min(0x7FFF_FFFF, round(value * Q)))


def to_log2(count: int) -> int:
    """Return the bucket of a count: 0 for none, k for [2**(k-1), 2**k)."""
    return min(63, count.bit_length())
