"""Every structure that may cross the network, with its size limit: the whole list of what leaves.

A value is a MessagePack array, its fields in the order of the class. There is one encoding of each
value, and no other is accepted: no maps, floats, booleans, extensions or trailing bytes; nil only
where a field is optional; integers in their shortest form. Real numbers are integers with a scale.

Two families live here. *Signed* structures (`Head`, `Retract`, `KeyDoc`) say something for ever and
are opened by `envelope`; `Card`, `Usage` and the rows of `Index` are vouched for by the hashes in a
head. *Messages* are what peers say to each other now; the first item of a message is its type.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from functools import cache
from typing import Annotated, Any, Final, TypeVar

import msgpack
import msgspec
from msgspec import Meta, Struct

KIB: Final = 1024
SYNC_FRAME_BYTES_MAX: Final = 64 * KIB  # one message of the bulk or urgent plane
BUNDLE_FRAME_BYTES_MAX: Final = 320 * KIB  # one chunk and its header
DEPTH_MAX: Final = 6
ITEMS_MAX: Final = 1024  # of any array: rows of an index, keys, heads in one message
CHUNK_BYTES: Final = 256 * KIB
CHUNKS_MAX: Final = 1024  # so a bundle is at most 256 MiB
TABLE_ROWS_MAX: Final = 1024  # live and ended together
INDEX_BYTES_MAX: Final = 60 * KIB  # so that an index always travels in one message
USAGE_ROWS_MAX: Final = 256
RETRACTS_MAX: Final = 1024  # of one origin; one more retracts all of it
EPOCH_MAX: Final = 255  # epochs are one a quarter: 63 years
BLOB_BYTES_MAX: Final = 64 * KIB  # a chunk list or a label

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


class WireError(ValueError):
    """Bytes that are not what they should be. The reason is a fixed phrase, safe to log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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


class Env(Wire):
    """A payload, its type and a signature over `"groove/" ‖ type ‖ 0x00 ‖ payload`."""

    type: Annotated[str, Meta(min_length=1, max_length=16)]
    payload: Annotated[bytes, Meta(max_length=400)]
    sig: Bytes64


class Head(Wire):
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


class Retract(Wire):
    """Permanent withdrawal of one leaf, or of all. In an `Env` of type "retract/1"."""

    origin: Bytes32
    epoch: Annotated[int, Meta(ge=0, le=EPOCH_MAX)]  # of the key that signed; 0 is the root key
    leaf: Bytes16 | None  # nil: all of the origin's leaves
    ts_h: UInt32
    scope: Scope


class KeyDoc(Wire):
    """The root key's word for the operating key of one epoch. Carried as it is, without `Env`."""

    root: Bytes32  # public key; its SHA-256 is the origin
    epoch: Epoch
    op: Bytes32
    not_before_h: UInt32
    not_after_h: UInt32
    revoked: Annotated[tuple[Epoch, ...], Meta(max_length=EPOCH_MAX)]
    pow: Annotated[int, Meta(ge=0, le=0)]  # a place for proof of work, not built
    sig: Bytes64  # by the root key, over the array of the fields above


class Fork(Wire):
    """Two heads that one honest key cannot both have signed."""

    a: Env
    b: Env


# Vouched for by a head ----------------------------------------------------------------------------


class Score(Wire):
    evalset: EvalSet
    score_q: Int32


class PairedScore(Wire):
    evalset: EvalSet
    score_q: Int32
    parent_score_q: Int32


class Bundle(Wire):
    """Where a leaf's adapter is to be had: by hash, from anyone."""

    root: Bytes32  # SHA-256 of the `ChunkList`'s encoding
    size_bytes: Annotated[int, Meta(ge=1, le=CHUNK_BYTES * CHUNKS_MAX)]
    chassis: Bytes8
    rank: Annotated[int, Meta(ge=1, le=1024)]
    scores: Annotated[tuple[PairedScore, ...], Meta(max_length=8)]
    format: Format
    label: Bytes32  # SHA-256 of label.json


class Card(Wire):
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


# A parent is a leaf of the same origin; an adopted leaf's is origin32 ‖ leaf16 ‖ head hash32, and as
# a hash cannot speak of what comes after it, no cycle of adoptions can be signed.
PARENT_BYTES: Final = {False: 16, True: 80}


class Usage(Wire):
    """How much this origin used a foreign leaf in one week, coarsely."""

    origin: Bytes32
    leaf: Bytes16
    week: UInt32  # hours since 1970 // 168
    routed_log2: Log2
    accepted_log2: Log2


class Row(Wire):
    """A live leaf in the index."""

    leaf: Bytes16
    version: UInt32
    card: Bytes32  # SHA-256 of the card's encoding


class Ended(Wire):
    """A leaf that is no longer live, and the leaves it went into."""

    leaf: Bytes16
    version: UInt32
    reason: Reason
    into: Annotated[tuple[Bytes16, ...], Meta(max_length=8)]


