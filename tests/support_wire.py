"""An example of everything that may cross the wire, and a mutator that knows its parts."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from gossip_kit import NOW_H, card, keys, leaf, seed
from msgspec.structs import replace

from gossip import merkle
from gossip.envelope import id_of, seal
from gossip.introductions import signed
from gossip.keys import private_key
from gossip.wire import (
    CHUNK_BYTES,
    ZERO32,
    Bundle,
    BundleMessage,
    Cards,
    CardsGet,
    ChunkData,
    ChunkGet,
    ChunkList,
    Compare,
    Delta,
    Digest,
    Echo,
    EchoGet,
    Ended,
    EvalSet,
    Fork,
    Format,
    Gone,
    Have,
    Head,
    Index,
    ListData,
    ListGet,
    Manifest,
    NotHere,
    Op,
    PairedScore,
    Peers,
    PeersGet,
    PeersMessage,
    Range,
    Reason,
    Retract,
    Row,
    Scope,
    Score,
    Stage,
    Standing,
    Summary,
    SyncMessage,
    TableGet,
    Usage,
    encode,
)

ROOT = seed("root")
SLOT = ROOT[:16]
SIGNING = keys("alice", revoked=(5, 200))
ORIGIN = SIGNING.origin
HEAD = Head(
    *(ORIGIN, 1, NOW_H << 16 | 3, NOW_H << 16, seed("prev"), merkle.root([b"row"]), 2),
    *(NOW_H, NOW_H + 168, 1, bytes.fromhex("00112233445566ff"), seed("usage")),
)
RETRACT = Retract(ORIGIN, 1, leaf(1), NOW_H, Scope.PUBLISH)
RETRACT_ALL = Retract(ORIGIN, 0, None, NOW_H, Scope.TRAIN)
ENV = seal(HEAD, SIGNING.op).env
OTHER = seal(replace(HEAD, table_root=ROOT), SIGNING.op).env
RETRACT_ENV = seal(RETRACT, SIGNING.op).env
FORK = Fork(*sorted((ENV, OTHER), key=id_of))
SCORE, PAIRED = Score(EvalSet.GAIN_LOW, -7), PairedScore(EvalSet.HELD_OUT_LOSS, 15_000, 16_000)
BUNDLE = Bundle(ROOT, 1_000_000, bytes(8), 8, (PAIRED,), Format.LORA_SAFETENSORS, seed("label"))
SEEDLING = card(3, stage=Stage.SEED)
CARD = replace(card(1), scores=(SCORE,), bundle=BUNDLE, parents=(leaf(2),), growth_q=-120_000)
ADOPTED = replace(CARD, op=Op.ADOPT, parents=(ORIGIN + leaf(4) + id_of(ENV),), bundle=None)
USAGE = Usage(ROOT, leaf(1), NOW_H // 168, 5, 4)
ROW, ENDED = Row(leaf(2), 70_000, ROOT), Ended(leaf(3), 200, Reason.MERGED, (leaf(1), leaf(2)))
INDEX = Index(
    tuple(sorted((Row(leaf(1), 1, seed("card")), ROW), key=lambda row: row.leaf)), (ENDED,)
)
SUMMARY = Summary(SLOT, 1, Standing.FROZEN, 0, bytes(16), SLOT + SLOT)
LOW, MIDDLE, HIGH = bytes(16), b"\x80" + bytes(15), b"\xff" * 16
CHUNKS = ChunkList(CHUNK_BYTES + 1, CHUNK_BYTES, seed("chunk") + seed("rest"))

ADDRESSES = signed(
    private_key(seed("alice", "transport")),
    (b"/ip4/198.51.100.7/tcp/4021", b"/ip4/203.0.113.9/tcp/4021"),
    NOW_H,
)
STRUCTURES: dict[str, Any] = {
    "Env": ENV,
    "Head": HEAD,
    "Retract": RETRACT,
    "Retract, of all leaves, by the root key": RETRACT_ALL,
    "KeyDoc": SIGNING.doc,
    "Fork": FORK,
    "Card, a seed": SEEDLING,
    "Card, with a bundle": CARD,
    "Card, adopted": ADOPTED,
    "Usage": USAGE,
    "Index": INDEX,
    "Index, empty": Index((), ()),
    "ChunkList": CHUNKS,
    "AddressRecord": ADDRESSES,
}
SYNC: dict[str, SyncMessage] = {
    "Have": Have((SIGNING.doc,), (ENV,), (RETRACT_ENV,), (FORK,)),
    "Have, a head alone": Have((), (ENV,), (), ()),
    "Digest": Digest((Range(LOW, SLOT, 1, SLOT, ROOT), Range(HIGH, HIGH, 300, SLOT, b""))),
    "Compare": Compare((SUMMARY, Summary(MIDDLE, 3, Standing.SOUND, 1 << 40, SLOT, b"")), 1),
    "EchoGet": EchoGet(ORIGIN),
    "Echo": Echo(ORIGIN, SIGNING.doc, ENV),
    "Echo, of nothing": Echo(ORIGIN, None, None),
    "TableGet": TableGet(ORIGIN, id_of(ENV), ZERO32),
    "Delta": Delta(ENV, NOW_H << 16, ROOT, (CARD, ADOPTED), (ENDED,), (USAGE,)),
    "Manifest": Manifest(ENV, INDEX, (CARD, SEEDLING), (USAGE,)),
    "CardsGet": CardsGet(ORIGIN, id_of(ENV), seed("card") + ROOT, 1),
    "Cards": Cards(ORIGIN, id_of(ENV), (CARD,), ()),
    "Gone": Gone(ORIGIN, id_of(ENV)),
}
BUNDLES: dict[str, BundleMessage] = {
    "ListGet": ListGet(ROOT),
    "ListData": ListData(ROOT, encode(CHUNKS)),
    "ChunkGet": ChunkGet(ROOT, (0, 5, 1023)),
    "ChunkData": ChunkData(ROOT, 3, b"a short last chunk"),
    "NotHere": NotHere(ROOT),
}
PEERS: dict[str, PeersMessage] = {
    "PeersGet": PeersGet(15),
    "Peers": Peers((ADDRESSES,)),
    "Peers, of nothing": Peers(()),
}


def encodings() -> list[tuple[Any, bytes]]:
    """All examples encoded, each with the kind that it is decoded as."""
    examples = [(type(value), encode(value)) for value in STRUCTURES.values()]
    examples += [(SyncMessage, encode(message)) for message in SYNC.values()]
    examples += [(BundleMessage, encode(message)) for message in BUNDLES.values()]
    return examples + [(PeersMessage, encode(message)) for message in PEERS.values()]


# Mutations ----------------------------------------------------------------------------------------

# What may stand where an item stood: each type of MessagePack, allowed or not, wide and narrow.
_ITEMS = [
    *(b"\xc0", b"\xc1", b"\xc2", b"\xc3", b"\x00", b"\x01", b"\x7f", b"\xff", b"\xe0"),
    *(b"\xcc\x05", b"\xcc\x80", b"\xcd\x00\x05", b"\xcd\x01\x00", b"\xce\x00\x01\x00\x00"),
    *(
        b"\xcf" + b"\x7f" * 8,
        b"\xcf" + b"\xff" * 8,
        b"\xd0\xff",
        b"\xd1\xff\x00",
        b"\xd3" + HIGH[:8],
    ),
    *(b"\xca" + bytes(4), b"\xcb" + bytes(8), b"\xcb\x3f\xf0" + bytes(6)),
    *(b"\x80", b"\x81\x01\x01", b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff"),
    *(b"\xd4\x01\x01", b"\xd6\xff" + bytes(4), b"\xc7\x00\x01", b"\xc9\xff\xff\xff\xff\x01"),
    *(b"\x90", b"\x91\xc0", b"\x9f", b"\xdc\x00\x00", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff"),
    *(b"\xc4\x00", b"\xc4\x10" + SLOT, b"\xc4\x20" + ROOT, b"\xc5\x00\x20" + ROOT),
    *(b"\xc6\x00\x00\x00\x20" + ROOT, b"\xc5\xff\xff", b"\xc6\xff\xff\xff\xff"),
    *(
        b"\xa0",
        b"\xa6head/1",
        b"\xd9\x06head/1",
        b"\xa2\xff\xfe",
        b"\xda\x00\x01a",
        b"\xdb" + HIGH[:4],
    ),
]


def mutated(chance: Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    """Return a frame with one to three changes; `others` give parts to be put into it."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        frame = _MUTATIONS[chance.randrange(len(_MUTATIONS))](chance, frame, others)
    return frame


