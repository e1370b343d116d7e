"""Makes `docs/wire-vectors.json`: what a second implementation of the protocol is checked with.

All of it follows from fixed seeds. Run it after a deliberate change of the wire, and look at what
changed: `python tests/make_wire_vectors.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import support_wire as example
from gossip_kit import (
    ALICE,
    BOB,
    NOW_H,
    NOW_S,
    card,
    have,
    keys,
    leaf,
    publish,
    received,
    replica,
    seed,
)
from make_wire_refusals import refusals
from msgspec import Struct
from msgspec.structs import asdict, replace

from gossip import frames, merkle, origin, reconcile, table
from gossip.bundle_files import root_of
from gossip.core import Replica
from gossip.envelope import Signed, seal
from gossip.events import Effect, PeerUp, Publish, Received, Save, Send
from gossip.keys import Keys, private_key, public_bytes
from gossip.multiaddrs import peer_of_key
from gossip.origin import Claims
from gossip.ports import Record
from gossip.wire import (
    BYTES_MAX,
    CHUNK_BYTES,
    ZERO32,
    BundleMessage,
    Cards,
    CardsGet,
    ChunkList,
    Compare,
    Delta,
    Echo,
    Ended,
    Env,
    Fork,
    Head,
    Manifest,
    PeersMessage,
    Reason,
    Retract,
    Scope,
    Standing,
    Summary,
    SyncMessage,
    TableGet,
    decode,
    decode_sync,
    encode,
)
from router.minilm_encoder import ENC8, WEIGHTS_SHA256
from router.ports import ENCODED_CHARS

PATH = Path(__file__).parent.parent / "docs" / "wire-vectors.json"
ABOUT = (
    "Test vectors of docs/protocol.md. Bytes are in hexadecimal; texts are types and a peer. "
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
            *(_message("peers", name, value) for name, value in example.PEERS.items()),
        ],
        "signatures": _signatures(),
        "merkle": [_merkle(count) for count in (0, 1, 2, 3, 5, 8)],
        "tables": [_table(live, ended) for live, ended in ((0, 0), (1, 0), (2, 1), (5, 3))],
        "usage": [_usage(count) for count in (0, 1, 3)],
        "transfers": [_small_transfer(*case) for case in _changes()] + [_large_transfer()],
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


def _message(plane: str, name: str, value: SyncMessage | BundleMessage | PeersMessage) -> Json:
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
    ("transport", seed("alice", "transport")),
]


def _key(name: str, key_seed: bytes) -> Json:
    public = public_bytes(private_key(key_seed))
    made = {"name": name, "seed": key_seed.hex(), "public": public.hex()}
    match name:
        case "root":
            return made | {"origin": hashlib.sha256(public).hexdigest()}
        case "transport":
            return made | {"peer": peer_of_key(public)}
    return made


def _signatures() -> list[Json]:
    root, op = seed("alice", "root"), seed("alice", "op", 1)
    by_root = seal(example.RETRACT_ALL, private_key(root))
    doc = example.SIGNING.doc
    body = encode(_fields_but_last(doc))
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
        {
            "name": "AddressRecord",
            "seed": seed("alice", "transport").hex(),
            "prefix": b"groove/address/1\0".hex(),
            "payload": encode(_fields_but_last(example.ADDRESSES)).hex(),
            "signature": example.ADDRESSES.sig.hex(),
        },
    ]


def _fields_but_last(value: Struct) -> tuple[Any, ...]:
    return tuple(getattr(value, name) for name in value.__struct_fields__[:-1])


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


# Tables on their way ------------------------------------------------------------------------------

NUMBERED_LEAVES, NUMBERED_USAGE = 1000, 256  # neither the cards nor the usage fit beside the index


def _changes() -> Iterator[tuple[str, Publish, Publish]]:
    """What an origin publishes, and then: a change that a delta can say, and one that none can."""
    over, rows = Ended(leaf(9), 3, Reason.DORMANT, ()), (example.USAGE,)
    before = publish(*map(card, range(3)), ended=[over])
    merged = Ended(leaf(1), 2, Reason.MERGED, (leaf(2),))
    changed = (card(0), card(2, version=2), card(9, version=4), card(4))
    yield (
        "a changed card, a new one, an ended leaf, a revived one",
        before,
        publish(*changed, ended=[merged], usage=rows),
    )
    fewer = publish(card(0), card(2, version=2), ended=[over])
    yield "a changed card, and a leaf that is gone without a word", before, fewer


def _small_transfer(name: str, before: Publish, after: Publish) -> Json:
    holder, asker, known = _holder(), _asker(), table.build(before.cards, before.ended, ())
    first = _published(holder, before)
    list(_pieces(holder, asker, first))
    second = _published(holder, after)
    return {
        "name": name,
        "held": encode(first).hex(),
        "index": encode(known.index).hex(),
        "cards": [encode(c).hex() for c in known.live()],
        "head": encode(second).hex(),
        "messages": [frame.hex() for frame in _pieces(holder, asker, second)],
    }


def _large_transfer() -> Json:
    """A table by a rule: all of it would be half a megabyte."""
    numbers = [(n, n.to_bytes(16, "big")) for n in range(NUMBERED_LEAVES)]
    one, used, holder = card(0), example.USAGE, _holder()
    cards = [replace(one, leaf=name, version=n) for n, name in numbers]
    usage = [replace(used, leaf=name) for _, name in numbers[:NUMBERED_USAGE]]
    head = _published(holder, publish(*cards, usage=usage))
    return {
        "name": "a manifest cut in pieces",
        "rule": "leaf and version of each card, and leaf of each usage row, count from 0",
        "card": encode(one).hex(),
        "count": len(cards),
        "usage": encode(used).hex(),
        "usage_count": len(usage),
        "head": encode(head).hex(),
        "messages": [_counted(frame) for frame in _pieces(holder, _asker(), head)],
    }


def _counted(frame: bytes) -> Json:
    made: Json = {"bytes": len(frame), "sha256": hashlib.sha256(frame).hexdigest()}
    match decode_sync(frame):
        case TableGet():
            return {"type": "table-get/1"} | made
        case Manifest(_, _, cards, usage):
            return {"type": "manifest/1", "cards": len(cards), "usage": len(usage)} | made
        case CardsGet(_, _, cards, usage):
            return {"type": "cards-get/1", "cards": len(cards) // 32, "usage": usage} | made
        case Cards(_, _, cards, usage):
            return {"type": "cards/1", "cards": len(cards), "usage": len(usage)} | made
        case other:
            raise AssertionError(f"no piece of a table: {other!r}")


def _holder() -> Replica:
    """Alice, who may sign, for her only peer holds nothing of her."""
    holder = replica("alice")
    holder.handle(PeerUp(BOB, NOW_S))
    holder.handle(publish())
    holder.handle(received(BOB, Echo(keys("alice").origin, None, None)))
    return holder


def _asker() -> Replica:
    asker = replica("bob")
    asker.handle(PeerUp(ALICE, NOW_S))
    return asker


def _published(holder: Replica, what: Publish) -> Env:
    """Publish; return the head that was signed."""
    saved = [record for effect in holder.handle(what) for record in _puts(effect)]
    return next(decode(record.value, Env) for record in saved if record.table == "head")


def _puts(effect: Effect) -> Iterable[Record]:
    return effect.puts if isinstance(effect, Save) else ()


def _pieces(holder: Replica, asker: Replica, head: Env) -> Iterator[bytes]:
    """All messages, question and answer in turn, by which the asker gets the table of a head."""
    effects = asker.handle(received(ALICE, have(head)))
    while asked := _sent(effects, TableGet | CardsGet):
        yield asked
        brought = _sent(holder.handle(Received(BOB, asked, NOW_S)), Delta | Manifest | Cards)
        yield brought
        effects = asker.handle(Received(ALICE, brought, NOW_S))
    assert asker.view(keys("alice").origin).head is not None


def _sent(effects: Iterable[Effect], kind: Any) -> bytes:
    """The one message of these kinds that is sent, or none."""
    frames = [effect.frame for effect in effects if isinstance(effect, Send)]
    return next((frame for frame in frames if isinstance(decode_sync(frame), kind)), b"")


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