class Index(Wire):
    """What the head's `table_root` commits to: each part strictly ascending by leaf, none in both."""

    rows: Annotated[tuple[Row, ...], Many]
    ended: Annotated[tuple[Ended, ...], Many]

    def __post_init__(self) -> None:
        if len(self.rows) + len(self.ended) > TABLE_ROWS_MAX:
            raise ValueError("too many rows")
        live, ended = [r.leaf for r in self.rows], [e.leaf for e in self.ended]
        if not (_ascending(live) and _ascending(ended)) or set(live) & set(ended):
            raise ValueError("rows out of order")


def _ascending(leaves: list[bytes]) -> bool:
    return all(a < b for a, b in zip(leaves, leaves[1:], strict=False))


class ChunkList(Wire):
    """The hashes of a bundle's chunks, in order, end to end. Its own hash is the bundle's root."""

    size_bytes: Annotated[int, Meta(ge=1, le=CHUNK_BYTES * CHUNKS_MAX)]
    chunk_bytes: Annotated[int, Meta(ge=CHUNK_BYTES, le=CHUNK_BYTES)]
    hashes: Annotated[bytes, Meta(min_length=32, max_length=32 * CHUNKS_MAX)]

    def __post_init__(self) -> None:
        if len(self.hashes) != 32 * -(-self.size_bytes // CHUNK_BYTES):
            raise ValueError("wrong number of hashes")


# Messages of the bulk and urgent planes -----------------------------------------------------------


class Have(Wire, tag="have/1"):
    """Records that the sender holds, each with the key that opens it unless the peer must have it.

    A head is announced only by who can serve its whole table.
    """

    keys: Annotated[tuple[KeyDoc, ...], Many]
    heads: Annotated[tuple[Env, ...], Many]
    retracts: Annotated[tuple[Env, ...], Many]
    forks: Annotated[tuple[Fork, ...], Many]


class Digest(Wire, tag="digest/1"):
    """All items of the sender with `low ≤ slot ≤ high`: 32 bytes each, ascending (`reconcile`)."""

    low: Bytes16
    high: Bytes16
    items: Annotated[bytes, Meta(max_length=48 * KIB)]


class Summary(Wire):
    """All that one replica holds of one origin, in so few bytes that two can be compared."""

    slot: Bytes16  # the first half of the origin
    epoch: Annotated[int, Meta(ge=0, le=EPOCH_MAX)]  # of the head; 0 if there is none
    seq: UInt63
    head: Bytes16  # start of the head's hash
    frozen: Annotated[tuple[Byte, ...], Meta(max_length=EPOCH_MAX + 1)]  # 0: the origin is dead
    ids: Annotated[bytes, Meta(max_length=16 * (EPOCH_MAX + RETRACTS_MAX))]  # keys, retractions


class Compare(Wire, tag="compare/1"):
    """What the sender holds of these origins: give it what it lacks.

    answer: 1 asks the peer to compare in turn, if it lacks something itself.
    """

    summaries: Annotated[tuple[Summary, ...], Many]
    answer: Annotated[int, Meta(ge=0, le=1)]


class EchoGet(Wire, tag="echo-get/1"):
    """What do you hold of me? Asked before the first publish after a start."""

    origin: Bytes32


class Echo(Wire, tag="echo/1"):
    """The head that the sender holds of that origin, or nil."""

    origin: Bytes32
    head: Env | None


class TableGet(Wire, tag="table-get/1"):
    """Give me the table under this head; I hold the one under `base` (zeros: none)."""

    origin: Bytes32
    head: Bytes32
    base: Bytes32


class Delta(Wire, tag="delta/1"):
    """A table as the difference from the one of an earlier head."""

    head: Env
    base_seq: UInt63
    base_root: Bytes32
    puts: Annotated[tuple[Card, ...], Many]
    ends: Annotated[tuple[Ended, ...], Many]
    usage: Annotated[tuple[Usage, ...], Meta(max_length=USAGE_ROWS_MAX)]


class Manifest(Wire, tag="manifest/1"):
    """A table: its index, and as many of its cards and usage rows as fit into the frame."""

    head: Env
    index: Index
    cards: Annotated[tuple[Card, ...], Many]
    usage: Annotated[tuple[Usage, ...], Meta(max_length=USAGE_ROWS_MAX)]


class CardsGet(Wire, tag="cards-get/1"):
    """Give me these cards of that table, by hash, and its usage rows if `usage` is 1."""

    origin: Bytes32
    head: Bytes32
    cards: Annotated[bytes, Meta(max_length=32 * TABLE_ROWS_MAX)]
    usage: Annotated[int, Meta(ge=0, le=1)]


class Cards(Wire, tag="cards/1"):
    """Some of what `CardsGet` asked for; the asker asks again for the rest."""

    head: Bytes32
    cards: Annotated[tuple[Card, ...], Many]
    usage: Annotated[tuple[Usage, ...], Meta(max_length=USAGE_ROWS_MAX)]


class Gone(Wire, tag="gone/1"):
    """I do not hold the table under that head: ask another."""

    head: Bytes32


SyncMessage = (
    Have | Digest | Compare | EchoGet | Echo | TableGet | Delta | Manifest | CardsGet | Cards | Gone
)


# Messages of the bundle channel -------------------------------------------------------------------


class ListGet(Wire, tag="list-get/1"):
    """Give me the chunk list or label whose SHA-256 this is."""

    root: Bytes32


class ListData(Wire, tag="list/1"):
    root: Bytes32
    data: Annotated[bytes, Meta(max_length=BLOB_BYTES_MAX)]


class ChunkGet(Wire, tag="chunk-get/1"):
    """Give me these chunks of that bundle, each in a `ChunkData` of its own."""

    root: Bytes32
    indices: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=CHUNKS_MAX)], ...], Meta(min_length=1, max_length=8)
    ]