def items(data: bytes) -> list[tuple[int, int]]:
    """Where items start and their headers end, as far as the bytes make sense."""
    found, at = [], 0
    while at < len(data):
        code = data[at]
        width = _WIDTHS.get(code, 0)
        body = at + 1 + width
        found.append((at, body))
        if 0xA0 <= code < 0xC0:
            body += code & 0x1F
        elif code in (0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB):
            body += int.from_bytes(data[at + 1 : at + 1 + width], "big")
        at = body
    return found


_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_WIDTHS |= {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4}


def _flip(chance: Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    if not frame:
        return frame
    at, bit = chance.randrange(len(frame)), 1 << chance.randrange(8)
    return frame[:at] + bytes([frame[at] ^ bit]) + frame[at + 1 :]


def _set(chance: Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(frame) + 1)
    return frame[:at] + chance.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) + frame[at + 1 :]


def _cut(chance: Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    return frame[: chance.randrange(len(frame) + 1)]


def _drop(chance: Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(frame) + 1)
    return frame[:at] + frame[at + chance.randint(1, 40) :]


def _append(chance: Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    return frame + chance.choice((b"\x00", b"\xc0", b"\x90", chance.randbytes(9), frame))


def _splice(chance: Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    other = chance.choice(others)
    start, at = chance.randrange(len(other)), chance.randrange(len(frame) + 1)
    return frame[:at] + other[start : start + chance.randint(1, 80)] + frame[at:]


def _replace_item(chance: Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    starts = [at for at, _ in items(frame)] + [len(frame)]
    which = chance.randrange(len(starts))
    end = starts[which + 1] if which + 1 < len(starts) else len(frame)
    return frame[: starts[which]] + chance.choice(_ITEMS) + frame[end:]


def _repeat_item(chance: Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    starts = [at for at, _ in items(frame)] + [len(frame)]
    which = chance.randrange(max(1, len(starts) - 1))
    end = starts[min(which + 1, len(starts) - 1)]
    part = frame[starts[which] : end]
    return frame[:end] + part * chance.choice((1, 1, 2, 30)) + frame[end:]


def _change_header(chance: Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    """Make a length or a small number one more, one less, or as large as it can be."""
    found = items(frame)
    if not found:
        return frame
    _, end = chance.choice(found)
    last = frame[end - 1 : end] or b"\0"
    byte = chance.choice(((last[0] + 1) & 0xFF, (last[0] - 1) & 0xFF, 0xFF, 0x00))
    return frame[: end - 1] + bytes([byte]) + frame[end:]


def _widen(chance: Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    """Write one item in a longer form that means the same."""
    found = items(frame)
    if not found:
        return frame
    at, end = chance.choice(found)
    code, tail = frame[at], frame[end:]
    if code < 0x80:
        form = chance.choice((b"\xcc", b"\xcd\0", b"\xce\0\0\0", b"\xd0")) + frame[at:end]
    elif 0x90 <= code < 0xA0:
        form = chance.choice((b"\xdc\0", b"\xdd\0\0\0")) + bytes([code & 0x0F])
    elif 0xA0 <= code < 0xC0:
        form = chance.choice((b"\xd9", b"\xda\0")) + bytes([code & 0x1F])
    elif code == 0xC4:
        form = chance.choice((b"\xc5\0", b"\xc6\0\0\0")) + frame[at + 1 : end]
    else:
        return frame
    return frame[:at] + form + tail


def _nest(chance: Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    at = chance.choice([start for start, _ in items(frame)] or [0])
    opening = chance.choice((b"\x91", b"\xdc\x00\x01", b"\xdc\x04\x00"))
    return frame[:at] + opening * chance.choice((1, 2, 8, 1000)) + frame[at:]


_MUTATIONS = (
    *(_flip, _set, _cut, _drop, _append, _splice),
    *(_replace_item, _repeat_item, _change_header, _widen, _nest),
)


def hostile() -> dict[str, bytes]:
    """The frames that cost a decoder most: as long as a frame may be, and mostly well formed."""
    have, most = b"\x95\xa6have/1", 1024
    many = b"\xdc\x04\x00"
    doc = replace(SIGNING.doc, revoked=tuple(range(1, 128)))
    rows = tuple(Row(i.to_bytes(16, "big"), 1, ROOT) for i in range(most))
    listed = b"".join((i << 128).to_bytes(32, "big") for i in range(most))
    return {
        "numbers": have + many + (many + b"\x01" * most) * 63,
        "arrays in arrays": have + many + (many + b"\x91\x90" * most) * 30,
        "text": b"\x92\xa6have/1" + many + (many + b"\xa2ab" * most) * 20,
        "keys": encode(Have((doc,) * 230, (), (), ())),
        "envelopes": encode(Have((), (ENV,) * 240, (), ())),
        "summaries": encode(Compare((replace(SUMMARY, ids=b""),) * 1000, 1)),
        "an index": encode(Manifest(ENV, Index(rows, ()), (), ())),
        "cards": encode(Cards(ORIGIN, ROOT, (SEEDLING,) * 130, ())),
        "a list of items": encode(Digest((Range(LOW, HIGH, most, SLOT, listed),))),
        "depth": have + many * 20_000,
    }
