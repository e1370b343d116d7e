"""Makes `docs/wire-vectors.json`: what a second implementation of the protocol is checked with.

All of it follows from fixed seeds. Run it after a deliberate change of the wire, and look at what
changed: `python tests/make_wire_vectors.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import support_wire as example
from gossip_kit import NOW_H, NOW_S, card, keys, leaf, seed
from make_wire_refusals import refusals
from msgspec import Struct
from msgspec.structs import asdict, replace

from gossip import frames, merkle, origin, reconcile, table
from gossip.bundle_files import root_of
from gossip.envelope import Signed, seal
from gossip.keys import Keys, private_key, public_bytes
from gossip.origin import Claims
from gossip.wire import (
    BYTES_MAX,
    CHUNK_BYTES,
    ZERO32,
    BundleMessage,
    ChunkList,
    Compare,
    Ended,
    Fork,
    Head,
    Reason,
    Retract,
    Scope,
    Standing,
    Summary,
    SyncMessage,
    decode_sync,
    encode,
)
from router.minilm_encoder import ENC8, WEIGHTS_SHA256
from router.ports import ENCODED_CHARS

PATH = Path(__file__).parent.parent / "docs" / "wire-vectors.json"
ABOUT = (
    "Test vectors of docs/protocol.md. Bytes are in hexadecimal; the only texts are types. "
    "Fields are in the order of the wire. A nil is null. Refused bytes are parts end to end, "
    "where a number stands for so many zero bytes; the reason is the phrase this node counts by."
)
SECOND, RIVAL = keys("alice", epoch=2), keys("alice", op="another")
REVOKED = keys("alice", epoch=5)  # as the first document says
Json = dict[str, Any]


def vectors() -> Json:
    return {
        "about": ABOUT,
        "keys": [_key(name, *seeds) for name, *seeds in _SEEDS],
        "structures": [_structure(name, value) for name, value in example.STRUCTURES.items()],
        "messages": [
            *(_message("sync", name, value) for name, value in example.SYNC.items()),
            *(_message("bundle", name, value) for name, value in example.BUNDLES.items()),
        ],
        "signatures": _signatures(),
        "merkle": [_merkle(count) for count in (0, 1, 2, 3, 5, 8)],
        "tables": [_table(live, ended) for live, ended in ((0, 0), (1, 0), (2, 1), (5, 3))],
        "usage": [_usage(count) for count in (0, 1, 3)],
        "bundles": [_bundle(size) for size in (1, CHUNK_BYTES, CHUNK_BYTES + 1)],
        "conflicts": _conflicts(),
        "bounds": list(_bounds()),
        "sequence": [_sequence(*case) for case in _SEQUENCE],
        "summaries": [_summary(name, claims) for name, claims in _claims().items()],
        "answers": list(_answers()),
        "fingerprints": [_fingerprint(count) for count in (0, 1, 2, 33)],
        "rounds": [_round(*case) for case in ((3, 1), (33, 0), (40, 2), (400, 3))],
        "frames": _frames(),
        "tags": [{"name": "enc8 of all-MiniLM-L6-v2", "text": _ENCODER, "tag": ENC8.hex()}],
        "refused": refusals(),
    }


def plain(value: Any) -> Any:
    """Return a value as JSON that can be read."""
    match value:
        case Struct():
            return {name: plain(field) for name, field in asdict(value).items()}
        case bytes():
            return value.hex()
        case tuple() | list():
            return [plain(item) for item in value]
        case str() | None:
            return value
    return int(value)


# Structures and messages --------------------------------------------------------------------------


def _structure(name: str, value: Struct) -> Json:
    kind = type(value)
    return {
        "name": name,
        "structure": kind.__name__,
        "at_most": BYTES_MAX[kind],
        "fields": plain(value),
        **_hashed(encode(value)),
    }


def _message(plane: str, name: str, value: SyncMessage | BundleMessage) -> Json:
    tag = type(value).__struct_config__.tag
    return {
        "name": name,
        "plane": plane,
        "type": tag,
        "fields": plain(value),
        **_hashed(encode(value)),
    }


def _hashed(data: bytes) -> Json:
    return {"encoding": data.hex(), "sha256": hashlib.sha256(data).hexdigest()}


# Keys and signatures ------------------------------------------------------------------------------

_SEEDS = [
    ("root", seed("alice", "root")),
    ("op of epoch 1", seed("alice", "op", 1)),
    ("op of epoch 2", seed("alice", "op", 2)),
    ("a second op of epoch 1", seed("alice", "another", 1)),
]


def _key(name: str, key_seed: bytes) -> Json:
    public = public_bytes(private_key(key_seed))
    made = {"name": name, "seed": key_seed.hex(), "public": public.hex()}
    return made | ({"origin": hashlib.sha256(public).hexdigest()} if name == "root" else {})


def _signatures() -> list[Json]:
    root, op = seed("alice", "root"), seed("alice", "op", 1)
    by_root = seal(example.RETRACT_ALL, private_key(root))
    doc = example.SIGNING.doc
    body = encode(tuple(getattr(doc, name) for name in doc.__struct_fields__[:-1]))
    return [
        _signature("Head", op, seal(example.HEAD, private_key(op))),
        _signature("Retract", op, seal(example.RETRACT, private_key(op))),
        _signature("Retract by the root key", root, by_root),
        {
            "name": "KeyDoc",
            "seed": root.hex(),
            "prefix": b"groove/keydoc/1\0".hex(),
            "payload": body.hex(),
            "signature": doc.sig.hex(),
        },
    ]


def _signature(name: str, key_seed: bytes, signed: Signed[Any]) -> Json:
    env = signed.env
    return {
        "name": name,
        "seed": key_seed.hex(),
        "prefix": f"groove/{env.type}\0".encode().hex(),
        "payload": env.payload.hex(),
        "signature": env.sig.hex(),
        "envelope": encode(env).hex(),
        "id": signed.id.hex(),
    }


# What a head vouches for --------------------------------------------------------------------------


def _merkle(count: int) -> Json:
    leaves = [seed("merkle", n)[:n] for n in range(count)]
    return {"leaves": plain(leaves), "root": merkle.root(leaves).hex()}


def _table(live: int, ended: int) -> Json:
    cards = [card(n, version=n) for n in range(live)]
    ends = [Ended(leaf(100 + n), n, Reason.DORMANT, ()) for n in range(ended)]
    whole = table.build(cards, ends, ())
    return {
        "cards": [{"card": encode(c).hex(), "hash": table.card_hash(c).hex()} for c in cards],
        "ended": [encode(end).hex() for end in ends],
        "index": encode(whole.index).hex(),
        "n_live": live,
        "table_root": table.root(whole.index).hex(),
    }


def _usage(count: int) -> Json:
    rows = tuple(replace(example.USAGE, leaf=leaf(n), accepted_log2=n) for n in range(count))
    return {"encoding": encode(rows).hex(), "usage": table.usage_hash(rows).hex()}


def _bundle(size: int) -> Json:
    data = bytes(n % 251 for n in range(size))
    chunks = [data[at : at + CHUNK_BYTES] for at in range(0, size, CHUNK_BYTES)]
    hashes = b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
    listed = ChunkList(size, CHUNK_BYTES, hashes)
    return {
        "content": "byte n is n mod 251",
        "size_bytes": size,
        "chunk_list": encode(listed).hex(),
        "root": root_of(listed).hex(),
    }


# Rules of one origin ------------------------------------------------------------------------------


def _head(
    by: Keys = example.SIGNING, *, seq: int = 9, prev_seq: int = 0, **more: Any
) -> Signed[Head]:
    """A head; one that names no predecessor is the first."""
    fields = {"seq": seq, "prev_seq": prev_seq, "prev": ZERO32, **more}
    return seal(replace(example.HEAD, epoch=by.doc.epoch, **fields), by.op)


def _conflicts() -> list[Json]:
    a = _head(seq=5)
    cases = {
        "the same head": a,
        "one sequence number, two tables": _head(seq=5, table_root=ZERO32),
        "the next one": _head(seq=8, prev_seq=5, prev=a.id),
        "the next of another": _head(seq=8, prev_seq=5, prev=seed("other")),
        "one that skips it": _head(seq=8, prev_seq=4, prev=seed("other")),
        "a later one, after heads not seen": _head(seq=8, prev_seq=6, prev=seed("other")),
        "a first one, later": _head(seq=8),
        "an earlier one": _head(seq=3),
        "another epoch": _head(SECOND, seq=5, table_root=ZERO32),
    }
    return [_conflict(name, a, b) for name, b in cases.items()]


def _conflict(name: str, a: Signed[Head], b: Signed[Head]) -> Json:
    made = {"name": name, "a": encode(a.env).hex(), "b": encode(b.env).hex()}
    if not origin.conflict(a, b):
        return made | {"conflict": False}
    proof = origin.proof(a, b)
    return made | {"conflict": True, "proof": encode(Fork(proof.a.env, proof.b.env)).hex()}


def _bounds() -> Iterable[Json]:
    doc = example.SIGNING.doc
    for changed in (
        {},
        {"exp_h": NOW_H},
        {"exp_h": NOW_H + 169},
        {"exp_h": NOW_H - 1},
        {"prev_seq": 9},
        {"ts_h": doc.not_before_h - 1, "exp_h": doc.not_before_h},
        {"ts_h": doc.not_after_h + 1, "exp_h": doc.not_after_h + 1},
        {"ts_h": NOW_H + 1},
        {"ts_h": NOW_H + 2},
        {"seq": (NOW_H + 24 << 16) + 0xFFFF},
        {"seq": NOW_H + 25 << 16},
    ):
        signed = _head(**changed)
        never = origin.out_of_bounds(signed.value, doc)
        yield {
            "now_s": NOW_S,
            "head": encode(signed.env).hex(),
            "never": never,
            "not_yet": None if never else origin.too_early(signed.value, NOW_S),
        }


_SEQUENCE = (
    (0, 0),
    (0, NOW_S),
    (NOW_H << 16, NOW_S),
    (NOW_H << 16, NOW_S + 3600),
    (1 << 60, NOW_S),
)


def _sequence(last: int, now_s: int) -> Json:
    return {"last": last, "now_s": now_s, "next": origin.next_seq(last, now_s)}


# Reconciliation -----------------------------------------------------------------------------------


def _claims() -> dict[str, Claims]:
    name = example.ORIGIN
    key = Claims(name).with_key(example.SIGNING.doc)
    head = key.with_head(_head())
    both = key.with_key(SECOND.doc)
    gone = [seal(Retract(name, 1, leaf(n), NOW_H, Scope.TRAIN), example.SIGNING.op) for n in (1, 2)]
    return {
        "nothing": Claims(name),
        "a key": key,
        "a head": head,
        "a newer key, and no head of it": both,
        "a head of the newer key": both.with_head(_head(SECOND)),
        "retractions": head.with_retract(gone[0]).with_retract(gone[1]),
        "a fork": head.with_head(_head(table_root=ZERO32)),
        "a fork, and a newer key": head.with_head(_head(table_root=ZERO32)).with_key(SECOND.doc),
        "a key that another revokes": head.with_key(REVOKED.doc),
        "two keys for one epoch": head.with_key(RIVAL.doc),
    }


def _summary(name: str, claims: Claims) -> Json:
    brief = origin.summary(claims)
    told = frames.haves([frames.Gift(claims, claims)])
    return {
        "name": name,
        "origin": claims.origin.hex(),
        "held": [frame.hex() for frame in told],
        "summary": plain(brief),
        "encoding": encode(brief).hex(),
        "item": origin.item(claims).hex(),
    }


def _answers() -> Iterable[Json]:
    """What who holds one thing gives to a peer that holds another."""
    claims = _claims()
    for mine in claims:
        for theirs in claims:
            brief = origin.summary(claims[theirs])
            part = origin.lacking(claims[mine], brief)
            gift = frames.Gift(part, claims[mine], origin.ids(brief))
            told = [frame.hex() for frame in frames.haves([gift])]
            lacks = origin.lacks(claims[mine], brief)
            if mine != theirs:
                yield {"mine": mine, "theirs": theirs, "given": told, "asks_back": lacks}


def _items(count: int) -> list[bytes]:
    return sorted(seed("slot", n)[:16] + seed("held", n)[:16] for n in range(count))


def _fingerprint(count: int) -> Json:
    items = _items(count)
    [whole] = reconcile.opening(reconcile.Items(items)).ranges
    return {"items": plain(items), "fingerprint": whole.fingerprint.hex()}


def _round(count: int, changes: int) -> Json:
    """One round, from its opening to the end: message after message, and the slots found."""
    mine = _items(count)
    other = {seed("slot", n)[:16]: seed("changed", n)[:16] for n in range(changes)}
    theirs = sorted(item[:16] + other.get(item[:16], item[16:]) for item in mine[changes // 2 :])
    sides = reconcile.Items(theirs), reconcile.Items(mine)
    steps, message = [], reconcile.opening(sides[1])
    while message is not None:
        found = reconcile.answer(sides[len(steps) % 2], message)
        steps.append({"message": encode(message).hex(), "slots_found": plain(found.slots)})
        message = found.reply
    return {"opener": plain(mine), "answerer": plain(theirs), "steps": steps}


# Frames -------------------------------------------------------------------------------------------


def _frames() -> Json:
    gone = [Retract(example.ORIGIN, 1, leaf(n), NOW_H, Scope.TRAIN) for n in range(600)]
    claims = Claims(example.ORIGIN).with_key(example.SIGNING.doc)
    for retract in gone:
        claims = claims.with_retract(seal(retract, example.SIGNING.op))
    briefs = [
        Summary(seed(n)[:16], 1, Standing.SOUND, n, bytes(16), seed(n) * 3) for n in range(900)
    ]
    haves, compares = (
        frames.haves([frames.Gift(claims, claims)]),
        frames.compares(briefs, answer=True),
    )
    return {
        "on a stream": [
            {"frame": data.hex(), "bytes": (len(data).to_bytes(4, "big") + data).hex()}
            for data in (b"\x90", encode(example.SYNC["EchoGet"]))
        ],
        "600 retractions": [_split(frame) for frame in haves],
        "900 summaries": [_split(frame) for frame in compares],
    }


def _split(frame: bytes) -> Json:
    message = decode_sync(frame)
    held = message.summaries if isinstance(message, Compare) else message.retracts
    return {"bytes": len(frame), "records": len(held), "sha256": hashlib.sha256(frame).hexdigest()}


_ENCODER = f"groove/encoder/1\n{WEIGHTS_SHA256}\nmean\nl2\n{ENCODED_CHARS}"


def text() -> str:
    """Return the file: a line for each vector, so that a change of one shows as one."""
    parts = []
    for name, value in vectors().items():
        if isinstance(value, list):
            lines = ",\n  ".join(json.dumps(one) for one in value)
            parts.append(f" {json.dumps(name)}: [\n  {lines}\n ]")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    PATH.write_text(text())