class ChunkData(Wire, tag="chunk/1"):
    root: Bytes32
    index: Annotated[int, Meta(ge=0, lt=CHUNKS_MAX)]
    data: Annotated[bytes, Meta(min_length=1, max_length=CHUNK_BYTES)]


class NotHere(Wire, tag="not-here/1"):
    """I do not hold that bundle, list or label."""

    root: Bytes32


BundleMessage = ListGet | ListData | ChunkGet | ChunkData | NotHere


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
}

T = TypeVar("T")


def encode(value: Wire | tuple[Wire, ...]) -> bytes:
    """Return the one encoding of a value."""
    return msgspec.msgpack.encode(value)


def decode(data: bytes, kind: type[T]) -> T:
    """Parse the one encoding of a `kind`, or raise WireError."""
    if len(data) > BYTES_MAX[kind]:
        raise WireError("too large")
    _walk(data)
    try:
        value: T = msgspec.convert(msgpack.unpackb(data, use_list=False), kind)
    except (msgspec.ValidationError, UnicodeDecodeError):
        raise WireError("wrong fields") from None
    if msgspec.msgpack.encode(value) != data:
        raise WireError("not canonical")
    return value


def decode_sync(frame: bytes) -> SyncMessage:
    """Parse a frame of the bulk or urgent plane, or raise WireError."""
    return decode(frame, SyncMessage)  # type: ignore[arg-type]  # a union is not a type[T]


def decode_bundle(frame: bytes) -> BundleMessage:
    """Parse a frame of the bundle channel, or raise WireError."""
    return decode(frame, BundleMessage)  # type: ignore[arg-type]


def to_q(value: float) -> int:
    """Return a real number as the fixed-point integer of the wire, clamped to 32 bits."""
    return max(-0x8000_0000, min(0x7FFF_FFFF, round(value * Q)))


def to_log2(count: int) -> int:
    """Return the bucket of a count: 0 for none, k for [2**(k-1), 2**k)."""
    return min(63, count.bit_length())


# The size of an item by its first byte: n > 0 is the whole of it, -n says that the n bytes that
# follow hold a length. What is absent is forbidden.
_ARRAY = {0x90 | n: n for n in range(16)}
_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDC: 2}  # bin8, bin16, bin32, str8, array16


@cache
def _sizes() -> tuple[int, ...]:
    sizes = [0] * 256
    for code in (*range(0x80), *range(0xE0, 0x100), 0xC0):  # small integers, nil
        sizes[code] = 1
    for code, size in zip(
        (0xCC, 0xCD, 0xCE, 0xCF, 0xD0, 0xD1, 0xD2, 0xD3), (2, 3, 5, 9) * 2, strict=True
    ):
        sizes[code] = size  # integers of 8 to 64 bits
    for n in range(32):
        sizes[0xA0 | n] = 1 + n  # short text
    return tuple(sizes)


def _walk(data: bytes) -> None:
    """Refuse what the wire forbids by reading the headers alone.

    A decoder reserves memory for an array as long as its header says, before the items are there:
    a frame of 3 KiB can ask for megabytes. So nothing is built until the frame has been walked.
    """
    sizes, at, end = _sizes(), 0, len(data)
    left = [1]  # items still to come in each array that is open
    while left:
        if left[-1] == 0:
            left.pop()
            continue
        left[-1] -= 1
        if at >= end:
            raise WireError("cut short")
        code = data[at]
        if size := sizes[code]:
            at += size
            continue
        width = _LENGTH_BYTES.get(code, 0)
        items = _ARRAY.get(code)
        if width:
            length = int.from_bytes(data[at + 1 : at + 1 + width], "big")
            at += 1 + width
            if code != 0xDC:
                at += length
                continue
            items = length
        elif items is None:
            raise WireError("forbidden type")
        else:
            at += 1
        if items > ITEMS_MAX:
            raise WireError("array too long")
        if len(left) > DEPTH_MAX:
            raise WireError("too deep")
        left.append(items)
    if at != end:
        raise WireError("cut short" if at > end else "trailing bytes")
